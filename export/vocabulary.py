"""Which tokens a draft's head keeps, what that costs in acceptance, and what it gains in speed.

VocabTrim (Goel et al. 2025) keeps the tokens that the target itself outputs most often, FR-Spec (Zhao
et al. 2025) those that are most frequent in a corpus. Counts are int64 ``[vocab_size]``; of every ten
pieces of text one is held out, to measure on. A sample of some thousand tokens lacks most of those that
will be output: ``likely_tokens`` infers their frequencies from those of tokens that the model treats alike.
"""

from __future__ import annotations

import io
import json
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import numpy as np
import numpy.typing as npt

from edgespec.core.runtime import FloatArray, Runtime
from edgespec.errors import UserError
from edgespec.models.tokenizer import Tokenizer
from edgespec.models.vocabulary import UNUSED
from edgespec.progress import Progress, silent

Counts = npt.NDArray[np.int64]
Frequencies = npt.NDArray[np.float64]
"""How often each token is expected, up to a factor, ``[vocab_size]``."""
TokenIds = npt.NDArray[np.int64]
Answer = tuple[Sequence[int], Sequence[int]]
"""A prompt's token ids and the target's output tokens."""

_LINE_CHARACTERS, _JSON_CHARACTERS = 1 << 16, 1 << 24
_UNUSED_NAME = re.compile(r"<unused\d+>")


@dataclass(frozen=True)
class Tuning:
    """Constants of this module. No measurement is recorded for those without a reason."""

    piece_characters: int = 4096
    """Characters of a piece of text that is tokenized at once."""
    held_out: int = 10
    """One in so many pieces is held out to measure on: a tenth, as is usual."""
    pass_rows: int = 32
    """Tokens in a pass: bounds the memory of their logits."""
    max_draft: int = 16
    """Tokens of the longest draft that ``best_size`` considers."""
    timed_passes: int = 15
    """Passes of which ``pass_seconds`` takes the median."""
    fit_steps: int = 60
    """Evaluations of the likelihood in ``likely_tokens``, each after a Newton step or a part of one."""
    ridge: float = 0.01
    """Share of the mean of the Hessian's diagonal that is added to it, so that it can be inverted."""


TUNING = Tuning()


def count_tokens(
    tokenizer: Tokenizer, files: Sequence[Path], progress: Progress = silent
) -> tuple[Counts, Counts]:
    """How often each token occurs in ``files``, and in what was held out of them.

    Files are what ``texts_of`` reads, in pieces of some lines. Raises ``UserError`` where one cannot
    be read.
    """
    pieces = (tokenizer.encode(piece) for path in files for piece in _pieces(path, progress))
    return sampled_tokens(pieces, tokenizer.vocab_size)


