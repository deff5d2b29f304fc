"""A Jinja environment in which a stranger's chat template can run.

Jinja's immutable sandbox keeps a template from reaching Python; it does not keep it from running
for ever or filling the memory. Here every operation that can repeat or build something is counted:
loops, calls, filters, tests and comparisons look at the clock, and whatever makes text or lists
pays for it from an allowance. Both grow with the conversation. Operations that could outrun both in
one step are checked before they run, or are left out. The functions are those that published
templates use. What they make of marked text is marked text (``marked_text``).
"""
# ruff: noqa: N802 (Jinja finds a visitor's methods by these names)

from __future__ import annotations

import functools
import json
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Set, ValuesView
from datetime import datetime
from typing import Any, TypeVar, cast

from jinja2 import Template, TemplateError, nodes, pass_context
from jinja2.ext import Extension
from jinja2.filters import do_title
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedFormatter
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from edgespec.models.marked_text import joined, marked_like, plain, replaced
from edgespec.models.template_text import formatted, percent_formatted, to_json

T = TypeVar("T")

MAX_SIZE = 300_000  # characters of a value, besides what the input accounts for
MAX_WIDTH = 1000  # of an indent or a formatted field
MAX_BITS = 256  # of a whole number
MAX_GROWN = 1 << 30  # characters of texts that a template builds message by message
SECONDS_PER_CHARACTER = 2e-6
SECONDS_PER_PAIR = 5e-5  # of messages: some published templates look at each pair

_ITEM_COST = 8  # what an item of a list costs, in characters
_FILTERS = (
    "abs capitalize count d default dictsort first float int items last length list lower map max "
    "min reject rejectattr reverse round select selectattr sort trim unique upper"
)
_GLOBALS = ("cycler", "dict", "joiner", "namespace", "range")
# Methods that make text of a given length, or lead to other types with such methods.
_UNSAFE_METHODS = frozenset(
    ["center", "encode", "expandtabs", "format_map", "ljust", "rjust", "translate", "zfill"]
)
_WIDE_FIELD = re.compile(r"\d{4,}|\*")  # in a format: longer than MAX_WIDTH, or given elsewhere
_NESTED_FIELD = re.compile(r"\{[^{}]*\{")


class BoundsError(Exception):
    """A template went beyond its bounds."""


class _Bounds(threading.local):
    """The remaining budget of the rendering in this thread."""

    deadline = float("inf")
    """When to look at the processor time, by ``time.monotonic``, which is quicker to read."""
    started = 0.0
    seconds = 0.0
    """Of processor time for the rendering, which started at ``started``."""
    size = MAX_SIZE
    left = MAX_SIZE

    def __init__(self) -> None:
        self.measured: dict[int, tuple[Any, int]] = {}
        """The printed sizes of lists and dicts by ``id``, with the values, so that none is freed."""


