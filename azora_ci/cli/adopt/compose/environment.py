"""The variables of a service: which are plain values, which are secrets and under what name, which it may not have."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from azora_ci.cli.adopt.compose import secret
from azora_ci.cli.adopt.compose.document import text
from azora_ci.cli.adopt.compose.merge import as_list
from azora_ci.cli.adopt.compose.model import Model, read_text
from azora_ci.cli.adopt.compose.variables import Interpolated, read_lines
from azora_ci.core.config import names

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,99}")  # as in schemas/deploy-config.schema.json
_EXAMPLES = (".example", ".sample", ".template", ".dist")


@dataclass(frozen=True)
class Wanted:
    """A secret that a variable holds: the name that suits it, and the text that stands for its value, which two services may share."""

    name: str
    expression: str


@dataclass(frozen=True)
class Environment:
    """``values``: variable -> text; ``secrets``: variable -> wanted secret; ``left``: variable or file -> why it is not carried over.

    ``port``: what PORT says; ``example``: the file whose values are only examples, None when there is none.
    """

    values: dict[str, str] = field(default_factory=dict)
    secrets: dict[str, Wanted] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)
    port: str | None = None
    example: str | None = None


def pairs(value: Any) -> Iterator[tuple[str, str | None]]:
    """Yield the variables of a mapping or of a list of ``NAME=value``; None for one that is only named."""
    if isinstance(value, dict):
        yield from ((text(name), None if item is None else text(item)) for name, item in value.items())
        return
    for line in as_list(value):
        if isinstance(line, dict):  # "- NAME: value"
            yield from pairs(line)
            continue
        name, joint, item = text(line).partition("=")
        yield name, item if joint else None


def environment(root: Path, service: Mapping[str, Any], model: Model) -> Environment:
    """Return the environment of a service: its files of variables, later ones over earlier ones, and its own over them."""
    found = Environment()
    variables: dict[str, Interpolated] = {}
    for path, required in _files(service.get("env_file")):
        example = "" if path else None
        content = read_text(root, path)
        if content is None and required:
            example = next((path + ending for ending in _EXAMPLES if read_text(root, path + ending) is not None), "")
            content = read_text(root, example) if example else None
            reason = (
                f"not in the repository; its variables are those of {example}" if example else "not in the repository: name its variables"
            )
            found = replace(found, left={**found.left, f"env_file {path}": reason}, example=example or found.example)
        variables |= {name: value or _given(name, None, model) for name, value in read_lines(content or "", model.variables)}
    variables |= {name: _given(name, value, model) for name, value in pairs(service.get("environment"))}
    return _sorted(variables, found, {name: value.text for name, value in variables.items()} | model.variables)


def _files(value: Any) -> Iterator[tuple[str, bool]]:
    for entry in as_list(value):
        if isinstance(entry, dict):
            yield text(entry.get("path")), entry.get("required") is not False
        else:
            yield text(entry), True


def _given(name: str, value: str | None, model: Model) -> Interpolated:
    """Return a variable's value; one that is only named has that of ``.env``."""
    if value is not None:
        return model.fill(value)
    known = model.variables.get(name)
    return Interpolated(known or "", (name, *model.made_of.get(name, ())), () if known is not None else (name,), name)


def _sorted(variables: Mapping[str, Interpolated], found: Environment, known: Mapping[str, str]) -> Environment:
    values, secrets, left, port = {}, {}, dict(found.left), None
    for name, value in variables.items():
        if name == "PORT":
            port = value.text
        elif name == "HOST" and value.text in {"", "0.0.0.0", "::"}:  # noqa: S104 - the target says the same
            continue
        elif name in names.GIVEN:
            left[name] = "azora-ci gives every instance a variable of that name: give the service's another one"
        elif not _VARIABLE.fullmatch(name) or "\0" in value.text:
            left[f"variable {name[:40]!r}"] = "its name or value is none that a container can be given"
        elif _is_secret(name, value, known):
            secrets[name] = Wanted(value.only or name, value.text if not value.names else f"{value.only}{value.names}{value.text}")
        else:
            values[name] = value.text
    return replace(found, values=values, secrets=secrets, left=left, port=port)


def _is_secret(name: str, value: Interpolated, known: Mapping[str, str]) -> bool:
    """Say whether a value is to be handed as a secret: it sounds like one, nobody knows it, or the name is one of azora-ci's secrets.

    ``known``: values of the variables that it may be made of.
    """
    if value.missing or name in names.OWN_SECRETS:
        return True
    sounds = secret.is_secret(name, value.text) or (value.names and value.text == "" and secret.is_secret(name))
    return bool(sounds) or any(secret.is_secret(other, known.get(other) or value.text) for other in value.names)


def named(services: Mapping[str, Mapping[str, Wanted]], own: Collection[str]) -> dict[str, dict[str, str]]:
    """Return service -> variable -> name of its secret. Two variables share a secret only when their values are the same text.

    GitHub takes capital letters, digits and ``_``; what azora-ci or the runner reads itself stays theirs: such a secret gets another name.
    """
    taken: dict[str, str] = {}
    result: dict[str, dict[str, str]] = {}
    for service, wanted in services.items():
        result[service] = {}
        for variable, holder in wanted.items():
            candidates = [_secret_name(holder.name, own), _secret_name(f"{service}_{variable}", own)]
            candidates += [f"{candidates[-1][:95]}_{number}" for number in range(2, 1000)]
            name = next(name for name in candidates if taken.get(name, holder.expression) == holder.expression)
            taken[name] = holder.expression
            result[service][variable] = name
    return result


def _secret_name(name: str, own: Collection[str]) -> str:
    cleaned = re.sub(r"[^A-Z0-9]+", "_", name.upper()).lstrip("_0123456789")[:90] or "SECRET"
    return cleaned if names.may_be_secret(cleaned, own) else f"APP_{cleaned}"
