"""A session's answers with reasoning: shown, hidden or apart; whole in the conversation."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest

from edgespec.core.scheduler import Scheduler
from edgespec.drafting.hierarchy import Hierarchy
from edgespec.drafting.suffix import Suffix
from edgespec.engine import Engine
from edgespec.errors import UserError
from edgespec.models.chat_template import ChatTemplate
from edgespec.models.gguf import GGUFFile
from edgespec.models.tokenizer import Tokenizer
from edgespec.session import EngineState, Session
from tests.memory_runtime import MemoryRuntime
from tests.tiny import tiny_gguf

CHAT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{{ m.content.split('CLOSE')[-1].lstrip() if m.role == 'assistant' else m.content }}<|im_end|>\n"
    "{% endfor %}<|im_start|>assistant{{ '\\n' }}"
)


class Scripted(MemoryRuntime):
    """Answers each prompt of its session with the next of ``answers``."""

    session: Session
    answers: list[list[int]]

    def logits_after(self, rows: Any) -> Any:
        place = len(rows) - len(self.session.prompt_ids)
        answer = self.answers[min(self.session._answers, len(self.answers)) - 1]
        logits = super().logits_after(rows[-1:]) * 0
        logits[answer[place] if 0 <= place < len(answer) else 0] = 9
        return logits


@pytest.fixture(scope="module")
def metadata(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    found = dict(GGUFFile(tiny_gguf(tmp_path_factory.mktemp("tiny") / "tiny.gguf")).metadata)
    for key, more in (("tokens", ["[THINK]", "[/THINK]"]), ("token_type", [3, 3])):
        found[f"tokenizer.ggml.{key}"] = found[f"tokenizer.ggml.{key}"] + more
    return found


def session_of(
    metadata: dict[str, Any],
    answers: list[str],
    *,
    tail: str = "",
    stop: bool = True,
    **options: Any,
) -> tuple[Session, EngineState]:
    """A session where the model answers so; ``tail`` ends each prompt."""
    control = "[THINK]" in "".join(answers) + tail
    source = CHAT.replace("CLOSE", "[/THINK]" if control else "</think>") + tail.replace(
        "\n", "{{ '\\n' }}"
    )

    class File:
        path = Path("made-up.gguf")

        def __init__(self) -> None:
            self.metadata = metadata | {"tokenizer.chat_template": source}

    tokenizer = Tokenizer.from_gguf(File())  # type: ignore[arg-type]
    target = Scripted(tokenizer.vocab_size, order=1 << 20, pass_sizes=())
    end = [tokenizer.eos] if stop else []
    target.answers = [
        [*tokenizer.encode(answer, special=True), *cast("list[int]", end)] for answer in answers
    ]
    scheduler = Scheduler([Hierarchy([Suffix()])])
    state = EngineState(target, scheduler, tokenizer, ChatTemplate(source, tokenizer))
    target.session = Session(state, **options)
    return target.session, state


THOUGHT, ANSWER = "\nthe user wants two\n", "It is 2."
KINDS = {
    "text": (f"<think>{THOUGHT}</think>\n\n{ANSWER}", ""),
    "control tokens": (f"[THINK]{THOUGHT}[/THINK]{ANSWER}", ""),
    "opened by the template": (f"{THOUGHT}</think>\n\n{ANSWER}", "<think>\n"),
    "opened with a control token": (f"{THOUGHT}[/THINK]{ANSWER}", "[THINK]"),
}


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_reasoning_is_shown_hidden_or_apart(metadata: dict[str, Any], kind: str) -> None:
    output, tail = KINDS[kind]
    pieces: list[str] = []
    found: dict[str, tuple[str, str]] = {}
    for mode in ("show", "hide", "separate"):
        session, _ = session_of(
            metadata, [output], tail=tail, reasoning=mode, on_reasoning=pieces.append
        )
        text = "".join(session.chat("1+1"))
        assert session.finish_reason == "stop"
        assert session.messages[-1] == {"role": "assistant", "content": tail + output}
        found[mode] = text, session.reasoning
    assert found == {
        "show": (tail + output, ""),
        "hide": (ANSWER, ""),
        "separate": (ANSWER, THOUGHT.strip()),
    }
    assert "".join(pieces).strip() == THOUGHT.strip()


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_the_next_prompt_is_the_templates(metadata: dict[str, Any], kind: str) -> None:
    output, tail = KINDS[kind]
    for mode in ("show", "hide", "separate"):
        session, state = session_of(metadata, [output, output], tail=tail, reasoning=mode)
        list(session.chat("1+1"))
        list(session.chat("sure?"))
        prompt = state.tokenizer.decode(session.prompt_ids, skip_special=False)
        assert f"assistant\n{ANSWER}<|im_end|>" in prompt
        assert "wants two" not in prompt


def test_a_cut_answer_has_no_half_mark_and_its_reasoning_is_closed(
    metadata: dict[str, Any],
) -> None:
    output = "<think>a b</think>c"
    total = 0
    for mode in ("show", "hide", "separate"):
        lengths = len(session_of(metadata, [output])[1].tokenizer.encode(output, special=True))
        for length in range(1, lengths + 1):
            session, _ = session_of(metadata, [output], reasoning=mode, stop=False)
            text = "".join(session.chat("x", max_tokens=length))
            content = session.messages[-1]["content"]
            for part in (text, session.reasoning):
                assert part.replace("<think>", "").replace("</think>", "").strip("abc ") == ""
            assert content.count("<think>") == content.count("</think>")
            total += bool(session.reasoning)
    assert total


def test_ctrl_c_inside_the_reasoning_keeps_it_closed(metadata: dict[str, Any]) -> None:
    session, _ = session_of(metadata, ["<think>a b c d</think>e", "f"])
    stream = session.chat("x")
    first = next(stream) + next(stream)
    stream.close()
    assert session.messages[-1]["content"] == first + "</think>"
    assert "".join(session.chat("y")) == "f"


def test_a_raw_prompt_may_open_the_reasoning(metadata: dict[str, Any]) -> None:
    session, _ = session_of(metadata, ["a</think>b"], reasoning="separate")
    assert "".join(session.complete("Q: 1+1\n<think>")) == "b"
    assert session.reasoning == "a"
    session, _ = session_of(metadata, ["a</think>b"])
    assert "".join(session.complete("Q: 1+1\n<think>")) == "a</think>b"


def test_an_engine_returns_the_reasoning_apart(metadata: dict[str, Any]) -> None:
    output = "<think>two</think>2"
    for mode, text, reasoning in (
        ("show", output, ""),
        ("hide", "2", ""),
        ("separate", "2", "two"),
    ):
        session, state = session_of(metadata, [output])
        engine = Engine(state)

        def same(session: Session = session, **options: Any) -> Session:
            Session.__init__(session, session._state, **options)
            return session

        engine.session = same  # type: ignore[method-assign, assignment]
        answer = engine.generate("1+1", reasoning=mode)  # type: ignore[call-overload]
        assert (answer.text, answer.reasoning) == (text, reasoning)
    with pytest.raises(UserError, match="show, hide or separate"):
        Session(state, reasoning=cast(Any, "none"))


def test_a_system_message_that_the_template_refuses_is_noticed(metadata: dict[str, Any]) -> None:
    _, state = session_of(metadata, ["a"])
    notices: list[str] = []
    source = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}"
        "{% for m in messages %}{{ m.content }}|{% endfor %}"
    )
    state.template = ChatTemplate(source, state.tokenizer)
    session = Session(state, system="Be brief.", notice=notices.append)
    assert state.tokenizer.decode(session._prompt(None)) == "Be brief.|"
    assert len(notices) == 1
    assert "system prompt" in notices[0]
    Session(state, notice=notices.append)
    assert len(notices) == 1
