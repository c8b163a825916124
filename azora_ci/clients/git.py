"""A client of git: tags of the checkout and of its origin, and the commits that they name."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from azora_ci.core.clock import parse_rfc3339
from azora_ci.core.errors import BadInputError, UnreachableError
from azora_ci.core.process import Completed, Processes
from azora_ci.core.variables import Secret

TIMEOUT_SECONDS = 120.0  # for one git command; a tag of a large repository is fetched in seconds


@dataclass(frozen=True)
class Tag:
    """A tag: its name, the commit that it resolves to (40 hex digits), and its type, ``annotated`` or ``lightweight``."""

    name: str
    commit: str
    type: str


class Git:
    """The repository in ``folder``. ``token`` is for a private origin below ``server_url``; it is passed in the environment only."""

    def __init__(self, processes: Processes, folder: Path, *, server_url: str | None = None, token: Secret | None = None) -> None:
        self._processes = processes
        self._folder = folder
        config = [("safe.directory", str(folder.resolve()))]  # a container's checkout often belongs to another user
        if server_url and token:
            credentials = base64.b64encode(f"x-access-token:{token.reveal()}".encode()).decode()
            processes.log.add_secret(credentials)
            config.append((f"http.{server_url.rstrip('/')}/.extraheader", f"AUTHORIZATION: basic {credentials}"))
        self._env = {"GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C", "GIT_CONFIG_COUNT": str(len(config))}
        for number, (key, value) in enumerate(config):
            self._env |= {f"GIT_CONFIG_KEY_{number}": key, f"GIT_CONFIG_VALUE_{number}": value}

    def has_origin(self) -> bool:
        """Return whether the repository has a remote named origin. Raises BadInputError when the folder is no repository."""
        completed = self._run("remote")
        if completed.returncode != 0:
            raise BadInputError(
                "No git repository",
                what=completed.stderr.strip(),
                where=str(self._folder.resolve()),
                next_step="run the step in the checkout of the application (actions/checkout)",
            )
        return "origin" in completed.stdout.split()

    def origin_tags(self) -> list[str]:
        """Return the names of the tags at origin. Raises UnreachableError."""
        lines = self._run_at_origin("ls-remote", "--tags", "--refs", "origin").stdout.splitlines()
        return [line.partition("\trefs/tags/")[2] for line in lines]

    def fetch_tag(self, name: str) -> None:
        """Replace the local tag by origin's: actions/checkout turns annotated tags into lightweight ones. Raises UnreachableError."""
        shallow = self._run("rev-parse", "--is-shallow-repository").stdout.strip() == "true"
        ref = f"refs/tags/{name}"
        self._run_at_origin("fetch", "--no-tags", *(["--depth=1"] if shallow else []), "--force", "origin", f"{ref}:{ref}")

    def default_branch(self) -> str | None:
        """Return the name of origin's default branch, or None when origin does not name one. Raises UnreachableError."""
        line = self._run_at_origin("ls-remote", "--symref", "origin", "HEAD").stdout.partition("\n")[0]
        ref = line.removeprefix("ref: ").partition("\t")[0] if line.startswith("ref: ") else ""
        return ref.removeprefix("refs/heads/") if ref.startswith("refs/heads/") else None

    def fetch_branch(self, name: str) -> str:
        """Fetch a branch of origin with its whole history and return its commit. Raises UnreachableError when there is none."""
        shallow = self._run("rev-parse", "--is-shallow-repository").stdout.strip() == "true"
        ref = f"refs/remotes/origin/{name}"
        depth = ["--unshallow"] if shallow else []
        self._run_at_origin("fetch", "--no-tags", *depth, "origin", f"+refs/heads/{name}:{ref}")
        return self._run("rev-parse", "--verify", "--end-of-options", f"{ref}^{{commit}}").stdout.strip()

    def contains(self, branch_commit: str, commit: str) -> bool:
        """Return whether a commit is ``branch_commit`` or one of its ancestors."""
        return self._run("merge-base", "--is-ancestor", commit, branch_commit).returncode == 0

    def file_at(self, commit: str, path: Path) -> str | None:
        """Return the text of a file of a commit, or None when the commit has no such file. ``path`` is relative to the checkout."""
        completed = self._run("show", "--end-of-options", f"{commit}:./{path.as_posix()}")
        return completed.stdout if completed.returncode == 0 else None

    def ignores(self, path: str) -> bool:
        """Say whether git ignores a path below the checkout, which need not exist; False outside of a repository."""
        return self._run("check-ignore", "--quiet", "--", path).returncode == 0

    def local_tags(self) -> list[str]:
        """Return the names of the tags in the checkout."""
        return self._run("for-each-ref", "--format=%(refname:lstrip=2)", "refs/tags").stdout.split()

    def tag(self, name: str) -> Tag | None:
        """Return a tag of the checkout, or None if it does not exist. Raises BadInputError when it names no commit."""
        ref = f"refs/tags/{name}"
        kind = self._run("for-each-ref", "--format=%(objecttype)", ref).stdout.strip()
        if not kind:
            return None
        commit = self.commit(ref)
        if commit is None:
            raise BadInputError(
                "Tag names no commit",
                what=f"{name} points to a {kind} that leads to no commit",
                where=ref,
                next_step="delete the tag and make it again on the release commit",
            )
        return Tag(name, commit, "annotated" if kind == "tag" else "lightweight")

    def commit(self, object_id: str) -> str | None:
        """Return the commit of an object (which may be a tag object), or None when it is not in the checkout."""
        return self._run("rev-parse", "--verify", "--quiet", "--end-of-options", f"{object_id}^{{commit}}").stdout.strip() or None

    def commit_time(self, commit: str) -> datetime:
        """Return when a commit was made (committer date), in UTC. Raises BadInputError for a date that does not exist."""
        text = self._run("show", "--no-patch", "--format=%cI", commit).stdout.strip()
        try:
            return parse_rfc3339(text)
        except (ValueError, OverflowError):
            raise BadInputError(
                "The commit has no date",
                what=f"git shows {text[:100]!r} as its committer date",
                where=commit,
                next_step="commit again with the right time, merge that, and tag what was merged",
            ) from None

    def _run(self, *arguments: str) -> Completed:
        return self._processes.run(("git", *arguments), env=self._env, cwd=self._folder, timeout=TIMEOUT_SECONDS, check=False, echo=False)

    def _run_at_origin(self, *arguments: str) -> Completed:
        completed = self._run(*arguments)
        if completed.returncode != 0:
            raise UnreachableError(
                "Origin does not answer",
                what=f"git {arguments[0]} ended with exit code {completed.returncode}: {completed.stderr.strip()[-1000:]}",
                where="remote origin of the checkout",
                next_step="check the network and that GITHUB_TOKEN may read contents, then run again",
            )
        return completed
