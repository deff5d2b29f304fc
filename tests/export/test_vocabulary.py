"""What a draft keeps of its vocabulary, and the figures that are given for it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edgespec.errors import UserError
from edgespec.export import build_onnx
from edgespec.export.sources.trimmed import TrimmedHead
from edgespec.export.to_onnx import write_onnx
from edgespec.export.vocabulary import (
    acceptance,
    best_size,
    choose_tokens,
    count_tokens,
    coverage,
    draft_report,
    drafted_tokens,
    expected_frequencies,
    likely_tokens,
    linear_cost,
    other_answers,
    sampled_tokens,
    texts_of,
)
from edgespec.models.gguf import GGUFFile
from edgespec.models.tokenizer import Tokenizer
from edgespec.models.tokenizer_gguf import from_metadata
from edgespec.models.vocabulary import UNUSED
from edgespec.runtimes.onnx.runtime import OnnxRuntime
from tests.tiny import tiny_gguf

BYTES_AND_SPECIALS = 256 + 3
SENTENCE = "the world is hello, and for the world the end of the world\n"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_gguf(tmp_path_factory.mktemp("tiny") / "a.gguf")


@pytest.fixture(scope="module")
def tokenizer(model: Path) -> Tokenizer:
    return Tokenizer.from_gguf(GGUFFile(model))


def corpus(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8", newline="")
    return path


def test_counts_are_those_of_the_text(tokenizer: Tokenizer, tmp_path: Path) -> None:
    text = SENTENCE * 10
    counts, held_out = count_tokens(tokenizer, [corpus(tmp_path / "a.txt", text)])
    expected = np.bincount(tokenizer.encode(text), minlength=tokenizer.vocab_size)
    np.testing.assert_array_equal(counts, expected)
    assert held_out.sum() == 0  # it is too short


def test_a_tenth_is_held_out(tokenizer: Tokenizer, tmp_path: Path) -> None:
    files = [corpus(tmp_path / name, SENTENCE * 3000) for name in ("a.txt", "b.txt")]
    counts, held_out = count_tokens(tokenizer, files)
    whole = np.bincount(tokenizer.encode(SENTENCE), minlength=tokenizer.vocab_size) * 6000
    np.testing.assert_array_equal(counts + held_out, whole)  # pieces end where lines do
    assert held_out.sum() / whole.sum() == pytest.approx(0.1, abs=0.02)


def test_json_lines(tokenizer: Tokenizer, tmp_path: Path) -> None:
    rows = [{"text": "hello world"}, {"prompt": "hello\nworld", "other": 1}]
    path = corpus(tmp_path / "a.jsonl", "\n".join(map(json.dumps, rows)) + "\n\n")
    counts, _ = count_tokens(tokenizer, [path])
    both = tokenizer.encode("hello world") + tokenizer.encode("hello\nworld")
    np.testing.assert_array_equal(counts, np.bincount(both, minlength=tokenizer.vocab_size))


def test_a_line_without_end_is_cut(tokenizer: Tokenizer, tmp_path: Path) -> None:
    pieces: list[int] = []
    path = corpus(tmp_path / "a.txt", "x" * 100_000)
    counts, held_out = count_tokens(
        tokenizer, [path], lambda what, done, total: pieces.append(done)
    )
    assert counts.sum() + held_out.sum() == 100_000
    assert pieces == sorted(pieces)
    assert pieces[-1] == 100_000


def test_prompts_are_lines(tmp_path: Path) -> None:
    lines = ["First.\n", "\n", "Zweite über\r\n", "third"]
    assert list(texts_of(corpus(tmp_path / "a.txt", "".join(lines)))) == lines


BAD_CORPORA: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing.txt": (lambda path: None, "cannot read"),
    "folder.txt": (lambda path: path.mkdir(), "cannot read"),
    "binary.txt": (lambda path: path.write_bytes(b"\x93NUMPY\xff\xfe"), "not UTF-8"),
    "text.jsonl": (lambda path: path.write_text("hello\n"), "line 1 of .*no JSON object"),
    "list.jsonl": (lambda path: path.write_text('{"text": ""}\n[1]\n'), "line 2 of"),
    "number.jsonl": (lambda path: path.write_text('{"text": 3}\n'), "line 1 of"),
    "deep.jsonl": (lambda path: path.write_text("[" * 100_000), "line 1 of"),
}


@pytest.mark.parametrize("name", BAD_CORPORA)
def test_a_corpus_that_is_none_is_a_user_error(
    tokenizer: Tokenizer, tmp_path: Path, name: str
) -> None:
    make, message = BAD_CORPORA[name]
    make(tmp_path / name)
    with pytest.raises(UserError, match=message) as caught:
        count_tokens(tokenizer, [tmp_path / name])
    assert "\n" not in str(caught.value)


def test_answers_of_the_target_are_counted() -> None:
    counts, held_out = sampled_tokens([[1, 2, 2]] * 10, 5)
    assert counts.tolist() == [0, 9, 18, 0, 0]
    assert held_out.tolist() == [0, 1, 2, 0, 0]


def test_bytes_and_special_tokens_are_kept_then_the_most_frequent(tokenizer: Tokenizer) -> None:
    counts = np.zeros(tokenizer.vocab_size, np.int64)
    counts[[260, 270, 280]] = [5, 9, 9]
    counts[ord("a")] = 99
    kept = choose_tokens(counts, BYTES_AND_SPECIALS + 2, tokenizer)
    assert kept.tolist() == [*range(256), 270, 280, *sorted(tokenizer.special_ids)]
    # Without counts the first ids, which were merged first.
    kept = choose_tokens(0 * counts, BYTES_AND_SPECIALS + 2, tokenizer)
    assert kept.tolist() == [*range(258), *sorted(tokenizer.special_ids)]
    whole = choose_tokens(counts, len(counts), tokenizer)
    assert whole.tolist() == list(range(len(counts)))


def test_smollm2_keeps_its_stop_tokens_and_every_byte_that_it_has(smollm2: Path) -> None:
    tokenizer = Tokenizer.from_gguf(GGUFFile(smollm2))
    kept = choose_tokens(np.zeros(49152, np.int64), 1000, tokenizer).tolist()
    assert tokenizer.stop_tokens | tokenizer.special_ids <= set(kept)
    text = "".join(map(chr, range(0x250))) + "😀中"
    singles = {token for char in text for token in tokenizer.encode(char)}
    assert {t for t in singles if len(tokenizer.token_bytes(t)) == 1} <= set(kept)


def test_what_the_tokenizer_calls_unused_comes_last(model: Path) -> None:
    metadata = dict(GGUFFile(model).metadata)
    names, kinds = (list(metadata[f"tokenizer.ggml.{k}"]) for k in ("tokens", "token_type"))
    between = metadata["tokenizer.ggml.bos_token_id"] + 1  # a control token, as Gemma has 6242
    assert between != metadata["tokenizer.ggml.eos_token_id"]
    names[between], kinds[260] = "<unused17>", UNUSED
    changed = {"tokenizer.ggml.tokens": names, "tokenizer.ggml.token_type": kinds}
    tokenizer = from_metadata(Tokenizer, {**metadata, **changed})
    assert between in tokenizer.special_ids
    size = tokenizer.vocab_size
    counts = np.zeros(size, np.int64)
    counts[[260, between]] = 5
    kept = choose_tokens(counts, size - 2, tokenizer)
    assert set(range(size)) - set(kept.tolist()) == {260, between}
    choose_tokens(counts, BYTES_AND_SPECIALS - 1, tokenizer)


def test_tokens_that_a_sample_lacks_are_as_likely_as_those_like_them() -> None:
    """Frequencies that are a softmax of some rows' products are found from a sample of them."""
    generator = np.random.default_rng(0)
    head = generator.standard_normal((3000, 8)).astype(np.float32)
    logits = head @ generator.standard_normal(8)
    true = np.exp(logits) / np.exp(logits).sum()
    counts = generator.multinomial(2000, true)
    found = likely_tokens(counts / counts.sum(), head)
    assert found.sum() == pytest.approx(1)
    np.testing.assert_allclose(found @ head, counts @ head / counts.sum(), atol=1e-3)
    lacking = counts == 0
    assert lacking.sum() > 1000
    assert np.corrcoef(np.log(found[lacking]), np.log(true[lacking]))[0, 1] > 0.98


