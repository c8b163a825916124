"""Check and parse a step's settings for SSH access to production: hosts, user, private key, jump host and trusted host keys."""

from __future__ import annotations

from dataclasses import dataclass

from azora_ci.clients.ssh.credentials import Credentials
from azora_ci.core.errors import BadInputError
from azora_ci.core.hosts import HostAddress, JumpHost, parse_hosts, parse_jump
from azora_ci.core.settings import SshAccess
from azora_ci.core.variables import Secret


@dataclass(frozen=True)
class Access:
    """SSH access: hosts, user, private key, jump host, pinned host keys, and whether an unknown host key is accepted once."""

    hosts: tuple[HostAddress, ...]
    user: str
    key: Secret
    jump: JumpHost | None
    known_hosts: str | None
    accept_new: bool

    def credentials(self, recorded: str) -> Credentials:
        """Return user, key and host keys; ``recorded`` ones are used when none is pinned. Raises BadInputError without any key."""
        return Credentials(self.user, self.key, known_hosts=self.known_hosts, recorded=recorded, accept_new=self.accept_new)


def access_of(settings: SshAccess | None, required_by: str, next_step: str = "") -> Access:
    """Return the access that a step's settings describe. Raises BadInputError that names the unset variables and ``required_by``."""
    if settings is None or settings.prod_host is None or settings.prod_user is None or settings.prod_key is None:
        unset = [name for name in ("PROD_HOST", "PROD_USER", "PROD_KEY") if getattr(settings, name.lower(), None) is None]
        raise BadInputError(
            "Access to the production hosts is not set",
            what=f"not in this step's environment: {', '.join(unset)}",
            where=required_by,
            next_step=next_step or "set them as secrets of the environment (repository settings > Environments) and in this step's env",
        )
    jump = parse_jump(settings.prod_jump_host.reveal()) if settings.prod_jump_host else None
    hosts = parse_hosts(settings.prod_host.reveal())
    return Access(hosts, settings.prod_user.reveal(), settings.prod_key, jump, settings.prod_known_hosts, settings.prod_accept_new_host_key)