class Sandbox(ImmutableSandboxedEnvironment):
    """Compile with ``from_string``, run with ``run``."""

    intercepted_binops = frozenset({"+", "-", "*", "/", "//", "%", "**"})

    def __init__(self) -> None:
        self._bounds = _Bounds()
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            optimized=False,  # nothing is computed before the clock runs
            finalize=_output,
            extensions=["jinja2.ext.loopcontrols", _Generation],
        )
        self.concat = self._join_parts  # type: ignore[method-assign]
        self.tests = {
            name: self._watched(cast(Callable[..., Any], test)) for name, test in self.tests.items()
        }
        filters = {name: self._bounded(self.filters[name]) for name in _FILTERS.split()}
        own: dict[str, Callable[..., Any]] = {
            "indent": self._indent,
            "join": self._join,
            "replace": self._replace,
            "safe": self.text,
            "string": self.text,
            "title": self._title,
            "tojson": self._tojson,
            # What _Watch puts into a template.
            "_built": self._built,
            "_concatenated": self._join_parts,
            "_sliced": self._charged,
            "_steps": self._steps,
            "_watched": self._tick,
        }
        self.filters = filters | own
        self.globals = {name: self.globals[name] for name in _GLOBALS} | {
            "raise_exception": _raise_exception,
            "strftime_now": _strftime_now,
        }

    def run(
        self, template: Template, *, seconds: float, input_size: int, count: int, **variables: Any
    ) -> str:
        """Render ``count`` messages; ``input_size`` is the number of characters in the variables.

        ``seconds`` is the processor time for a short conversation. Raises ``BoundsError``, Jinja's
        ``TemplateError``, or whatever else the template provokes.
        """
        bounds = self._bounds
        bounds.seconds = seconds + SECONDS_PER_CHARACTER * input_size + SECONDS_PER_PAIR * count**2
        bounds.started = time.thread_time()
        bounds.deadline = time.monotonic() + bounds.seconds
        bounds.size = MAX_SIZE + 4 * input_size
        bounds.left = 64 * bounds.size + min(8 * count * input_size, MAX_GROWN)
        parts: list[str] = []
        size = 0
        try:
            for part in template.generate(**variables):
                parts.append(part)
                size += len(part)
                self._fits(size)
        finally:
            bounds.measured.clear()
        return joined(parts)

    # Counting

    def _tick(self, value: T = None) -> T:  # type: ignore[assignment]
        """Look at the clock; return ``value`` as it is."""
        if time.monotonic() > self._bounds.deadline:
            self._late()
        return value

    def _late(self) -> None:
        """Raise ``BoundsError``, unless it was other programs that took the time."""
        bounds = self._bounds
        left = bounds.started + bounds.seconds - time.thread_time()
        if left <= 0:
            raise BoundsError("it takes too long")
        bounds.deadline = time.monotonic() + left

    def _fits(self, size: float) -> None:
        if size > self._bounds.size:
            raise BoundsError("it makes too much text")

    def _built(self, value: T) -> T:
        """Check and charge for a value that an operation made."""
        if isinstance(value, (list, tuple, dict)):
            self._fits(self._printed_size(value))
        elif isinstance(value, int) and value.bit_length() > MAX_BITS:
            raise BoundsError("it computes with huge numbers")
        return self._charged(value)

    def _charged(self, value: T) -> T:
        """Charge for a value that is a part of another."""
        bounds = self._bounds
        if isinstance(value, str):
            bounds.left -= len(value)
        elif isinstance(value, (list, tuple, dict)):
            bounds.left -= _ITEM_COST * (1 + len(value))
        if bounds.left < 0:
            raise BoundsError("it makes too much text")
        if time.monotonic() > bounds.deadline:
            self._late()
        return value

    def _printed_size(self, value: Any) -> int:
        """About how many characters ``value`` prints as. Each list is measured once."""
        if isinstance(value, str):
            return 1 + len(value)
        if isinstance(value, Namespace):  # its attributes may change after it was measured
            raise BoundsError("it puts a namespace into text or into a list")
        if isinstance(value, (Set, ValuesView)):
            return 1 + sum(map(self._printed_size, value))
        if not isinstance(value, (list, tuple, dict)):
            return 1
        if id(value) not in self._bounds.measured:
            size = 1 + sum(map(self._printed_size, value))
            if isinstance(value, dict):
                size += sum(map(self._printed_size, value.values()))
            self._bounds.measured[id(value)] = value, size
        return self._bounds.measured[id(value)][1]

    def _steps(self, items: Iterable[T]) -> Iterator[T]:
        for item in items:
            self._tick()
            yield item

    def _watched(self, function: Callable[..., T]) -> Callable[..., T]:
        @functools.wraps(function)  # with the attributes by which Jinja knows what to pass
        def watched(*args: Any, **kwargs: Any) -> T:
            self._tick()
            return function(*args, **kwargs)

        return watched

    def _bounded(self, function: Callable[..., T]) -> Callable[..., T]:
        @functools.wraps(function)
        def bounded(*args: Any, **kwargs: Any) -> T:
            return self._built(function(*args, **kwargs))

        return bounded

    # Jinja's hooks

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = cast(nodes.Template, _Watch().visit(super()._parse(source, name, filename)))
        tree.set_environment(self)
        return tree

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        if isinstance(obj, (int, float)) or (isinstance(obj, str) and attr in _UNSAFE_METHODS):
            return False
        return super().is_safe_attribute(obj, attr, value)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "*" and not _numbers(left, right):
            text, times = (right, left) if isinstance(left, int) else (left, right)
            self._fits(self._printed_size(text) * max(int(times), 0))
        elif operator == "**" and not (_numbers(left, right) and abs(right) <= MAX_BITS):
            raise BoundsError("it computes with huge numbers")
        elif operator == "%" and isinstance(left, str):
            self._check_format(left, left.count("%"), right)
            return self._built(percent_formatted(left, right))
        value = self.binop_table[operator](left, right)
        return self._charged(value) if isinstance(value, str) else self._built(value)

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        self._tick()
        method = getattr(obj, "__wrapped__", obj)  # the sandbox wraps str.format
        text, name = getattr(method, "__self__", None), getattr(method, "__name__", "")
        if isinstance(text, str) and name == "join":
            return self._join(args[0], text)
        if isinstance(text, str) and name == "replace":
            return self._replace(text, *args)
        if isinstance(text, str) and name == "format":
            self._check_format(text, text.count("{"), [*args, kwargs])
            return self._built(formatted(SandboxedFormatter(self), text, args, kwargs))
        return self._built(super().call(context, obj, *args, **kwargs))

    # Text

    def text(self, value: Any) -> str:
        """``value`` as it is printed, if that fits."""
        if isinstance(value, str):
            return self._charged(value)
        size = self._printed_size(value)
        self._fits(size)
        text = str(value)
        return self._charged(text if size == 1 else marked_like(text, value))

    def _join_parts(self, parts: Iterable[Any]) -> str:
        texts = [self.text(part) for part in parts]
        self._fits(sum(map(len, texts)))
        return self._charged(joined(texts))

    def _join(self, value: Iterable[Any], d: str = "", attribute: str | None = None) -> str:
        if attribute is not None:
            value = [self.getitem(item, attribute) for item in value]
        texts = [self.text(item) for item in self._steps(value)]
        separator = self.text(d)
        self._fits(sum(map(len, texts)) + len(separator) * len(texts))
        return self._charged(joined(texts, separator))

    def _replace(self, value: Any, old: str, new: str, count: int | None = None) -> str:
        text, old, new = self.text(value), self.text(old), self.text(new)
        self._fits(len(text) + text.count(old) * len(new))
        return self._charged(replaced(text, old, new, -1 if count is None else count))

    def _title(self, value: Any) -> str:
        text = self.text(value)
        return self._charged(marked_like(do_title(plain(text)), text))

    def _indent(
        self, value: Any, width: int | str = 4, first: bool = False, blank: bool = False
    ) -> str:
        margin = width if isinstance(width, str) else " " * self._width(width)
        lines = self.text(value).splitlines() or [""]
        self._fits(sum(map(len, lines)) + len(margin) * len(lines))
        rest = [margin + line if line or blank else line for line in lines[1:]]
        return self._charged(joined([margin + lines[0] if first else lines[0], *rest], "\n"))

    def _tojson(
        self,
        value: Any,
        ensure_ascii: bool = False,
        indent: int | str | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        """As in transformers: plain JSON, nothing escaped for HTML."""
        step = " " * self._width(indent) if isinstance(indent, int) else indent
        self._width(len(step or ""))
        self._fits(self._printed_size(value))
        encode = json.JSONEncoder(ensure_ascii=ensure_ascii).encode
        separators = separators or (", " if step is None else ",", ": ")
        return to_json(value, encode, self._join, step, separators, sort_keys)

    def _width(self, width: int) -> int:
        if width > MAX_WIDTH:
            raise BoundsError("it formats text too wide")
        return width

    def _check_format(self, template: str, fields: int, values: Any) -> None:
        if _WIDE_FIELD.search(template) or _NESTED_FIELD.search(template.replace("{{", "")):
            raise BoundsError("it formats text too wide")
        self._fits(len(template) + fields * (MAX_WIDTH + self._printed_size(values)))


class _Watch(NodeTransformer):
    """Puts the sandbox's counting around what Jinja has no hook for."""

    def _around(self, name: str, node: nodes.Expr) -> nodes.Filter:
        return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)

    def visit_For(self, node: nodes.For) -> nodes.For:
        self.generic_visit(node)
        node.iter = self._around("_steps", cast(nodes.Expr, node.iter))
        return node

    def visit_Compare(self, node: nodes.Compare) -> nodes.Expr:
        self.generic_visit(node)
        first = node.ops[0]
        if first.op in ("eq", "ne") and isinstance(first.expr, nodes.Const) and len(node.ops) == 1:
            return node  # takes no time
        return self._around("_watched", node)

    def visit_Concat(self, node: nodes.Concat) -> nodes.Expr:
        self.generic_visit(node)
        return self._around("_concatenated", nodes.List(node.nodes, lineno=node.lineno))

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Expr:
        self.generic_visit(node)
        return self._around("_sliced", node) if isinstance(node.arg, nodes.Slice) else node

    def visit_List(self, node: nodes.List | nodes.Dict) -> nodes.Expr:
        self.generic_visit(node)
        return self._around("_built", node)

    visit_Dict = visit_List

    def visit_Name(self, node: nodes.Name) -> nodes.Expr:
        """The arguments of a macro that has no names for them are a list that is built there."""
        return self._around("_built", node) if node.name in ("varargs", "kwargs") else node

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Expr:
        self.generic_visit(node)
        return self._around("_built", node) if node.ctx == "load" else node


class _Generation(Extension):
    """``{% generation %}`` marks the assistant's words for training; here it only encloses them."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


@pass_context
def _output(context: Context, value: Any) -> str:
    sandbox: Sandbox = context.environment  # type: ignore[assignment]
    return sandbox.text(value)


def _numbers(*values: Any) -> bool:
    return all(isinstance(value, (int, float)) for value in values)


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _strftime_now(format: str) -> str:
    return marked_like(datetime.now().strftime(format), [format])
