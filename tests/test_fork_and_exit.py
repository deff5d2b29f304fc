"""Engines on each runtime: closed under an answer, in forked processes, open when the program ends."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from edgespec import Engine, EngineClosed
from tests.test_queueing import in_threads
from tests.tiny import tiny_gguf

RUNTIMES = {
    "onnx": None,
    "onnx without kernels": None,
    "llama-cpp": "llama_cpp",
    "ik-llama-cpp": "ik_llama_cpp",
}
"""The package that each needs."""


@pytest.fixture(params=RUNTIMES)
def runtime(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if package := RUNTIMES[request.param]:
        pytest.importorskip(package)
    name, _, without = str(request.param).partition(" without ")
    if without:
        monkeypatch.setenv("EDGESPEC_KERNELS", "0")
    return name


@pytest.fixture
def run(runtime: str, tmp_path: Path, home: Path) -> Callable[[str], str]:
    """Runs a program that begins with an engine ``e`` in a fresh process, and checks its exit status.

    Its parameter ``path`` is the model. Returns what it wrote to stderr.
    """
    path = tiny_gguf(tmp_path / "tiny.gguf")
    opened = f"""
import edgespec, os, signal, sys, threading
path = {str(path)!r}
e = edgespec.Engine.open(path, runtime={runtime!r}, draft="none", remember=False)
"""

    def run(program: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", opened + program], capture_output=True, text=True, timeout=240
        )
        assert done.returncode == 0, done.stderr
        return done.stderr

    return run


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system does not fork")
@pytest.mark.parametrize("call", ["e.generate('abc', max_tokens=3)", "edgespec.Engine.open(path)"])
def test_a_forked_process_is_refused_and_ends(call: str, run: Callable[[str], str]) -> None:
    run(f"""
stream = e.generate("abc", max_tokens=10, stream=True)
next(stream)
if not (child := os.fork()):
    signal.alarm(60)
    try:
        {call}
    except edgespec.EngineClosed as error:
        for end in (stream.cancel, stream.close, e.close):
            end()
        sys.exit(7)
    sys.exit(1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
assert list(stream)
""")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system does not fork")
def test_a_process_may_fork_while_threads_answer(run: Callable[[str], str]) -> None:
    run("""
threads = [threading.Thread(target=lambda: e.generate("abc", max_tokens=15)) for _ in range(3)]
for thread in threads:
    thread.start()
for _ in range(5):
    if not (child := os.fork()):
        signal.alarm(60)
        e.close()
        sys.exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
for thread in threads:
    thread.join()
""")


@pytest.mark.parametrize("caught", ["ZeroDivisionError", "Exception"])
def test_the_program_ends_while_daemon_threads_answer(
    caught: str, run: Callable[[str], str]
) -> None:
    """Silently, also if the threads would catch errors and try again."""
    assert not run(f"""
started = threading.Event()
def answer():
    while True:
        try:
            for piece in e.generate("abc", max_tokens=200, stream=True):
                started.set()
        except {caught} as error:
            print(repr(error), file=sys.stderr)
for _ in range(3):
    threading.Thread(target=answer, daemon=True).start()
assert started.wait(60)
""")


def test_the_program_ends_while_streams_are_paused(run: Callable[[str], str]) -> None:
    assert not run("""
streams = [e.generate("abc", max_tokens=200, stream=True) for _ in range(3)]
next(streams[0]), next(streams[1])
""")


def test_an_engine_closed_under_a_running_stream(runtime: str, tmp_path: Path, home: Path) -> None:
    path = tiny_gguf(tmp_path / "tiny.gguf")
    for _ in range(3):
        engine = Engine.open(path, runtime=runtime, draft="none", remember=False)
        started = threading.Event()

        def read(engine: Engine = engine, started: threading.Event = started) -> None:
            while True:
                for _ in engine.generate("abc", stream=True, max_tokens=50):
                    started.set()

        def close(engine: Engine = engine, started: threading.Event = started) -> None:
            assert started.wait(60)
            engine.close()

        *readers, _ = in_threads(read, read, close)
        assert [type(error) for error in readers] == [EngineClosed] * 2


def test_an_engine_closed_under_a_paused_stream(runtime: str, tmp_path: Path, home: Path) -> None:
    engine = Engine.open(tiny_gguf(tmp_path / "tiny.gguf"), runtime=runtime, remember=False)
    session = engine.session(ignore_stop=True)
    stream = session.complete("abc", max_tokens=50)
    next(stream)
    engine.close()
    with pytest.raises(EngineClosed, match="closed"):
        next(stream)
    for call in (session.trace, lambda: engine.generate("abc", max_tokens=3)):
        with pytest.raises(EngineClosed, match="closed"):
            call()
