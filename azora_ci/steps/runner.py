"""Composition root: job name -> click command -> settings -> wired Job -> step; ``execute`` catches every error of a step.

Each step module offers ``Settings`` (a settings class) and ``run(job)``. ``execute`` writes the job's fragment after success and
after failure, prints one annotation for a failure, and turns SIGINT and SIGTERM into ``CancelledError``. GitHub sends SIGTERM
7.5 s after SIGINT and kills 2.5 s later, so everything that runs after a signal must end in under 7 s.
"""

from __future__ import annotations

import importlib
import itertools
import os
import signal
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from azora_ci.core import environment, settings
from azora_ci.core.actions import Actions
from azora_ci.core.clock import Clock
from azora_ci.core.errors import AzoraError, BadInputError, CancelledError, Explained
from azora_ci.core.job_log import JobLog, secrets_of_url
from azora_ci.core.pipeline import APPLICATION_JOBS, JOBS, TOOLS
from azora_ci.core.process import Processes
from azora_ci.core.variables import Secret, declared_variables, deployment_id, git_sha, load, release_version, truth
from azora_ci.record import fragments
from azora_ci.steps.job import Identity, Job

if TYPE_CHECKING:
    import click


EXIT_CODES = "Exit codes: 0 done; 1 what was checked is not true; 2 bad input; 3 an outside system was not reached; 4 a bug."


def step_module(job: str) -> Any:
    """Return the module of a job's step, imported when needed."""
    room = "azora_ci.steps.application" if job in APPLICATION_JOBS else "azora_ci.steps"
    return importlib.import_module(f"{room}.{job.replace('-', '_')}")


def command(job: str) -> click.Command:
    """Return the click command of a job. ``--help`` documents every variable; secrets have no option on purpose."""
    import click

    variables = dict(declared_variables(step_module(job).Settings))
    options: list[click.Parameter] = []
    secret_help: list[str] = []
    github_help: list[str] = []
    own_fields = step_module(job).Settings.__annotations__
    # Required variables come first, then a step's own; those that GitHub sets are listed at the end.
    for name, variable in sorted(variables.items(), key=lambda item: (not item[1].required, item[0] not in own_fields)):
        if variable.secret:
            secret_help.append(f"  {variable.name}{'' if variable.required else ' (optional)'}: {variable.help}")
            continue
        presence = "required" if variable.required else "optional"
        text = f"{variable.help} [{f'default: {variable.default}' if variable.default else f'{presence}; such as {variable.example}'}]"
        names = [f"--{name.replace('_', '-')}", *(["--config"] if name == "config_path" else [])]
        # --switch alone means --switch true
        flag_attributes: dict[str, Any] = {"is_flag": False, "flag_value": "true"} if variable.parse is truth else {}
        hidden = variable.name.startswith(("GITHUB_", "RUNNER_")) and not variable.required
        github_help += [f"{variable.name} ({variable.help.removesuffix(', set by GitHub')})"] if hidden else []
        attributes: dict[str, Any] = {"envvar": variable.name, "show_envvar": True, "metavar": "TEXT", "help": text, "hidden": hidden}
        options.append(click.Option([*names, name], **attributes, **flag_attributes))
    secrets = "\b\nSecrets, read from the environment only:\n" + "\n".join(secret_help) + "\n\n" if secret_help else ""

    def callback(**arguments: str | None) -> None:
        environ = environment.process_environment()
        environ.update({variables[name].name: value for name, value in arguments.items() if value is not None})
        sys.exit(execute(job, environ))

    github = f"Set by GitHub, and read where they are set: {', '.join(github_help)}.\n\n"
    context_settings = {"max_content_width": 120}
    return click.Command(job, context_settings, callback, options, help=(JOBS | TOOLS)[job], epilog=secrets + github + EXIT_CODES)


def main(job: str) -> None:
    """Run a job as its entry point ``scripts/<job>.py`` does, and exit with one of ``EXIT_CODES``."""
    command(job).main(prog_name=f"scripts/{job.replace('-', '_')}.py")


def execute(job_name: str, environ: Mapping[str, str]) -> int:
    """Run one job with these variables and return its exit code."""
    module = step_module(job_name)
    try:
        job_settings = load(module.Settings, environ)
        job = _wire(job_name, job_settings)
    except AzoraError as error:
        return _report_without_settings(job_name, environ, error)
    _catch_signals()
    started_at = job.now()
    try:
        module.run(job)
        failure: Explained | None = None
    except Explained as error:
        failure = error
    except KeyboardInterrupt:
        failure = _cancelled("SIGINT")
    except Exception as error:
        failure = _bug(job, error)
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        job.processes.end_all()
    return _close(job, started_at, failure)