def sampled_tokens(answers: Iterable[Sequence[int]], vocab_size: int) -> tuple[Counts, Counts]:
    """How often each token occurs in ``answers`` (lists of ids), and in those held out of them."""
    counts = np.zeros((2, vocab_size), np.int64)
    for i, answer in enumerate(answers):
        ids = np.asarray(answer, np.int64)
        counts[int(i % TUNING.held_out == TUNING.held_out // 2)] += np.bincount(
            ids, minlength=vocab_size
        )
    return counts[0], counts[1]


def held_out_answers(answers: Sequence[Answer]) -> Sequence[Answer]:
    """Those that ``sampled_tokens`` holds out; all, where they are too few for that."""
    return answers[TUNING.held_out // 2 :: TUNING.held_out] or answers


def other_answers(answers: Sequence[Answer]) -> list[Answer]:
    """Those that ``sampled_tokens`` does not hold out."""
    return [each for i, each in enumerate(answers) if i % TUNING.held_out != TUNING.held_out // 2]


def expected_frequencies(
    samples: Sequence[Counts], answers: Sequence[Answer], head: FloatArray, draft: Runtime
) -> Frequencies:
    """The expected frequency of each token in the distribution of ``samples`` and ``answers``.

    The sum of three: what the samples have, each with the same weight; what ``likely_tokens`` makes of
    that with ``head``, the rows of the draft's; and what ``draft`` itself expects in the answers.
    """
    shares = [counts / counts.sum() for counts in samples if counts.any()]
    if not shares:
        return np.zeros(len(head))
    seen: Frequencies = np.mean(shares, axis=0)
    expected = seen + likely_tokens(seen, head)
    if answers:
        expected += drafted_tokens(answers, draft)[: len(seen)]
    return expected


def drafted_tokens(answers: Sequence[Answer], draft: Runtime) -> Frequencies:
    """The mean of the distributions that ``draft`` has for the next token throughout ``answers``.

    Its cache is empty afterwards.
    """
    total: Frequencies = np.zeros(draft.info.vocab_size)
    rows = 0
    for prompt, output in answers:
        tokens = [*prompt, *output][: draft.info.context]
        draft.truncate(0)
        for start in range(0, len(tokens), TUNING.pass_rows):
            chunk = tokens[start : start + TUNING.pass_rows]
            logits = draft.forward(chunk)
            draft.keep(range(len(chunk)))
            powers = np.exp(logits - logits.max(axis=1, keepdims=True))
            total += (1 / powers.sum(axis=1)) @ powers
            rows += len(chunk)
    draft.truncate(0)
    total /= max(1, rows)
    return total


def likely_tokens(seen: Frequencies, head: FloatArray) -> Frequencies:
    """The frequencies softmax(``head`` · x) under which a sample with those ``seen`` is likeliest.

    A token that the sample lacks thus has about the frequency of tokens with similar rows in the head: a
    name, for example, where the sample has other names. ``head`` is float32 ``[vocab_size, hidden]``.
    """
    wanted = seen.astype(np.float32) @ head
    occurring = np.flatnonzero(seen)
    spread = head[occurring] - wanted
    # At the maximum the frequencies have about the sample's covariance, which is the Hessian there.
    hessian = (spread.T * seen[occurring].astype(np.float32)) @ spread
    hessian[np.diag_indices_from(hessian)] += TUNING.ridge * np.diag(hessian).mean()
    inverse = np.linalg.inv(hessian)
    best, step, x = -np.inf, 1.0, np.zeros_like(wanted)
    for _ in range(TUNING.fit_steps):
        logits = head @ x
        top = logits.max()
        powers = np.exp(logits - top)
        likelihood = float(wanted @ x - top - np.log(powers.sum()))
        if likelihood > best:
            best, step, start = likelihood, min(1.0, 2 * step), x
            found: Frequencies = (powers / powers.sum()).astype(np.float64)
            direction = inverse @ (wanted - found.astype(np.float32) @ head)
        else:
            step /= 4
        x = start + np.float32(step) * direction
    return found


def choose_tokens(frequencies: Counts | Frequencies, size: int, tokenizer: Tokenizer) -> TokenIds:
    """The ``size`` tokens to keep, ascending: the special and stop tokens and those of single bytes,
    then the most frequent. Tokens that the tokenizer calls unused come last.

    Of equally frequent tokens the first ids are kept: in byte-pair encoding the earliest merges.
    Raises ``UserError`` for a ``size`` larger than the vocabulary or too small for what must be kept.
    """
    ranking, required = _rank(frequencies, tokenizer)
    if size > len(ranking):
        raise UserError(f"cannot keep {size} of a vocabulary of {len(ranking)} tokens; keep fewer")
    if size < required:
        raise UserError(
            f"cannot keep {size} tokens: the special tokens, stop tokens and bytes are {required}; "
            "keep more"
        )
    return np.sort(ranking[:size])


def _rank(frequencies: Counts | Frequencies, tokenizer: Tokenizer) -> tuple[TokenIds, int]:
    """Every token, those that must be kept first, then by frequency; and how many must be kept."""
    ids = range(len(frequencies))
    unused = {
        id
        for id in ids
        if tokenizer.kinds[id] == UNUSED or _UNUSED_NAME.fullmatch(tokenizer.token_text(id))
    }
    required = {id for id in ids if len(tokenizer.token_bytes(id)) == 1}
    required |= tokenizer.special_ids - unused
    required |= tokenizer.stop_tokens
    required |= {id for id in (tokenizer.bos, tokenizer.eos) if id is not None}
    weights = frequencies.astype(np.float64)
    weights[list(unused)] = -1
    weights[list(required)] = np.inf
    return np.argsort(-weights, kind="stable"), len(required)


def coverage(token_ids: TokenIds | None, counts: Counts) -> float:
    """The share of the counted text whose tokens are kept (``None``: all are)."""
    kept = counts if token_ids is None else counts[token_ids]
    return float(kept.sum() / max(1, counts.sum()))


def acceptance(answers: Iterable[Answer], draft: Runtime) -> float:
    """α: the share of the target's tokens that the draft, given all before them, has as its best.

    ``draft`` reads each answer once, in passes of some tokens; its cache is empty afterwards.
    """
    column_ids = np.array(draft.info.token_ids or range(draft.info.vocab_size))
    accepted = total = 0
    for prompt, output in answers:
        tokens = np.array([*prompt, *output][: draft.info.context + 1], np.int64)
        first = max(len(prompt) - 1, 0)  # the row that predicts the first output token
        draft.truncate(0)
        for start in range(0, len(tokens) - 1, TUNING.pass_rows):
            chunk = tokens[start:-1][: TUNING.pass_rows]
            skipped = max(first - start, 0)
            rows = draft.forward(chunk.tolist(), logits="all" if skipped < len(chunk) else "none")
            draft.keep(range(len(chunk)))
            guesses = column_ids[rows[skipped:].argmax(axis=1)]
            accepted += int((guesses == tokens[start + 1 + skipped :][: len(guesses)]).sum())
            total += len(guesses)
    draft.truncate(0)
    return accepted / max(1, total)


def pass_seconds(runtime: Runtime, rows: int = 1, context: int = 64) -> float:
    """The median time of a pass over ``rows`` tokens after ``context`` others."""
    runtime.truncate(0)
    runtime.forward([0] * context, logits="none")
    runtime.keep(range(context))
    times = []
    for _ in range(TUNING.timed_passes):
        start = time.perf_counter()
        runtime.forward([0] * rows)
        times.append(time.perf_counter() - start)
    runtime.truncate(0)
    return float(np.median(times))


@dataclass(frozen=True)
class DraftReport:
    """The cost and benefit of a draft: bytes and seconds of a pass, and on held-out text the share of
    tokens in its vocabulary (``coverage``) and of tokens that it predicts (``acceptance``, α)."""

    weight_bytes: int
    pass_seconds: float
    coverage: float
    acceptance: float


def draft_report(draft: Runtime, held_out: Counts, answers: Iterable[Answer]) -> DraftReport:
    """Measure ``draft``; compare the report of one trimmed or pruned with that of the whole model."""
    kept = draft.info.token_ids
    return DraftReport(
        draft.info.weight_bytes,
        pass_seconds(draft),
        coverage(None if kept is None else np.array(kept), held_out),
        acceptance(answers, draft),
    )


@dataclass(frozen=True)
class Size:
    """A number of tokens to keep, and what it promises with drafts of ``draft_length`` tokens."""

    tokens: int
    coverage: float
    draft_length: int
    tokens_per_second: float


def linear_cost(small: tuple[int, float], large: tuple[int, float]) -> Callable[[int], float]:
    """Seconds of a draft pass by rows of the head, from two measured: a pass reads each row once."""
    slope = (large[1] - small[1]) / (large[0] - small[0])
    return lambda size: small[1] + slope * (size - small[0])


def best_size(
    frequencies: Counts | Frequencies,
    held_out: Counts,
    tokenizer: Tokenizer,
    acceptance: float,
    draft_seconds: Callable[[int], float],
    target_seconds: Callable[[int], float],
) -> Size:
    """The number of tokens to keep that promises the most tokens per second (goodput, SmartSpec).

    With γ tokens drafted for a pass, N kept, and α(N) = ``acceptance`` · coverage of the held-out
    text by the N chosen of ``frequencies``, a step outputs 1 + α(N) + … + α(N)^γ tokens and takes
    γ · ``draft_seconds(N)`` + ``target_seconds(γ + 1)``. N goes from the fewest possible to the
    whole vocabulary by factors of √2, γ from 1 to 16. Of equals the smallest is taken.
    """
    ranking, required = _rank(frequencies, tokenizer)
    choices = []
    for size in _sizes(required, len(ranking)):
        covered = coverage(ranking[:size], held_out)
        alpha = acceptance * covered
        for gamma in range(1, TUNING.max_draft + 1):
            expected = sum(alpha**i for i in range(gamma + 1))
            seconds = gamma * draft_seconds(size) + target_seconds(gamma + 1)
            choices.append(Size(size, covered, gamma, expected / seconds))
    return max(choices, key=lambda choice: choice.tokens_per_second)


def _sizes(smallest: int, largest: int) -> list[int]:
    """From ``smallest`` to ``largest`` by factors of √2, rounded to multiples of 256 (kernels' tiles)."""
    smallest = max(1, smallest)
    steps = int(2 * np.log2(largest / smallest)) + 1
    sizes = {round(smallest * 2 ** (step / 2) / 256) * 256 for step in range(1, steps)}
    return sorted({size for size in sizes if smallest < size < largest} | {smallest, largest})


def texts_of(path: Path, progress: Progress = silent) -> Iterator[str]:
    """The texts of a file: the ``text`` or ``prompt`` of its JSON lines (``.jsonl``), or its lines,
    with their ends; those longer than 65536 characters are cut. Raises ``UserError`` where it holds
    none."""
    try:
        with open(path, "rb") as raw:
            size = os.fstat(raw.fileno()).st_size
            file = io.TextIOWrapper(raw, encoding="utf-8", newline="")
            for text in _json_texts(file, path) if path.suffix == ".jsonl" else _lines(file):
                yield text
                progress(f"reading {path.name}", raw.tell(), size)
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text; convert it or leave it out") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error


def _pieces(path: Path, progress: Progress) -> Iterator[str]:
    """The text of a file in pieces of some lines."""
    if path.suffix == ".jsonl":
        yield from texts_of(path, progress)
        return
    piece = ""
    for line in texts_of(path, progress):
        piece += line
        if len(piece) >= TUNING.piece_characters:
            yield piece
            piece = ""
    yield piece


def _lines(file: TextIO) -> Iterator[str]:
    while line := file.readline(_LINE_CHARACTERS):
        yield line


def _json_texts(file: TextIO, path: Path) -> Iterator[str]:
    number = 0
    while line := file.readline(_JSON_CHARACTERS):
        number += 1
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            text = row["text"] if "text" in row else row["prompt"]
            if not isinstance(text, str):
                raise TypeError(type(text))
        except (ValueError, LookupError, TypeError, RecursionError) as error:
            raise UserError(
                f"line {number} of {path} is no JSON object with a text or a prompt"
            ) from error
        yield text
