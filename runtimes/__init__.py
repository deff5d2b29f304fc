"""Runtimes load a model that is already in their format and run passes over it."""
