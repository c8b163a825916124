"""The kind ``docker_hosts``: what is known of such a target before it is opened."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from azora_ci.core.config import DeployConfig
from azora_ci.core.errors import AzoraError
from azora_ci.targets.base import IMAGES, Target, TargetContext
from azora_ci.targets.findings import Finding, failed
from azora_ci.targets.trial.base import Apart, Means


class DockerHostsKind:
    """See ``base.TargetKind`` for what each member means."""

    artifact: ClassVar[str] = IMAGES
    needs_host_keys: ClassVar[bool] = True
    needs_login: ClassVar[bool] = True

    def check(self, config: DeployConfig) -> None:
        """Raise BadInputError when the configuration of edges and guards is missing."""
        from azora_ci.targets.docker_hosts.host_node import settings_of

        settings_of(config)

    def open(self, context: TargetContext) -> Target:
        """Return the target, which connects when it is used."""
        from azora_ci.targets.docker_hosts.target import DockerHosts

        return DockerHosts(context)

    def apart(self, means: Means) -> Apart:
        """Return what starts its images."""
        from azora_ci.targets.trial.images import ImagesApart

        return ImagesApart(means)

    def findings(self, context: TargetContext) -> Iterable[Finding]:
        """Return the findings of all hosts."""
        from azora_ci.targets.docker_hosts import doctor

        try:
            return doctor.findings(context)
        except AzoraError as error:
            return [failed("hosts", error)]
