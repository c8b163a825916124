"""The cluster of a configuration: its API server, who we are there, and the names of our own objects."""

from __future__ import annotations

from dataclasses import dataclass

from azora_ci.clients.kubernetes.api import Api
from azora_ci.clients.kubernetes.kubeconfig import access_of
from azora_ci.core.config import DeployConfig, KubernetesSettings
from azora_ci.core.errors import BadInputError
from azora_ci.targets.base import TargetContext

HINT = "set it to the kubeconfig of the account that edge install makes, or in_cluster for a runner in a pod"


@dataclass(frozen=True)
class Names:
    """Paths and names in the namespace of a configuration."""

    settings: KubernetesSettings

    @property
    def lease(self) -> str:
        """Return the name of the lease, which is the lock."""
        return f"{self.settings.name}-deployment"

    @property
    def journal(self) -> str:
        """Return the name of the ConfigMap that holds the journal."""
        return f"{self.settings.name}-journal"

    @property
    def watch(self) -> str:
        """Return the name of the AnalysisTemplate that takes a dead runner's release back."""
        return f"{self.settings.name}-runner-alive"

    @property
    def reader(self) -> str:
        """Return the name of the account that may read the lease, of its role and of the Secret with its token."""
        return f"{self.settings.name}-lease-reader"

    @property
    def deployer(self) -> str:
        """Return the name of the account of our jobs and of its role."""
        return f"{self.settings.name}-deployer"

    @property
    def database(self) -> str:
        """Return the name of the role that lets our account reach the database, in the database's namespace, and of its binding."""
        return f"{self.settings.name}-database"

    def core(self, kind: str) -> str:
        """Return the path of a kind of the core API, such as ``pods``."""
        return f"/api/v1/namespaces/{self.settings.namespace}/{kind}"

    def group(self, group: str, kind: str) -> str:
        """Return the path of a kind of another API, such as ``apps/v1`` and ``replicasets``."""
        return f"/apis/{group}/namespaces/{self.settings.namespace}/{kind}"

    @property
    def rollouts(self) -> str:
        """Return the path of Rollouts."""
        return self.group("argoproj.io/v1alpha1", "rollouts")

    @property
    def leases(self) -> str:
        """Return the path of leases."""
        return self.group("coordination.k8s.io/v1", "leases")


def settings_of(config: DeployConfig) -> KubernetesSettings:
    """Return the settings of the target. Raises BadInputError when they are missing."""
    if config.target.kubernetes is None:
        raise BadInputError(
            "Target is not configured",
            what="target.kubernetes is missing",
            where="the deployment configuration",
            next_step="add [target.kubernetes] with the namespace, and the Rollout and container of each service",
        )
    return config.target.kubernetes


def connect(context: TargetContext) -> Api:
    """Return the API server, to which nothing is sent yet. Raises BadInputError when the access does not suffice."""
    kubeconfig = context.access.kubeconfig_data if context.access else None
    access = access_of(settings_of(context.config), kubeconfig, HINT)
    return Api(access, context.processes, context.clock)
