"""Any model drafts for any other: text between two tokenizers (Timor et al. 2025, OmniDraft)."""

from __future__ import annotations

import codecs
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice

import numpy as np

from edgespec.drafting.vocabulary import Ids
from edgespec.models.tokenizer import Tokenizer
from edgespec.models.vocabulary import BYTE

_COMPARED = 16
"""Of so many tokens of two vocabularies one is compared: a wrong draft is only a slow one."""
_ALIKE = 0.99
"""The share of tokens that two vocabularies must spell alike: names of unused ones do differ."""
_LONGEST_RUN = 8
"""Draft tokens that one token of the target is learnt to stand for, at most."""
_RUNS = 8192
"""Runs remembered, about 2 MB; the oldest goes first."""
_COUNTED = 64
"""Times that a run is counted; then its counts are halved."""
_PRIOR_WHOLE = 4.0
"""How often a run is taken to have been whole before it was seen: most tokens are the same word in
both vocabularies."""
_TAIL = 16
"""Draft tokens read again at most when more text comes."""
_LONGEST_TEXT = 1024
"""Bytes of a draft that are translated: a file may have tokens of any length."""


@dataclass
class Run:
    """What a run of draft tokens, begun where a token of the target begins, was part of."""

    token: int = -1
    """The target's token that the run spelled; -1: it never was the whole of one."""
    whole: float = 0.0
    longer: float = 0.0
    """How often it was whole, and how often only the beginning of a token of the target."""


class CrossVocabulary:
    """Between a target's tokens and those of a draft model with another tokenizer.

    **The context** is the target's text in the draft's own tokens. What is added to it is read
    with the last word before it, whose tokens may change by it; all before is settled. A character
    whose bytes are not all there is left out, and nothing is drafted until they are.

    **A draft's text** becomes the target's tokens as the target's tokenizer cuts it (string-level
    exact match, SLEM): from where the context ends, since there a token of the target begins. Which
    token a run of the draft's becomes is also learnt from the target (OmniDraft's n-gram cache):
    a run that it said as one token is that token, however the tokenizer would cut it; and how
    often a run was only the beginning of one ("." of ".\\n\\n") tells whether the last token of a
    draft, after which nothing is known, is whole.

    ``shared`` are the tokens with the same bytes in both, for drafts that come with probabilities
    (token-level intersection, TLI).

    Control tokens are those of the same name; one that ends an answer is else the other's end token;
    others are left out of the draft's context and end its draft, and no text ever becomes one. With
    ``bos`` the draft's context begins if it expects that, whatever the target's begins with.
    """

    same = False

    def __init__(self, target: Tokenizer, draft: Tokenizer) -> None:
        self._target, self._draft = target, draft
        self._to_draft, self._to_target = _controls(target, draft), _controls(draft, target)
        self._runs: dict[tuple[int, ...], Run] = {}
        self._begin()

    def _begin(self) -> None:
        bos = self._draft.bos
        self._own = [bos] if self._draft.add_bos and bos is not None else []
        self._settled = len(self._own)  # of _own: what more text leaves as it is
        self._tail = b""  # the text of the others, and of what has no token yet
        self._context: Sequence[int] | None = None
        self._read = 0  # tokens of the context

    def read(self, context: Sequence[int]) -> tuple[Sequence[int], int, bool]:
        """``context`` in the draft's tokens, what of that did not change, and whether it is all."""
        stable = self._settled
        if context is not self._context or len(context) < self._read:
            self._begin()
            stable = 0
        self._context = None  # interrupted, it begins anew
        said: list[
            tuple[int, int, int]
        ] = []  # a token, and where its text begins and ends in _tail
        for id in islice(context, self._read, None):
            if id not in self._to_draft:
                begin = len(self._tail)
                self._tail += self._target.token_bytes(id)
                said.append((id, begin, len(self._tail)))
                continue
            self._tokenise(said, ended=True)
            said = []
            control = self._to_draft[id]
            if control is not None and self._own != [control]:  # else: bos is there already
                self._own.append(control)
                self._settled = len(self._own)
        pending = self._tokenise(said)
        self._read, self._context = len(context), context
        return self._own, stable, bool(self._own) and not pending

    def _tokenise(self, said: Sequence[tuple[int, int, int]], ended: bool = False) -> int:
        """Put ``_tail``'s tokens at the end of ``_own``; the bytes that are no character yet.

        ``ended``: no text follows.
        """
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        text = decoder.decode(self._tail, ended)
        pending = len(decoder.getstate()[0])
        ids = _encode(self._draft, text)
        self._own[self._settled :] = ids
        words = [self._draft.token_bytes(id) for id in ids]
        starts = [0]
        for word in words:
            starts.append(starts[-1] + len(word))
        settled = len(ids)  # all of it, where the tokenizer changed the text
        if starts[-1] == len(self._tail) - pending:
            index = {start: i for i, start in enumerate(starts)}
            for token, begin, end in said:
                if begin in index and end in index:
                    self._learn(tuple(ids[index[begin] : index[end]]), token)
            if not ended:
                settled = _last_word(words)
            self._tail = self._tail[starts[settled] :]
        else:
            self._tail = self._tail[len(self._tail) - pending :]
        self._settled += settled
        return pending

    def _learn(self, run: tuple[int, ...], token: int) -> None:
        """Count that the target said ``token`` for ``run``."""
        for length in range(1, len(run) + 1) if len(run) <= _LONGEST_RUN else ():
            found = self._runs.setdefault(run[:length], Run())
            if length == len(run):
                found.token, found.whole = token, found.whole + 1
            else:
                found.longer += 1
            if found.whole + found.longer > _COUNTED:
                found.whole, found.longer = found.whole / 2, found.longer / 2
        while len(self._runs) > _RUNS:
            del self._runs[next(iter(self._runs))]

    def spell(self, tokens: Sequence[int]) -> list[tuple[int, int, float]]:
        """The target's tokens for the draft's; up to where it says what the target cannot say."""
        text, ends, control = b"", [], None
        for token in tokens:
            if token in self._to_target:
                control = self._to_target[token]
                break
            text += self._draft.token_bytes(token)
            ends.append(len(text))
            if len(text) > _LONGEST_TEXT:
                break
        length = len(_characters(text[:_LONGEST_TEXT]).encode())
        spelled: list[tuple[int, int, float]] = []
        at = 0
        cut: list[int] = []  # what the tokenizer makes of the text from here on, the last first
        while at < length:
            first = bisect_left(ends, at + 1) if at else 0
            if not at or ends[first - 1] == at:  # a run of whole draft tokens begins here
                token, end = self._learnt(tokens[first : len(ends)], ends[first:])
            else:
                token, end = -1, 0
            if token < 0 or end > length:
                cut = cut or _encode(self._target, _characters(text[at:length]))[::-1]
                token = cut.pop() if cut else -1
                size = len(self._target.token_bytes(token)) if token >= 0 else 0
                if not size or self._target.token_bytes(token) != text[at : at + size]:
                    return spelled
                end = at + size
            elif cut and token == cut[-1]:
                cut.pop()
            else:
                cut = []
            at = end
            spelled.append((token, bisect_left(ends, at) + 1, 1.0))
        if control is not None and length == len(text):
            spelled.append((control, len(ends) + 1, 1.0))
        elif spelled:
            token, end, _ = spelled[-1]
            begun = spelled[-2][1] if len(spelled) > 1 else 0
            run = self._runs.get(tuple(tokens[begun:end]), Run())
            seen = _PRIOR_WHOLE + run.whole
            spelled[-1] = token, end, seen / (seen + run.longer)
        return spelled

    def _learnt(self, tokens: Sequence[int], ends: Sequence[int]) -> tuple[int, int]:
        """The target's token for the longest run of at least two that it said as one, and the run's
        end; -1: none."""
        for length in range(min(_LONGEST_RUN, len(tokens)), 1, -1):
            run = self._runs.get(tuple(tokens[:length]))
            if run and run.whole > run.longer:
                return run.token, ends[length - 1]
        return -1, 0

    @cached_property
    def shared(self) -> Ids:
        """By the draft's id: the target's token with the same bytes, or -1.

        Of tokens with the same bytes one that is not a byte of SentencePiece's is taken, then the
        first. It takes half a second, and only sampling needs it.
        """
        target, draft = self._target, self._draft
        found: dict[bytes, int] = {}
        for id in range(target.vocab_size - 1, -1, -1):
            word = b"" if id in self._to_draft else target.token_bytes(id)
            if word and not (target.kinds[id] == BYTE and word in found):
                found[word] = id
        ids = np.full(draft.vocab_size, -1)
        for id in range(draft.vocab_size):
            if id in self._to_target:
                control = self._to_target[id]
                ids[id] = -1 if control is None else control
            else:
                ids[id] = found.get(draft.token_bytes(id), -1)
        return ids


