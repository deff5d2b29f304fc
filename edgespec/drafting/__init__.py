"""Drafters and the sources they look tokens up in. One file each."""
