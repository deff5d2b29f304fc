"""Chat templates: the Jinja program in a model file that turns messages into the model's prompt.

What a user wrote never becomes a control token. Before rendering, each control token's name in a
message is replaced by one private character that occurs nowhere in the messages or the template;
when the control tokens that the template itself wrote have been found, the names are put back and
encoded as plain text together with their surroundings. So the ids are those of the rendered text
but for the names of control tokens in messages, and a template that looks into messages finds all
but those names.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from edgespec.errors import UserError
from edgespec.models.template_sandbox import BoundsError, Sandbox
from edgespec.models.tokenizer import Tokenizer

MAX_SOURCE = 100_000  # characters of a template; the largest published ones have 20,000
MAX_SECONDS = 2.0  # of one rendering

_PRIVATE = range(0xF0000, 0xFFFFE)  # Unicode's private plane


class ChatTemplate:
    """A model's chat template. ``source`` None: the model has none.

    Raises ``UserError`` where the template is missing or malformed.
    """

    def __init__(
        self, source: str | None, tokenizer: Tokenizer, *, seconds: float = MAX_SECONDS
    ) -> None:
        if not source:
            raise UserError(
                "the model has no chat template: it completes text and is not made for "
                "conversation; choose an instruct model to chat with"
            )
        if len(source) > MAX_SOURCE:
            raise UserError(
                f"the model's chat template has {len(source)} characters, more than {MAX_SOURCE}; "
                "choose another model"
            )
        self._tokenizer = tokenizer
        self._source = source
        self._seconds = seconds
        self._sandbox = Sandbox()
        with _template_errors():
            self._template = self._sandbox.from_string(source)

    def render(
        self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = True
    ) -> list[int]:
        """The ids of a conversation, with ``bos`` where the model expects it.

        ``messages`` have a "role" and a "content". With ``add_generation_prompt`` the ids end where
        the assistant's answer begins. Raises ``UserError`` where the template refuses the messages,
        fails, or goes beyond its bounds.
        """
        text, names = self._run(messages, add_generation_prompt)
        ids = self._tokenizer.encode(text, special=True, stand_ins=names)
        bos = self._tokenizer.bos
        if self._tokenizer.add_bos and bos is not None and ids[:1] != [bos]:
            ids.insert(0, bos)
        return ids

    def text(
        self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = True
    ) -> str:
        """The conversation as ``render`` encodes it, for people to read."""
        text, names = self._run(messages, add_generation_prompt)
        return text.translate(names)

    def _run(
        self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool
    ) -> tuple[str, dict[int, str]]:
        """The rendered text, and what its private characters stand for."""
        written = "\n".join(_strings(messages))
        found = self._tokenizer.control_names(written)
        taken = set(written) | set(self._source)
        free = (code for code in _PRIVATE if chr(code) not in taken)
        names = dict(zip(free, found, strict=False))
        if len(names) < len(found):
            raise UserError("the messages use too many of Unicode's private characters; use fewer")
        with _template_errors():
            text = self._sandbox.run(
                self._template,
                seconds=self._seconds,
                input_size=len(written),
                messages=[_replaced(message, names) for message in messages],
                tools=None,
                add_generation_prompt=add_generation_prompt,
                bos_token=self._name(self._tokenizer.bos),
                eos_token=self._name(self._tokenizer.eos),
            )
        return text, names

    def _name(self, id: int | None) -> str:
        return "" if id is None else self._tokenizer.token_text(id)


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _strings(item)
    elif isinstance(value, Sequence):
        for item in value:
            yield from _strings(item)


def _replaced(value: Any, names: Mapping[int, str]) -> Any:
    """``value`` with each name in its strings, longest first, replaced by its private character."""
    if isinstance(value, str):
        for code, name in names.items():
            value = value.replace(name, chr(code))
        return value
    if isinstance(value, Mapping):
        return {key: _replaced(item, names) for key, item in value.items()}
    if isinstance(value, Sequence):
        return [_replaced(item, names) for item in value]
    return value


@contextmanager
def _template_errors() -> Iterator[None]:
    """A template is a program: whatever it raises is the template's fault, and no bug of ours."""
    from jinja2 import TemplateError, TemplateSyntaxError

    try:
        yield
    except BoundsError as error:
        raise UserError(
            f"the model's chat template is not fit to run: {error}; choose another model"
        ) from error
    except TemplateSyntaxError as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"the model's chat template is malformed: {reason}; choose another model"
        ) from error
    except TemplateError as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"the model's chat template does not take this conversation: {reason}"
        ) from error
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise UserError(f"the model's chat template fails ({reason})") from error
