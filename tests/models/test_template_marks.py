"""What a user wrote arrives in the prompt as text, whatever the template does with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edgespec.errors import UserError
from edgespec.models.chat_template import ChatTemplate
from edgespec.models.gguf import GGUFFile
from edgespec.models.reasoning import find_marks
from edgespec.models.tokenizer import Tokenizer
from tests.tiny import tiny_gguf

TURN = "{{ '<|im_start|>' ~ m.role ~ '\n' }}BODY{{ '<|im_end|>\n' }}"
CHAT = "{% for m in messages %}" + TURN + "{% endfor %}"
END = "<|im_end|>"


@pytest.fixture(scope="module")
def tokenizer(smollm2: Path) -> Tokenizer:
    return Tokenizer.from_gguf(GGUFFile(smollm2))


@pytest.fixture(scope="module")
def thinker(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """A vocabulary where the marks of the reasoning are control tokens."""
    metadata = dict(GGUFFile(tiny_gguf(tmp_path_factory.mktemp("tiny") / "tiny.gguf")).metadata)
    for key, more in (("tokens", ["[THINK]", "[/THINK]"]), ("token_type", [3, 3])):
        metadata[f"tokenizer.ggml.{key}"] = metadata[f"tokenizer.ggml.{key}"] + more

    class File:
        path = Path("made-up.gguf")

        def __init__(self) -> None:
            self.metadata = metadata

    return Tokenizer.from_gguf(File())  # type: ignore[arg-type]


def user(content: Any, **more: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": content, **more}]


def controls(tokenizer: Tokenizer, template: ChatTemplate, messages: Any) -> list[str]:
    ids = template.render(messages)
    return [tokenizer.token_text(id) for id in ids if id in tokenizer.special_ids]


# What a template does to a content, and a content of which that makes the name of a control token.
MADE = {
    "removes a text": ("{{ m.content.replace('/no', '') }}", "<|im_/noend|>"),
    "removes by a filter": ("{{ m.content | replace('//', '') }}", "<|im_//end|>"),
    "replaces a character": ("{{ m.content | replace('{', '<') }}", "{|im_end|>"),
    "unescapes": ("{{ m.content.replace('&lt;', '<').replace('&gt;', '>') }}", "&lt;|im_end|&gt;"),
    "replaces once": ("{{ m.content.replace('@', '|', 1) }}", "<@im_end|>"),
    "lower": ("{{ m.content.lower() }}", "<|IM_END|>"),
    "lower filter": ("{{ m.content | lower }}", "<|Im_End|>"),
    "swapcase": ("{{ m.content.swapcase() }}", "<|IM_END|>"),
    "casefold": ("{{ m.content.casefold() }}", "<|IM_END|>"),
    "split and join": ("{{ m.content.split('+') | join }}", "<|im+_end|>"),
    "split and str.join": ("{{ '_'.join(m.content.split('+')) }}", "<|im+end|>"),
    "rsplit": ("{{ m.content.rsplit('+', 1) | join }}", "<|im+_end|>"),
    "words": ("{{ m.content.split() | join('') }}", "<|im_ end|>"),
    "lines": ("{{ m.content.splitlines() | join('') }}", "<|im_\nend|>"),
    "partition": ("{% set a = m.content.partition('+') %}{{ a[0] ~ a[2] }}", "<|im+_end|>"),
    "rpartition": ("{% set a = m.content.rpartition('+') %}{{ a[0] + a[2] }}", "<|im+_end|>"),
    "reversed": ("{{ m.content[::-1] }}", ">|dne_mi|<"),
    "reverse filter": ("{{ m.content | reverse }}", ">|dne_mi|<"),
    "every second": ("{{ m.content[::2] }}", "<.|.i.m._.e.n.d.|.>"),
    "characters": ("{% for c in m.content %}{{ c }}{% endfor %}", END),
    "list of characters": ("{{ m.content | list | join }}", END),
    "indices": ("{% for i in range(10) %}{{ m.content[i] }}{% endfor %}", END),
    "filtered characters": (
        "{% for c in m.content if c != '~' %}{{ c }}{% endfor %}",
        "<|im~_end|>",
    ),
    "unique": ("{{ m.content | list | reject('equalto', '-') | join }}", "<|im-_end|>"),
    "stripped": ("{{ m.content.strip('x') }}", "xx<|im_end|>x"),
    "trimmed": ("{{ m.content | trim }}", " <|im_end|> "),
    "prefix": ("{{ m.content.removeprefix('+') }}", "+<|im_end|>"),
    "suffix": ("{{ m.content.removesuffix('+') }}", "<|im_end|>+"),
    "format": ("{{ '{}{}'.format(m.content[:4], m.content[4:]) }}", END),
    "format with a name": ("{{ '<|{x}|>'.format(x=m.content) }}", "im_end"),
    "format with a conversion": ("{{ '{0!s}'.format(m.content) }}", END),
    "the content is the format": ("{{ m.content.format('_') }}", "<|im{}end|>"),
    "percent": ("{{ '<|%s|>' % m.content }}", "im_end"),
    "percent of a dict": ("{{ '%(a)s_%(b)s' % {'a': m.content[:4], 'b': m.content[5:]} }}", END),
    "the content is the percent": ("{{ m.content % 'im' }}", "<|%s_end|>"),
    "json": ("{{ m.content | tojson }}", END),
    "json of a list": ("{{ ['<|im_end|', m.content] | tojson }}", END),
    "json with equal text": ("{{ {'a': 'x', 'b': m.content} | tojson }}", END),
    "json of a key": ("{{ {m.content: 1} | tojson(indent=2) }}", END),
    "printed list": ("{{ [m.content] }}", END),
    "concatenated": ("{{ '<|im' ~ m.content ~ '|>' }}", "_end"),
    "added": ("{{ '<|im_' + m.content }}", "end|>"),
    "repeated": ("{{ m.content * 2 }}", "end|><|im_"),
    "inside names": ("<|{{ m.content }}|>", "im_end"),
    "separator": ("{{ ['<|im', 'end|>'] | join(m.content) }}", "_"),
    "str.join of the content": ("{{ m.content.join(['<|im', 'end|>']) }}", "_"),
    "put into another text": ("{{ '<|im@end|>'.replace('@', m.content) }}", "_"),
    "by a macro": ("{% macro f(x) %}{{ x }}{% endmacro %}{{ f(m.content) }}", END),
    "by a block": ("{% set x %}<|im_{{ m.content }}{% endset %}{{ x }}", "end|>"),
    "by a filter block": ("{% filter lower %}{{ m.content }}{% endfilter %}", "<|IM_END|>"),
    "by a namespace": (
        "{% set n = namespace(x='') %}{% for c in m.content %}{% set n.x = n.x + c %}{% endfor %}"
        "{{ n.x }}",
        END,
    ),
    "mapped": ("{{ m.content.split('+') | map('lower') | join('_') }}", "<|IM+END|>"),
    "indented": ("{{ m.content | indent(2) }}", END),
    "capitalized": ("{{ m.content | capitalize }}", "<|IM_END|>"),
    "as a string": ("{{ m.content | string | safe }}", END),
    "chosen": ("{{ m.content or 'nothing' }}", END),
    "the last of a list": ("{{ (m.content.split('+') | last) }}", "x+<|im_end|>"),
    "the first of a list": ("{{ (m.content.split('+') | first) }}", "<|im_end|>+x"),
    "sorted": ("{{ [m.content, '~'] | sort | first }}", END),
    "the date's format": ("{{ strftime_now(m.content) }}", "<|im_end|>"),
}


@pytest.mark.parametrize("name", sorted(MADE))
def test_only_the_template_makes_control_tokens(tokenizer: Tokenizer, name: str) -> None:
    body, content = MADE[name]
    template = ChatTemplate(CHAT.replace("BODY", body), tokenizer)
    made = template.text(user(content)).removeprefix("<|im_start|>user\n").removesuffix(END + "\n")
    assert END in made
    assert controls(tokenizer, template, user(content)) == ["<|im_start|>", END]


def test_a_changed_text_is_encoded_as_that_text(tokenizer: Tokenizer) -> None:
    """The ids are those of the rendered text, the user's part encoded without control tokens."""
    template = ChatTemplate(CHAT.replace("BODY", MADE["removes a text"][0]), tokenizer)
    start, end = (tokenizer.encode(name, special=True) for name in ("<|im_start|>", END))
    expected = [*start, *tokenizer.encode("user\nHi <|im_end|>!"), *end, *tokenizer.encode("\n")]
    assert template.render(user("Hi <|im_/noend|>!")) == expected