def _wire(job_name: str, job_settings: settings.Common) -> Job[Any]:
    refused = _make_room(job_settings)
    job_settings.log_dir.mkdir(parents=True, exist_ok=True)
    clock = Clock()
    actions = Actions(output_file=job_settings.output_file, summary_file=job_settings.summary_file, github=job_settings.on_github)
    if refused is not None:
        actions.warning(
            "Log folder was not empty",
            f"{job_settings.log_dir} was there before this job began: it now is {refused}, and nothing in it is evidence",
        )
    processes = Processes(JobLog(actions, clock, job_settings.log_dir / f"{job_name}.log"))
    for name, variable in declared_variables(type(job_settings)):
        value = getattr(job_settings, name)
        if isinstance(value, Secret):
            for secret in secrets_of_url(value.reveal()):
                processes.log.add_secret(secret, is_name=variable.name in settings.NAMES)
            for name_within, is_name in settings.names_within(variable.name, value.reveal()).items():
                processes.log.add_secret(name_within, is_name=is_name)
    identity = Identity(*(getattr(job_settings, name, None) for name in ("deployment_id", "version", "git_sha")))
    return Job(job_name, job_settings, actions, processes, clock, identity)


def _make_room(job_settings: settings.Common) -> Path | None:
    """Move what lies in the place of the log folder aside, and return where it is now; None when there was nothing.

    Nothing is deleted. Raises BadInputError for a folder that holds the workspace, or that cannot be moved.
    """
    folder = job_settings.log_dir
    try:
        if not os.path.lexists(folder) or (folder.is_dir() and not folder.is_symlink() and not any(folder.iterdir())):
            return None
        needed = [Path.cwd(), *filter(None, (job_settings.workspace, job_settings.runner_temp, job_settings.received_dir))]
        for place in needed:
            if place.resolve().is_relative_to(folder.resolve()):
                raise OSError(f"it holds {place}")
        names = (folder.with_name(f"{folder.name}.refused-{number}") for number in itertools.count(1))
        return folder.rename(next(name for name in names if not os.path.lexists(name)))
    except OSError as error:
        raise BadInputError(
            "Log folder cannot be emptied",
            what=str(error),
            where=f"DEPLOYMENT_LOG_DIR={folder}",
            next_step="name a folder that holds logs and nothing else: this job starts with an empty one",
        ) from None


def _catch_signals() -> None:
    def cancel(number: int, _frame: FrameType | None) -> None:
        raise _cancelled(signal.Signals(number).name)

    signal.signal(signal.SIGINT, cancel)
    signal.signal(signal.SIGTERM, cancel)


def _cancelled(signal_name: str) -> CancelledError:
    return CancelledError(
        "Cancelled",
        what=f"the job received {signal_name}",
        where="this run",
        next_step="read the failure report for the state production is in; re-running the failed jobs continues this deployment",
    )


def _bug(job: Job[Any], error: Exception) -> AzoraError:
    trace = "".join(traceback.format_exception(error))
    job.log.say(trace)
    return AzoraError(
        f"Bug in {job.name}",
        what=f"{type(error).__name__}: {job.log.masked(str(error))}",
        where=f"{job.name}.log in the job's artifact holds the traceback",
        next_step="report it with that log; re-running the failed jobs is safe",
    )


def _close(job: Job[Any], started_at: str, failure: Explained | None) -> int:
    status = "ok" if failure is None else "cancelled" if isinstance(failure, CancelledError) else "failed"
    try:
        _write_fragment(job, started_at, status, failure)
    except AzoraError as error:
        if failure is None:
            failure, status = error, "failed"
        else:
            job.say(f"the fragment could not be written: {error}")
    if failure is None:
        return 0
    return _announce(job.actions, job.log.masked, job.name, failure)


def _write_fragment(job: Job[Any], started_at: str, status: str, failure: Explained | None) -> None:
    error = None
    if failure is not None:
        texts = {"title": failure.title, "what": failure.what, "where": failure.where, "next": failure.next_step}
        error = {"exit_code": failure.exit_code, **{name: job.log.masked(text) for name, text in texts.items()}}
    fragment = fragments.Fragment(
        job=job.name,
        **asdict(job.identity),
        run_id=job.settings.run_id,
        run_attempt=job.settings.run_attempt,
        status=status,
        started_at=started_at,
        ended_at=job.now(),
        evidence=job.log.masked_evidence(job.evidence),
        error=error,
    )
    sha256 = fragments.write(fragment, job.log_dir)
    if job.settings.output_file is not None:
        # Only now has the job's last command ended: whatever it wrote as this output before, ours is the last and counts.
        job.actions.output(fragments.OUTPUT, sha256)


def _announce(actions: Actions, masked: Callable[[str], str], job_name: str, failure: Explained) -> int:
    from azora_ci.core.markdown import escaped, fenced

    message = masked(failure.message())
    actions.error(masked(failure.title), message)
    actions.summary(f"### ✗ {job_name}: {escaped(masked(failure.title))}\n\n{fenced(message)}")
    return failure.exit_code


def _report_without_settings(job_name: str, environ: Mapping[str, str], failure: AzoraError) -> int:
    try:
        job: Job[Any] = _wire(job_name, load(settings.Common, environ))
    except AzoraError:
        return _announce(Actions(github=environ.get("GITHUB_ACTIONS") == "true"), str, job_name, failure)
    job.identity = Identity(
        _valid(deployment_id, environ.get("DEPLOYMENT_ID")),
        _valid(release_version, environ.get("VERSION")),
        _valid(git_sha, environ.get("GIT_SHA")),
    )
    return _close(job, job.now(), failure)


def _valid(parse: Callable[[str], str], text: str | None) -> str | None:
    try:
        return parse(text) if text else None
    except ValueError:
        return None
