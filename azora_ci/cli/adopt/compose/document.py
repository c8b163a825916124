"""One YAML document of Compose: scalars as Compose takes them, its tags ``!reset`` and ``!override``, nothing unbounded."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from azora_ci.core.errors import BadInputError

_SIZE = 512 * 1024  # bytes of one file; the largest of public repositories have a tenth of it
_VALUES = 100_000
_DEPTH = 40


@dataclass(frozen=True)
class Reset:
    """The tag ``!reset``: what stands here in the files before is gone."""


@dataclass(frozen=True)
class Override:
    """The tag ``!override``: this value replaces what stands here in the files before, and is not merged with it."""

    value: Any


class _Loader(yaml.SafeLoader):
    """YAML 1.2 scalars, as Compose's reader takes them: ``no`` and ``22:22`` are texts, and so is a date."""

    merged = 0

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Put in what ``<<`` names. Raises ValueError for aliases of aliases that make it endless."""
        super().flatten_mapping(node)
        self.merged += len(node.value)
        if self.merged > _VALUES:
            raise ValueError(f"its merges (<<) make more than {_VALUES} values")


# The numbers are bounded, so that no text of a thousand digits is counted in.
_Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?(?:0|[1-9][0-9]{0,17})", "-+0123456789"),
    ("float", r"[-+]?(?:[0-9]{1,17}\.[0-9]{0,17}|\.[0-9]{1,17})(?:[eE][-+]?[0-9]{1,2})?", "-+.0123456789"),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("merge", r"<<", "<"),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"(?:{_pattern})$"), list(_first))


def _plain(loader: yaml.SafeLoader, node: yaml.Node) -> Any:
    if isinstance(node, yaml.MappingNode):
        return loader.construct_mapping(node, deep=True)
    if isinstance(node, yaml.SequenceNode):
        return loader.construct_sequence(node, deep=True)
    style = getattr(node, "style", None)
    tag = loader.resolve(yaml.ScalarNode, node.value, (style is None, style is not None))  # type: ignore[no-untyped-call] # of the stubs
    return loader.construct_object(yaml.ScalarNode(tag, node.value))


def _scalar(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> Any:
    """Return the value of a number or a truth; the text itself for one that is only tagged so, such as ``!!int many``."""
    tag = loader.resolve(yaml.ScalarNode, node.value, (True, False))  # type: ignore[no-untyped-call] # of the stubs
    return yaml.SafeLoader.yaml_constructors.get(tag, yaml.SafeLoader.construct_yaml_str)(loader, node)


def _reset(_loader: yaml.SafeLoader, _node: yaml.Node) -> Reset:
    return Reset()


def _override(loader: yaml.SafeLoader, node: yaml.Node) -> Override:
    return Override(_plain(loader, node))


_Loader.add_constructor("!reset", _reset)
_Loader.add_constructor("!override", _override)
for _tag in ("bool", "int", "float"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_tag}", _scalar)
for _tag in ("timestamp", "binary", "set", "omap", "pairs"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_tag}", _plain)
_Loader.add_constructor(None, _plain)  # other tags say nothing about the value


def read(path: Path) -> list[dict[str, Any]]:
    """Return the documents of a compose file, keys as texts. Raises BadInputError that names the file, and the line where there is one."""
    try:
        with path.open("rb") as file:
            content = file.read(_SIZE + 1)
    except OSError as error:
        raise unreadable(path, f"{type(error).__name__} {error}"[:300]) from error
    return parse(content, path)


def parse(content: bytes, path: Path) -> list[dict[str, Any]]:
    """Return the documents of a text of YAML, keys as texts. Raises BadInputError as ``read`` does; ``path`` is what it names."""
    try:
        if len(content) > _SIZE:
            raise unreadable(path, f"it has more than {_SIZE} bytes")
        budget = [_VALUES]
        documents = [_bounded(document, budget) for document in yaml.load_all(content.decode("utf-8-sig"), _Loader)]
    except yaml.MarkedYAMLError as error:
        line = f" in line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise unreadable(path, f"it is not YAML: {error.problem}{line}") from error
    except UnicodeDecodeError as error:
        raise unreadable(path, "it is not UTF-8: save it as UTF-8") from error
    except (yaml.YAMLError, ValueError, RecursionError, TypeError) as error:
        raise unreadable(path, f"{type(error).__name__} {error}"[:300]) from error
    for document in documents:
        if not isinstance(document, dict | None):
            raise unreadable(path, "it has no mapping of services")
    return [document for document in documents if document]


def unreadable(path: Path, what: str) -> BadInputError:
    """Return the error for a compose file that cannot be read."""
    return BadInputError(
        "Compose file cannot be read",
        what=what,
        where=str(path),
        next_step="correct it, or name the files that production uses: adopt PATH --compose FILE",
    )


def _bounded(value: Any, budget: list[int], depth: int = 0) -> Any:
    """Return a value whose keys are texts. Raises ValueError for a document that aliases make endless or huge."""
    budget[0] -= 1
    if depth > _DEPTH or budget[0] < 0:
        raise ValueError(f"deeper than {_DEPTH} levels, or more than {_VALUES} values")
    if isinstance(value, dict):
        return {_bounded(text(key), budget, depth): _bounded(item, budget, depth + 1) for key, item in value.items()}
    if isinstance(value, list):
        return [_bounded(item, budget, depth + 1) for item in value]
    if isinstance(value, str):
        value.encode()  # half a character can be written nowhere
    return Override(_bounded(value.value, budget, depth + 1)) if isinstance(value, Override) else value


def text(value: Any) -> str:
    """Return a scalar as Compose writes it into an environment: ``true``, ``1`` for 1.0, nothing for null."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    return str(int(value)) if isinstance(value, float) and value.is_integer() and abs(value) < 2**53 else str(value)
