"""Merge compose files as Compose does: later files win, field by field. Pure; the rules are those of the Compose Specification.

https://github.com/compose-spec/compose-spec/blob/main/13-merge.md
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from azora_ci.cli.adopt.compose.document import Override, Reset, text

Path = tuple[str, ...]


def merge(base: Any, override: Any, path: Path = ()) -> Any:
    """Return ``override`` over ``base``. ``path``: where the two stand, such as ``("services", "*", "build")``."""
    if isinstance(override, Override):
        return resolved(override.value)
    if base is None or override is None or isinstance(override, Reset):
        return resolved(None if isinstance(override, Reset) else base if override is None else override)
    if path == ("services", "*", "build"):
        base, override = as_build(base), as_build(override)
    canonical = _CANONICAL.get(path)
    if canonical is not None:
        gone = {key for key, item in override.items() if isinstance(item, Reset)} if isinstance(override, dict) else set()
        base, override = canonical(base), canonical(resolved(override))
        base = base if isinstance(base, dict) else [item for item in as_list(base) if _variable(item) not in gone]
    if path in _REPLACED:
        return resolved(override)
    if isinstance(base, dict) and isinstance(override, dict):
        return _mappings(base, override, path)
    if path in _KEYED or (isinstance(base, list) and isinstance(override, list)):
        return _sequences(as_list(base), as_list(override), path)
    return resolved(override)


def resolved(value: Any) -> Any:
    """Return a value without the tags: what is reset is left out."""
    if isinstance(value, Override):
        return resolved(value.value)
    if isinstance(value, dict):
        return {key: resolved(item) for key, item in value.items() if not isinstance(item, Reset)}
    if isinstance(value, list):
        return [resolved(item) for item in value if not isinstance(item, Reset)]
    return None if isinstance(value, Reset) else value


def _mappings(base: Mapping[str, Any], override: Mapping[str, Any], path: Path) -> dict[str, Any]:
    merged = {key: resolved(value) for key, value in base.items() if not isinstance(value, Reset)}
    for key, value in override.items():
        if isinstance(value, Reset):
            merged.pop(key, None)
        else:
            merged[key] = merge(merged.get(key), value, (*path, "*" if len(path) == 1 and path[0] in _NAMED else key))
    return merged


def _sequences(base: list[Any], override: list[Any], path: Path) -> list[Any]:
    """Return both lists; of two items with one key, such as two ports alike, the later one stands in the earlier one's place."""
    key = _KEYED.get(path, repr)
    merged: dict[str, Any] = {}
    for item in (resolved(item) for item in [*base, *override] if not isinstance(item, Reset)):
        merged[key(item)] = item
    return list(merged.values())


def as_list(value: Any) -> list[Any]:
    """Return the list of a field that may also be a mapping or one text: ``{A: 1}`` is ``["A=1"]``, and ``{A: null}`` is ``["A"]``."""
    if isinstance(value, dict):
        return [name if item is None else f"{name}={text(item)}" for name, item in value.items()]
    return list(value) if isinstance(value, list) else [] if value is None else [value]


def as_mapping(value: Any) -> dict[str, Any]:
    """Return the mapping of a field that may also be a list of names."""
    return value if isinstance(value, dict) else {text(name): None for name in as_list(value)}


def as_build(value: Any) -> dict[str, Any]:
    """Return the mapping of a build, which may also be its context."""
    return value if isinstance(value, dict) else {"context": value}


def _variable(item: Any) -> str:
    return text(item).partition("=")[0]


def _host(item: Any) -> str:
    return text(item).replace("=", ":").partition(":")[0]


def _target(item: Any) -> str:
    """Return where a volume is mounted, or what a device, secret or configuration is called inside the container."""
    if isinstance(item, dict):
        return text(item.get("target") or item.get("source"))
    parts = text(item).split(":")
    return parts[1] if len(parts) > 1 else parts[0]


def _port(item: Any) -> str:
    if isinstance(item, dict):
        parts = [text(item.get(name)) for name in ("host_ip", "published", "target")]
        return ":".join(part for part in parts if part) + "/" + text(item.get("protocol") or "tcp")
    mapping = text(item)
    return mapping if "/" in mapping else f"{mapping}/tcp"


def _env_file(item: Any) -> str:
    return text(item.get("path")) if isinstance(item, dict) else text(item)


_NAMED = {"services", "volumes", "networks", "secrets", "configs"}
_REPLACED = {("services", "*", name) for name in ("command", "entrypoint", "provider")} | {("services", "*", "healthcheck", "test")}
_CANONICAL: dict[Path, Callable[[Any], Any]] = {
    ("services", "*", "depends_on"): as_mapping,
    ("services", "*", "networks"): as_mapping,
    **{("services", "*", name): as_list for name in ("environment", "labels", "sysctls", "annotations", "extra_hosts")},
    **{("services", "*", "build", name): as_list for name in ("args", "labels", "additional_contexts", "extra_hosts")},
    ("services", "*", "deploy", "labels"): as_list,
}
_KEYED: dict[Path, Callable[[Any], str]] = {
    **{("services", "*", name): _variable for name in ("environment", "labels", "sysctls", "annotations")},
    **{("services", "*", "build", name): _variable for name in ("args", "labels", "additional_contexts")},
    ("services", "*", "deploy", "labels"): _variable,
    **{("services", "*", name): text for name in ("cap_add", "cap_drop", "dns", "dns_search", "dns_opt", "expose", "profiles", "tmpfs")},
    **{("services", "*", name): _target for name in ("volumes", "devices", "secrets", "configs")},
    ("services", "*", "extra_hosts"): _host,
    ("services", "*", "ports"): _port,
    ("services", "*", "env_file"): _env_file,
}