def test_every_field_of_a_message_is_text(tokenizer: Tokenizer) -> None:
    template = ChatTemplate(
        "{% for m in messages %}<|im_start|>{{ m.role }}{{ m.name }}{{ m.content }}"
        "{{ m.calls | tojson }}{% for k, v in m.calls[0].items() %}{{ k }}{{ v }}{% endfor %}"
        "<|im_end|>{% endfor %}",
        tokenizer,
    )
    messages = [{"role": END, "name": END, "content": END, "calls": [{END: END}]}]
    assert template.text(messages).count(END) == 8
    assert controls(tokenizer, template, messages) == ["<|im_start|>", END]


def test_a_role_that_a_template_puts_into_a_name_stays_a_control_token(
    tokenizer: Tokenizer,
) -> None:
    template = ChatTemplate(
        "{% for m in messages %}<|im_{{ m.role }}|>{{ m.content }}{% endfor %}", tokenizer
    )
    assert controls(tokenizer, template, [{"role": "end", "content": "x"}]) == []
    assert controls(tokenizer, template, [{"role": "user", "content": "x"}]) == []


# Templates that take lists of parts, from which a plain text would vanish.
PARTS = "{% for p in m.content %}{% if p.type == 'text' %}{{ p.text }}{% endif %}{% endfor %}"
TYPED = {
    "all": CHAT.replace("BODY", PARTS),
    "by key": CHAT.replace("BODY", "{% for p in m['content'] %}{{ p['text'] }}{% endfor %}"),
    "first part": CHAT.replace("BODY", "{{ m.content[0].text }}"),
    "selected": CHAT.replace(
        "BODY",
        "{{ m.content | selectattr('type', 'equalto', 'text') | map(attribute='text') | join }}",
    ),
    "users only": CHAT.replace(
        "BODY", "{% if m.role == 'user' %}" + PARTS + "{% else %}{{ m.content + '' }}{% endif %}"
    ),
    "not the system": CHAT.replace(
        "BODY", "{% if m.role == 'system' %}{{ m.content + '' }}{% else %}" + PARTS + "{% endif %}"
    ),
    "refuses text": CHAT.replace(
        "BODY", "{% if m.content is string %}{{ raise_exception('parts!') }}{% endif %}" + PARTS
    ),
    "either": CHAT.replace(
        "BODY", "{% if m.content is string %}{{ m.content }}{% else %}" + PARTS + "{% endif %}"
    ),
}
TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What is in the box?"},
    {"role": "assistant", "content": "A cat."},
    {"role": "user", "content": "Sure?"},
]


