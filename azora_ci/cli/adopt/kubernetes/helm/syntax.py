"""Go templates as a tree: texts, actions, ``if``, ``with``, ``range``, ``define``. Pure; each text is read in one pass."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

_TOKEN = re.compile(
    r"\s*(?:(?P<string>\"(?:[^\"\\]|\\.)*\")|(?P<raw>`[^`]*`)|(?P<number>-?\d{1,17}(?:\.\d{1,17})?)(?![\w.])"
    r"|(?P<word>\$?[A-Za-z_][A-Za-z0-9_]*|\$)|(?P<field>\.[A-Za-z_][A-Za-z0-9_]*)|(?P<mark>:=|[().|,=]))"
)
_CLOSES = re.compile(r"\"(?:[^\"\\]|\\.)*\"|`[^`]*`|\}\}", re.DOTALL)
_ACTION = 20_000  # characters of one
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r"}
_BLOCKS = {"if", "with", "range", "define", "block"}
_DEPTH = 60  # of brackets in an action, and of blocks in one another


class TemplateError(Exception):
    """A template that is not read; the text says why."""


@dataclass(frozen=True)
class Token:
    """A part of an action. ``glued``: no space stands before it, as before the field in ``.Values.image``."""

    kind: str
    text: str
    glued: bool


@dataclass
class Block:
    """A part of a template. ``kind``: text, action, if, with, range, define; ``content`` is that of the text; ``tokens`` those of the
    action; ``otherwise``: what stands behind ``else``.
    """

    kind: str
    content: str = ""
    tokens: Sequence[Token] = ()
    body: list[Block] = field(default_factory=list)
    otherwise: list[Block] = field(default_factory=list)


def parse(text: str) -> list[Block]:
    """Return the blocks of a template. Raises TemplateError for one that does not close."""
    top: list[Block] = []
    growing = top
    opened: list[
        tuple[Block, list[Block], bool]
    ] = []  # a block, the list that it stands in, whether the end of the one above closes it, too
    for kind, content in _parts(text):
        if kind == "text":
            growing.append(Block("text", content))
            continue
        tokens = list(_tokens(content))
        word = tokens[0].text if tokens and tokens[0].kind == "word" else ""
        if word == "else" and opened:
            growing = opened[-1][0].otherwise
            tokens = tokens[1:]
        if word in _BLOCKS or (word == "else" and tokens):
            growing.append(block := Block(tokens[0].text, tokens=tokens[1:]))
            opened.append((block, growing, word == "else"))
            growing = block.body
            if len(opened) > _DEPTH:
                raise TemplateError(f"its blocks are deeper than {_DEPTH}")
        elif word == "end" and opened:
            shared = True
            while shared:
                _, growing, shared = opened.pop()
        elif word != "else" and tokens:
            growing.append(Block("action", tokens=tokens))
    if opened:
        raise TemplateError("a block has no end")
    return top


def _parts(text: str) -> Iterator[tuple[str, str]]:
    """Yield texts and actions, the spaces taken away that ``{{-`` and ``-}}`` take away; no comments."""
    position, trims = 0, False
    while (begin := text.find("{{", position)) >= 0:
        comment = re.compile(r"\{\{-?\s*/\*").match(text, begin)
        end = text.find("*/", comment.end()) if comment else begin + 2
        end = _end(text, end) if end >= 0 else -1
        if end < 0:
            raise TemplateError("an action does not close")
        before = text[position:begin].lstrip() if trims else text[position:begin]
        inner = text[begin + 2 : end]
        before = before.rstrip() if inner[:1] == "-" else before
        trims = inner[-1:] == "-"
        if before:
            yield "text", before
        inner = inner.removeprefix("-")
        inner = inner[:-1] if trims else inner
        if not comment:
            yield "action", inner.strip()
        position = end + 2
    rest = text[position:].lstrip() if trims else text[position:]
    if rest:
        yield "text", rest


def _end(text: str, begin: int) -> int:
    """Return where an action closes, outside of its texts; -1 where it does not."""
    for match in _CLOSES.finditer(text, begin, begin + _ACTION):
        if match[0] == "}}":
            return match.start()
    return -1


def _tokens(action: str) -> Iterator[Token]:
    position, depth = 0, 0
    while position < len(action.rstrip()):
        match = _TOKEN.match(action, position)
        if match is None or match.lastgroup is None:
            raise TemplateError(f"{action[:60]}: not read at {action[position : position + 20]}")
        kind = match.lastgroup
        glued = match.start(kind) == position
        depth += {"(": 1, ")": -1}.get(match[kind], 0)
        if depth > _DEPTH:
            raise TemplateError(f"its brackets are deeper than {_DEPTH}")
        yield Token(kind, _value(kind, match[kind]), glued)
        position = match.end()


def _value(kind: str, text: str) -> str:
    if kind == "string":
        return re.sub(r"\\(.)", lambda escaped: _ESCAPES.get(escaped[1], escaped[1]), text[1:-1], flags=re.DOTALL)
    return text[1:-1] if kind == "raw" else text.removeprefix(".") if kind == "field" else text
