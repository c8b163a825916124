"""Run one rehearsal: start its world, release, run the workflow with act, gather evidence, judge it, end every process."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from azora_ci.core.actions import Actions
from azora_ci.core.clock import Clock
from azora_ci.core.errors import AzoraError
from azora_ci.core.job_log import JobLog
from azora_ci.core.process import Processes, is_alive, send_signal
from azora_ci.rehearsal import button, replay, repo, scenarios
from azora_ci.rehearsal.act import workflow_text
from azora_ci.rehearsal.act.runner import Act, JobRun, RunRequest, replaced_actions
from azora_ci.rehearsal.applications.base import Application
from azora_ci.rehearsal.applications.sample import Sample
from azora_ci.rehearsal.judge import cluster, deployment, evidence, load, report, rollback
from azora_ci.rehearsal.judge.evidence import Evidence, JobResult
from azora_ci.rehearsal.judge.rollback import Pressed
from azora_ci.rehearsal.runs import Run, cache_folder, end_leftovers, lose_runner, point_to, publish
from azora_ci.rehearsal.scenarios import Scenario, WeightTrigger
from azora_ci.rehearsal.world import OLD_DEPLOYMENT, World

RUN_SECONDS = 400.0  # for one run of the workflow
USERS_UNTIL_FAULT = 400  # that 400 users at 5 % all get the old version has a chance of 1 in 800 million
AFTERMATH_SECONDS = 1.5  # of load after the last job
LOAD_END_SECONDS = 15.0
MID_STAGE_SECONDS = 1.5  # after the weights of a stage were seen at the edge
NOTICED_SECONDS = 60.0  # at most, to wait for the run to say so
SILENCE = "nothing was done about it for"  # how it says that the controller does nothing


@dataclass(frozen=True)
class Options:
    """Options of the command line. ``dispatch``: None: a tag push; "": workflow_dispatch without a version; else with that version."""

    scenario: str = "success"
    dispatch: str | None = None
    rerun: bool = False
    rollback: bool = False
    keep: bool = False
    docker: bool = False
    kubernetes: bool = False
    reusable: bool = False
    application: Application = field(default_factory=Sample)

    @property
    def name(self) -> str:
        """Return the name of the outcome: the scenario and the options that are set, joined with ``+``."""
        dispatched = "+dispatch" if self.dispatch is not None else ""
        flags = {"rerun": self.rerun, "rollback": self.rollback, "docker": self.docker}
        flags |= {"kubernetes": self.kubernetes, "reusable": self.reusable}
        return "+".join([self.scenario + dispatched, *(name for name, enabled in flags.items() if enabled)])


class Rehearsal:
    """A rehearsal below ``base``; ``say`` prints progress."""

    def __init__(self, options: Options, base: Path, clock: Clock, *, say: Callable[[str], None]) -> None:
        self.options = options
        self.base = base
        self.clock = clock
        self.say = say
        self.scenario: Scenario = scenarios.SCENARIOS[options.scenario]
        self.application = options.application
        self.jobs: dict[str, JobRun] = {}
        self.replaced: dict[str, Path] = {}
        self.attempt = 1
        self.fault_observed = False
        self.lost_at: float | None = None
        self.silence_noticed: float | None = None

    def run(self) -> report.RehearsalOutcome:
        """Rehearse and return the outcome. Every started process has ended by then, unless ``--keep`` is set."""
        begun = self.clock.monotonic()
        for name in end_leftovers(self.base, self.clock):
            self.say(f"ended what the rehearsal {name} left behind")
        outcome = report.RehearsalOutcome(self.options.name, self.scenario.broken)
        run = Run.begin(self.base, self.clock)
        self.processes = Processes(JobLog(Actions(stream=io.StringIO()), self.clock, run.path("logs/harness.log")))
        world = self._world_class()(run, cache_folder(self.base), self.processes, self.clock, self.application)
        world.say = self.say
        try:
            self._rehearse(world, outcome)
        except AzoraError as error:
            outcome.findings.append(f"{error.title}: {error.message()}")
        except Exception as error:
            outcome.findings.append(f"a bug in the rehearsal itself: {type(error).__name__}: {error}")
            raise
        finally:
            outcome.jobs = {name: _job_result(job) for name, job in self.jobs.items()}
            outcome.seconds = self.clock.monotonic() - begun
            self.processes.end_all()
            self._close(world, outcome)
        return outcome

    def _world_class(self) -> type[World]:
        if self.options.docker:
            from azora_ci.rehearsal.docker_world import DockerWorld

            return DockerWorld
        if self.options.kubernetes:
            from azora_ci.rehearsal.kubernetes_world import KubernetesWorld

            return KubernetesWorld
        return World

    # --- the story -----------------------------------------------------------------------------------------------------

    def _rehearse(self, world: World, outcome: report.RehearsalOutcome) -> None:
        begun = self.clock.monotonic()
        world.begin()
        world.scratch.reusable = self.options.reusable
        self.version = self.options.dispatch or self.application.new
        demand = self.application.demand() if self.options.scenario == "success" else self.scenario.demand
        self.demand = scenarios.with_version(demand, self.version.removeprefix("v"))
        services = f"{len(demand.services)} service{'s' if len(demand.services) > 1 else ''}"
        self.say(
            f"starting production as it is: {self.application.old} of {services} of {self.application.name}, its database, and its users"
        )
        world.start()
        self.say(f"  it runs after {self.clock.monotonic() - begun:.1f} s: {world.places.public_url}")
        for remark in (*world.remarks(), *self.application.remarks()):
            self.say(f"  {remark}")
        self.application.release(world.scratch, self.version, self.scenario.change)
        if self.scenario.break_world is not None:
            self.scenario.break_world(world)
        self._deploy(world)
        self._wait_for_settling()
        self.clock.sleep(AFTERMATH_SECONDS)
        if self.options.rerun:
            outcome.findings += [f"first attempt: {finding}" for finding in self._judge(world, self._gather_evidence(world))]
            self._run_again(world)
            self.clock.sleep(AFTERMATH_SECONDS)
        if self.options.rollback:
            outcome.findings += [f"before the rollback: {finding}" for finding in self._judge(world, self._gather_evidence(world))]
            self._press(world)
            self.clock.sleep(AFTERMATH_SECONDS)
        self._end_load(world)
        outcome.evidence = self._gather_evidence(world)
        if self.options.rollback:
            pressed = Pressed(
                old=self.demand.old, new=self.demand.new, old_id=OLD_DEPLOYMENT, reason=button.REASON, actor=button.PRESSED_BY,
                cluster=self.options.kubernetes,
            )  # fmt: skip
            outcome.findings += rollback.findings(outcome.evidence, pressed)
            outcome.findings += self._judge_cluster(outcome.evidence, replace(self.demand, serving=self.demand.old))
        else:
            outcome.findings += self._judge(world, outcome.evidence)

    def _wait_for_settling(self) -> None:
        """After a lost runner or controller, wait the time in which production must be on the old version again."""
        ended = self.jobs[self.demand.failed[0]].ended if self.demand.unattended else None
        seconds = (ended or 0.0) + self.demand.settle_seconds - self.clock.now().timestamp()
        if seconds > 0:
            begun = "the machine is gone" if self.lost_at else "the controller was started again"
            self.say(f"{begun}; production has {self.demand.settle_seconds:g} s to be on the old version again")
            self.clock.sleep(seconds)

    def _judge(self, world: World, evidence: Evidence) -> list[str]:
        return deployment.findings(evidence, self.demand, world.places.public_url) + self._judge_cluster(evidence, self.demand)

    def _judge_cluster(self, evidence: Evidence, demand: deployment.Demand) -> list[str]:
        return list(cluster.findings(evidence.rollouts, demand)) if self.options.kubernetes else []

    def _press(self, world: World) -> None:
        self.say(f"pressing the button: {button.WORKFLOW.name}, reason: {button.REASON}")
        world.scratch.check_out("main")  # the branch that the dispatch names
        request = button.request(world)
        self.replaced |= replaced_actions(request.published or request.workflow.read_text(encoding="utf-8"))
        self.jobs |= self._act(world, request, "rollback")

    def _deploy(self, world: World) -> None:
        trigger = "workflow_dispatch" if self.options.dispatch is not None else f"push of {self.version}"
        self.say(f"running the real workflow: {trigger}; broken on purpose: {self.scenario.broken}")
        world.scratch.check_out("main" if self.options.dispatch is not None else self.version)
        workflow = world.scratch.folder / repo.WORKFLOW
        self.replaced = replaced_actions(world.scratch.published(workflow.name) or workflow.read_text(encoding="utf-8"))
        with contextlib.ExitStack() as stack:
            if self.scenario.fail_at_percent is not None:
                stack.enter_context(WeightTrigger(world, self.scenario.fail_at_percent, lambda: self._break_new_version(world), self.clock))
            if self.scenario.lose_runner_at_percent is not None:
                stack.enter_context(
                    WeightTrigger(world, self.scenario.lose_runner_at_percent, lambda: self._lose_runner(world), self.clock)
                )
            if self.scenario.stop_controller_at_percent is not None:
                stop = partial(self._stop_controller, world)
                stack.enter_context(WeightTrigger(world, self.scenario.stop_controller_at_percent, stop, self.clock))
            self.jobs = self._act(world, self._request(world, workflow), "1")

    def _break_new_version(self, world: World) -> None:
        """Make the new version fail, and ask as users do until one meets it: 5 % of them do."""
        scenarios.write_fault(world, answer="error", version=self.demand.new)
        path = list(self.application.health_paths)[1]
        url, failed = world.places.public_url + path, f"500 {self.demand.new}"
        self.fault_observed = any(evidence.ask(url) == failed for _ in range(USERS_UNTIL_FAULT))

    def _lose_runner(self, world: World) -> None:
        lose_runner(world.run)
        self.lost_at = self.clock.now().timestamp()

    def _stop_controller(self, world: World) -> None:
        """End the controller in the middle of a stage, and note when the run says that it does nothing."""
        self.clock.sleep(MID_STAGE_SECONDS)
        world.stop_controller()
        begun, log = self.clock.monotonic(), world.run.folder / "act-1" / "act.log"
        while self.clock.monotonic() - begun < NOTICED_SECONDS and self.silence_noticed is None:
            if SILENCE in log.read_text(encoding="utf-8"):
                self.silence_noticed = self.clock.monotonic() - begun
                self.say(f"  the run said {self.silence_noticed:.1f} s after the controller's end that it does nothing")
            self.clock.sleep(scenarios.POLL_SECONDS)

    def _run_again(self, world: World) -> None:
        """Repair the fault and run the workflow as GitHub's "re-run failed jobs" does."""
        if self.scenario.repair is not None:
            self.scenario.repair(world)
        self.attempt = 2
        text = (world.scratch.folder / repo.WORKFLOW).read_text(encoding="utf-8")
        again = workflow_text.to_run_again(text, {name: job.result for name, job in self.jobs.items()})
        demand = scenarios.with_version(scenarios.after_rerun(self.scenario), self.demand.new)
        self.demand = replace(demand, rerun_jobs=tuple(sorted(again)))
        self.say(f"repaired; running failed jobs again: {', '.join(name for name in self.jobs if name in again)}")
        second = world.run.path("second-attempt.yml")
        outputs = {name: job.outputs for name, job in self.jobs.items()}
        second.write_text(workflow_text.second_attempt(text, again, outputs), encoding="utf-8")
        second_jobs = self._act(world, self._request(world, second), "2")
        self.jobs = {name: second_jobs[name] if name in again else job for name, job in self.jobs.items()}

    def _act(self, world: World, request: RunRequest, name: str) -> dict[str, JobRun]:
        def report_end(job: str, run: JobRun) -> None:
            self.say(f"  {report.MARKS.get(run.result, '?')} {job} {run.seconds:.1f} s")
            if self.scenario.on_job_end is not None and self.attempt == 1:
                self.scenario.on_job_end(world, job, run)

        runner = Act(world.run.path(f"act-{name}/x").parent, self.processes, self.clock, progress=report_end)
        runs = runner.run(request, timeout=RUN_SECONDS)
        suffix = f"-attempt-{self.attempt}" if name == str(self.attempt) != "1" else ""
        for job, run in runs.items():
            if run.summary:
                world.run.path(f"summaries/{job}{suffix}.md").write_text(run.summary, encoding="utf-8")
        return runs

    def _request(self, world: World, workflow: Path) -> RunRequest:
        owner, name = self.application.name.split("/")
        repository = {"full_name": self.application.name, "name": name, "owner": {"login": owner}}
        payload: dict[str, Any] = {"repository": {**repository, "default_branch": "main"}, "sender": {"login": "release-engineer"}}
        if self.options.dispatch is None:
            event, payload["ref"] = "push", f"refs/tags/{self.version}"
        else:
            event, payload["ref"], payload["inputs"] = "workflow_dispatch", "refs/heads/main", {"version": self.options.dispatch}
        return RunRequest(
            event=event,
            payload=payload,
            repository=world.scratch.folder,
            workflow=workflow,
            variables={**world.variables(), **self.scenario.variables},
            secrets=world.secrets(),
            environment=world.environment(self.attempt),
            published=world.scratch.published(workflow.name),
        )

    # --- the end -------------------------------------------------------------------------------------------------------

    def _end_load(self, world: World) -> None:
        """Tell the load to stop and wait until it has noted its last answer."""
        for process in [process for process in world.run.living() if process.name == "load"]:
            send_signal(process.pid, signal.SIGTERM)
            deadline = self.clock.monotonic() + LOAD_END_SECONDS
            while is_alive(process.pid) and self.clock.monotonic() < deadline:
                self.clock.sleep(0.05)

    def _gather_evidence(self, world: World) -> Evidence:
        objects, dumps = evidence.bucket(world.s3_endpoint, "AKIAREHEARSAL", world.keys["s3"], repo.BUCKET)
        files, documents = evidence.artifacts(world.run.artifacts)
        password = world.database.url.split("@", maxsplit=1)[0].rsplit(":", 1)[1]
        secrets = {"the database password": password, "the S3 key": world.keys["s3"], "the GitHub token": world.keys["github"]}
        secrets["the Slack webhook"] = world.slack_url.split("/services/", 1)[1]
        if self.options.kubernetes:
            secrets["the token of the cluster's account"] = world.keys["deployer"]
        if self.options.docker:
            secrets["the key of the production host"] = world.secrets()["PROD_KEY"].splitlines()[-2]
        logs = sorted(world.run.folder.glob("act-*/act.log"))
        healths = self.application.health_paths
        before, rollouts = evidence.served(world.places.admin_socket), world.rollouts()
        fresh = evidence.fresh_answers(world.places.public_url, healths)
        serving = {name: number - before.get(name, 0) for name, number in evidence.served(world.places.admin_socket).items()}
        return Evidence(
            jobs={name: _job_result(job) for name, job in self.jobs.items()},
            answers=load.read(world.load_log),
            fresh=fresh,
            serving=cluster.by_release(serving, rollouts) if rollouts else serving,
            fault_observed=self.fault_observed,
            messages=evidence.messages(world.slack_messages),
            plain_messages=evidence.plain_messages(world.slack_messages),
            deployments=evidence.deployments(world.github_url, self.application.name, world.keys["github"]),
            artifacts=files,
            documents=documents,
            objects=objects,
            dumps=dumps,
            migrations=evidence.migrations(world.database.url),
            rows_before=sum(world.database.rows.values()),
            leaks=evidence.leaks(secrets, [world.run.artifacts, world.run.folder / "summaries", *logs], objects),
            summaries={name: job.summary for name, job in self.jobs.items()},
            instance_starts=evidence.instance_starts(world.places.public_url, healths),
            rollouts=rollouts,
            lost_at=self.lost_at,
            silence_noticed=self.silence_noticed,
        )

    def _close(self, world: World, outcome: report.RehearsalOutcome) -> None:
        """Publish result, artifacts and logs; then end the world, or with ``--keep`` write the files to replay its jobs."""
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


def _job_result(run: JobRun) -> JobResult:
    return JobResult(run.result, run.seconds, run.started, run.ended)


def with_tail(outcome: report.RehearsalOutcome, jobs: dict[str, JobRun], lines: int = 12) -> report.RehearsalOutcome:
    """Return the outcome with the last lines of the log of every job that failed unexpectedly as further findings."""
    suspects = [name for name, run in jobs.items() if any(finding.startswith(f"job {name}: failure") for finding in outcome.findings)]
    tails = [f"end of {name}'s log:\n    " + "\n    ".join(jobs[name].lines[-lines:]) for name in suspects]
    return replace(outcome, findings=[*outcome.findings, *tails])
