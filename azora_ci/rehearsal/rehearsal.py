"""One rehearsal from its first process to its last: world, release, act, a look from outside, the verdict."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from azora_ci.actions import Actions
from azora_ci.clock import Clock
from azora_ci.errors import AzoraError
from azora_ci.process import Processes, is_alive, send_signal
from azora_ci.rehearsal import act, button, evidence, load, replay, repo, report, scenarios, verify, verify_rollback, workflow_text
from azora_ci.rehearsal.act import Act, JobRun, Request
from azora_ci.rehearsal.evidence import JobSeen, Seen
from azora_ci.rehearsal.runs import Run, cache_folder, end_leftovers, lose_runner, point_to, publish
from azora_ci.rehearsal.scenarios import Scenario, StageWatch
from azora_ci.rehearsal.verify_rollback import Pressed
from azora_ci.rehearsal.world import OLD_DEPLOYMENT, World

RUN_SECONDS = 400.0  # for one run of the workflow
AFTERMATH_SECONDS = 1.5  # of load after the last job
LOAD_END_SECONDS = 15.0


@dataclass(frozen=True)
class Options:
    """What was asked for. ``dispatch``: None: a tag push; "": workflow_dispatch without a version; else with that version."""

    scenario: str = "success"
    dispatch: str | None = None
    rerun: bool = False
    rollback: bool = False
    keep: bool = False
    docker: bool = False

    @property
    def name(self) -> str:
        """Return the name of the outcome."""
        dispatched = "+dispatch" if self.dispatch is not None else ""
        flags = {"rerun": self.rerun, "rollback": self.rollback, "docker": self.docker}
        return "+".join([self.scenario + dispatched, *(name for name, given in flags.items() if given)])


class Rehearsal:
    """A rehearsal below ``base``; ``say`` prints progress."""

    def __init__(self, options: Options, base: Path, clock: Clock, *, say: Callable[[str], None]) -> None:
        self.options = options
        self.base = base
        self.clock = clock
        self.say = say
        self.scenario: Scenario = scenarios.SCENARIOS[options.scenario]
        self.version = options.dispatch or repo.NEW_VERSION
        self.demand = scenarios.with_version(self.scenario.demand, self.version.removeprefix("v"))
        self.jobs: dict[str, JobRun] = {}
        self.replaced: dict[str, Path] = {}
        self.attempt = 1
        self.struck = False

    def run(self) -> report.Outcome:
        """Rehearse and return the outcome; everything that was started has ended then, unless it is to be kept."""
        begun = self.clock.monotonic()
        for name in end_leftovers(self.base, self.clock):
            self.say(f"ended what the rehearsal {name} left behind")
        outcome = report.Outcome(self.options.name, self.scenario.broken)
        run = Run.begin(self.base, self.clock)
        self.processes = Processes(actions=Actions(stream=io.StringIO()), clock=self.clock, log=run.path("logs/harness.log"))
        world = self._kind_of_world()(run, cache_folder(self.base), self.processes, self.clock)
        try:
            self._rehearse(world, outcome)
        except AzoraError as error:
            outcome.findings.append(f"{error.title}: {error.message()}")
        except Exception as error:
            outcome.findings.append(f"a bug in the rehearsal itself: {type(error).__name__}: {error}")
            raise
        finally:
            outcome.jobs = {name: _job_seen(one) for name, one in self.jobs.items()}
            outcome.seconds = self.clock.monotonic() - begun
            self.processes.end_all()
            self._close(world, outcome)
        return outcome

    def _kind_of_world(self) -> type[World]:
        if not self.options.docker:
            return World
        from azora_ci.rehearsal.docker_world import DockerWorld

        return DockerWorld

    # --- the story -----------------------------------------------------------------------------------------------------

    def _rehearse(self, world: World, outcome: report.Outcome) -> None:
        begun = self.clock.monotonic()
        self.say(f"starting production as it is: {repo.OLD_VERSION} of {len(repo.SERVICES)} services, their database, and its users")
        world.start()
        self.say(f"  it runs after {self.clock.monotonic() - begun:.1f} s: {world.places.public_url}")
        for remark in world.remarks():
            self.say(f"  {remark}")
        world.scratch.release(self.version, self.scenario.change)
        if self.scenario.before is not None:
            self.scenario.before(world)
        self._deploy(world)
        self._wait_for_settling()
        self.clock.sleep(AFTERMATH_SECONDS)
        if self.options.rerun:
            outcome.findings += [f"first attempt: {one}" for one in self._judged(world, self._look(world))]
            self._run_again(world)
            self.clock.sleep(AFTERMATH_SECONDS)
        if self.options.rollback:
            outcome.findings += [f"before the rollback: {one}" for one in self._judged(world, self._look(world))]
            self._press(world)
            self.clock.sleep(AFTERMATH_SECONDS)
        self._end_load(world)
        outcome.seen = self._look(world)
        if self.options.rollback:
            pressed = Pressed(
                old=self.demand.old, new=self.demand.new, old_id=OLD_DEPLOYMENT, reason=button.REASON, actor=button.PRESSED_BY
            )
            outcome.findings += verify_rollback.findings(outcome.seen, pressed)
        else:
            outcome.findings += self._judged(world, outcome.seen)

    def _wait_for_settling(self) -> None:
        """Wait as long as production may take after a lost runner."""
        ended = self.jobs[self.demand.lost].ended if self.demand.lost else None
        left = (ended or 0.0) + self.demand.settle - self.clock.now().timestamp()
        if left > 0:
            self.say(f"the machine is gone; production has {self.demand.settle:g} s to be on the old version again")
            self.clock.sleep(left)

    def _judged(self, world: World, seen: Seen) -> list[str]:
        return verify.findings(seen, self.demand, world.places.public_url)

    def _press(self, world: World) -> None:
        self.say(f"pressing the button: {button.WORKFLOW.name}, reason: {button.REASON}")
        world.scratch.check_out("main")  # a dispatch runs there
        wanted = button.request(world)
        self.replaced |= act.replaced_actions(wanted.workflow.read_text(encoding="utf-8"))
        self.jobs |= self._act(world, wanted, "rollback")

    def _deploy(self, world: World) -> None:
        how = "workflow_dispatch" if self.options.dispatch is not None else f"push of {self.version}"
        self.say(f"running the real workflow: {how}; broken on purpose: {self.scenario.broken}")
        world.scratch.check_out("main" if self.options.dispatch is not None else self.version)
        workflow = world.scratch.folder / repo.WORKFLOW
        self.replaced = act.replaced_actions(workflow.read_text(encoding="utf-8"))
        with contextlib.ExitStack() as stack:
            if self.scenario.stage is not None:
                stack.enter_context(StageWatch(world, self.scenario.stage, lambda: self._strike(world), self.clock))
            if self.scenario.runner is not None:
                stack.enter_context(StageWatch(world, self.scenario.runner, lambda: lose_runner(world.run), self.clock))
            self.jobs = self._act(world, self._request(world, workflow), "1")

    def _strike(self, world: World) -> None:
        """Make the new version fail, and see it fail through the edge: at 5 % users may be lucky for a second."""
        scenarios.write_fault(world, answer="error", version=self.demand.new)
        path = repo.SERVICES["auth_service"][3]
        self.struck = evidence.ask(world.places.public_url + path, {"x-azora-release": "canary"}) == f"500 {self.demand.new}"

    def _run_again(self, world: World) -> None:
        """Repair what was broken and do what "re-run failed jobs" does."""
        if self.scenario.repair is not None:
            self.scenario.repair(world)
        self.attempt = 2
        text = (world.scratch.folder / repo.WORKFLOW).read_text(encoding="utf-8")
        again = workflow_text.to_run_again(text, {name: one.result for name, one in self.jobs.items()})
        demand = scenarios.with_version(scenarios.after_rerun(self.scenario), self.demand.new)
        self.demand = replace(demand, again=tuple(sorted(again)))
        self.say(f"repaired; running failed jobs again: {', '.join(name for name in self.jobs if name in again)}")
        second = world.run.path("second-attempt.yml")
        outputs = {name: one.outputs for name, one in self.jobs.items()}
        second.write_text(workflow_text.second_attempt(text, again, outputs), encoding="utf-8")
        found = self._act(world, self._request(world, second), "2")
        self.jobs = {name: found[name] if name in again else one for name, one in self.jobs.items()}

    def _act(self, world: World, wanted: Request, name: str) -> dict[str, JobRun]:
        def ended(job: str, run: JobRun) -> None:
            self.say(f"  {report.MARKS.get(run.result, '?')} {job} {run.seconds:.1f} s")
            if self.scenario.after is not None and self.attempt == 1:
                self.scenario.after(world, job, run)

        runner = Act(world.run.path(f"act-{name}/x").parent, self.processes, self.clock, progress=ended)
        found = runner.run(wanted, timeout=RUN_SECONDS)
        suffix = f"-attempt-{self.attempt}" if name == str(self.attempt) != "1" else ""
        for job, one in found.items():
            if one.summary:
                world.run.path(f"summaries/{job}{suffix}.md").write_text(one.summary, encoding="utf-8")
        return found

    def _request(self, world: World, workflow: Path) -> Request:
        repository = {"full_name": repo.NAME, "name": repo.NAME.split("/")[1], "owner": {"login": repo.NAME.split("/")[0]}}
        payload: dict[str, Any] = {"repository": {**repository, "default_branch": "main"}, "sender": {"login": "release-engineer"}}
        if self.options.dispatch is None:
            event, payload["ref"] = "push", f"refs/tags/{self.version}"
        else:
            event, payload["ref"], payload["inputs"] = "workflow_dispatch", "refs/heads/main", {"version": self.options.dispatch}
        return Request(
            event=event,
            payload=payload,
            repository=world.scratch.folder,
            workflow=workflow,
            variables={**world.variables(), **self.scenario.variables},
            secrets=world.secrets(),
            environment=world.environment(self.attempt),
        )

    # --- the end -------------------------------------------------------------------------------------------------------

    def _end_load(self, world: World) -> None:
        """Tell the load to stop and wait until it has noted its last answer."""
        for one in [one for one in world.run.living() if one.name == "load"]:
            send_signal(one.pid, signal.SIGTERM)
            deadline = self.clock.monotonic() + LOAD_END_SECONDS
            while is_alive(one.pid) and self.clock.monotonic() < deadline:
                self.clock.sleep(0.05)

    def _look(self, world: World) -> Seen:
        objects, dumps = evidence.bucket(world.s3_endpoint, "AKIAREHEARSAL", world.keys["s3"], repo.BUCKET)
        files, documents = evidence.artifacts(world.run.artifacts)
        password = world.database.url.split("@", maxsplit=1)[0].rsplit(":", 1)[1]
        secrets = {"the database password": password, "the S3 key": world.keys["s3"], "the GitHub token": world.keys["github"]}
        secrets["the Slack webhook"] = world.slack_url.split("/services/", 1)[1]
        if self.options.docker:
            secrets["the key of the production host"] = world.secrets()["PROD_KEY"].splitlines()[-2]
        logs = sorted(world.run.folder.glob("act-*/act.log"))
        healths = [health for _, _, _, health in repo.SERVICES.values()]
        return Seen(
            jobs={name: _job_seen(one) for name, one in self.jobs.items()},
            answers=load.read(world.load_log),
            fresh=evidence.fresh_answers(world.places.public_url, healths),
            struck=self.struck,
            messages=evidence.messages(world.slack_messages),
            artifacts=files,
            documents=documents,
            objects=objects,
            dumps=dumps,
            migrations=evidence.migrations(world.database.url),
            rows_before=sum(world.database.rows.values()),
            leaks=evidence.leaks(secrets, [world.run.artifacts, world.run.folder / "summaries", *logs], objects),
            summaries={name: one.summary for name, one in self.jobs.items()},
            started=evidence.started(world.places.public_url, healths),
        )

    def _close(self, world: World, outcome: report.Outcome) -> None:
        """Publish what is there, then end the world or write what a person needs to go on with it."""
        logs = world.run.path("published-logs/x").parent
        logs.mkdir(exist_ok=True)
        for path in [*world.run.folder.glob("act-*/act.log"), *world.run.folder.glob("logs/*.log"), world.load_log]:
            if path.exists():
                name = path.name if path.parent.name in {"logs", world.run.folder.name} else f"{path.parent.name}.log"
                shutil.copyfile(path, logs / name)
        result = world.run.path("result.json")
        result.write_text(json.dumps(outcome.document(), indent=2) + "\n", encoding="utf-8")
        summaries = world.run.folder / "summaries"
        publish(self.base, {"artifacts": world.run.artifacts, "result.json": result, "logs": logs, "summaries": summaries})
        if self.options.keep and "validate-release" in self.jobs:
            replay.write(world, self.jobs, self.jobs["validate-release"].outputs, self.attempt + 1)
            world.run.keep()
            point_to(self.base, world.run.folder / "replay")
            return
        stubborn = world.run.end(self.clock)
        if stubborn:
            outcome.findings.append(f"these processes had to be killed: {', '.join(stubborn)}")
        world.run.remove()


def _job_seen(run: JobRun) -> JobSeen:
    return JobSeen(run.result, run.seconds, run.started, run.ended)


def with_tail(outcome: report.Outcome, jobs: dict[str, JobRun], lines: int = 12) -> report.Outcome:
    """Add the end of the log of every job that failed unexpectedly to the findings of an outcome."""
    suspects = [name for name, run in jobs.items() if any(one.startswith(f"job {name}: failure") for one in outcome.findings)]
    tails = [f"end of {name}'s log:\n    " + "\n    ".join(jobs[name].lines[-lines:]) for name in suspects]
    return replace(outcome, findings=[*outcome.findings, *tails])
