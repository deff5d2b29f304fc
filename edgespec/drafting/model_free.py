"""The drafters that need no model, by their names."""

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
"""``ngram`` is what ``suffix`` was called first. ``hierarchy`` is every source but recycling, which
found nothing more beside the n-gram cache and takes time at every row."""


def model_free(name: str, vocab_size: int, lasting: Sequence[Source] = ()) -> list[Drafter]:
    """The drafters that ``name``, one of ``MODEL_FREE``, stands for: none or one.

    ``vocab_size`` is the width of the target's logits; ``lasting`` are what ``persistent_sources`` opened.
    """
    sources: list[Source] = []
    if name in ("suffix", "ngram", "hierarchy"):
        sources.append(Suffix())
    if name == "recycling":
        sources.append(Recycling(vocab_size))
    sources += lasting
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
    """What ``name`` has of sources that know more than this conversation: the user's indexed files, and
    what the model of this ``fingerprint`` said in earlier ones.

    ``cache_bytes`` is the most that the latter take; without ``indexes`` the former, whose pages count as
    memory once they were looked at, are left out. Without ``remember`` nothing is read of earlier answers,
    nor kept of these. Files that cannot be used are told to ``notice``. Raises ``UserError`` where ``name`` is retrieval and
    there is nothing to look in.
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
