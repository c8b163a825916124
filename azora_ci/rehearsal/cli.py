"""``scripts/rehearse``: rehearse the whole pipeline on this machine."""

from __future__ import annotations

import shlex
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import click
from dotenv import dotenv_values

from azora_ci.core.clock import Clock
from azora_ci.core.environment import process_environment
from azora_ci.core.errors import AzoraError, BadInputError
from azora_ci.core.release import Version
from azora_ci.rehearsal import runs, scenarios
from azora_ci.rehearsal.applications.adopted import Adopted
from azora_ci.rehearsal.applications.sample import Sample
from azora_ci.rehearsal.docker import machine
from azora_ci.rehearsal.judge import report
from azora_ci.rehearsal.kubernetes import context
from azora_ci.rehearsal.rehearsal import Options, Rehearsal, with_tail


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--fail", type=click.Choice(scenarios.FAILURES), help="Break this for real and see what the pipeline does about it.")
@click.option("--dispatch", is_flag=False, flag_value="", metavar="[VERSION]", help="Use workflow_dispatch, with a version or without one.")
@click.option("--rerun", is_flag=True, help="After --fail: repair what was broken and re-run the failed jobs.")
@click.option("--rollback", is_flag=True, help="After the deployment press the button that takes it back, and judge that too.")
@click.option("--docker", is_flag=True, help="Production is a host with sshd and dockerd; services are containers. Needs root.")
@click.option("--kubernetes", is_flag=True, help="Production is a Kubernetes cluster; services are Argo Rollouts. Needs root.")
@click.option("--context", "kube_context", metavar="NAME", help="With --kubernetes: a cluster of your kubeconfig. Not there yet.")
@click.option(
    "--base-image", "images", multiple=True, metavar="NAME=IMAGE", help="With --docker: build on IMAGE in place of NAME. Repeatable."
)
@click.option("--reusable", is_flag=True, help="The application's workflows call the published ones instead of being copies.")
@click.option("--application", type=click.Path(exists=True, file_okay=False, path_type=Path), help="Rehearse this adopted repository.")
@click.option("--from", "old_ref", metavar="REF", help="What production runs. [default: the newest tag v* before HEAD, else HEAD]")
@click.option("--secrets", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="NAME=value lines of the services' secrets.")
@click.option("--rows", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="SQL that fills its tables before the release.")
@click.option("--command", "commands", multiple=True, metavar="SERVICE=COMMAND", help="Start a service as a process so. Repeatable.")
@click.option("--keep", is_flag=True, help="Leave everything running, and write one file of variables per job to replay it.")
@click.option("--end", "end", is_flag=True, help="End what --keep left running, and nothing else.")
def main(*, fail: str | None, dispatch: str | None, end: bool, **more: Any) -> None:
    """Run the real deployment workflow with act against real software on this machine, and judge it from outside.

    Without options: a release tag goes to production and everything must be well. Exit code 0 means that the pipeline did what the
    scenario demands; also when the scenario is that it must fail. With --application it is your own repository, as committed; its folder
    is only read.
    """
    clock, base = Clock(), runs.base_folder()
    if end:
        ended = runs.end_leftovers(base, clock, kept=True)
        click.echo(f"ended: {', '.join(ended) or 'nothing was running'}")
        return
    try:
        options = _options(fail, dispatch, more)
        if more["kube_context"] is not None:
            name = more["kube_context"]
            raise context.refusal(name, context.require(name, process_environment()))
        for enabled, option in ((options.docker, machine.DOCKER), (options.kubernetes, machine.KUBERNETES)):
            if enabled:
                machine.require(option)
        sys.exit(_rehearse(options, clock))
    except AzoraError as error:
        click.echo(f"{error.title}\n{error.message()}", err=True)
        sys.exit(error.exit_code)


