"""Jinja in bounded time and memory: a template is a program of others, and may loop for ever or ask for a string of a terabyte. Knows
nothing about chats.

Each loop, macro and call of a template gets a step that looks at the time; each operation that can make something much larger than what it
is given is asked for its size before it is done, and what one rendering makes in all is counted.
"""

from __future__ import annotations

import math
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

import jinja2
import jinja2.nodes
import jinja2.runtime
import jinja2.sandbox

T = TypeVar("T")
RENDER_S = 5.0  # seconds of the processor that one rendering may take
LARGEST_TEXT = 1 << 25  # characters
MADE_IN_ALL = 1 << 29  # characters of long texts that one rendering may make, whether or not it keeps them
_LONG = 1 << 12
LARGEST_LIST = 1 << 20  # items
_LARGEST_WIDTH, _LARGEST_BITS, _LARGEST_SOURCE = 100_000, 1 << 14, 1 << 20
# A width of many digits, or one that is itself a value: in `%` and in `str.format`, there with escaped braces taken out.
_WIDE = re.compile(r"%[^a-zA-Z%]*?(?:\*|\d{6})")
_WIDE_FIELD = re.compile(r"\{[^{}]*(?:\d{6}|\{)")
_BLOCKS = (jinja2.nodes.For, jinja2.nodes.Macro, jinja2.nodes.CallBlock)
_MADE_OF_ITEMS = ("map", "select", "reject", "selectattr", "rejectattr", "unique", "groupby", "sort", "list", "batch", "slice", "reverse")


class TooMuch(jinja2.TemplateError):
    """A template that takes more time or memory than it may."""