def between(target: Tokenizer, draft: Tokenizer) -> CrossVocabulary | None:
    """What translates between them; ``None`` where they have the same tokens, but for padding and
    names that are not used."""
    compared = range(0, max(target.vocab_size, draft.vocab_size), _COMPARED)
    both = range(0, min(target.vocab_size, draft.vocab_size), _COMPARED)
    alike = sum(target.token_text(id) == draft.token_text(id) for id in both)
    return None if alike >= _ALIKE * len(compared) else CrossVocabulary(target, draft)


def _controls(ours: Tokenizer, theirs: Tokenizer) -> dict[int, int | None]:
    """By each of our control tokens, the one of theirs that stands for it, if any."""
    names = {theirs.token_text(id): id for id in theirs.special_ids if id < theirs.vocab_size}
    end = theirs.eos if theirs.eos is not None and theirs.eos < theirs.vocab_size else None
    return {
        id: names.get(ours.token_text(id), end if id in ours.stop_tokens else None)
        for id in ours.special_ids
        if id < ours.vocab_size
    }


def _characters(text: bytes) -> str:
    """The text up to where it is not UTF-8, or its last character not whole."""
    try:
        return text.decode()
    except UnicodeDecodeError as error:
        return text[: error.start].decode()


def _encode(tokenizer: Tokenizer, text: str) -> list[int]:
    """The tokens of a text that goes on from another: without a space before it."""
    if tokenizer.space_prefix == "never":
        return tokenizer.encode(text)
    ids = tokenizer.model.encode(text, add_special_tokens=False).ids
    return [id for id in ids if id < tokenizer.vocab_size]


def _last_word(words: Sequence[bytes]) -> int:
    """Where the last word of these tokens begins: what is before does not change by what follows.

    Where it is long, or there are no spaces, the place of a character that is near.
    """
    first = max(0, len(words) - _TAIL)
    for i in range(len(words) - 1, first, -1):
        if words[i][:1].isspace() and not words[i - 1][-1:].isspace():
            return i
    while first and first < len(words) and b"\x80" <= words[first][:1] < b"\xc0":
        first += 1
    return first
