"""Decodes a recorded answer again, on the clock of another device."""
