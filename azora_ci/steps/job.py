"""The object that every step receives: its settings, the shared edges, and the place for its evidence; what several steps make of it."""

from __future__ import annotations

import importlib
import pkgutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, TypeVar

from azora_ci.core import config
from azora_ci.core.actions import Actions
from azora_ci.core.clock import Clock, rfc3339
from azora_ci.core.job_log import JobLog
from azora_ci.core.process import Processes, isolation
from azora_ci.core.process.isolation import Isolation
from azora_ci.core.settings import Aws, Common
from azora_ci.core.variables import Variable, declared_variables
from azora_ci.database.migrations import tree
from azora_ci.database.postgres import DatabaseUrl
from azora_ci.record import host_keys
from azora_ci.record.archive import Archive
from azora_ci.record.fragments import Fragments
from azora_ci.record.needs import Need, parse_needs
from azora_ci.record.run import Circumstances, Previous, WorkflowRun

S = TypeVar("S", bound=Common)
TOOLCHAIN = "azora-toolchain"  # in RUNNER_TEMP: where .github/actions/toolchain/install.sh puts the package manager


@dataclass
class Identity:
    """Identity of the deployment: validate-release determines it, every other job reads it from its environment."""

    deployment_id: str | None = None
    version: str | None = None
    git_sha: str | None = None


@dataclass
class Job(Generic[S]):
    """One attempt of one job. A step adds each observation to ``evidence``; a failed job keeps what it had added."""

    name: str
    settings: S
    actions: Actions
    processes: Processes
    clock: Clock
    identity: Identity
    evidence: dict[str, Any] = field(default_factory=dict)

    @property
    def log(self) -> JobLog:
        """Return the job's log, which masks its secrets."""
        return self.processes.log

    @property
    def log_dir(self) -> Path:
        """Return the folder that becomes the job's artifact."""
        return self.settings.log_dir

    @property
    def own_folders(self) -> tuple[Path, ...]:
        """Return the folders that this job itself fills or has set aside: they are no part of what it builds."""
        return (self.log_dir, *self.log_dir.parent.glob(f"{self.log_dir.name}.refused-*"), self.settings.received_dir)

    @cached_property
    def config(self) -> config.DeployConfig:
        """Return the deployment configuration, read at the first use. Raises BadInputError.

        From then on no child inherits the secrets of services: only their instances, or the builds of their images, receive them.
        """
        loaded = config.load(self.settings.config_path)
        self.processes.withhold(name for service in loaded.services for name in (*service.secrets, *service.build.secrets))
        return loaded

    @cached_property
    def needs(self) -> dict[str, Need]:
        """Return what GitHub says of the jobs that this one needs. Raises BadInputError."""
        return parse_needs(self.settings.needs)

    @property
    def fragments(self) -> Fragments:
        """Return the fragments of earlier jobs. Raises BadInputError for NEEDS that cannot be used."""
        settings = self.settings
        return Fragments(
            settings.received_dir, self.needs, deployment_id=self.identity.deployment_id, run_id=settings.run_id,
            run_attempt=settings.run_attempt,
        )  # fmt: skip

    @property
    def workflow_run(self) -> WorkflowRun:
        """Return the run of the workflow as records hold it."""
        settings = self.settings
        return WorkflowRun(
            id=settings.run_id, url=settings.run_url, attempt=settings.run_attempt, actor=settings.actor, repository=settings.repository,
            environment=settings.deploy_environment,
        )  # fmt: skip

    def circumstances(
        self, artifacts_location: str | None = None, previous: Previous | None = None, signed_by: str = "none"
    ) -> Circumstances:
        """Return the facts of the deployment's record that no fragment holds; ``signed_by``: who signs it where it is archived."""
        return Circumstances(
            run=self.workflow_run, **asdict(self.identity), rollback_window_minutes=self.settings.rollback_window_minutes,
            artifacts_location=artifacts_location, previous=previous or Previous(), signed_by=signed_by,
        )  # fmt: skip

    def now(self) -> str:
        """Return the present moment as RFC 3339."""
        return rfc3339(self.clock.now())

    def say(self, line: str) -> None:
        """Print a line and keep it in the job's log."""
        self.log.say(line)

    def tick(self, fact: str) -> None:
        """Print a tick. Only the code that has just observed the fact may call this."""
        self.say(f"✓ {fact}")


def declarations() -> dict[str, Variable]:
    """Return name -> declaration of every variable that a step declares. Imports every step, which takes 0.2 s."""
    import azora_ci.steps

    modules = pkgutil.walk_packages(azora_ci.steps.__path__, f"{azora_ci.steps.__name__}.")
    groups = [getattr(importlib.import_module(module.name), "Settings", None) for module in modules if not module.ispkg]
    return {variable.name: variable for group in groups if group for _, variable in declared_variables(group)}


