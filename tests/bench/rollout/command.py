"""``scripts/bench rollout``: what a rollout costs its users, and how fast and how surely it comes back. Real processes throughout.

Scenes play on this machine's processes (``local``) and, where dockerd and sshd are installed, on hosts of network namespaces
(``docker``). What was not measured is null; where both measured, the worse figure counts, and requests are added up. A scene that breaks
does not lose the others: its figures are missing or stay as they were, and the exit code is 1.
"""

from __future__ import annotations

import itertools
import json
import os
import platform
import re
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import click

from azora_ci.core.clock import Clock, rfc3339
from azora_ci.core.errors import AzoraError, BadInputError
from tests.bench.rollout import probes
from tests.bench.rollout import scenes as rollout_scenes
from tests.bench.rollout.scenes import Size
from tests.bench.rollout.world import local_world

SCENES = ("load", "shares", "abort", "fifty", "kills", "probes", "overhead", "compose")
PLACES = ("local", "docker")
PROGRAMS = ("dockerd", "sshd", "docker-registry", "busybox", "ip", "nsenter")  # of the place docker
# Expected on two cores, with usual sizes.
MINUTES = {
    **{("local", "load"): 2.0, ("local", "shares"): 1.1, ("local", "abort"): 0.5, ("local", "fifty"): 0.6, ("local", "probes"): 3.2},
    **{("local", "overhead"): 0.8, ("docker", "load"): 2.5, ("docker", "shares"): 2.8, ("docker", "abort"): 0.8, ("docker", "kills"): 10.0},
    **{("docker", "compose"): 0.8, ("docker", "overhead"): 1.0},
}
# The JSON object, in this order.
KEYS = (
    *("requests", "failed", "share_at_5", "share_at_50", "abort_seconds_one_host", "abort_seconds_fifty_hosts", "kill_moments"),
    *("worst_recovery_seconds", "lease_seconds", "tick_drift_ms", "probe_cpu_share", "overhead_seconds"),
)
LIMITS: dict[str, tuple[str, Callable[[float], bool]]] = {
    "requests": (">= 100000", lambda value: value >= 100_000),
    "failed": ("0", lambda value: value == 0),
    "share_at_5": ("5 +- 1", lambda value: abs(value - 5) <= 1),
    "share_at_50": ("50 +- 1", lambda value: abs(value - 50) <= 1),
    "abort_seconds_one_host": ("<= 1", lambda value: value <= 1),
    "abort_seconds_fifty_hosts": ("<= 3", lambda value: value <= 3),
    "kill_moments": (">= 25", lambda value: value >= 25),
    "worst_recovery_seconds": ("<= lease + 5", lambda value: value <= 10),
    "lease_seconds": ("5", lambda value: value == 5),
    "tick_drift_ms": ("<= 100", lambda value: value <= 100),
    "probe_cpu_share": ("<= 0.3", lambda value: value <= 0.3),
    "overhead_seconds": ("<= 5", lambda value: value <= 5),
}


class Scene(NamedTuple):
    """One measurement. ``kind``: what it plays on (world, factory, folder)."""

    kind: str
    work: Callable[[Any, Size], dict[str, Any]]


def this_machine() -> dict[str, Any]:
    """Return what figures depend on: processor, cores, memory, kernel, and how busy the machine was before."""
    cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "cpu": cpu[1] if cpu else platform.machine(),
        "cores": os.cpu_count(),
        "memory_gib": round(memory, 1),
        "kernel": platform.release(),
        "load_average_before": [round(average, 2) for average in os.getloadavg()],
        "begun": rfc3339(Clock().now()),
    }


@dataclass
class Results:
    """Figures by place and scene. ``broken``: scenes that could not be measured to their end. ``output``: a file that keeps everything."""

    scenes: dict[str, dict[str, Any]] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)
    output: Path | None = None
    machine: dict[str, Any] = field(default_factory=this_machine)

    def document(self) -> dict[str, Any]:
        """Return the JSON object."""
        values = {key: [figures[key] for figures in self.scenes.values() if figures.get(key) is not None] for key in KEYS}
        return {key: _combined(key, measured) if measured else None for key, measured in values.items()}

    def whole(self) -> dict[str, Any]:
        """Return everything, as ``--output`` keeps it."""
        figures = self.document()
        held = {key: None if figures[key] is None else LIMITS[key][1](figures[key]) for key in KEYS}
        return {"machine": self.machine, "figures": figures, "held": held, "scenes": self.scenes, "broken": self.broken}

    def keep(self) -> None:
        """Write the file, whole."""
        if self.output is not None:
            half = self.output.with_name(f".{self.output.name}.half")
            half.write_text(json.dumps(self.whole(), indent=2) + "\n", encoding="utf-8")
            half.replace(self.output)


