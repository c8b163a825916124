"""Evaluate Go templates as Helm does, within bounds: what a chart prints for its values. Pure; nothing is looked up or started."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from azora_ci.cli.adopt.kubernetes.helm.functions import FREE, FUNCTIONS, text
from azora_ci.cli.adopt.kubernetes.helm.sizes import LARGEST, Sizes
from azora_ci.cli.adopt.kubernetes.helm.syntax import Block, TemplateError, Token, parse

_STEPS = 300_000  # blocks, values, calls, turns of ranges of one chart
_WORK = 20_000_000  # characters and values that all calls of one chart are given
_PARSING = 20  # times the work of another call that a character takes which tpl parses
_PRINTED = 4 * 1024 * 1024  # characters of all texts that one chart makes
_DEPTH = 40  # of templates that include templates


@dataclass
class _Scope:
    """``dot``: what ``.`` is; ``variables``: name with its ``$`` -> value."""

    dot: Any
    variables: dict[str, Any]

    def inner(self, dot: Any, **variables: Any) -> _Scope:
        return _Scope(dot, self.variables | variables)


@dataclass
class Templates:
    """The named templates of a chart, and what evaluating has cost. ``unknown``: names of functions that are not known here."""

    named: dict[str, list[Block]] = field(default_factory=dict)
    unknown: set[str] = field(default_factory=set)
    _steps: int = 0
    _printed: int = 0
    _depth: int = 0
    _work: int = 0
    _sizes: Sizes = field(default_factory=Sizes)

    def add(self, blocks: Sequence[Block]) -> None:
        """Take the named templates out of a file's blocks."""
        for block in blocks:
            if block.kind in {"define", "block"} and block.tokens:
                self.named[block.tokens[0].text] = block.body

    def render(self, blocks: Sequence[Block], root: Mapping[str, Any]) -> str:
        """Return what a file prints. ``root``: Values, Chart, Release, … Raises TemplateError for what is not read or grows too large."""
        try:
            return self._printed_of(blocks, _Scope(root, {"$": root}))
        except RecursionError as error:
            raise TemplateError("it calls itself") from error

    def _printed_of(self, blocks: Sequence[Block], scope: _Scope) -> str:
        return "".join(self._parts(blocks, scope))

    def _parts(self, blocks: Sequence[Block], scope: _Scope) -> Iterator[str]:
        for block in blocks:
            self._count()
            if block.kind == "text":
                yield self._bounded(block.content)
            elif block.kind == "action":
                yield self._bounded(text(self._action(block.tokens, scope)))
            elif block.kind == "if":
                yield from self._parts(block.body if self._action(block.tokens, scope, declares=True) else block.otherwise, scope)
            elif block.kind == "with":
                value = self._action(block.tokens, scope, declares=True)
                self._spend(len(scope.variables))
                yield from self._parts(block.body, scope.inner(value)) if value else self._parts(block.otherwise, scope)
            elif block.kind == "range":
                yield from self._range(block, scope)
            elif block.kind == "block":
                yield self._included(block.tokens[0].text, scope.dot)

    def _range(self, block: Block, scope: _Scope) -> Iterator[str]:
        names = [token.text for token in block.tokens[: _assignment(block.tokens)] if token.kind == "word"]
        value = self._action(block.tokens[_assignment(block.tokens) :], scope)
        entries = list(value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ())
        for key, item in entries:
            self._count()
            self._spend(len(scope.variables))
            given = {names[0]: key, names[1]: item} if len(names) > 1 else {names[0]: item} if names else {}
            yield from self._parts(block.body, _Scope(item, scope.variables | given))
        if not entries:
            yield from self._parts(block.otherwise, scope)

    def _included(self, name: Any, dot: Any) -> str:
        self._depth += 1
        if self._depth > _DEPTH:
            raise TemplateError(f"its templates include one another more than {_DEPTH} deep")
        printed = self._printed_of(self.named.get(text(name), ()), _Scope(dot, {"$": dot}))
        self._depth -= 1
        return printed

    # --- actions ------------------------------------------------------------------------------------------------------------

    def _action(self, tokens: Sequence[Token], scope: _Scope, *, declares: bool = False) -> Any:
        """Return the value of an action; nothing for one that only gives a variable its value."""
        start = _assignment(tokens)
        value = self._pipeline(_Reader(tokens, start), scope)
        if not start:
            return value
        scope.variables[tokens[0].text] = value
        return value if declares else ""

    def _pipeline(self, reader: _Reader, scope: _Scope) -> Any:
        value = self._command(reader, scope)
        while reader.take("|"):
            value = self._command(reader, scope, value)
        return value

    def _command(self, reader: _Reader, scope: _Scope, *piped: Any) -> Any:
        """Return the value of one command: a function with what stands behind it and what was piped into it, or a value."""
        self._count()
        token = reader.next
        if token is not None and token.kind == "word" and not token.text.startswith("$") and token.text not in _CONSTANTS:
            reader.position += 1
            return self._called(token.text, [*self._arguments(reader, scope), *piped])
        value = self._operand(reader, scope)
        list(self._arguments(reader, scope))  # of a method, such as .Capabilities.APIVersions.Has: nothing is known of a cluster
        return value

    def _arguments(self, reader: _Reader, scope: _Scope) -> Iterator[Any]:
        while reader.next is not None and reader.next.text not in _ENDS.get(reader.next.kind, ()):
            yield self._operand(reader, scope)

    def _operand(self, reader: _Reader, scope: _Scope) -> Any:
        self._count()
        token = reader.next
        if token is None:
            raise TemplateError("a value is missing")
        reader.position += 1
        if token.kind == "mark" and token.text == "(":
            value = self._pipeline(reader, scope)
            if not reader.take(")"):
                raise TemplateError("a bracket does not close")
        elif token.kind in {"string", "raw"}:
            return token.text
        elif token.kind == "number":
            return float(token.text) if "." in token.text else int(token.text)
        elif token.kind == "field":
            value = _member(scope.dot, token.text)
        elif token.text == ".":
            value = scope.dot
        elif token.text.startswith("$"):
            value = scope.variables.get(token.text)
        elif token.text in _CONSTANTS:
            return _CONSTANTS[token.text]
        else:
            return self._called(token.text, [])
        while reader.next is not None and reader.next.kind == "field" and reader.next.glued:
            value = _member(value, reader.next.text)
            reader.position += 1
        return value

    def _called(self, name: str, arguments: list[Any]) -> Any:
        if name in {"include", "template"}:
            return self._included(arguments[0], arguments[1] if len(arguments) > 1 else None) if arguments else ""
        if name == "tpl":
            self._spend(*(_PARSING * self._sizes.of(argument) for argument in arguments[:1]))
            return self._bounded(self.render(parse(text(arguments[0])), arguments[1])) if len(arguments) > 1 else ""
        function: Callable[..., Any] | None = FUNCTIONS.get(name)
        if function is None:
            self.unknown.add(name)
            return None
        if name not in FREE:
            self._spend(*map(self._sizes.of, arguments))
        try:
            value = function(*arguments)
        except (TypeError, ValueError, IndexError, KeyError, AttributeError, OverflowError):
            return None  # of a value that the files do not say, such as the length of nothing
        self._sizes.of(value)  # so that none grows without end
        return self._bounded(value) if isinstance(value, str) else value

    # --- bounds -------------------------------------------------------------------------------------------------------------

    def _count(self) -> None:
        self._steps += 1
        if self._steps > _STEPS:
            raise TemplateError(f"it takes more than {_STEPS} steps")

    def _spend(self, *units: int) -> None:
        self._work += sum(units)
        if self._work > _WORK:
            raise TemplateError(f"its calls are given more than {_WORK} characters and values")

    def _bounded(self, printed: str) -> str:
        self._printed += len(printed)
        if len(printed) > LARGEST or self._printed > _PRINTED:
            raise TemplateError("it prints too much")
        return printed


@dataclass
class _Reader:
    """Reads tokens in turn."""

    tokens: Sequence[Token]
    position: int = 0

    @property
    def next(self) -> Token | None:
        return self.tokens[self.position] if self.position < len(self.tokens) else None

    def take(self, mark: str) -> bool:
        """Go on behind a mark, if it is the next token."""
        found = self.next is not None and self.next.kind == "mark" and self.next.text == mark
        self.position += found
        return found


_CONSTANTS = {"true": True, "false": False, "nil": None}
_ENDS = {"mark": ("|", ")", ",", ":=", "=")}


def _assignment(tokens: Sequence[Token]) -> int:
    """Return where the value begins that an action gives to a variable; 0 for an action that gives none."""
    return next((place + 1 for place, token in enumerate(tokens[:4]) if token.kind == "mark" and token.text in {":=", "="}), 0)


def _member(value: Any, name: str) -> Any:
    return value.get(name) if isinstance(value, Mapping) else None
