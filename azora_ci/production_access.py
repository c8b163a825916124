"""What a step is given to reach production over SSH, checked and taken apart: hosts, user, key, jump host, and which keys count."""

from __future__ import annotations

from dataclasses import dataclass

from azora_ci.errors import BadInputError
from azora_ci.settings import Secret, SshAccess
from azora_ci.ssh import HostAddress, JumpHost, parse_hosts, parse_jump
from azora_ci.ssh_folder import Credentials


@dataclass(frozen=True)
class Access:
    """Who goes where, and how it is made sure that this is the right place."""

    hosts: tuple[HostAddress, ...]
    user: str
    key: Secret
    jump: JumpHost | None
    known_hosts: str | None
    accept_new: bool

    def credentials(self, recorded: str) -> Credentials:
        """Return the folder for OpenSSH; ``recorded`` host keys count where none is pinned. Raises BadInputError when none is known."""
        return Credentials(self.user, self.key, known_hosts=self.known_hosts, recorded=recorded, accept_new=self.accept_new)


def access_of(given: SshAccess | None, wanted_by: str, next_step: str = "") -> Access:
    """Return the access that a step's settings describe. Raises BadInputError naming what is not set, and what wants it."""
    if given is None or given.prod_host is None or given.prod_user is None or given.prod_key is None:
        named = {"PROD_HOST": given and given.prod_host, "PROD_USER": given and given.prod_user, "PROD_KEY": given and given.prod_key}
        raise BadInputError(
            "Access to the production hosts is not set",
            what="not in this step's environment: " + ", ".join(name for name, value in named.items() if value is None),
            where=wanted_by,
            next_step=next_step or "set them as secrets of the environment (repository settings > Environments) and in this step's env",
        )
    jump = parse_jump(given.prod_jump_host.reveal()) if given.prod_jump_host else None
    hosts = parse_hosts(given.prod_host.reveal())
    return Access(hosts, given.prod_user.reveal(), given.prod_key, jump, given.prod_known_hosts, given.prod_accept_new_host_key)