def _combined(key: str, values: Sequence[Any]) -> Any:
    if key in {"requests", "failed", "kill_moments"}:
        return sum(values)
    if key.startswith("share_at_"):
        return rollout_scenes.furthest(values, int(key.removeprefix("share_at_")))
    return max(values)


def chosen(scenes: Sequence[str]) -> tuple[str, ...]:
    """Return the scenes to play, all when ``scenes`` is empty. Raises BadInputError for an unknown name."""
    for name in scenes:
        if name not in SCENES:
            raise _bad(f"no scene {name!r}", f"--scene: {', '.join(SCENES)}")
    return tuple(scenes) or SCENES


def places_of(place: str) -> tuple[str, ...]:
    """Return the places; docker is left out of ``both`` where its programs are missing."""
    if place != "both":
        return (place,)
    missing = [name for name in PROGRAMS if shutil.which(name, path=f"{os.defpath}:/usr/sbin:/usr/local/sbin:/usr/local/bin") is None]
    if missing:
        click.echo(f"not measured on hosts: {', '.join(missing)} missing", err=True)
    return PLACES[: 1 if missing else 2]


def size_of(changes: Sequence[str], *, small: bool) -> Size:
    """Return how much is measured, after changes NAME=NUMBER. Raises BadInputError for a change that changes nothing."""
    return changed(rollout_scenes.SMALL if small else Size(), changes)


def changed(size: Size, changes: Sequence[str]) -> Size:
    """Return a size after changes NAME=NUMBER. Raises BadInputError for a change that changes nothing."""
    for text in changes:
        name, _, number = text.partition("=")
        try:
            size = replace(size, **{name: type(getattr(size, name))(float(number))})
        except (AttributeError, TypeError, ValueError):
            raise _bad(f"{text!r} changes nothing", f"--set NAME=NUMBER: {', '.join(figure.name for figure in fields(size))}") from None
    return size


def _bad(what: str, next_step: str) -> BadInputError:
    return BadInputError("Not to be measured", what=what, where="bench rollout", next_step=next_step)


def run(scenes: Sequence[str], places: Sequence[str], size: Size, *, as_json: bool, output: Path | None = None) -> None:
    """Play the scenes and print what was measured. Ends with 1 when one could not be measured to its end."""
    results = Results(output=output)
    end_on_signals()
    programme = [(place, scene) for place in places for scene in scenes if scene in _scenes_of(place)]
    say = _progress(programme, size)
    for place in places:
        _play(place, [scene for where, scene in programme if where == place], size, results, say)
    if as_json:
        click.echo(json.dumps(results.document()))
    else:
        _print(results)
    if results.broken:
        sys.exit(1)


def end_on_signals() -> None:
    """Have SIGINT and SIGTERM end this process in order, with all that it started."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _end)


def tell(line: str) -> None:
    """Print progress, with the machine's load."""
    click.echo(f"[load {os.getloadavg()[0]:.2f}] {line}", err=True)


def _end(number: int, _frame: object) -> None:
    """End what was started, and ignore further requests to end."""
    for ignored in (signal.SIGINT, signal.SIGTERM):
        signal.signal(ignored, signal.SIG_IGN)
    sys.exit(128 + number)


def _progress(programme: Sequence[tuple[str, str]], size: Size) -> Callable[[str], None]:
    """Return a function that prints progress, with usual sizes also how many minutes are left by ``MINUTES``."""
    remaining = list(programme)

    def say(line: str) -> None:
        text = line
        if line.endswith(" begins"):
            minutes = sum(MINUTES[scene] for scene in remaining)
            remaining.pop(0)
            text += f"; about {minutes:.0f} min left" if size == Size() else ""
        tell(text)

    return say


