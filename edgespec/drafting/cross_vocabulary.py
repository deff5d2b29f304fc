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


@dataclass(frozen=True)
class CrossVocabularyConstants:
    """Constants of translation between tokenizers. All of them are guesses."""

    compared: int = 16
    """One of so many tokens is compared to find out whether two vocabularies are the same. An error is harmless:
    a wrong draft only costs time."""
    alike: float = 0.99
    """Least share of equal tokens of two vocabularies that are the same: names of unused tokens differ."""
    longest_run: int = 8
    """Draft tokens that are learnt as one token of the target, at most."""
    runs: int = 8192
    """Runs that are stored, about 2 MB; the oldest is dropped first."""
    counted: int = 64
    """Observations of a run after which its counts are halved."""
    prior_complete: float = 4.0
    """Prior observations of a complete run: most tokens are the same text in both vocabularies."""
    tail: int = 16
    """Draft tokens that are tokenized again, at most, when more text comes."""
    longest_text: int = 1024
    """Bytes of a draft that are translated: a file may have tokens of any length."""


CONSTANTS = CrossVocabularyConstants()


@dataclass
class Run:
    """Observations of a run of draft tokens that starts where a token of the target starts."""

    token: int = -1
    """The target's token with the run's text; -1: none was observed."""
    complete: float = 0.0
    """How often it was a whole token of the target."""
    longer: float = 0.0
    """How often it was only the beginning of a token of the target."""


