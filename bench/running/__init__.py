"""A run of ``edgespec bench``: its configuration, its order, its workers and what it records of the machine."""