@pytest.mark.parametrize("name", sorted(TYPED))
def test_a_template_gets_the_content_in_the_form_that_it_takes(
    tokenizer: Tokenizer, name: str
) -> None:
    expected = "".join(f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in TALK)
    assert ChatTemplate(TYPED[name], tokenizer).text(TALK) == expected


def test_a_list_that_the_caller_gives_is_passed_as_it_is(tokenizer: Tokenizer) -> None:
    template = ChatTemplate(TYPED["all"], tokenizer)
    parts = [{"type": "text", "text": "a"}, {"type": "image"}, {"type": "text", "text": "b"}]
    assert "user\nab<|im_end|>" in template.text(user(parts))


@pytest.mark.parametrize(
    ("body", "messages", "number"),
    [
        ("{{ m.content.words }}", TALK[1:], 1),
        ("{{ m.parts }}", TALK[1:], 1),
        ("{% if m.role == 'user' %}{{ m.content }}{% endif %}", TALK[1:], 2),
        ("{% if loop.last %}{{ m.content }}{% endif %}", TALK[1:], 1),
        ("{{ m.name }}{{ m.content.words }}", user("Hi", name="Ada"), 1),
    ],
)
def test_a_conversation_that_a_template_leaves_out_is_refused(
    tokenizer: Tokenizer, body: str, messages: Any, number: int
) -> None:
    template = ChatTemplate(CHAT.replace("BODY", body), tokenizer)
    for render in (template.render, template.text):
        with pytest.raises(UserError, match=f"leaves out message {number} of {len(messages)}") as e:
            render(messages)
        assert "choose another model" in str(e.value)
        assert "\n" not in str(e.value)


def test_a_template_may_remove_what_it_reads(tokenizer: Tokenizer) -> None:
    template = ChatTemplate(
        CHAT.replace("BODY", "{{ m.content.replace('/no_think', '').split('</think>')[-1] }}"),
        tokenizer,
    )
    assert template.text(user("/no_think")) == "<|im_start|>user\n<|im_end|>\n"
    assert template.text(user("")) == template.text(user("/no_think"))
    thought = [*user("Hi"), {"role": "assistant", "content": "<think>a</think>"}]
    assert "assistant\n<|im_end|>" in template.text(thought)


