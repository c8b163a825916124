"""The kind ``kubernetes``: what is known of such a target before it is opened."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from azora_ci.core.config import DeployConfig
from azora_ci.targets.base import IMAGES, Target, TargetContext
from azora_ci.targets.findings import Finding
from azora_ci.targets.trial.base import Apart, Means


class KubernetesKind:
    """See ``base.TargetKind`` for what each member means."""

    artifact: ClassVar[str] = IMAGES
    needs_host_keys: ClassVar[bool] = False
    needs_login: ClassVar[bool] = True

    def check(self, config: DeployConfig) -> None:
        """Raise BadInputError when the target is not configured."""
        from azora_ci.targets.kubernetes.cluster import settings_of

        settings_of(config)

    def open(self, context: TargetContext) -> Target:
        """Return the target, which connects when it is used."""
        from azora_ci.targets.kubernetes.target import Kubernetes

        return Kubernetes(context)

    def apart(self, means: Means) -> Apart:
        """Return what starts its images."""
        from azora_ci.targets.trial.images import ImagesApart

        return ImagesApart(means)

    def findings(self, context: TargetContext) -> Iterable[Finding]:
        """Return the findings about API server, rights and Rollouts."""
        from azora_ci.targets.kubernetes import doctor

        return doctor.findings(context)