class Bounded(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """An immutable sandbox in which every rendering ends."""

    intercepted_binops = frozenset({"+", "*", "%", "**"})

    def __init__(self, **options: Any) -> None:
        super().__init__(finalize=self._finalized, **options)
        self._now = threading.local()
        self.step: Callable[[], None] = self._step
        self.joined: Callable[..., str] = self._joined
        del self.globals["lipsum"]
        self.filters["join"] = self._join
        self._guarded = False

    def bounded(self, source: str) -> jinja2.Template:
        """The template with a step in every loop, macro and call. Raises TemplateSyntaxError, TooMuch."""
        if len(source) > _LARGEST_SOURCE:
            raise TooMuch(f"it has {len(source)} characters, {_LARGEST_SOURCE} are allowed")
        self._guard_filters()
        try:
            tree = self.parse(source)
            blocks: list[Any] = list(tree.find_all(_BLOCKS))
            for block in blocks:
                block.body.insert(0, jinja2.nodes.ExprStmt(self._called("step", [], block.lineno)))
            self._rewrite(tree)
            return self.from_string(tree)
        except (RecursionError, MemoryError, SyntaxError, ValueError) as error:
            raise TooMuch(f"it is nested too deeply: {error}") from error

    def render(self, template: jinja2.Template, **values: Any) -> str:
        """The text. Raises TooMuch, and what a template raises."""
        self._now.end, self._now.made, self._now.steps = time.thread_time() + RENDER_S, 0, 0
        try:
            return template.render(**values)
        except (RecursionError, MemoryError, OverflowError) as error:
            raise TooMuch(f"it computes without an end: {error}") from error

    def attempt(self, template: jinja2.Template, **values: Any) -> None:
        """Render for the sake of the limits alone. Raises TooMuch."""
        try:
            self.render(template, **values)
        except TooMuch:
            raise
        except Exception:  # noqa: BLE001 - a template may refuse what it is tried with, in whatever way
            return

    def _step(self) -> None:
        now = self._now
        now.steps = getattr(now, "steps", 0) + 1
        if now.steps % 8 == 0 and time.thread_time() > getattr(now, "end", math.inf):
            raise TooMuch(f"it takes more than {RENDER_S:g} s of the processor")

    def _made(self, value: T) -> T:
        """Count a text that was made; look at the length of a list."""
        if isinstance(value, str):
            if len(value) > _LONG:
                _text(len(value))
                self._now.made = getattr(self._now, "made", 0) + len(value)
                if self._now.made > MADE_IN_ALL:
                    raise TooMuch(f"it makes texts of {self._now.made} characters in all, {MADE_IN_ALL} are allowed")
        elif isinstance(value, (list, tuple)):
            _length(value, len(value))
        return value

    def _finalized(self, value: T) -> T:
        """Before a value is written."""
        if isinstance(value, str) and len(value) <= _LONG:
            return value
        if isinstance(value, (list, tuple, Mapping)):
            _weigh(value)
        return self._made(value)

    def _joined(self, *values: Any) -> str:
        """`a ~ b`."""
        return self._made("".join(_counted(str(self._finalized(value)) for value in values)))

    def _called(self, name: str, args: list[jinja2.nodes.Expr], line: int) -> jinja2.nodes.Call:
        return jinja2.nodes.Call(jinja2.nodes.EnvironmentAttribute(name, lineno=line), args, [], None, None, lineno=line)

    def _rewrite(self, node: jinja2.nodes.Node) -> None:
        """Let `a ~ b` ask for its size, too."""
        for field, value in node.iter_fields():
            if isinstance(value, list):
                for i, item in enumerate(value):
                    if isinstance(item, jinja2.nodes.Node):
                        self._rewrite(item)
                        if isinstance(item, jinja2.nodes.Concat):
                            value[i] = self._called("joined", item.nodes, item.lineno)
            elif isinstance(value, jinja2.nodes.Node):
                self._rewrite(value)
                if isinstance(value, jinja2.nodes.Concat):
                    setattr(node, field, self._called("joined", value.nodes, value.lineno))

    def call(self, context: jinja2.runtime.Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Any call that a template makes."""
        if obj is self.step or obj is self.joined:
            return obj(*args)
        if isinstance(owner := getattr(obj, "__self__", None), str):
            args = _method(owner, getattr(obj, "__name__", ""), args, kwargs)
        return self._made(super().call(context, obj, *args, **kwargs))

    def call_binop(self, context: jinja2.runtime.Context, operator: str, left: Any, right: Any) -> Any:
        """The operations that can make something large."""
        if operator == "+":  # at most twice as long as what there is
            return self._made(left + right)
        if operator == "%" and isinstance(left, str):
            _formatted(left, right if isinstance(right, tuple) else (right,))
        elif operator == "**" and isinstance(left, int) and isinstance(right, int) and right > 0:
            _bits(left.bit_length() * right)
        elif operator == "*":
            _product(left, right)
        return self._made(super().call_binop(context, operator, left, right))

    def concat(self, pieces: Iterable[str]) -> str:
        """What a template or a macro wrote."""
        total, held = 0, list[str]()
        for piece in pieces:
            total += len(piece)
            if total > LARGEST_TEXT:
                _text(total)
            held.append(piece)
        return "".join(held)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """`str.format`, however it was come by."""
        wrapped = super().wrap_str_format(value)
        if wrapped is None:
            return None
        form = value.__self__.replace("{{", "").replace("}}", "")

        def formatted(*args: Any, **named: Any) -> str:
            _formatted(form, (*args, *named.values()), _WIDE_FIELD)
            return wrapped(*args, **named)

        return formatted

    def _guard_filters(self) -> None:
        """Put the checks before the filters that are there now, once."""
        if self._guarded:
            return
        for name, check in _CHECKS.items():
            self.filters[name] = _checked(self.filters[name], check)
        for name in _MADE_OF_ITEMS:
            self.filters[name] = _stepping(self.filters[name], self.step)
        for name, do in self.filters.items():
            self.filters[name] = _watched(do, self._made)
        self._guarded = True

    def _join(self, value: Iterable[Any], d: str = "", attribute: str | int | None = None) -> str:
        if attribute is not None:
            take = jinja2.filters.make_attrgetter(self, attribute)
            value = map(take, value)
        pieces = list(_few(value, self.step))
        _text(len(str(d)) * len(pieces))
        return str(d).join(_counted(str(self._finalized(piece)) for piece in pieces))


def _text(size: int) -> None:
    if size > LARGEST_TEXT:
        raise TooMuch(f"it makes a text of {size} characters, {LARGEST_TEXT} are allowed")


def _length(value: Any, size: int) -> None:
    if isinstance(value, str):
        _text(size)
    elif size > LARGEST_LIST:
        raise TooMuch(f"it makes a list of {size} items, {LARGEST_LIST} are allowed")


def _width(width: Any) -> None:
    if isinstance(width, (int, float)) and abs(width) > _LARGEST_WIDTH:
        raise TooMuch(f"it asks for a width of {width}, {_LARGEST_WIDTH} are allowed")


def _breadth(value: Any) -> int:
    return len(value) if isinstance(value, str) else int(value) if isinstance(value, (int, float)) else 0


def _bits(bits: int) -> None:
    if bits > _LARGEST_BITS:
        raise TooMuch(f"it makes a number of {bits} bits, {_LARGEST_BITS} are allowed")


def _number(value: Any) -> None:
    if not isinstance(value, (int, float)):
        raise TooMuch(f"it sums up what are no numbers: {type(value).__name__}")


def _product(left: Any, right: Any) -> None:
    if isinstance(left, int) and isinstance(right, int):
        _bits(left.bit_length() + right.bit_length())
    for value, times in ((left, right), (right, left)):
        if hasattr(value, "__len__") and isinstance(times, int):
            _length(value, len(value) * times)


def _replaced(text: str, old: str, new: str) -> None:
    if len(new) > len(old):
        _text(len(text) + text.count(old) * (len(new) - len(old)))


def _formatted(form: str, values: Iterable[Any], wide: re.Pattern[str] = _WIDE) -> None:
    if wide.search(form):
        raise TooMuch(f"it formats into a width that is too large or not written out: {form[:50]!r}")
    largest = 0
    for value in values:
        largest = max(largest, _weigh(value))
    _text(len(form) + (form.count("%") + form.count("{")) * largest)


def _weigh(value: Any) -> int:
    """About how many characters a value has when it is written. Raises TooMuch above what is allowed."""
    total, waiting = 0, [value]
    while waiting:
        each = waiting.pop()
        if isinstance(each, str):
            total += len(each)
        elif isinstance(each, Mapping):
            waiting += [*each.keys(), *each.values()]
        elif isinstance(each, (list, tuple)):
            waiting += each
        total += 32
        _text(total)
    return total


def _counted(pieces: Iterable[str]) -> Iterator[str]:
    total = 0
    for piece in pieces:
        total += len(piece)
        _text(total)
        yield piece


def _written(value: Any, *args: Any, **named: Any) -> None:
    """Before a value is written as JSON, with its indent and separators."""
    _width(max(map(_breadth, (*args, *named.values())), default=0) * 1000)
    _weigh(value)


def _indented(text: Any, width: int | str = 4, *_: Any, **__: Any) -> None:
    _text(len(str(text)) + (str(text).count("\n") + 1) * _breadth(width))


# What a filter is asked before it begins, by its name.
_CHECKS: dict[str, Callable[..., object]] = {
    "center": lambda value, width=80: _width(width),
    "indent": _indented,
    "replace": lambda value, old, new, *_: _replaced(str(value), str(old), str(new)),
    "format": lambda value, *args, **named: _formatted(str(value), (*args, *named.values())),
    "wordwrap": lambda value, *args, **named: _width(max(map(_breadth, (*args, *named.values())), default=0)),
    "tojson": _written,
    "batch": lambda value, linecount, *_: _width(linecount),
    "slice": lambda value, slices, *_: _width(slices),
    "sum": lambda value, attribute=None, start=0: _number(start),
    "string": lambda value: _weigh(value),
    "pprint": lambda value: _weigh(value),
}


def _few(values: Iterable[T], step: Callable[[], None]) -> Iterator[T]:
    """The items, at most `LARGEST_LIST`, with a step at each."""
    for count, value in enumerate(values):
        step()
        _length([], count)
        yield value


def _checked(do: Callable[..., Any], check: Callable[..., object]) -> Callable[..., Any]:
    """The filter with a look at its arguments before it begins."""
    passes = _passed(do)

    def checked(*args: Any, **kwargs: Any) -> Any:
        check(*args[passes:], **kwargs)
        return do(*args, **kwargs)

    return _as(do, checked)


def _watched(do: Callable[..., Any], made: Callable[[Any], Any]) -> Callable[..., Any]:
    """The filter with a look at what it made."""
    return _as(do, lambda *args, **kwargs: made(do(*args, **kwargs)))


def _stepping(do: Callable[..., Any], step: Callable[[], None]) -> Callable[..., Any]:
    """The filter over items, with a step at each of them."""
    passes = _passed(do)

    def stepping(*args: Any, **kwargs: Any) -> Any:
        value = args[passes] if len(args) > passes else ()
        if isinstance(value, (str, Mapping)):
            _length([], len(value))
        elif isinstance(value, Iterable):
            value = _few(value, step)
        return do(*args[:passes], value, *args[passes + 1 :], **kwargs)

    return _as(do, stepping)


def _passed(do: Callable[..., Any]) -> int:
    """How many arguments Jinja puts before a filter's own: a context or an environment."""
    return int(hasattr(do, "jinja_pass_arg"))


def _as(do: Callable[..., Any], other: Callable[..., Any]) -> Callable[..., Any]:
    if hasattr(do, "jinja_pass_arg"):
        other.jinja_pass_arg = do.jinja_pass_arg  # type: ignore[attr-defined]
    return other


def _method(owner: str, name: str, args: tuple[Any, ...], named: Mapping[str, Any]) -> tuple[Any, ...]:
    """Look at the arguments of a method of a text; a list in place of what can be read only once."""
    if name in ("center", "ljust", "rjust", "zfill"):
        _width(args[0] if args else 0)
    elif name == "expandtabs":
        _text(len(owner) + owner.count("\t") * max(map(_breadth, (*args, *named.values())), default=8))
    elif name == "replace" and len(args) >= 2 and isinstance(args[0], str) and isinstance(args[1], str):
        _replaced(owner, args[0], args[1])
    elif name == "join" and len(args) == 1:
        items = list(args[0])
        _text(sum(len(item) + len(owner) for item in items if isinstance(item, str)))
        return (items,)
    elif name == "translate":
        raise TooMuch("str.translate is not allowed")
    return args