class CrossVocabulary:
    """Translates between a target's tokens and those of a draft model with another tokenizer.

    **The context** is the target's text in the draft's own tokens. New text is tokenized together with the last word
    before it, because it may change that word's tokens; everything before is settled. An incomplete character is left
    out, and nothing is drafted until its bytes are complete.

    **A draft's text** is cut into the target's tokens by the target's tokenizer (string-level exact match, SLEM), from
    the context's end on, where a token of the target starts. The tokens for a run of draft tokens are also learnt from
    the target (OmniDraft's n-gram cache): a run that the target produced as one token becomes that token, however the
    tokenizer cuts it. How often a run was only the beginning of a token ("." of ".\\n\\n") gives the chance that the
    last token of a draft is complete.

    ``shared`` are the tokens with the same bytes in both vocabularies, for drafts with probabilities (token-level
    intersection, TLI).

    A control token becomes the other's control token of the same name. A stop token without one becomes the other's end
    token. Other control tokens are left out of the draft's context, and end a draft. No text becomes a control token.
    The draft's context begins with ``bos`` if the draft model expects that, whatever the target's begins with.
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
        self._settled = len(self._own)  # tokens of _own that more text does not change
        self._tail = b""  # the text of the others, and of incomplete characters
        self._context: Sequence[int] | None = None
        self._read = 0  # tokens of the context

    def read(self, context: Sequence[int]) -> tuple[Sequence[int], int, bool]:
        """``context`` in the draft's tokens, how many did not change, and whether they are all of it."""
        stable = self._settled
        if context is not self._context or len(context) < self._read:
            self._begin()
            stable = 0
        self._context = None  # start over after an interruption
        added: list[tuple[int, int, int]] = []  # a token, and its text's start and end in _tail
        for id in islice(context, self._read, None):
            if id not in self._to_draft:
                begin = len(self._tail)
                self._tail += self._target.token_bytes(id)
                added.append((id, begin, len(self._tail)))
                continue
            self._tokenise(added, ended=True)
            added = []
            control = self._to_draft[id]
            if control is not None and self._own != [control]:  # else: bos is there already
                self._own.append(control)
                self._settled = len(self._own)
        pending = self._tokenise(added)
        self._read, self._context = len(context), context
        return self._own, stable, bool(self._own) and not pending

    def _tokenise(self, added: Sequence[tuple[int, int, int]], ended: bool = False) -> int:
        """Put the tokens of ``_tail`` at the end of ``_own``; returns the bytes of an incomplete character.

        ``added`` are the target's new tokens, to learn runs from. ``ended``: no text follows.
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
            for token, begin, end in added:
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
        """Count that ``token`` is the target's for ``run``."""
        for length in range(1, len(run) + 1) if len(run) <= CONSTANTS.longest_run else ():
            found = self._runs.setdefault(run[:length], Run())
            if length == len(run):
                found.token, found.complete = token, found.complete + 1
            else:
                found.longer += 1
            if found.complete + found.longer > CONSTANTS.counted:
                found.complete, found.longer = found.complete / 2, found.longer / 2
        while len(self._runs) > CONSTANTS.runs:
            del self._runs[next(iter(self._runs))]

    def spell(self, tokens: Sequence[int]) -> list[tuple[int, int, float]]:
        """The target's tokens for the draft's, up to one that the target does not have."""
        text, ends, control = b"", [], None
        for token in tokens:
            if token in self._to_target:
                control = self._to_target[token]
                break
            text += self._draft.token_bytes(token)
            ends.append(len(text))
            if len(text) > CONSTANTS.longest_text:
                break
        length = len(_characters(text[: CONSTANTS.longest_text]).encode())
        spelled: list[tuple[int, int, float]] = []
        at = 0
        cut: list[int] = []  # the tokenizer's tokens for the rest of the text, the last first
        while at < length:
            first = bisect_left(ends, at + 1) if at else 0
            if not at or ends[first - 1] == at:  # a draft token starts here
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
            start = spelled[-2][1] if len(spelled) > 1 else 0
            run = self._runs.get(tuple(tokens[start:end]), Run())
            seen = CONSTANTS.prior_complete + run.complete
            spelled[-1] = token, end, seen / (seen + run.longer)
        return spelled

    def _learnt(self, tokens: Sequence[int], ends: Sequence[int]) -> tuple[int, int]:
        """The token for the longest run that the target produced as one, and the run's end; -1: none."""
        for length in range(min(CONSTANTS.longest_run, len(tokens)), 1, -1):
            run = self._runs.get(tuple(tokens[:length]))
            if run and run.complete > run.longer:
                return run.token, ends[length - 1]
        return -1, 0

    @cached_property
    def shared(self) -> Ids:
        """By the draft's id: the target's token with the same bytes, or -1.

        Among tokens with the same bytes, SentencePiece's byte tokens come last, and else the first is taken. This takes
        half a second; only sampling needs it.
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
    """The translation between two tokenizers; ``None`` if they have the same tokens, except for padding and names that
    are not used."""
    step = CONSTANTS.compared
    compared = range(0, max(target.vocab_size, draft.vocab_size), step)
    both = range(0, min(target.vocab_size, draft.vocab_size), step)
    alike = sum(target.token_text(id) == draft.token_text(id) for id in both)
    return None if alike >= CONSTANTS.alike * len(compared) else CrossVocabulary(target, draft)


def _controls(ours: Tokenizer, theirs: Tokenizer) -> dict[int, int | None]:
    """By each of our control tokens, the one of theirs for it, or ``None``."""
    names = {theirs.token_text(id): id for id in theirs.special_ids if id < theirs.vocab_size}
    end = theirs.eos if theirs.eos is not None and theirs.eos < theirs.vocab_size else None
    return {
        id: names.get(ours.token_text(id), end if id in ours.stop_tokens else None)
        for id in ours.special_ids
        if id < ours.vocab_size
    }


def _characters(text: bytes) -> str:
    """The text up to bytes that are not UTF-8, or an incomplete last character."""
    try:
        return text.decode()
    except UnicodeDecodeError as error:
        return text[: error.start].decode()


def _encode(tokenizer: Tokenizer, text: str) -> list[int]:
    """The tokens of a text that continues another: without a space before it."""
    if tokenizer.space_prefix == "never":
        return tokenizer.encode(text)
    ids = tokenizer.model.encode(text, add_special_tokens=False).ids
    return [id for id in ids if id < tokenizer.vocab_size]


def _last_word(words: Sequence[bytes]) -> int:
    """The index where the last word of these tokens starts: further text does not change the tokens before it.

    If the word is long, or there are no spaces, the start of a character near the end.
    """
    first = max(0, len(words) - CONSTANTS.tail)
    for i in range(len(words) - 1, first, -1):
        if words[i][:1].isspace() and not words[i - 1][-1:].isspace():
            return i
    while first and first < len(words) and b"\x80" <= words[first][:1] < b"\xc0":
        first += 1
    return first
