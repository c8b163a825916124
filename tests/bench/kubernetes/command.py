"""``scripts/bench kubernetes``: what a release through Argo Rollouts costs its users, how it comes back, and what it costs the cluster.

Everything is real: API server, etcd, the controller of Argo Rollouts, Envoy, pods as processes. A scene that breaks does not lose the
others: its figures are null and do not hold. The exit code is 1 where a bound does not hold; what was not asked for is left out.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import click

from azora_ci.core.clock import Clock
from azora_ci.core.errors import AzoraError, BadInputError
from azora_ci.core.process import Processes
from tests.bench.kubernetes import fleet, scenes
from tests.bench.kubernetes.audit import Audited
from tests.bench.kubernetes.scenes import Size
from tests.bench.kubernetes.world import ClusterWorld, control_plane
from tests.bench.rollout import command as rollout_command
from tests.bench.rollout import scenes as rollout_scenes


class Bound(NamedTuple):
    """A figure of a scene and what must hold of it. ``holds``: the figure and all figures of the scene -> whether it does."""

    scene: str
    text: str
    holds: Callable[[float, Mapping[str, Any]], bool]


BOUNDS = {
    "requests": Bound("load", ">= 50000 GETs", lambda value, _: value >= 50_000),
    "failed": Bound("load", "0", lambda value, _: value == 0),
    "share_at_5": Bound("shares", "5 +- 1", lambda value, _: abs(value - 5) <= 1),
    "share_at_50": Bound("shares", "50 +- 1", lambda value, _: abs(value - 50) <= 1),
    "verdict_seconds": Bound("verdict", "<= 1", lambda value, _: value <= 1),
    "kills_before_promotion": Bound("kills", ">= 15", lambda value, _: value >= 15),
    "worst_recovery_seconds": Bound("kills", "<= lease + 5", lambda value, of: value <= of["lease_seconds"] + 5),
    "kills_left_unnoted": Bound("kills", "0", lambda value, _: value == 0),
    "cpu_share": Bound("fleet", "<= 0.25", lambda value, _: value <= 0.25),
    "requests_per_second": Bound("fleet", "<= 20", lambda value, _: value <= 20),
    "overhead_seconds": Bound("overhead", "<= 5", lambda value, _: value <= 5),
}
WORK: dict[str, Callable[[Any, Any], dict[str, Any]]] = {
    "load": rollout_scenes.load,
    "shares": rollout_scenes.shares,
    "verdict": scenes.verdict,
    "overhead": scenes.overhead,
    "kills": scenes.kills,
    "fleet": fleet.fleet,
}


@dataclass
class Results:
    """Figures by scene. ``broken``: scenes that could not be measured to their end. ``output``: a file that keeps everything."""

    output: Path | None
    scenes: dict[str, dict[str, Any]] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)
    machine: dict[str, Any] = field(default_factory=rollout_command.this_machine)

    def figures(self) -> dict[str, dict[str, Any]]:
        """Return the figures of the scenes that were played, each with its bound and whether that holds."""
        played = {name: self.scenes.get(name, {}) for name in WORK if name in self.scenes or name in self.broken}
        return {
            name: {
                "value": value,
                "bound": bound.text,
                "holds": value is not None and bound.scene not in self.broken and bound.holds(value, played[bound.scene]),
            }
            for name, bound in BOUNDS.items()
            if bound.scene in played
            for value in [played[bound.scene].get(name)]
        }

    def document(self) -> dict[str, Any]:
        """Return the JSON object."""
        return {"figures": self.figures(), "broken": self.broken, "machine": self.machine, "scenes": self.scenes}

    @property
    def hold(self) -> bool:
        """Return whether everything was measured and every bound holds."""
        return not self.broken and all(figure["holds"] for figure in self.figures().values())

    def keep(self) -> None:
        """Write the file, whole."""
        if self.output is not None:
            half = self.output.with_name(f".{self.output.name}.half")
            half.write_text(json.dumps(self.document(), indent=2) + "\n", encoding="utf-8")
            half.replace(self.output)


def chosen(names: Sequence[str]) -> tuple[str, ...]:
    """Return the scenes to play, all when ``names`` is empty. Raises BadInputError for an unknown name."""
    for name in names:
        if name not in WORK:
            raise BadInputError(
                "Not to be measured", what=f"no scene {name!r}", where="bench kubernetes", next_step=f"--scene: {', '.join(WORK)}"
            )
    return tuple(names) or tuple(WORK)


def size_of(changes: Sequence[str], *, small: bool) -> Size:
    """Return how much is measured, after changes NAME=NUMBER. Raises BadInputError for a change that changes nothing."""
    size = rollout_command.changed(scenes.SMALL if small else Size(), changes)
    assert isinstance(size, Size)
    return size


def run(names: Sequence[str], size: Size, *, as_json: bool, output: Path | None) -> None:
    """Play the scenes and print what was measured. Ends with 1 where a bound does not hold."""
    results = Results(output)
    rollout_command.end_on_signals()
    with tempfile.TemporaryDirectory(prefix="azora-bench-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        folder.chmod(0o711)  # PostgreSQL runs as another user below it
        with control_plane(folder) as (cluster, processes), Stage(cluster, processes, folder) as stage:
            for scene in names:
                _play(stage, scene, size, results)
    if as_json:
        click.echo(json.dumps(results.document()))
    else:
        _print(results)
    if not results.hold:
        sys.exit(1)


def _play(stage: Stage, name: str, size: Size, results: Results) -> None:
    begun = Clock().monotonic()
    rollout_command.tell(f"{name} begins")
    try:
        with stage.setting(name) as setting:
            results.scenes[name] = WORK[name](setting, size)
        if results.scenes[name].get("failures"):
            results.broken[name] = "; ".join(results.scenes[name]["failures"])
    except Exception as error:  # an error in one scene must not lose the others
        results.broken[name] = f"{error.title}: {error.what}" if isinstance(error, AzoraError) else f"{type(error).__name__}: {error}"
        with suppress(Exception):
            stage.clear()
    outcome = json.dumps(results.scenes.get(name)) if name not in results.broken else f"broken: {results.broken[name]}"
    rollout_command.tell(f"{name} took {Clock().monotonic() - begun:.0f} s: {outcome}")
    results.keep()


class Stage:
    """Provides what scenes play on: one world, shared until a scene breaks or needs the cluster for itself."""

    def __init__(self, cluster: Audited, processes: Processes, folder: Path) -> None:
        self.cluster, self.processes, self.folder = cluster, processes, folder
        self._stack = ExitStack()
        self._shared: ClusterWorld | None = None
        self._number = 0

    def __enter__(self) -> Stage:
        return self

    def __exit__(self, *_: object) -> None:
        self.clear()

    def clear(self) -> None:
        """End what scenes share."""
        self._shared = None
        self._stack.close()

    @contextmanager
    def setting(self, name: str) -> Iterator[Any]:
        """Provide the world, or, for many Rollouts, this place with nothing else on it."""
        if name == "fleet":
            self.clear()
            yield self
            return
        if self._shared is None:
            self._number += 1
            folder = self.folder / f"world-{self._number}"
            folder.mkdir(mode=0o711)
            self._shared = ClusterWorld(self.cluster, folder, self.processes)
            self._stack.callback(self._shared.close)
        yield self._shared


def _print(results: Results) -> None:
    for name, figure in results.figures().items():
        click.echo(f"  {name:<24} {figure['value']!s:>10}   {'holds' if figure['holds'] else 'FAILS'} ({figure['bound']})")
    for name, figures in results.scenes.items():
        click.echo(f"{name}: {json.dumps(figures)}")
    for name, reason in results.broken.items():
        click.echo(f"{name}: broken: {reason}")
