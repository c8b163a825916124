"""The only module that reads ``os.environ``, and what of it a child process may inherit.

Programs that we start for ourselves (git, pg_dump, docker) inherit everything but secrets: proxies, certificates and a self-hosted
runner's own settings must reach them. Code of the application that runs beside a secret inherits only what ``ALLOWED`` names.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Mapping

from azora_ci.core.errors import BadInputError
from azora_ci.core.variables import WITHHELD, WITHHELD_PREFIX, Secret


def process_environment() -> dict[str, str]:
    """Return a copy of this process's environment."""
    return dict(os.environ)


def child_environment(extra: Mapping[str, str] | None = None, withheld: Iterable[str] = ()) -> dict[str, str]:
    """Return the environment for a child process: this process's own without secrets and GitHub's command files, plus ``extra``.

    A build script of the application must neither see production's secrets nor write this step's outputs. ``withheld`` names
    further variables to leave out: the secrets of services.
    """
    files = {"GITHUB_OUTPUT", "GITHUB_ENV", "GITHUB_PATH", "GITHUB_STATE", "GITHUB_STEP_SUMMARY"}
    left_out = WITHHELD.union(files, withheld)
    inherited = {name: value for name, value in os.environ.items() if name not in left_out and not name.startswith(WITHHELD_PREFIX)}
    return {**inherited, **(extra or {})}


# What isolated code of the application inherits; nothing here is a place where a secret is kept. Not NODE_AUTH_TOKEN, not npm_config_*
# (a registry's token), not *_PROXY (a password in the address): what needs a registry runs in a job without secrets.
ALLOWED = frozenset(
    {"CI", "LANG", "LANGUAGE", "NODE_ENV", "NODE_EXTRA_CA_CERTS", "NODE_OPTIONS", "PATH", "SSL_CERT_DIR", "SSL_CERT_FILE", "TZ"}
)
ALLOWED_PREFIX = "LC_"


def application_environment(extra: Mapping[str, str] | None = None, further: Iterable[str] = ()) -> dict[str, str]:
    """Return the environment for isolated code of the application: what ``ALLOWED`` and ``further`` name of our own, plus ``extra``."""
    inherited = {name: value for name, value in os.environ.items() if name in ALLOWED.union(further) or name.startswith(ALLOWED_PREFIX)}
    return {**inherited, **(extra or {})}


def proxy_for(url: str) -> str | None:
    """Return the proxy that this machine's ``HTTPS_PROXY`` and ``NO_PROXY`` name for an address; None for none, and for loopback always."""
    from urllib.parse import urlsplit
    from urllib.request import getproxies, proxy_bypass

    host = urlsplit(url).hostname or ""
    if host == "localhost" or host.startswith("127.") or host == "::1" or proxy_bypass(host):
        return None
    return getproxies().get("https")


def drop_libpq_variables() -> None:
    """Remove ``PG*`` from this process's environment: PGSERVICE or PGOPTIONS could redirect a connection despite its full URL."""
    for name in [name for name in os.environ if name.startswith("PG")]:
        del os.environ[name]


PRESENT = "PRESENT_"  # and the name of a secret: whether it is set, for a step that is not to have its value


def presence(names: Iterable[str], together: Secret | None = None) -> dict[str, bool | None]:
    """Return for each secret whether it is set; None where nothing says it.

    ``PRESENT_<name>`` says it, which holds true or false, or else a line of ``together`` (``ServiceSecrets``), where that is set.
    """
    lines = _lines(together)
    said = {name: {"true": True, "false": False}.get(os.environ.get(f"{PRESENT}{name}", "")) for name in names}
    return {name: bool(lines.get(name)) if is_set is None and together is not None else is_set for name, is_set in said.items()}


def _lines(together: Secret | None) -> dict[str, str | None]:
    from dotenv import dotenv_values

    return dotenv_values(stream=io.StringIO(together.reveal() if together else ""), interpolate=False)


def named_secrets(names: Iterable[str], together: Secret | None = None) -> dict[str, Secret]:
    """Return the secrets that the configuration names. Raises BadInputError that names all missing ones.

    Each is a variable of this step's environment, or else a line of ``together`` (``ServiceSecrets``).
    """
    lines = _lines(together)
    required_names = sorted(set(names))
    values = {name: os.environ.get(name) or lines.get(name) or "" for name in required_names}
    missing = [name for name, value in values.items() if not value]
    if missing:
        raise BadInputError(
            "Secrets of services are not set",
            what="not in this step's environment: " + ", ".join(missing),
            where="services.*.secrets in the deployment configuration",
            next_step="set them in the repository's settings > Environments (adopt again where the workflow lacks them; a caller of the "
            "reusable workflow hands them over as lines NAME=value of the secret SERVICE_SECRETS), or correct the names",
        )
    return {name: Secret(value) for name, value in values.items()}