def own_variables() -> frozenset[str]:
    """Return the names of all variables that any step declares."""
    return frozenset(declarations())


def recorded_host_keys(job: Job[Any]) -> str:
    """Return the text of a known_hosts file: the keys that production hosts must show unless others are pinned.

    The job's settings are ``PinnedHostKeys`` with ``deployment_id``; a job with an AWS key reads the archive, too. Raises NotTrueError
    for a record that cannot be trusted.
    """
    settings = job.settings
    reads_archive = isinstance(settings, Aws) and settings.aws_access_key_id is not None
    archive = Archive.of(settings, settings.deploy_environment, job.config.backup, clock=job.clock, say=job.say) if reads_archive else None
    return host_keys.for_run(settings, job.fragments, archive)


def isolation_for(job: Job[Any], work: Path, *, owned: bool = False, shown: tuple[Path, ...] = ()) -> Isolation:
    """Return how the application's commands run on the files in ``work``, which they see under the name of the workspace.

    The job's settings are ``Isolated``. Logs, received artifacts and the runner's own files are hidden, but for ``shown`` and
    the package manager of the action toolchain. What was chosen is evidence, its reason too. Raises BadInputError for ISOLATION=none
    without a reason.
    """
    settings = job.settings
    active = isolation.is_chosen(settings.isolation, settings.isolation_reason)
    job.evidence["isolation"] = settings.isolation
    if not active:
        job.evidence["override_reason"] = f"ISOLATION=none: {settings.isolation_reason}"
        job.log.annotate("Application code runs without isolation", f"as this user, beside this job's secrets: {settings.isolation_reason}")
    hidden = filter(None, (settings.runner_temp, settings.workspace, settings.log_dir, settings.received_dir))
    shown += settings.isolation_shown or ()
    shown += (settings.runner_temp / TOOLCHAIN,) if settings.runner_temp else ()
    return Isolation(work, Path.cwd(), owned, tuple(hidden), shown, active)


@contextmanager
def application_tree(job: Job[Any], ca_file: str | None) -> Iterator[Isolation]:
    """Yield how the migrate command runs, on the application's files with all that it needs: those that the job build packed.

    They lie in a folder of this block. ``ca_file`` is shown as it is here, wherever it lies. Raises NotTrueError for a tree that is not
    the one that was built, or whose migrations are not those of the commit. Which files another tool's command reads is not known.
    """
    with tempfile.TemporaryDirectory(dir=job.settings.runner_temp, prefix="azora-ci-", ignore_cleanup_errors=True) as folder:
        unpacked = Path(folder) / "tree"
        tree.unpack(job.settings.received_dir, job.fragments.require("build").evidence.get("tree"), unpacked)
        if job.config.database.command is None:
            migrations_dir = job.config.database.migrations_dir
            count = tree.require_same_migrations(migrations_dir, unpacked / migrations_dir)
            job.tick(f"the tree is the one that build packed, and its {count} files of migrations are those of the commit")
        else:
            job.tick("the tree is the one that build packed; what its migrations are is reported by the job build alone")
        yield isolation_for(job, unpacked, owned=True, shown=(Path(ca_file),) if ca_file else ())


@contextmanager
def production_database(job: Job[Any], evidence: dict[str, Any]) -> Iterator[DatabaseUrl]:
    """Yield the address of PROD_DATABASE_URL; where it leads through SSH or the cluster, that way stays open during the block.

    The job's settings are ``DatabaseAccess``, ``SshAccess`` and ``Kubeconfig``. ``evidence`` gets ``database_transport``, and ``host_keys``
    from SSH. Raises BadInputError, and the errors of ``reachable_database`` and ``forwarded_database``.
    """
    settings = job.settings
    url = DatabaseUrl.parse(settings.database_url.reveal()).with_transport(settings.database_ca, plain_accepted=settings.database_plain)
    job.log.add_secret(url.password)
    if job.config.database_forward is not None:
        from azora_ci.database.forward import forwarded_database

        with forwarded_database(url, job.config, settings.kubeconfig_data, job.processes, job.clock) as reachable_url:
            evidence["database_transport"] = reachable_url.protection.level
            yield reachable_url
        return
    if not job.config.database.via_ssh:
        evidence["database_transport"] = url.protection.level
        yield url
        return
    from azora_ci.database.tunnel import access_to, reachable_database

    access = access_to(url, job.settings)
    with reachable_database(url, access, recorded_host_keys(job), job.log, job.clock, evidence) as reachable_url:
        evidence["database_transport"] = reachable_url.protection.level
        yield reachable_url
