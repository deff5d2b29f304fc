"""The drafters without a model, by their names."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from edgespec.core.drafter import Drafter
from edgespec.core.runtime import ModelInfo
from edgespec.drafting.hierarchy import Hierarchy
from edgespec.drafting.ngram_cache import MAX_BYTES, NgramCache
from edgespec.drafting.recycling import Recycling
from edgespec.drafting.retrieval import open_datastores
from edgespec.drafting.sources import Source
from edgespec.drafting.stores.ngram_store import enabled, key_of, path_of
from edgespec.drafting.suffix import Suffix
from edgespec.errors import UserError
from edgespec.models.tokenizer import Tokenizer

MODEL_FREE = ("none", "suffix", "ngram", "ngram-cache", "recycling", "retrieval", "hierarchy")
"""``suffix`` is prompt lookup; ``ngram`` is its former name. ``hierarchy`` is every source except recycling, which
found nothing more beside the n-gram cache and takes time at every row."""


def model_free(name: str, vocab_size: int, persistent: Sequence[Source] = ()) -> list[Drafter]:
    """The drafters for ``name``, one of ``MODEL_FREE``: none or one.

    ``vocab_size`` is the width of the target's logits; ``persistent`` are the sources from ``persistent_sources``.
    """
    sources: list[Source] = []
    if name in ("suffix", "ngram", "hierarchy"):
        sources.append(Suffix())
    if name == "recycling":
        sources.append(Recycling(vocab_size))
    sources += persistent
    return [Hierarchy(sources)] if sources else []


def persistent_sources(
    name: str,
    tokenizer: Tokenizer,
    info: ModelInfo,
    fingerprint: str,
    *,
    cache_bytes: int = MAX_BYTES,
    indexes: bool = True,
    remember: bool = True,
    notice: Callable[[str], None] = lambda line: None,
) -> list[Source]:
    """The sources of ``name`` that know more than this conversation.

    These are the user's indexed files, and an n-gram cache of the earlier answers of the model with this
    ``fingerprint``. The cache takes at most ``cache_bytes``. Without ``indexes`` the indexed files are left out: their
    pages count as memory once they are read. Without ``remember`` no cache file is read or written. Files that cannot
    be used are reported to ``notice``. Raises ``UserError`` if ``name`` is retrieval and there is no index.
    """
    sources: list[Source] = []
    if name in ("retrieval", "hierarchy"):
        if indexes:
            sources += open_datastores(tokenizer, notice)
        elif name == "retrieval":
            raise UserError(
                "--memory-budget leaves indexed files out; take another --draft with it"
            )
        if not sources and name == "retrieval":
            raise UserError(
                "no files are indexed for this model's tokenizer; "
                "make an index with `edgespec index PATH --model MODEL`"
            )
    if name in ("ngram-cache", "hierarchy"):
        key = key_of(fingerprint, info.vocab_size)
        path = path_of(key) if remember and enabled() else None
        sources.append(
            NgramCache(
                path, key, info.vocab_size, model=info.name, max_bytes=cache_bytes, notice=notice
            )
        )
    return sources
