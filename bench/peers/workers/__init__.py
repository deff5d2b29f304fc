"""One program per system: it opens a model and answers requests, JSON lines on stdin.

They run where the system is installed, which may be an environment without edgespec: only ``serving``
and the standard library are theirs to import, and what they measure.
"""
