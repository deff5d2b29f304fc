from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgespec.core.draft import EMPTY
from edgespec.core.drafter import Outcome
from edgespec.core.runtime import ModelInfo
from edgespec.drafting.hierarchy import Hierarchy
from edgespec.drafting.model_free import MODEL_FREE, model_free, persistent_sources
from edgespec.drafting.stores import datastore, indexing, ngram_store
from edgespec.errors import UserError
from edgespec.models.gguf import GGUFFile
from edgespec.models.tokenizer import Tokenizer
from tests.tiny import tiny_gguf


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.from_gguf(GGUFFile(tiny_gguf(tmp_path_factory.mktemp("tiny") / "a.gguf")))


def info(tokenizer: Tokenizer) -> ModelInfo:
    return ModelInfo("tiny", "llama", tokenizer.vocab_size, 1, 512, 1, "cpu", "onnx")


def indexed(tokenizer: Tokenizer, folder: Path) -> None:
    (folder / "notes.txt").write_text("the sea is salty " * 50, encoding="utf-8")
    indexing.build([folder / "notes.txt"], tokenizer, name="notes", model="tiny")


NAMES = {
    "none": [],
    "suffix": ["suffix"],
    "ngram": ["suffix"],
    "ngram-cache": ["ngram-cache"],
    "recycling": ["recycling"],
    "retrieval": ["retrieval:notes"],
    "hierarchy": ["suffix", "retrieval:notes", "ngram-cache"],
}


@pytest.mark.parametrize("name", MODEL_FREE)
def test_the_sources_of_every_name(
    name: str, tokenizer: Tokenizer, home: Path, tmp_path: Path
) -> None:
    indexed(tokenizer, tmp_path)
    persistent = persistent_sources(name, tokenizer, info(tokenizer), "f", notice=pytest.fail)
    drafters = model_free(name, tokenizer.vocab_size, persistent)
    assert len(drafters) == (name != "none")
    for drafter in drafters:
        assert isinstance(drafter, Hierarchy)
        assert [source.name for source in drafter.sources] == NAMES[name]


def test_nothing_indexed_is_an_error_of_retrieval_alone(tokenizer: Tokenizer, home: Path) -> None:
    with pytest.raises(UserError, match="edgespec index PATH") as caught:
        persistent_sources("retrieval", tokenizer, info(tokenizer), "f", notice=pytest.fail)
    assert "\n" not in str(caught.value)
    sources = persistent_sources("hierarchy", tokenizer, info(tokenizer), "f", notice=pytest.fail)
    assert [source.name for source in sources] == ["ngram-cache"]


def test_an_index_that_cannot_be_used_is_reported(
    tokenizer: Tokenizer, home: Path, tmp_path: Path
) -> None:
    indexed(tokenizer, tmp_path)
    [path] = datastore.index_paths()
    path.write_bytes(path.read_bytes()[:100])
    notices: list[str] = []
    sources = persistent_sources(
        "hierarchy", tokenizer, info(tokenizer), "f", notice=notices.append
    )
    assert [source.name for source in sources] == ["ngram-cache"]
    assert len(notices) == 1
    assert str(path) in notices[0]


def test_nothing_is_kept_where_the_cache_is_off(tokenizer: Tokenizer, home: Path) -> None:
    for on in (False, True):
        ngram_store.switch(on)
        [cache] = persistent_sources(
            "ngram-cache", tokenizer, info(tokenizer), "f", notice=pytest.fail
        )
        cache.start([1])
        cache.observe(Outcome(EMPTY, 0, [2, 3], np.empty((0, 0), np.float32)))
        cache.close()  # type: ignore[attr-defined]
        assert bool(ngram_store.cache_files()) == on


def test_models_have_caches_of_their_own(tokenizer: Tokenizer, home: Path) -> None:
    for fingerprint in "ab":
        [cache] = persistent_sources("ngram-cache", tokenizer, info(tokenizer), fingerprint)
        assert not cache.successors(cache.start([1]), 4)
        cache.observe(Outcome(EMPTY, 0, [2], np.empty((0, 0), np.float32)))
        assert cache.successors(cache.start([1]), 4)
        cache.close()  # type: ignore[attr-defined]
    assert len(ngram_store.cache_files()) == 2