def test_what_a_draft_expects_is_the_mean_of_its_distributions(model: Path, tmp_path: Path) -> None:
    draft = OnnxRuntime(build_onnx(model, tmp_path / "whole"), context=40, exact=False)
    answers = [([5, 6], list(range(7, 60))), ([8], [9])]  # the first is longer than the context
    logits = [
        draft.forward([*prompt, *output][:40]).astype(np.float64) for prompt, output in answers
    ]
    rows = np.concatenate(logits)
    expected = (np.exp(rows) / np.exp(rows).sum(axis=1, keepdims=True)).mean(axis=0)
    found = drafted_tokens(answers, draft)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-7)
    assert draft.length == 0

    head = np.random.default_rng(1).standard_normal((len(found), 4)).astype(np.float32)
    samples = [np.bincount(ids, minlength=len(found)) for ids in ([1, 1, 2, 3], [1] * 8, [])]
    both = expected_frequencies(samples, answers, head, draft)
    seen = np.bincount([1, 2, 3], [0.75, 0.125, 0.125], minlength=len(found))
    np.testing.assert_allclose(both, seen + likely_tokens(seen, head) + found)
    without = expected_frequencies(samples, [], head, draft)
    np.testing.assert_allclose(without, both - found)
    assert not expected_frequencies([0 * samples[0]], [], head, draft).any()
    draft.close()


