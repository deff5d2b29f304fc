"""Samples the memory of a worker while it answers."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter

from edgespec.bench.peers.client import Client
from edgespec.bench.records.results import System

_SAMPLE_S = 0.2
"""Between two samples."""


class MemorySampler(threading.Thread):
    """Samples the resident memory of the client that is answering."""

    def __init__(self, offset: float) -> None:
        super().__init__(daemon=True)
        self._watched: tuple[System, Client] | None = None
        self._lock, self._ended = threading.Lock(), threading.Event()
        self._began = perf_counter() - offset

    def run(self) -> None:
        """Sample until ``end``."""
        while not self._ended.wait(_SAMPLE_S):
            with self._lock:
                if self._watched is not None:
                    system, client = self._watched
                    resident = client.resident_bytes()
                    system.peak_memory_bytes = max(system.peak_memory_bytes or 0, resident)
                    system.memory.append([round(perf_counter() - self._began, 1), resident])

    @contextmanager
    def watching(self, system: System, client: Client) -> Iterator[None]:
        """Sample the client's memory for as long as the context is open."""
        self._watched = (system, client)
        try:
            yield
        finally:
            with self._lock:
                self._watched = None

    def end(self) -> None:
        """Stop, and wait for the thread."""
        self._ended.set()
        self.join()
