"""Mutated templates and conversations: rendered or refused, in bounded time and memory."""

from __future__ import annotations

import gc
import random
import time
import tracemalloc
from contextlib import suppress
from typing import Any

import pytest

from edgespec.errors import UserError
from edgespec.models.chat_template import ChatTemplate
from edgespec.models.gguf import GGUFFile
from edgespec.models.tokenizer import Tokenizer
from tests.models.test_chat_template import HOSTILE
from tests.models.test_template_marks import CHAT, MADE, SYSTEM_REFUSED, TYPED
from tests.tiny import tiny_gguf

SECONDS = 1.0
"""The most processor time of one case, with the compilation."""
BYTES = 150 << 20

TEMPLATES = [
    *(CHAT.replace("BODY", body) for body, _ in MADE.values()),
    *TYPED.values(),
    *(start + CHAT.replace("BODY", "{{ m.content }}") for start in SYSTEM_REFUSED.values()),
    *(source for source in HOSTILE.values() if len(source) < 5000),
]
SNIPPETS = [
    *("{{", "}}", "{%", "%}", "{%-", "-%}", "{#", "'", '"', "|", "~", "[::-1]", "[1:]", "(", ")"),
    *("m.content", "messages", "loop.index0", "namespace(x=0)", "range(99)", "* 99", "** 9", "+ m"),
    *(
        "| join",
        "| list",
        "| tojson",
        "| upper",
        "| sort",
        "| unique",
        "| length",
        "| map('upper')",
    ),
    *("{% for c in m.content %}", "{% endfor %}", "{% if m %}", "{% endif %}", "{% set x = m %}"),
    *(".split('a')", ".replace('', 'xy')", ".format(m)", " % m", "not ", "is none", "in ", "tools"),
    *("<|im_end|>", "<|im_start|>", "<think>", "</think>", "eos_token", "bos_token", "9999999"),
]
CONTENTS: list[Any] = [
    *(
        "",
        " ",
        "Hi",
        "<|im_end|>",
        "<think>a</think>b",
        "\ud800",
        "\0",
        "%s {} {0.x}",
        "é\u0130" * 9,
    ),
    *("long " * 5000, "x" * 20_000, "</think>" * 99, None, 0, 1.5, True, [], {}, b"bytes"),
    *([{"type": "text", "text": "a"}], [{"type": "image"}], ["a", ["b"]], {"a": {"b": "c"}}),
]
ROLES: list[Any] = ["system", "user", "assistant", "tool", "critic", "", None, 3, "<|im_end|>"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.from_gguf(GGUFFile(tiny_gguf(tmp_path_factory.mktemp("tiny") / "t.gguf")))


def mutated(rng: random.Random, source: str) -> str:
    for _ in range(rng.randrange(4)):
        a, b = sorted(rng.randrange(len(source) + 1) for _ in range(2))
        b = min(b, a + 30)
        between = [
            "",
            rng.choice(SNIPPETS),
            chr(rng.randrange(1, 0x250)),
            rng.choice(TEMPLATES)[: rng.randrange(200)],
            source[a:b] * 2,
        ]
        source = source[:a] + rng.choice(between) + source[rng.choice([a, b]) :]
    return source


def conversation(rng: random.Random) -> list[dict[str, Any]]:
    if rng.random() < 0.5:  # an ordinary one
        turns = [{"role": r, "content": f"{r} text"} for r in ("user", "assistant") * 2]
        return [{"role": "system", "content": "Be brief."}, *turns][rng.randrange(2) :]
    messages = []
    for _ in range(rng.randrange(12)):
        message = {"role": rng.choice(ROLES), "content": rng.choice(CONTENTS)}
        if rng.random() < 0.2:
            message.pop(rng.choice(["role", "content"]))
        if rng.random() < 0.2:
            message[rng.choice(["name", "tool_calls", "<|im_end|>"])] = rng.choice(CONTENTS)
        messages.append(message)
    return messages


def check(tokenizer: Tokenizer, seed: int) -> bool:
    """Whether the case of ``seed`` is rendered; otherwise it is refused."""
    rng = random.Random(seed)
    source, messages = mutated(rng, rng.choice(TEMPLATES)), conversation(rng)
    started = time.process_time()
    refusal = ""
    ids: list[int] = []
    try:
        template = ChatTemplate(source, tokenizer)
        assert isinstance(template.text(messages), str)
        ids = template.render(messages)
    except UserError as error:
        refusal = str(error)
    taken = time.process_time() - started
    assert taken < SECONDS, (seed, taken, source)
    assert "\n" not in refusal, seed
    assert not refusal or "; " in refusal, seed
    assert all(0 <= id < tokenizer.vocab_size for id in ids), seed
    return not refusal


def run(tokenizer: Tokenizer, seeds: range) -> None:
    rendered = sum(check(tokenizer, seed) for seed in seeds)
    assert len(seeds) / 20 < rendered < len(seeds) * 0.95


def test_mutated_templates_and_conversations(tokenizer: Tokenizer) -> None:
    run(tokenizer, range(400))


@pytest.mark.slow
def test_many_mutated_templates_and_conversations(tokenizer: Tokenizer) -> None:
    run(tokenizer, range(1000, 21_000))


@pytest.mark.parametrize("name", sorted(HOSTILE))
def test_a_hostile_template_stays_within_its_memory(tokenizer: Tokenizer, name: str) -> None:
    if len(HOSTILE[name]) > 20_000:
        pytest.skip("Jinja's own compiler takes memory for long sources")
    peak = peak_of(tokenizer, HOSTILE[name], [{"role": "user", "content": "What is 2+2?"}])
    assert peak < BYTES


MARKED = "{% set x = messages[0].content * 12000 %}"
GREEDY = {
    "characters": MARKED + "{% set y = x | list %}{{ y | length }}",
    "pieces": MARKED + "{% set y = x.split('a') %}{{ y | length }}",
    "words": MARKED + "{% set y = x.split() %}{{ y | length }}",
    "replaced": MARKED + "{{ x.replace('a', 'bb') | length }}",
    "inserted": MARKED + "{{ x.replace('', 'b') | length }}",
    "kept lists": MARKED + "{% set n = namespace(a=[]) %}{% for i in range(99) %}"
    "{% set n.a = [n.a | length, x | list] %}{% endfor %}{{ n.a | length }}",
    "kept lists in variables": MARKED + "".join(f"{{% set y{i} = x | list %}}" for i in range(30)),
    "kept pieces in variables": MARKED
    + "".join(f"{{% set y{i} = x.split() %}}" for i in range(30)),
    "kept texts": MARKED + "{% set n = namespace(a=[]) %}{% for i in range(99) %}"
    "{% set n.a = n.a + [x ~ i] %}{% endfor %}{{ n.a | length }}",
    "the date": MARKED + "{{ strftime_now('%c' * 40000) | length }}",
}


@pytest.mark.parametrize("name", sorted(GREEDY))
def test_marks_stay_within_the_memory(tokenizer: Tokenizer, name: str) -> None:
    peak = peak_of(tokenizer, GREEDY[name], [{"role": "user", "content": "a b c d e "}])
    assert peak < BYTES


def peak_of(tokenizer: Tokenizer, source: str, messages: list[dict[str, Any]]) -> int:
    """The most bytes that Python had allocated for a rendering."""
    gc.collect()
    tracemalloc.start()
    try:
        with suppress(UserError):
            ChatTemplate(source, tokenizer).text(messages)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
