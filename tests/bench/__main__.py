"""``scripts/bench``: one subcommand per measurement."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from azora_ci.core.errors import AzoraError


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Measure on this machine."""


@main.command()
@click.option("--gib", default=1.0, show_default=True, help="Size of the database.")
@click.option("--rounds", default=3, show_default=True, type=click.IntRange(1, 20), help="Rounds; every figure is the median.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
def backup(*, gib: float, rounds: int, as_json: bool) -> None:
    """Compare database-backup with pipes of pg_dump, gzip or pigz, and the AWS command line."""
    from tests.bench import backup as measurement

    try:
        measurement.run(gib, rounds, as_json=as_json)
    except AzoraError as error:
        click.echo(f"{error.title}\n{error.message()}", err=True)
        sys.exit(error.exit_code)


@main.command()
@click.option("--files", default=50_000, show_default=True, type=click.IntRange(100), help="Files of the repository.")
@click.option("--rounds", default=3, show_default=True, type=click.IntRange(1, 20), help="Rounds; the figure is the median.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
def adopt(*, files: int, rounds: int, as_json: bool) -> None:
    """Measure how long adopting a large repository takes."""
    from tests.bench import adopt as measurement

    measurement.run(files, rounds, as_json=as_json)


@main.command()
@click.option("--rounds", default=11, show_default=True, type=click.IntRange(1, 100), help="Rounds; every figure is the median.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
def start(*, rounds: int, as_json: bool) -> None:
    """Measure how long each step takes to its first line of output, beyond a bare Python."""
    from tests.bench import start as measurement

    measurement.run(rounds, as_json=as_json)


@main.command()
@click.option("--records", default=1000, show_default=True, type=click.IntRange(2), help="Signed records of the archive.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
def site(*, records: int, as_json: bool) -> None:
    """Measure verifying, auditing and drawing a long history."""
    from tests.bench import site as measurement

    measurement.run(records, as_json=as_json)


@main.command()
@click.option("--rollouts", default=5000, show_default=True, type=click.IntRange(10), help="Simulated rollouts a cell.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
def verdict(*, rollouts: int, as_json: bool) -> None:
    """Measure false aborts of the verdict on traffic, and how soon it finds a worse version."""
    from tests.bench import verdict as measurement

    measurement.run(rollouts, as_json=as_json)


@main.command()
@click.option("--scene", "scenes", multiple=True, help="overload, canary, hung, kills, slow_connections or upgrade; all without it.")
@click.option("--small", is_flag=True, help="As little as shows that everything runs; proves nothing.")
@click.option("--set", "bounds", multiple=True, help="max_connections=NUMBER or another key of a service, instead of its default.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
def edge(*, scenes: tuple[str, ...], small: bool, bounds: tuple[str, ...], as_json: bool) -> None:
    """Measure what the edge bears: overload, instances that hang or die, an attack on its connections, its upgrade."""
    from tests.bench.edge import command as measurement

    measurement.run(scenes, measurement.bounds_of(bounds), small=small, as_json=as_json)


@main.command()
@click.option("--scene", "scenes", multiple=True, help="load, shares, abort, fifty, kills, probes, overhead or compose; all without it.")
@click.option(
    "--place", type=click.Choice(["local", "docker", "both"]), default="both", show_default=True, help="Processes, hosts, or both."
)
@click.option("--small", is_flag=True, help="As little as shows that everything runs; proves nothing.")
@click.option("--set", "changes", multiple=True, help="NAME=NUMBER of what is measured: requests, rate, stage, rounds, moments, …")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
@click.option("--output", type=click.Path(path_type=Path, dir_okay=False), help="A file that keeps every figure, scene by scene.")
def rollout(*, scenes: tuple[str, ...], place: str, small: bool, changes: tuple[str, ...], as_json: bool, output: Path | None) -> None:
    """Measure what rollouts cost users, and how they come back."""
    from tests.bench.rollout import command as measurement

    try:
        size = measurement.size_of(changes, small=small)
        measurement.run(measurement.chosen(scenes), measurement.places_of(place), size, as_json=as_json, output=output)
    except AzoraError as error:
        click.echo(f"{error.title}\n{error.message()}", err=True)
        sys.exit(error.exit_code)


@main.command()
@click.option("--scene", "scenes", multiple=True, help="load, shares, verdict, kills, fleet or overhead; all without it.")
@click.option("--small", is_flag=True, help="As little as shows that everything runs; proves nothing, and its bounds do not hold.")
@click.option(
    "--set", "changes", multiple=True, help="NAME=NUMBER of what is measured: requests, rate, stage, rounds, moments, rollouts, …"
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
@click.option("--output", type=click.Path(path_type=Path, dir_okay=False), help="A file that keeps every figure, scene by scene.")
def kubernetes(*, scenes: tuple[str, ...], small: bool, changes: tuple[str, ...], as_json: bool, output: Path | None) -> None:
    """Measure what releases through Argo Rollouts cost users and the API server, and how they come back."""
    from tests.bench.kubernetes import command as measurement

    try:
        measurement.run(measurement.chosen(scenes), measurement.size_of(changes, small=small), as_json=as_json, output=output)
    except AzoraError as error:
        click.echo(f"{error.title}\n{error.message()}", err=True)
        sys.exit(error.exit_code)


@main.command()
@click.option("--gib", default=0.5, show_default=True, help="Size of the database.")
@click.option("--rounds", default=3, show_default=True, type=click.IntRange(1, 20), help="Rounds; seconds of backups are the median.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
def migrations(*, gib: float, rounds: int, as_json: bool) -> None:
    """Measure what trying migrations on the copy adds to the backup, and how well it predicts production's seconds."""
    from tests.bench import migrations as measurement

    try:
        measurement.run(gib, rounds, as_json=as_json)
    except AzoraError as error:
        click.echo(f"{error.title}\n{error.message()}", err=True)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main(prog_name="bench")
