"""``scripts/bench edge``: the scenes one after the other, below four minutes in all; they use the loopback alone."""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import click

from tests.bench.edge.scenes import SCENES, SMALL, Figures, Size

LONGEST = 60.0  # seconds of one scene


def bounds_of(changes: Sequence[str]) -> dict[str, int]:
    """Return the keys of a service that are not its defaults, from ``max_connections=20``. Raises click.BadParameter."""
    try:
        return {name: int(number) for name, _, number in (change.partition("=") for change in changes)}
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


def run(names: Sequence[str], bounds: Mapping[str, int], *, small: bool, as_json: bool) -> None:
    """Measure the named scenes, or all, and print their figures."""
    unknown = [name for name in names if name not in SCENES]
    if unknown:
        raise click.BadParameter(f"{', '.join(unknown)}: scenes are {', '.join(SCENES)}")
    figures: dict[str, Figures] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in names or SCENES:
            scene = SCENES[name](Path(folder) / name, SMALL if small else Size(), bounds)
            figures[name] = asyncio.run(asyncio.wait_for(scene, LONGEST))
            if not as_json:
                click.echo(f"{name}: " + ", ".join(f"{key} {value}" for key, value in figures[name].items()))
    if as_json:
        click.echo(json.dumps({**figures, "load_average": round(os.getloadavg()[0], 2), "small": small}))