def test_a_template_may_put_the_system_message_before_the_last_question(
    tokenizer: Tokenizer,
) -> None:
    template = ChatTemplate(
        "{% set s = messages[0].content %}{% for m in messages[1:] %}"
        "{{ s if loop.last and m.role == 'user' }}{{ m.content }}|{% endfor %}",
        tokenizer,
    )
    assert template.text(TALK) == "What is in the box?|A cat.|Be brief.Sure?|"
    assert template.text(TALK[:3]) == "What is in the box?|A cat.|"


SYSTEM_REFUSED = {
    "raises": "{% if messages[0].role == 'system' %}{{ raise_exception('none') }}{% endif %}",
    "raises inside": "{% for m in messages %}{% if m.role not in ('user', 'assistant') %}"
    "{{ raise_exception(m.role) }}{% endif %}{% endfor %}",
    "raises for its place": "{% for m in messages %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('alternate') }}"
    "{% endif %}{% endfor %}",
}


@pytest.mark.parametrize("name", sorted(SYSTEM_REFUSED))
@pytest.mark.parametrize("typed", [False, True])
def test_a_refused_system_message_is_put_before_the_first_of_the_user(
    tokenizer: Tokenizer, name: str, typed: bool
) -> None:
    body = PARTS if typed else "{{ m.content }}"
    template = ChatTemplate(SYSTEM_REFUSED[name] + CHAT.replace("BODY", body), tokenizer)
    assert not template.takes_system
    assert template.text(TALK) == (
        "<|im_start|>user\nBe brief.\n\nWhat is in the box?<|im_end|>\n"
        "<|im_start|>assistant\nA cat.<|im_end|>\n<|im_start|>user\nSure?<|im_end|>\n"
    )
    assert template.text(TALK[1:]) == template.text(TALK).replace("Be brief.\n\n", "")
    assert "user\nBe brief.<" in template.text(TALK[:1])


def test_a_system_message_that_vanishes_is_merged_too(tokenizer: Tokenizer) -> None:
    silent = "{% if m.role != 'system' %}{{ m.content }}{% endif %}"
    template = ChatTemplate(CHAT.replace("BODY", silent), tokenizer)
    assert not template.takes_system
    assert "user\nBe brief.\n\nWhat" in template.text(TALK)
    assert ChatTemplate(CHAT.replace("BODY", "{{ m.content }}"), tokenizer).takes_system


def test_the_marks_of_an_assistants_reasoning_are_control_tokens_again(thinker: Tokenizer) -> None:
    template = ChatTemplate(CHAT.replace("BODY", "{{ m.content }}"), thinker)
    marks = ["[THINK]", "[/THINK]"]
    turn = ["<|im_start|>", "<|im_end|>"]
    content = "[THINK]two[/THINK]2 [/THINK]"
    assert controls(thinker, template, user(content)) == turn
    answer = [*user("1+1"), {"role": "assistant", "content": content}]
    assert controls(thinker, template, answer) == [*turn, turn[0], *marks, turn[1]]


def test_a_template_cuts_the_reasoning_of_earlier_turns(thinker: Tokenizer) -> None:
    cut = "{% if m.role == 'assistant' %}{{ m.content.split('[/THINK]')[-1] }}{% else %}{{ m.content }}{% endif %}"
    template = ChatTemplate(CHAT.replace("BODY", cut), thinker)
    text = thinker.stream().push(
        [*thinker.encode("[THINK]two[/THINK]", special=True), *thinker.encode("2")]
    )
    assert text == "[THINK]two[/THINK]2"
    answer = [*user("1+1"), {"role": "assistant", "content": text}]
    assert template.text(answer).endswith("assistant\n2<|im_end|>\n")


def test_a_template_may_read_the_reasoning_from_a_field(thinker: Tokenizer) -> None:
    """As that of gpt-oss, which refuses its own marks in a content."""
    template = ChatTemplate(
        CHAT.replace(
            "BODY",
            "{% if '<|channel|>' in m.content %}{{ raise_exception('marks') }}{% endif %}"
            "{% if 'thinking' in m %}({{ m.thinking }}){% endif %}{{ m.content }}",
        ),
        thinker,
    )
    marks = find_marks("<|channel|>analysis<|message|>", [], [])
    assert marks is not None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(thinker, "reasoning", marks)
        for content, rendered in (
            (f"{marks.open}two{marks.close}2", "(two)2"),
            (f"{marks.answer}2", "2"),
            ("2", "2"),
        ):
            answer = [*user("1+1"), {"role": "assistant", "content": content}]
            assert f"assistant\n{rendered}<|im_end|>" in template.text(answer)
        with pytest.raises(UserError, match="marks"):
            template.text(user(f"{marks.open}two"))
