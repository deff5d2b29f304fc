"""The systems that people would otherwise use, measured by the same bench."""
