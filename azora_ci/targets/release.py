"""A release, as every kind of target is given it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Release:
    """A release to deploy: deployment id, version with v, and service id -> digest of its image or archive.

    ``sizes``: service id -> bytes of its unpacked image, for the services whose size the build reported.
    """

    id: str
    version: str
    digests: Mapping[str, str]
    sizes: Mapping[str, int] = field(default_factory=dict)

    @property
    def bare(self) -> str:
        """Return the version without v, as health endpoints report it."""
        return self.version.removeprefix("v")
