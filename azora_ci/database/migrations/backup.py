"""The verified backup behind which migrations are applied."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from azora_ci.core.errors import NotTrueError
from azora_ci.database.postgres import DatabaseUrl


@dataclass(frozen=True)
class VerifiedBackup:
    """The verified backup of this deployment: id, time and age of its snapshot, depth of its proof, and the database it was taken of."""

    id: str
    snapshot: datetime
    age_minutes: float
    depth: str
    database: str
    system_identifier: str | None

    def describe(self) -> str:
        """Return a sentence that says what a restore can rely on."""
        proof = "was never restored to prove it" if self.depth == "none" else f"is proven ({self.depth}) and can be restored"
        return f"{self.id} (snapshot {self.snapshot:%Y-%m-%d %H:%M:%S %Z}) {proof}"

    def require_of(self, url: DatabaseUrl) -> None:
        """Raise NotTrueError when it is of another database than ``url`` leads to, or when that can only be read.

        The identifiers of the clusters are compared when both are known; a standby has that of its primary.
        """
        from azora_ci.database.server import server_facts

        facts = server_facts(url)
        identifiers = {self.system_identifier, facts.system_identifier} - {None}
        if facts.database != self.database or len(identifiers) > 1:
            raise NotTrueError(
                "The backup is of another database",
                what=f"{self.id} holds {self.database} of cluster {self.system_identifier}, "
                f"PROD_DATABASE_URL names {facts.database} of cluster {facts.system_identifier}",
                where=f"PROD_DATABASE_URL ({url.location})",
                next_step="give both jobs the same PROD_DATABASE_URL, then re-run all jobs",
            )
        if facts.in_recovery:
            raise NotTrueError(
                "Migrations need the primary",
                what=f"{url.location} is a standby, which can only be read; nothing was applied",
                where="PROD_DATABASE_URL",
                next_step="name the primary in PROD_DATABASE_URL (target_session_attrs=read-write chooses it among several hosts), then "
                "re-run all jobs",
            )
