"""Chat templates: the Jinja program in a model file that turns messages into the model's prompt.

What a user wrote never becomes a control token. Every character of a message is marked, and a
control token is only what the template alone wrote (``marked_text``). What a user wrote also
arrives: a template shows with a sample text in which form it takes a message's content, and a
prompt from which a message is missing is refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

from edgespec.errors import UserError
from edgespec.models.marked_text import MarkedText, joined, marked, marks_of, plain, strings
from edgespec.models.reasoning import split
from edgespec.models.template_sandbox import BoundsError, Sandbox
from edgespec.models.tokenizer import Tokenizer

MAX_SOURCE = 100_000  # characters of a template; the largest published ones have 20,000
MAX_SECONDS = 0.25  # of processor time for a short conversation

_SAMPLE = "sample"  # a content that no template changes
# Part of names such as <|user|> in some templates. A program chooses them, never a user.
_ROLES = frozenset(
    ["assistant", "developer", "function", "ipython", "model", "system", "tool", "user"]
)
# Conversations that show whether a template takes text from a role, or wants a list of parts.
_TRIED = (
    (["user"], "user"),
    (["user", "assistant", "user"], "assistant"),
    (["system", "user"], "system"),
)
_NO_CONTENT = chr(0x10FFFF)  # the mark of what a message has besides its content

Messages = Sequence[Mapping[str, Any]]


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
        self._seconds = seconds
        # A template that reads no message cannot leave one out.
        self._reads_messages = "content" in source or "role" in source
        self._sandbox = Sandbox()
        with _template_errors():
            self._template = self._sandbox.from_string(source)

    def render(self, messages: Messages, add_generation_prompt: bool = True) -> list[int]:
        """The ids of a conversation, with ``bos`` where the model expects it.

        ``messages`` have a "role" and a "content". With ``add_generation_prompt`` the ids end where
        the assistant's answer begins. A system message that the template does not take is put before
        the first message of the user. Raises ``UserError`` where the template refuses the messages,
        leaves one out, fails, or goes beyond its bounds.
        """
        ids = self._tokenizer.encode(self._run(messages, add_generation_prompt), special=True)
        bos = self._tokenizer.bos
        if self._tokenizer.add_bos and bos is not None and ids[:1] != [bos]:
            ids.insert(0, bos)
        return ids

    def text(self, messages: Messages, add_generation_prompt: bool = True) -> str:
        """The conversation as ``render`` encodes it, for people to read."""
        return plain(self._run(messages, add_generation_prompt))

    @cached_property
    def takes_system(self) -> bool:
        """Whether a system message arrives in the prompt."""
        return self._takes("system", "user") or not self._takes("user")

    @cached_property
    def _typed(self) -> frozenset[str]:
        """The roles for which the template wants a list of parts as the content."""
        typed: frozenset[str] = frozenset()
        for roles, role in _TRIED:
            if not self._takes(*roles, typed=typed) and self._takes(*roles, typed=typed | {role}):
                typed |= {role}
        return typed

    def _takes(self, *roles: str, typed: frozenset[str] | None = None) -> bool:
        """Whether a sample text arrives from each of these messages."""
        samples = [{"role": role, "content": _SAMPLE} for role in roles]
        try:
            text = self._fill(
                samples, True, self._typed if typed is None else typed, self._seconds / 4
            )
        except UserError as error:
            if isinstance(error.__cause__, BoundsError):
                raise
            return False
        return not _missing(samples, text)

    def _run(self, messages: Messages, add_generation_prompt: bool) -> str:
        """The rendered text. Every message is in it."""
        if messages and messages[0].get("role") == "system" and not self.takes_system:
            messages = _merged(messages)
        text = self._fill(messages, add_generation_prompt, self._typed)
        missing = _missing(messages, text) if self._reads_messages else set()
        if missing:
            # A template may remove a text such as /no_think and still take the message, or put the
            # system message before the user's last one.
            samples = [
                {**message, "content": _SAMPLE} if i in missing else message
                for i, message in enumerate(messages)
            ]
            if samples[-1].get("role") == "assistant":
                samples.append({"role": "user", "content": _SAMPLE})
            missing &= _missing(samples, self._fill(samples, add_generation_prompt, self._typed))
        if missing:
            first = min(missing)
            raise UserError(
                f"the model's chat template leaves out message {first + 1} of {len(messages)} "
                f"({messages[first].get('role')}); send a conversation that it takes, or choose "
                "another model"
            )
        return text

    def _fill(
        self,
        messages: Messages,
        add_generation_prompt: bool,
        typed: frozenset[str],
        seconds: float | None = None,
    ) -> str:
        """The rendered text, each character with the mark of its message."""
        with _template_errors():
            return self._sandbox.run(
                self._template,
                seconds=self._seconds if seconds is None else seconds,
                input_size=sum(_size(value) for message in messages for value in message.values()),
                count=len(messages),
                messages=[self._marked(i, m, typed) for i, m in enumerate(messages)],
                tools=None,
                add_generation_prompt=add_generation_prompt,
                bos_token=self._name(self._tokenizer.bos),
                eos_token=self._name(self._tokenizer.eos),
            )

    def _marked(
        self, index: int, message: Mapping[str, Any], typed: frozenset[str]
    ) -> dict[str, Any]:
        role = message.get("role")
        taken = {
            key: value
            if key == "role" and value in _ROLES
            else marked(value, chr(index + 1) if key == "content" else _NO_CONTENT)
            for key, value in message.items()
        }
        content = taken.get("content")
        if isinstance(content, MarkedText):
            reasoning = self._tokenizer.reasoning
            if role == "assistant" and reasoning is not None and reasoning.field:
                parts = split(content, reasoning)
                content = joined(text for kind, text in parts if kind == "answer")
                if thoughts := joined(text for kind, text in parts if kind == "reasoning"):
                    taken[reasoning.field] = thoughts
            elif role == "assistant" and reasoning is not None:
                for where in reasoning.places(content):  # the model wrote these marks
                    content = content[: where.start] + plain(content[where]) + content[where.stop :]
            taken["content"] = [{"type": "text", "text": content}] if role in typed else content
        return taken

    def _name(self, id: int | None) -> str:
        return "" if id is None else self._tokenizer.token_text(id)


def _size(value: Any) -> int:
    """The number of characters in ``value``."""
    if isinstance(value, str):
        return len(value)
    items = value.values() if isinstance(value, Mapping) else value
    return sum(map(_size, items)) if isinstance(items, Iterable) else 0


def _missing(messages: Messages, text: str) -> set[int]:
    """The messages of which no character is in ``text``."""
    marks = marks_of(text)
    missing = set()
    at = 0
    for i in range(len(messages)):
        mark = chr(i + 1)
        at = max(marks.find(mark, at), at)  # nearly always in order
        if marks[at : at + 1] != mark and mark not in marks:
            missing.add(i)
    return {i for i in missing if any(map(str.strip, strings(messages[i].get("content"))))}


def _merged(messages: Messages) -> Messages:
    """The system message put before the first message of the user."""
    system, *rest = messages
    if not rest or rest[0].get("role") != "user":
        return [{**system, "role": "user"}, *rest]
    first, second = system.get("content"), rest[0].get("content")
    if isinstance(first, str) and isinstance(second, str):
        return [{**rest[0], "content": f"{first}\n\n{second}"}, *rest[1:]]
    return [{**rest[0], "content": [*_parts(first), *_parts(second)]}, *rest[1:]]


def _parts(content: Any) -> Sequence[Any]:
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    return content if isinstance(content, list) else []


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
            f"the model's chat template does not take this conversation: {reason}; start a new "
            "conversation, or choose another model"
        ) from error
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise UserError(
            f"the model's chat template fails ({reason}); choose another model"
        ) from error
