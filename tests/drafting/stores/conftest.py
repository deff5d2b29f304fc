"""A tokenizer, and a folder of texts to index."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgespec.models.gguf import GGUFFile
from edgespec.models.tokenizer import Tokenizer
from tests.tiny import tiny_gguf

TEXTS = {"a.txt": "hello world, the world is in order\n", "b/c.md": "for the sake of the world\n"}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.from_gguf(GGUFFile(tiny_gguf(tmp_path_factory.mktemp("tiny") / "tiny.gguf")))


def write(folder: Path, texts: dict[str, str | bytes]) -> Path:
    for name, text in texts.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return folder


@pytest.fixture
def folder(tmp_path: Path, home: Path) -> Path:
    return write(tmp_path / "notes", {**TEXTS})
