"""The scratch repository from which the rehearsal's runs check out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from azora_ci.cli.adopt import plan
from azora_ci.core.process import Processes

WORKFLOW = plan.WORKFLOW_FOLDER / "deploy-production.yml"
BUCKET = "azora-backups"
_IDENTITY = {"NAME": "Release Engineer", "EMAIL": "release@azora.example"}


@dataclass
class ScratchRepository:
    """The repository at ``folder``; ``reusable``: its workflows call the published ones."""

    folder: Path
    processes: Processes
    reusable: bool = False

    def git(self, *arguments: str, folder: Path | None = None) -> str:
        """Run git without the machine's configuration and return its output. Raises CommandFailedError."""
        env = {f"GIT_{role}_{name}": value for role in ("AUTHOR", "COMMITTER") for name, value in _IDENTITY.items()}
        env |= {"GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_NOSYSTEM": "1", "GIT_ALLOW_PROTOCOL": "file"}
        return self.processes.run(("git", *arguments), env=env, cwd=folder or self.folder, timeout=60, echo=False).stdout.strip()

    def name_origin(self, name: str) -> None:
        """Say that the repository is ``owner/name`` on GitHub, which is never contacted: checkouts come from this folder."""
        if "origin" in self.git("remote").splitlines():
            self.git("remote", "remove", "origin")
        self.git("remote", "add", "origin", f"https://github.com/{name}.git")

    def published(self, workflow: str) -> str | None:
        """Return the text of the published workflow that an adopted one calls, with its actions pinned; None for a copy."""
        if not plan.is_reusable(self.folder):
            return None
        action = plan.pinned_action(self.folder)
        return plan.pinned((plan.template_folder() / workflow).read_text(encoding="utf-8"), action)

    def check_out(self, ref: str) -> None:
        """Check out a ref without a branch; act takes GITHUB_SHA from it."""
        self.git("checkout", "--quiet", "--detach", ref)

    def commit(self, message: str, tag: str | None) -> str:
        """Commit every file, also ``tag`` the commit, and return its id."""
        self.git("add", "--all")
        self.git("commit", "--quiet", "--allow-empty", "-m", message)
        if tag is not None:
            self.git("tag", "--annotate", "-m", message, tag)
        return self.git("rev-parse", "HEAD")
