"""The functions of Helm's templates that charts use to say what runs. Pure; what is not among them has no value."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import yaml

from azora_ci.cli.adopt.compose.document import text as scalar
from azora_ci.cli.adopt.kubernetes.helm.sizes import LARGEST, Sizes
from azora_ci.cli.adopt.kubernetes.helm.syntax import TemplateError

_LETTERS = 200  # that trimAll takes away


def text(value: Any) -> str:
    """Return a value as a template prints it. Raises TemplateError, before it is made, for a text that is too large."""
    if isinstance(value, dict | list):
        fits(Sizes().of(value))
    return _text(value)


def _text(value: Any) -> str:
    if isinstance(value, dict | list):
        return f"map[{' '.join(map(str, value))}]" if isinstance(value, dict) else f"[{' '.join(map(_text, value))}]"
    return scalar(value)


def joined(joint: str, values: Iterable[Any]) -> str:
    """Return the texts of values with a text between them. Raises TemplateError as ``text`` does."""
    parts, length = [], 0
    for value in values:
        parts.append(text(value))
        length = fits(length + len(parts[-1]) + len(joint))
    return joint.join(parts)


def fits(length: int) -> int:
    """Return the length of a text that is to be made. Raises TemplateError for one that is too large."""
    if length > LARGEST:
        raise TemplateError("it prints too much")
    return length


def to_yaml(value: Any) -> str:
    """Return a value as YAML, without the last end of line."""
    fits(Sizes(indent=2).of(value))
    return yaml.safe_dump(value, sort_keys=False, width=1000).removesuffix("\n").removesuffix("\n...") if value is not None else "null"


def printf(pattern: Any, *values: Any) -> str:
    """Return a pattern with its ``%s``, ``%d``, ``%v`` and ``%q`` put in, in turn."""
    parts = text(pattern).split("%")
    rest, result = iter(values), [parts[0]]
    for part in parts[1:]:
        value = text(next(rest, "")) if part[:1] in "sdvq" else ""
        result.append(f'"{value}"{part[1:]}' if part[:1] == "q" else value + part[1:])
    return joined("", result)


def quoted(value: Any) -> str:
    """Return a text between quotes, as Go writes it."""
    return '"' + text(value).replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'


def indented(count: Any, value: Any) -> str:
    """Return a text whose lines are indented by ``count`` spaces."""
    before = " " * min(int(count), 100)
    fits(len(text(value)) + len(before) * (text(value).count("\n") + 1))
    return "\n".join(before + line for line in text(value).split("\n"))


def index(value: Any, *keys: Any) -> Any:
    """Return a member inside mappings and lists, None where there is none."""
    for key in keys:
        if isinstance(value, dict):
            value = value.get(_key(key))
        elif isinstance(value, list) and isinstance(key, int) and 0 <= key < len(value):
            value = value[key]
        else:
            return None
    return value


def merged(base: Any, over: Any) -> Any:
    """Return ``over`` over ``base``, mappings key by key; what is null is taken away."""
    if not isinstance(base, dict) or not isinstance(over, dict):
        return over
    both = base | {key: merged(base.get(key), value) for key, value in over.items()}
    return {key: value for key, value in both.items() if value is not None or key not in over}


def _default(given: Any, *value: Any) -> Any:
    return value[0] if value and value[0] else given


def _equal(first: Any, *others: Any) -> bool:
    return any(type(first) is type(other) and first == other for other in others)


def _pairs(*values: Any) -> dict[str, Any]:
    return {_key(key): value for key, value in zip(values[::2], values[1::2], strict=False)}


def _key(value: Any) -> str:
    if isinstance(value, dict | list):
        raise TypeError("a list is no key")
    return text(value)


def _replaced(old: Any, new: Any, value: Any) -> str:
    before, after, whole = text(old), text(new), text(value)
    if not before:
        return whole
    fits(len(whole) + whole.count(before) * (len(after) - len(before)))
    return whole.replace(before, after)


def _concat(*lists: Any) -> list[Any]:
    fits(sum(map(len, lists)))
    return [item for each in lists for item in each]


def _trim_all(letters: Any, value: Any) -> str:
    taken = set(text(letters))
    if len(taken) > _LETTERS:  # each is compared with each letter of the value
        raise TemplateError(f"trimAll takes more than {_LETTERS} letters away")
    return text(value).strip("".join(taken))


def _both(*values: Any) -> Any:
    return next((value for value in values if not value), values[-1])


def _either(*values: Any) -> Any:
    return next((value for value in values if value), values[-1])


def _kind(value: Any) -> str:
    kinds = ((bool, "bool"), (int, "int"), (float, "float64"), (str, "string"), (dict, "map"), (list, "slice"))
    return next((name for kind, name in kinds if isinstance(value, kind)), "invalid")


def _trunc(count: Any, value: Any) -> str:
    return text(value)[: int(count)] if int(count) >= 0 else text(value)[int(count) :]


def _number(value: Any) -> int:
    return int(float(text(value) or 0))


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "and": _both,
    "b64enc": lambda _value: "",  # what is encoded is a secret's
    "cat": lambda *values: joined(" ", values),
    "coalesce": lambda *values: next((value for value in values if value), None),
    "concat": _concat,
    "contains": lambda part, value: text(part) in text(value),
    "default": _default,
    "dict": _pairs,
    "empty": lambda value: not value,
    "eq": _equal,
    "first": lambda values: values[0] if values else None,
    "ge": lambda first, second: first >= second,
    "get": index,
    "gt": lambda first, second: first > second,
    "has": lambda item, values: item in (values or ()),
    "hasKey": lambda table, key: isinstance(table, dict) and key in table,
    "hasPrefix": lambda part, value: text(value).startswith(text(part)),
    "hasSuffix": lambda part, value: text(value).endswith(text(part)),
    "indent": indented,
    "index": index,
    "int": _number,
    "int64": _number,
    "join": lambda joint, values: joined(text(joint), values or ()),
    "keys": lambda *tables: [key for table in tables for key in table],
    "kindIs": lambda kind, value: kind == _kind(value),
    "kindOf": _kind,
    "last": lambda values: values[-1] if values else None,
    "le": lambda first, second: first <= second,
    "len": lambda value: len(value or ()),
    "list": lambda *values: list(values),
    "lower": lambda value: text(value).lower(),
    "lt": lambda first, second: first < second,
    "merge": lambda *tables: merged(merged({}, tables[-1]), tables[0]) if len(tables) > 1 else tables[0],
    "mergeOverwrite": lambda *tables: merged(tables[0], tables[-1]),
    "ne": lambda first, second: not _equal(first, second),
    "nindent": lambda count, value: "\n" + indented(count, value),
    "not": lambda value: not value,
    "omit": lambda table, *keys: {key: value for key, value in table.items() if key not in keys},
    "or": _either,
    "print": lambda *values: joined("", values),
    "printf": printf,
    "quote": quoted,
    "replace": _replaced,
    "required": lambda _message, value: value,
    "semverCompare": lambda _range, _version: True,  # the cluster is as new as the chart wishes
    "squote": lambda value: "'" + text(value).replace("'", "''") + "'",
    "ternary": lambda yes, no, truth: yes if truth else no,
    "toString": text,
    "toYaml": to_yaml,
    "trim": lambda value: text(value).strip(),
    "trimAll": _trim_all,
    "trimPrefix": lambda part, value: text(value).removeprefix(text(part)),
    "trimSuffix": lambda part, value: text(value).removesuffix(text(part)),
    "trunc": _trunc,
    "tuple": lambda *values: list(values),
    "upper": lambda value: text(value).upper(),
}

# These look at no more of what they are given than that it is there, or put it into one more list or mapping.
FREE = frozenset(
    [
        "and",
        "coalesce",
        "default",
        "dict",
        "empty",
        "first",
        "get",
        "hasKey",
        "index",
        "kindIs",
        "kindOf",
        "last",
        "len",
        "list",
        "not",
        "or",
        "required",
        "ternary",
        "tuple",
    ]
)