def _options(fail: str | None, dispatch: str | None, more: Mapping[str, Any]) -> Options:
    """Return the options. ``more``: the other ones. Raises BadInputError for options that contradict each other."""
    flags: dict[str, Any] = {name: more[name] for name in ("rerun", "rollback", "docker", "kubernetes", "reusable", "keep")}
    application = _application(more)
    if flags["rollback"] and fail is not None:
        raise _bad("--rollback takes a deployment back that went well", "leave --fail out; --fail smoke-rollback goes back by itself")
    needed = scenarios.SCENARIOS[fail or "success"].needed
    if needed and not any(flags[option] for option in needed):
        raise _bad(f"--fail {fail} needs what local processes do not have", f"add {' or '.join(f'--{option}' for option in needed)}")
    if more["kube_context"] is not None and not flags["kubernetes"]:
        raise _bad("--context names a Kubernetes cluster", "add --kubernetes")
    if flags["docker"] and flags["kubernetes"]:
        raise _bad("--docker and --kubernetes are two productions", "leave one of them out")
    if flags["kubernetes"] and application is not None:
        raise _bad("--kubernetes has manifests of the sample application only", "leave --application out, or rehearse it with --docker")
    if flags["rerun"] and flags["reusable"]:
        raise _bad("act cannot run some jobs of a called workflow again", "leave --reusable or --rerun out")
    if flags["rerun"] and (fail is None or scenarios.SCENARIOS[fail].repair is None):
        repairable = ", ".join(name for name, scenario in scenarios.SCENARIOS.items() if scenario.repair is not None)
        raise _bad("--rerun needs a failure that can be repaired", f"one of {repairable}")
    if dispatch:
        try:
            version = Version.parse(dispatch)
        except ValueError as error:
            raise _bad(f"--dispatch {dispatch!r} {error}", "give a version such as v1.2.3") from error
        if version.text == Sample.old:
            raise _bad(f"{dispatch} is what production runs when the rehearsal begins", "give another version")
    if application is not None and (fail is not None or flags["rollback"]):
        raise _bad("--fail and --rollback break and judge the sample application", "leave them out, or leave --application out")
    return Options(fail or "success", dispatch, application=application or Sample(), **flags)


def _application(more: Mapping[str, Any]) -> Adopted | None:
    """Return the repository to rehearse, or None for the sample. Raises BadInputError."""
    if more["application"] is None:
        if any(more[name] for name in ("old_ref", "secrets", "rows", "commands", "images")):
            raise _bad("--from, --secrets, --rows, --command and --base-image are about your own repository", "name it: --application PATH")
        return None
    commands = dict(command.partition("=")[::2] for command in more["commands"])
    secrets = {name: value or "" for name, value in dotenv_values(more["secrets"], interpolate=False).items()} if more["secrets"] else {}
    split = {service: tuple(shlex.split(command)) for service, command in commands.items()}
    images = dict(image.partition("=")[::2] for image in more["images"])
    return Adopted(more["application"], more["docker"], more["old_ref"], secrets, split, images, more["rows"])


def _bad(contradiction: str, next_step: str) -> BadInputError:
    return BadInputError("These options do not go together", what=contradiction, where="scripts/rehearse", next_step=next_step)


def _rehearse(options: Options, clock: Clock) -> int:
    def cancel(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, cancel)
    base = runs.base_folder()
    base.mkdir(parents=True, exist_ok=True)
    rehearsal = Rehearsal(options, base, clock, say=click.echo)
    try:
        outcome = with_tail(rehearsal.run(), rehearsal.jobs)
    except KeyboardInterrupt:
        click.echo("interrupted; everything that was started has been ended", err=True)
        return 130
    places = [("artifacts", base / "artifacts"), ("summaries", base / "summaries")]
    places += [("result", base / "result.json"), ("logs", base / "logs")]
    if options.keep and (base / runs.REPLAY).exists():
        places.append(("replay", base / runs.REPLAY))
    click.echo(report.render(outcome, rehearsal.replaced, places))
    return 0 if outcome.ok else 1


if __name__ == "__main__":
    main(prog_name="scripts/rehearse")
