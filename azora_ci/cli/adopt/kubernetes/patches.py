"""Patches of Kustomize on an object: strategic merges, and JSON patches (RFC 6902). Pure."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from azora_ci.clients.kubernetes.objects import Document

# Members of items by which two lists are merged, whatever the list: of containers, variables, volumes, mounts, ports.
_KEYS = ("name", "mountPath", "containerPort", "port", "ip")
_PATCH = "$patch"


def merge(base: Any, patch: Any) -> Any:
    """Return a strategic merge: mappings key by key, lists of named things item by item, null and ``$patch: delete`` take away."""
    if isinstance(base, dict) and isinstance(patch, dict):
        if patch.get(_PATCH) == "replace":
            return {key: value for key, value in patch.items() if key != _PATCH}
        both = {key: merge(base[key], patch[key]) if key in base and key in patch else value for key, value in {**base, **patch}.items()}
        return {key: value for key, value in both.items() if key != _PATCH and not (key in patch and _is_gone(patch[key]))}
    if isinstance(base, list) and isinstance(patch, list):
        return _lists(base, patch)
    return patch


def _lists(base: list[Any], patch: list[Any]) -> list[Any]:
    key = next((key for key in _KEYS if _all_have(key, patch) and _all_have(key, base)), None)
    if key is None or any(item == {_PATCH: "replace"} for item in patch):
        return [item for item in patch if item != {_PATCH: "replace"}]
    wanted = {str(item[key]): item for item in patch}
    there = {str(item[key]) for item in base}
    kept = [merge(item, wanted[str(item[key])]) if str(item[key]) in wanted else item for item in base]
    added = [item for name, item in wanted.items() if name not in there]
    return [item for item in [*kept, *added] if str(item[key]) not in wanted or not _is_gone(wanted[str(item[key])])]


def _all_have(key: str, items: Sequence[Any]) -> bool:
    return all(isinstance(item, dict) and isinstance(item.get(key), str | int) for item in items)


def _is_gone(patch: Any) -> bool:
    return patch is None or (isinstance(patch, dict) and patch.get(_PATCH) == "delete")


def changed(document: Document, operations: Sequence[Any]) -> Document:
    """Return a document after a JSON patch. Raises ValueError for an operation that does not fit."""
    result = copy.deepcopy(document)
    for operation in operations:
        if not isinstance(operation, dict) or not str(operation.get("path", "")).startswith("/"):
            raise ValueError(f"{str(operation)[:80]} is no operation of a JSON patch")
        parts = [part.replace("~1", "/").replace("~0", "~") for part in str(operation["path"])[1:].split("/")]
        _apply(_parent(result, parts[:-1]), parts[-1], str(operation.get("op")), operation.get("value"))
    return result


def _parent(value: Any, parts: Sequence[str]) -> Any:
    for part in parts:
        if isinstance(value, dict) and part in value:
            value = value[part]
        elif isinstance(value, list) and part.isdecimal() and len(part) < 5 and int(part) < len(value):
            value = value[int(part)]
        else:
            raise ValueError(f"there is no {'/'.join(parts)}")
    return value


def _apply(parent: Any, key: str, verb: str, value: Any) -> None:
    if isinstance(parent, dict) and verb in {"add", "replace"}:
        parent[key] = copy.deepcopy(value)
    elif isinstance(parent, dict) and verb == "remove":
        parent.pop(key, None)
    elif isinstance(parent, list) and (key == "-" or (key.isdecimal() and len(key) < 5 and int(key) <= len(parent))):
        place = len(parent) if key == "-" else int(key)
        if verb in {"replace", "remove"}:
            del parent[place : place + 1]
        if verb in {"replace", "add"}:
            parent.insert(place, copy.deepcopy(value))
    elif verb != "test":
        raise ValueError(f"{verb} of {key} does not fit")
