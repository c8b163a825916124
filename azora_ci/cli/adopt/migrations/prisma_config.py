"""Read ``prisma.config.ts`` and the datasource of a schema as text: what is written there is found, what is computed is not. Pure."""

from __future__ import annotations

import posixpath
import re
from dataclasses import dataclass

# A text, or a comment: comments are removed, texts are kept, so that "//" in an address begins none.
_TEXT_OR_COMMENT = re.compile(r"""("(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'|`(?:\\.|[^`\\])*`)|//[^\n]*|/\*.*?\*/""", re.DOTALL)
_LITERAL = r"""(?:"(?:[^"\\\n])*"|'(?:[^'\\\n])*'|`(?:[^`\\$])*`)"""
_HERE = r"(?:__dirname|import\.meta\.dirname|import\.meta\.dir|process\.cwd\(\))"
_JOINED = rf"(?:path\.|posix\.)*(?:join|resolve)\(\s*(?:{_HERE}\s*,\s*)?((?:{_LITERAL}\s*,?\s*)+)\)"
_VALUE = re.compile(rf"\s*(?:({_LITERAL})|{_JOINED})\s*(?:as\s+const\s*)?(?=[,}}\n)]|$)")
_ENVIRONMENT = re.compile(
    r"""\benv(?:<[^>]*>)?\(\s*["'](\w+)["']|\b(?:process|Bun)\.env\.(\w+)|\b(?:process|Bun)\.env\[\s*["'](\w+)["']|\bDeno\.env\.get\(\s*["'](\w+)["']"""
)
_ADDRESS = re.compile(r"\b(?:url|directUrl|connectionString)\s*:\s*([^,}\n]+(?:\n\s*(?:\?\?|\|\|)[^,}\n]+)*)")
_DATASOURCE = re.compile(r"^\s*datasource\s+\w+\s*\{(.*?)^\s*\}", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Config:
    """What a ``prisma.config.*`` says: paths beside it, names of variables. ``computed``: keys whose values are not written there."""

    schema: str | None = None
    migrations: str | None = None
    variables: tuple[str, ...] = ()
    computed: tuple[str, ...] = ()


@dataclass(frozen=True)
class Datasource:
    """The datasource of a schema: provider, variables of its addresses, and whether an address is written there itself."""

    provider: str | None
    variables: tuple[str, ...]
    literal: bool = False


def config(text: str) -> Config:
    """Return what a configuration of Prisma's says."""
    code = _without_comments(text)
    begin = re.search(r"\bdefineConfig\s*\(|\bexport\s+default\b|\bmodule\.exports\s*=", code)
    body = code[begin.end() :] if begin else code
    found: dict[str, str | None] = {}
    for key, pattern in (("schema", r"(?<![\w.$])schema\s*:"), ("migrations.path", r"(?<![\w.$])migrations\s*:\s*\{[^{}]*?\bpath\s*:")):
        position = re.search(pattern, body)
        if position:
            found[key] = _value(body, position.end())
    computed = tuple(key for key, value in found.items() if value is None)
    return Config(found.get("schema"), found.get("migrations.path"), _variables(code), computed)


def datasource(text: str) -> Datasource | None:
    """Return the datasource of a schema, or None where the text has none."""
    block = _DATASOURCE.search(re.sub(r"^((?:[^\"\n]|\"[^\"\n]*\")*?)//[^\n]*", r"\1", text, flags=re.MULTILINE))
    if block is None:
        return None
    provider = re.search(r"^\s*provider\s*=\s*\"([^\"]*)\"", block[1], re.MULTILINE)
    addresses = [match[1] for match in re.finditer(r"^\s*(?:url|directUrl)\s*=\s*(.+)$", block[1], re.MULTILINE)]
    names = [name for address in addresses for name in re.findall(r"env\(\s*\"(\w+)\"\s*\)", address)]
    return Datasource(provider[1] if provider else None, tuple(dict.fromkeys(names)), any(a.startswith('"') for a in addresses))


def _without_comments(text: str) -> str:
    return _TEXT_OR_COMMENT.sub(lambda matched: matched[1] or " ", text)


def _value(code: str, position: int) -> str | None:
    """Return the path that is written at a position: a text, or texts that are joined; None for what is computed."""
    matched = _VALUE.match(code, position)
    if matched is None:
        return None
    parts = [part[1:-1] for part in re.findall(_LITERAL, matched[1] or matched[2])]
    return posixpath.normpath(posixpath.join(*parts)) if parts and not any(part.startswith("/") for part in parts) else None


def _variables(code: str) -> tuple[str, ...]:
    """Return the variables in addresses: ``url: env("APP_URL")``, also by way of a constant of the same file."""
    names = []
    for address in _ADDRESS.findall(code):
        constant = re.fullmatch(r"(\w+)!?", address.strip())
        assigned = re.search(rf"\b(?:const|let|var)\s+{constant[1]}\b[^=]*=([^;]+?)(?:;|\n\s*\n|$)", code) if constant else None
        names += [next(filter(None, groups)) for groups in _ENVIRONMENT.findall(assigned[1] if assigned else address)]
    return tuple(dict.fromkeys(names))