def _scenes_of(place: str) -> dict[str, Scene]:
    """Return the scenes of a place by name."""
    world = {"load": rollout_scenes.load, "abort": rollout_scenes.abort, "overhead": rollout_scenes.overhead}
    common = {name: Scene("world", work) for name, work in world.items()}
    if place == "local":
        from tests.bench.rollout import fifty

        apart = {"fifty": Scene("folder", fifty.measure), "probes": Scene("folder", _probes)}
        return {**common, **apart, "shares": Scene("world", rollout_scenes.shares)}
    from tests.bench.rollout import compose, docker_machines, kills

    hosts = {"kills": Scene("world", kills.kills), "compose": Scene("world", compose.compose)}
    return {**common, **hosts, "shares": Scene("factory", docker_machines.shares)}


def _probes(folder: Path, size: Size) -> dict[str, Any]:
    return probes.probes(folder, size.endpoints, size.probe_seconds, size.probe_interval)


def _play(place: str, scenes: Sequence[str], size: Size, results: Results, say: Callable[[str], None]) -> None:
    with tempfile.TemporaryDirectory(prefix="azora-bench-", ignore_cleanup_errors=True) as name:
        Path(name).chmod(0o711)  # PostgreSQL runs as another user below it
        with Stage(place, Path(name)) as stage:
            for scene in scenes:
                _play_one(stage, scene, size, results, say)


def _play_one(stage: Stage, name: str, size: Size, results: Results, say: Callable[[str], None]) -> None:
    title, begun, scene = f"{name} ({stage.place})", Clock().monotonic(), _scenes_of(stage.place)[name]
    say(f"{title} begins")
    try:
        with stage.setting(scene.kind) as setting:
            results.scenes[title] = scene.work(setting, size)
    except Exception as error:  # an error in one scene must not lose the others
        results.broken[title] = f"{error.title}: {error.what}" if isinstance(error, AzoraError) else f"{type(error).__name__}: {error}"
        say(f"{title} was not measured: {results.broken[title]}")
        with suppress(Exception):
            stage.clear()
    else:
        if results.scenes[title].get("failures"):
            results.broken[title] = "; ".join(results.scenes[title]["failures"])
        say(f"{title} took {Clock().monotonic() - begun:.0f} s: {json.dumps(results.scenes[title])}")
    results.keep()


class Stage:
    """Provides what scenes play on. The world of processes is shared between scenes until one of them breaks; hosts begin anew for each."""

    def __init__(self, place: str, folder: Path) -> None:
        self.place, self._folder = place, folder
        self._stack = ExitStack()
        self._shared: Any = None
        self._numbers = itertools.count(1)

    def __enter__(self) -> Stage:
        return self

    def __exit__(self, *_: object) -> None:
        self.clear()

    def clear(self) -> None:
        """End what scenes share."""
        self._shared = None
        self._stack.close()

    @contextmanager
    def setting(self, kind: str) -> Iterator[Any]:
        """Provide what a scene of this kind plays on: a folder, a world, or a factory of worlds."""
        folder = self._folder / str(next(self._numbers))
        folder.mkdir()
        if kind == "folder":
            yield folder
            return
        if self._shared is None:
            self._shared = self._stack.enter_context(self._open(folder))
        if self.place == "local" or kind == "factory":
            yield self._shared
        else:
            with self._shared(1) as hosts:
                yield hosts

    def _open(self, folder: Path) -> AbstractContextManager[Any]:
        if self.place == "local":
            return local_world(folder)
        from tests.bench.rollout.docker_machines import place

        return place(folder)


def _print(results: Results) -> None:
    document = results.document()
    click.echo(f"{os.cpu_count()} cores, load average {' '.join(f'{average:.2f}' for average in os.getloadavg())}")
    for key in KEYS:
        value, (aim, holds) = document[key], LIMITS[key]
        if value is None:
            click.echo(f"  {key:<28} not measured")
        else:
            click.echo(f"  {key:<28} {value:>10}   {'holds' if holds(value) else 'FAILS'} ({aim})")
    for title, figures in results.scenes.items():
        click.echo(f"{title}: {json.dumps(figures)}")
    for title, reason in results.broken.items():
        click.echo(f"{title}: not measured: {reason}")
