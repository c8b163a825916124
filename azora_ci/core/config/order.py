"""In which order services start: what a service depends on comes first. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from graphlib import CycleError, TopologicalSorter

from azora_ci.core.config.tables import Service


def in_order(services: dict[str, Service], order: list[str]) -> tuple[Service, ...]:
    """Return the services with each after those that it depends on; ``order`` makes each depend on its predecessor in the list.

    Raises ValueError for unknown names and cycles.
    """
    named = [("rollout.order", tuple(order)), *((f"services.{name}.depends_on", service.depends_on) for name, service in services.items())]
    for key, names in named:
        for name in names:
            if name not in services:
                raise ValueError(f"{key}: no service {name!r}")
    predecessors = {name: (predecessor,) for name, predecessor in zip(order[1:], order, strict=False)}
    dependencies = {name: tuple(dict.fromkeys((*service.depends_on, *predecessors.get(name, ())))) for name, service in services.items()}
    try:
        groups = start_groups(dependencies)
    except ValueError as error:
        raise ValueError(f"rollout.order and services.*.depends_on: a cycle, {error}") from None
    return tuple(replace(services[name], depends_on=dependencies[name]) for group in groups for name in group)


def start_groups(depends_on: Mapping[str, Iterable[str]]) -> list[list[str]]:
    """Return services in groups, each of which depends on earlier groups only. Raises ValueError for a cycle."""
    names = list(depends_on)
    sorter = TopologicalSorter({name: [need for need in needs if need in depends_on] for name, needs in depends_on.items()})
    try:
        sorter.prepare()
    except CycleError as error:
        raise ValueError(f"services depend on each other in a circle: {' -> '.join(error.args[1])}") from None
    groups = []
    while sorter.is_active():
        ready = sorter.get_ready()
        groups.append(sorted(ready, key=names.index))
        sorter.done(*ready)
    return groups
