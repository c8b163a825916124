"""What a rehearsal needs of the application that it deploys."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from azora_ci.database.cluster import Cluster
from azora_ci.rehearsal.judge.deployment import Demand
from azora_ci.rehearsal.production import Production
from azora_ci.rehearsal.repo import ScratchRepository

HEALTHY = (("canary", "healthy"), ("progressive", "healthy"), ("full", "healthy"))  # (stage, status)


class Run(Protocol):
    """Runs a command of the application with the rehearsal's Node.js and package manager. Raises CommandFailedError."""

    def __call__(self, argv: Sequence[str], folder: Path, env: Mapping[str, str] | None = None) -> str:
        """Run ``argv`` in ``folder`` and return its output."""


class Application(Protocol):
    """An application with two releases: production runs ``old`` when the rehearsal begins, ``new`` is to be deployed.

    Versions are tags (``v1.2.3``). ``begin`` comes first; everything else may depend on what it read.
    """

    @property
    def name(self) -> str:
        """Return the name of its repository, ``owner/name``."""

    @property
    def old(self) -> str:
        """Return the version that production runs."""

    @property
    def new(self) -> str:
        """Return the version to deploy."""

    @property
    def checks(self) -> tuple[str, ...]:
        """Return the checks that the configuration requires of a release commit."""

    @property
    def advisories(self) -> Mapping[str, Any]:
        """Return what the stand-in of the package registry knows of its packages, as its file holds it."""

    @property
    def package_manager(self) -> str | None:
        """Return the package manager beside npm, ``pnpm@9.12.0``; None where npm is enough."""

    @property
    def health_paths(self) -> Mapping[str, str]:
        """Return the public paths of the health endpoints, and where the version is in each answer (``judge.load.version_in``)."""

    @property
    def load_paths(self) -> tuple[str, ...]:
        """Return the paths that the load requests in turn, each with the source of its version behind a space."""

    def base_images(self, folder: Path) -> Mapping[str, str | None]:
        """Return the images that the Dockerfiles of a release begin with -> the image that stands in; None: this machine's Node.js."""

    def begin(self, scratch: ScratchRepository) -> None:
        """Fill the scratch repository and tag the old release. Raises BadInputError when it cannot be rehearsed."""

    def write_old(self, scratch: ScratchRepository, folder: Path) -> None:
        """Write the files of the old release into a folder."""

    def prepare(self, run: Run, folder: Path) -> None:
        """Install what the old release's migrations need."""

    def migrate(self, run: Run, folder: Path, url: str) -> None:
        """Apply the old release's migrations to the database ``url``."""

    def fill(self, run: Run, cluster: Cluster) -> None:
        """Fill the migrated database with the rows of production."""

    def build(self, run: Run, folder: Path) -> None:
        """Run the production build of the old release."""

    def adopt(self, scratch: ScratchRepository, places: Production, registry: str) -> None:
        """Write the configuration for this rehearsal's production. ``registry``: the address that is asked for advisories."""

    def release(self, scratch: ScratchRepository, version: str, change: Callable[[Path], None] | None) -> None:
        """Commit and tag the release to deploy, after ``change`` edited its files."""

    def secrets(self, database_url: str) -> Mapping[str, str]:
        """Return the secrets that its repository has on GitHub, beside those of every application."""

    def demand(self) -> Demand:
        """Return what must be seen of a successful deployment from outside."""

    def remarks(self) -> tuple[str, ...]:
        """Return sentences for people: what was replaced, and what is not rehearsed."""
