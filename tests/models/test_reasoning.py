"""The parts of an answer with reasoning, whichever way its text is cut into pieces."""

from __future__ import annotations

import random

import pytest

from edgespec.models.reasoning import Marks, Part, ReasoningParser, find_marks

THINK = Marks("<think>", "</think>")
CONTROL = Marks("[THINK]", "[/THINK]", control=True)
HARMONY = find_marks("{{ '<|channel|>analysis<|message|>' }}", [], [])
assert HARMONY is not None

ANSWERS: list[tuple[Marks, bool, str, list[Part]]] = [
    (
        THINK,
        False,
        "<think>\n2+2\n</think>\n\n4.",
        [
            ("mark", "<think>"),
            ("reasoning", "\n2+2\n"),
            ("mark", "</think>\n\n"),
            ("answer", "4."),
        ],
    ),
    (THINK, True, "so 4</think>4", [("reasoning", "so 4"), ("mark", "</think>"), ("answer", "4")]),
    (THINK, False, "  plain, 1 < 2", [("answer", "  plain, 1 < 2")]),
    (THINK, False, "Write <think> first.", [("answer", "Write <think> first.")]),
    (THINK, True, "1 < 2 </thin", [("reasoning", "1 < 2 ")]),
    (THINK, False, "\n<thi", [("answer", "\n")]),
    (THINK, False, "<think>half", [("mark", "<think>"), ("reasoning", "half")]),
    (THINK, True, "a</think> \n", [("reasoning", "a"), ("mark", "</think> \n")]),
    (
        CONTROL,
        False,
        "Well. [THINK]hm[/THINK] Yes [no].",
        [
            ("answer", "Well. "),
            ("mark", "[THINK]"),
            ("reasoning", "hm"),
            ("mark", "[/THINK] "),
            ("answer", "Yes [no]."),
        ],
    ),
    (
        HARMONY,
        False,
        "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final<|message|>4",
        [
            ("mark", "<|channel|>analysis<|message|>"),
            ("reasoning", "hm"),
            ("mark", "<|end|><|start|>assistant<|channel|>final<|message|>"),
            ("answer", "4"),
        ],
    ),
    (
        HARMONY,
        False,
        "<|channel|>final<|message|>4",
        [("mark", "<|channel|>final<|message|>"), ("answer", "4")],
    ),
    (HARMONY, False, "<|channel|>", []),
    (HARMONY, False, "4", [("answer", "4")]),
    (CONTROL, False, "a [THIN", [("answer", "a [THIN")]),
]


def parts_of(marks: Marks | None, opened: bool, pieces: list[str], cut: bool = True) -> list[Part]:
    parser = ReasoningParser(marks, opened=opened)
    parts = [part for piece in pieces for part in parser.push(piece)] + parser.flush(cut=cut)
    joined: list[Part] = []
    for kind, text in parts:
        assert text
        space = kind == "mark" and not text.strip()
        if joined and joined[-1][0] == kind and (kind != "mark" or space):
            joined[-1] = (kind, joined[-1][1] + text)
        else:
            joined.append((kind, text))
    return joined


@pytest.mark.parametrize(("marks", "opened", "text", "expected"), ANSWERS)
def test_parts_do_not_depend_on_the_pieces(
    marks: Marks, opened: bool, text: str, expected: list[Part]
) -> None:
    assert parts_of(marks, opened, [text]) == expected
    assert parts_of(marks, opened, list(text)) == expected
    rng = random.Random(7)
    for _ in range(20):
        cuts = sorted(rng.randrange(len(text) + 1) for _ in range(3))
        pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
        assert parts_of(marks, opened, pieces) == expected


@pytest.mark.parametrize(("marks", "opened", "text"), [answer[:3] for answer in ANSWERS])
def test_the_parts_of_a_finished_answer_are_its_text(marks: Marks, opened: bool, text: str) -> None:
    for pieces in ([text], list(text)):
        assert "".join(part for _, part in parts_of(marks, opened, pieces, cut=False)) == text


def test_a_model_without_reasoning_has_only_answers() -> None:
    parser = ReasoningParser(None)
    assert parser.push("<think>a") == [("answer", "<think>a")]
    assert parser.push("</think>") == [("answer", "</think>")]
    assert parser.flush(cut=True) == []


def test_marks_are_found_in_the_template_or_the_vocabulary() -> None:
    assert find_marks("{{ x.split('</think>')[-1] }}", [], []) == THINK
    tokens = ["[THINK]", "[/THINK]", "<s>"]
    assert find_marks("", tokens, tokens) == CONTROL
    assert find_marks("", ["<think>"], []) is None
    assert find_marks("{{ '<think>' }}", [], []) is None


def test_places_are_only_those_of_the_models_marks() -> None:
    def marked(marks: Marks, text: str) -> list[str]:
        return [text[place] for place in marks.places(text)]

    assert marked(THINK, "\n<think>a</think> b <think>c</think>") == ["<think>", "</think>"]
    assert marked(THINK, "say <think>") == []
    assert marked(CONTROL, "x[THINK]a[/THINK]y[/THINK]") == ["[THINK]", "[/THINK]"]
    assert marked(CONTROL, "[THINK]open") == ["[THINK]"]