def test_what_is_held_out_is_not_sampled() -> None:
    answers = [([i], [i]) for i in range(25)]
    assert [a for a in answers if a not in other_answers(answers)] == [([5], [5]), ([15], [15])]


@pytest.mark.parametrize("size", [0, BYTES_AND_SPECIALS - 1])
def test_too_few_tokens_are_a_user_error(tokenizer: Tokenizer, size: int) -> None:
    with pytest.raises(UserError, match=f"{size} tokens: .* are {BYTES_AND_SPECIALS}; keep more"):
        choose_tokens(np.zeros(tokenizer.vocab_size, np.int64), size, tokenizer)


def test_more_tokens_than_there_are_are_a_user_error(tokenizer: Tokenizer) -> None:
    with pytest.raises(UserError, match=f"vocabulary of {tokenizer.vocab_size} tokens; keep fewer"):
        choose_tokens(np.zeros(tokenizer.vocab_size, np.int64), 10_000, tokenizer)


def test_coverage() -> None:
    counts = np.array([3, 0, 1, 0])
    assert coverage(np.array([0, 1]), counts) == 0.75
    assert coverage(None, counts) == 1
    assert coverage(np.array([0]), 0 * counts) == 0


def test_acceptance_is_the_share_of_the_targets_tokens_that_the_draft_guesses(
    model: Path, tmp_path: Path
) -> None:
    draft = OnnxRuntime(build_onnx(model, tmp_path / "whole"), context=128, exact=False)
    prompt = [5, 6, 7]
    output: list[int] = []
    for _ in range(60):  # the draft's own answer, so that it guesses all of it
        output.append(int(draft.forward([*prompt, *output], logits="last").argmax()))
    assert acceptance([(prompt, output)], draft) == 1
    assert draft.length == 0
    wrong = [*output[:-3], (output[-3] + 1) % 256, *output[-2:]]
    assert acceptance([(prompt, wrong[:-2])], draft) == pytest.approx(57 / 58)
    assert acceptance([(prompt, output), (prompt, wrong[:-2])], draft) == pytest.approx(117 / 118)
    assert acceptance([(prompt, []), (output, [])], draft) == 0

    missing = output[0]
    kept = np.delete(np.arange(draft.info.vocab_size), missing)
    (tmp_path / "trimmed").mkdir()
    write_onnx(TrimmedHead(GGUFFile(model), kept), tmp_path / "trimmed")
    trimmed = OnnxRuntime(tmp_path / "trimmed", context=128, exact=False)
    share = sum(token != missing for token in output) / len(output)
    assert 0 < share < 1
    assert acceptance([(prompt, output)], trimmed) == pytest.approx(share)

    report = draft_report(
        trimmed, np.bincount(output, minlength=draft.info.vocab_size), [(prompt, output)]
    )
    assert report.weight_bytes == trimmed.info.weight_bytes
    assert report.coverage == report.acceptance == pytest.approx(share)
    assert report.pass_seconds > 0
    draft.close()
    trimmed.close()


def test_the_best_size_weighs_the_head_against_what_it_covers(smollm2: Path) -> None:
    tokenizer = Tokenizer.from_gguf(GGUFFile(smollm2))
    size = tokenizer.vocab_size
    counts = 10**9 // (1 + np.arange(size))  # Zipf

    def best(body_seconds: float, row_seconds: float) -> int:
        cost = linear_cost((0, body_seconds), (1000, body_seconds + 1000 * row_seconds))
        return best_size(counts, counts, tokenizer, 0.8, cost, lambda n: 50.0).tokens

    fewest = 17 + len({id for id in range(size) if len(tokenizer.token_bytes(id)) == 1})
    assert best(5.0, 0.0) == size  # rows cost nothing
    assert best(0.0, 1.0) == fewest  # they cost more than they save
    assert fewest < best(5.0, 2e-3) < best(5.0, 5e-4) < size


def test_the_predicted_speed_is_the_goodput(tokenizer: Tokenizer) -> None:
    """α = 0.5, drafted tokens at 1 s, a target pass 3 s: 1.5 tokens in 4 s, and no more in 1.75 / 5 s."""
    counts = np.ones(tokenizer.vocab_size, np.int64)
    found = best_size(counts, counts, tokenizer, 0.5, lambda n: 1.0, lambda n: 3.0)
    assert (found.tokens, found.coverage, found.draft_length) == (tokenizer.vocab_size, 1.0, 1)
    assert found.tokens_per_second == pytest.approx(1.5 / 4)
