"""The only module that reads ``os.environ``: environment -> frozen, typed settings.

A settings class is a frozen dataclass whose fields are made by ``variable``. ``load`` reports every missing or malformed
variable at once, by name, with what it is for and an example.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from azora_ci.errors import BadInputError

S = TypeVar("S")
DEPLOYMENT_ID = re.compile(r"[1-9][0-9]{0,11}-[0-9a-f]{6}")
GIT_SHA = re.compile(r"[0-9a-f]{40}")


class Secret:
    """A value that must not be shown: its ``repr`` and ``str`` are redacted, ``reveal()`` is the way out."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        """Return the value itself. Hand it to a protocol, never to a log, a command line or an artifact."""
        return self._value

    def __repr__(self) -> str:
        return "Secret('***')"

    def __str__(self) -> str:
        return "***"

    def __format__(self, spec: str) -> str:
        return format("***", spec)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._value == self._value

    def __hash__(self) -> int:
        return hash(("Secret", self._value))

    def __reduce__(self) -> tuple[Any, ...]:
        raise TypeError("a Secret is not pickled")


@dataclass(frozen=True)
class Variable:
    """One environment variable: its name, what it is for, an example, how its text becomes a value."""

    name: str
    help: str
    example: str
    parse: Callable[[str], Any]
    default: str | None
    required: bool
    secret: bool


def variable(  # noqa: PLR0913 - the parts of a variable's documentation, all by keyword
    name: str,
    help_text: str,
    *,
    example: str,
    parse: Callable[[str], Any] = str,
    default: str | None = None,
    required: bool | None = None,
    secret: bool = False,
) -> Any:
    """Declare a field that is read from the environment variable ``name``.

    ``parse`` turns its text into the value and raises ValueError with a reason. Without ``default`` it is required, unless
    ``required=False``: then the field is None when the variable is unset or empty. GitHub hands over an unset secret as an
    empty text, so empty counts as unset.
    """
    needed = default is None if required is None else required
    parser: Callable[[str], Any] = (lambda text: Secret(parse(text))) if secret else parse
    return field(metadata={"variable": Variable(name, help_text, example, parser, default, needed, secret)})


def variables(settings_class: type[Any]) -> Iterator[tuple[str, Variable]]:
    """Yield (field name, Variable) of a settings class, inherited ones included."""
    for item in fields(settings_class):
        yield item.name, _variable_of(item)


def _variable_of(item: Field[Any]) -> Variable:
    found = item.metadata.get("variable")
    if not isinstance(found, Variable):
        raise TypeError(f"field {item.name} was not made by variable()")
    assert item.default is MISSING  # noqa: S101 - defaults live in the Variable, so that they pass through its parser
    return found


def load(settings_class: type[S], environ: Mapping[str, str]) -> S:
    """Return the settings that ``environ`` describes. Raises BadInputError naming every bad variable at once."""
    values: dict[str, Any] = {}
    problems: list[str] = []
    for name, declared in variables(settings_class):
        text = environ.get(declared.name, "") or declared.default or ""
        if not text:
            if declared.required:
                problems.append(f"{declared.name} is not set: {declared.help} (for example {declared.example})")
            values[name] = None
            continue
        try:
            values[name] = declared.parse(text)
        except ValueError as error:
            shown = "its value (not shown)" if declared.secret else repr(text)
            problems.append(f"{declared.name}: {shown} {error}: {declared.help} (for example {declared.example})")
    if problems:
        raise BadInputError(
            "Environment is not complete" if len(problems) == 1 else f"{len(problems)} environment variables need attention",
            what="\n".join(problems),
            where="environment variables of this step",
            next_step="set them in the workflow's env (secrets: repository settings > Environments), or export them to replay the step",
        )
    return settings_class(**values)


def environment() -> dict[str, str]:
    """Return a copy of this process's environment."""
    return dict(os.environ)


# What a child process never inherits: it gets a secret only when a caller hands it over by name.
WITHHELD = frozenset(
    {
        "ACTIONS_ID_TOKEN_REQUEST_TOKEN",
        "ACTIONS_RUNTIME_TOKEN",
        "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_SESSION_TOKEN",
        "BACKUP_VERIFY_DATABASE_URL",
        "DATABASE_URL",
        "DOCKER_PASSWORD",
        "DOCKER_USERNAME",
        "GITHUB_TOKEN",
        "PGPASSWORD",
        "PROD_DATABASE_URL",
        "PROD_HOST",
        "PROD_KEY",
        "PROD_USER",
        "SLACK_WEBHOOK",
    }
)


# Secrets that name somebody or something: not shown in logs, but image references and instances in the evidence hold them.
NAMES = frozenset({"DOCKER_USERNAME", "PROD_HOST", "PROD_USER"})


def child_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment for a child process: ours without secrets and without ``GITHUB_OUTPUT`` and its like, plus ``extra``.

    A build script of the application must neither see production's secrets nor write our step's outputs.
    """
    files = {"GITHUB_OUTPUT", "GITHUB_ENV", "GITHUB_PATH", "GITHUB_STATE", "GITHUB_STEP_SUMMARY"}
    kept = {name: value for name, value in os.environ.items() if name not in WITHHELD | files}
    return {**kept, **(extra or {})}


def drop_libpq_variables() -> None:
    """Remove ``PG*`` from this process's environment, so that no PGSERVICE or PGOPTIONS redirects a connection that is named in full."""
    for name in [name for name in os.environ if name.startswith("PG")]:
        del os.environ[name]


def named_secrets(names: Iterable[str]) -> dict[str, Secret]:
    """Return the secrets that the configuration names, from this step's environment. Raises BadInputError naming all that lack."""
    wanted = sorted(set(names))
    missing = [name for name in wanted if not os.environ.get(name)]
    if missing:
        raise BadInputError(
            "Secrets of services are not set",
            what="not in this step's environment: " + ", ".join(missing),
            where="services.*.secrets in the deployment configuration",
            next_step="add them to the env of this step in the workflow (repository settings > Environments), or correct the names",
        )
    return {name: Secret(os.environ[name]) for name in wanted}


# --- parsers: text -> value, ValueError with a reason -----------------------------------------------------------------


def whole_number(minimum: int = 0, maximum: int = 10**9) -> Callable[[str], int]:
    """Return a parser for a whole number within bounds."""

    def parse(text: str) -> int:
        if not re.fullmatch(r"-?[0-9]{1,12}", text):
            raise ValueError("is not a whole number")
        if not minimum <= int(text) <= maximum:
            raise ValueError(f"is not between {minimum} and {maximum}")
        return int(text)

    return parse


def number(minimum: float = 0.0, maximum: float = 1e9) -> Callable[[str], float]:
    """Return a parser for a decimal number within bounds (no NaN, no infinity)."""

    def parse(text: str) -> float:
        if not re.fullmatch(r"-?[0-9]{1,12}(\.[0-9]{1,12})?", text):
            raise ValueError("is not a number")
        if not minimum <= float(text) <= maximum:
            raise ValueError(f"is not between {minimum:g} and {maximum:g}")
        return float(text)

    return parse


def truth(text: str) -> bool:
    """Parse true or false."""
    if text.lower() not in {"true", "false"}:
        raise ValueError("is neither true nor false")
    return text.lower() == "true"


def one_of(*choices: str) -> Callable[[str], str]:
    """Return a parser for one of several words."""

    def parse(text: str) -> str:
        if text not in choices:
            raise ValueError(f"is none of {', '.join(choices)}")
        return text

    return parse


def deployment_id(text: str) -> str:
    """Parse ``<unix seconds>-<first 6 hex of the commit>``; it becomes part of object keys, file and artifact names."""
    if not DEPLOYMENT_ID.fullmatch(text):
        raise ValueError("is not <unix seconds>-<first 6 hex digits of the commit>")
    return text


def git_sha(text: str) -> str:
    """Parse a full commit id."""
    if not GIT_SHA.fullmatch(text):
        raise ValueError("is not a full commit id of 40 hex digits")
    return text


def release_version(text: str) -> str:
    """Parse a release version with a leading v (imported late: decisions own the rule)."""
    from azora_ci.release import Version

    return str(Version.parse(text))


# --- what every job reads ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Common:
    """What every job reads; names as in the production deployment guide and as GitHub sets them."""

    log_dir: Path = variable(
        "DEPLOYMENT_LOG_DIR",
        "folder for logs and records, becomes the artifact",
        example="deployment-logs",
        parse=Path,
        default="deployment-logs",
    )
    received_dir: Path = variable(
        "RECEIVED_ARTIFACTS_DIR",
        "folder into which earlier jobs' artifacts were downloaded",
        example="received-artifacts",
        parse=Path,
        default="received-artifacts",
    )
    config_path: Path = variable(
        "DEPLOY_CONFIG",
        "what is deployed where",
        example=".github/deploy-production.toml",
        parse=Path,
        default=".github/deploy-production.toml",
    )
    deploy_environment: str = variable(
        "DEPLOY_ENVIRONMENT",
        "name of the environment",
        example="production",
        default="production",
    )
    rollback_window_minutes: int = variable(
        "ROLLBACK_WINDOW_MINUTES",
        "minutes after completion in which going back is supported",
        example="60",
        parse=whole_number(1, 10080),
        default="60",
    )
    repository: str | None = variable("GITHUB_REPOSITORY", "owner/name, set by GitHub", example="azora/azora", required=False)
    server_url: str = variable(
        "GITHUB_SERVER_URL",
        "GitHub's address, set by GitHub",
        example="https://github.com",
        default="https://github.com",
    )
    api_url: str = variable(
        "GITHUB_API_URL",
        "GitHub's API, set by GitHub",
        example="https://api.github.com",
        default="https://api.github.com",
    )
    run_id: str = variable("GITHUB_RUN_ID", "the run, set by GitHub", example="1234567890", default="0")
    run_attempt: int = variable(
        "GITHUB_RUN_ATTEMPT",
        "attempt of the run, set by GitHub",
        example="1",
        parse=whole_number(1),
        default="1",
    )
    actor: str = variable("GITHUB_ACTOR", "who started the run, set by GitHub", example="octocat", default="unknown")
    on_github: bool = variable("GITHUB_ACTIONS", "true inside GitHub Actions", example="true", parse=truth, default="false")
    output_file: Path | None = variable(
        "GITHUB_OUTPUT",
        "file for step outputs; unset: outputs are printed",
        example="output.txt",
        parse=Path,
        required=False,
    )
    summary_file: Path | None = variable(
        "GITHUB_STEP_SUMMARY",
        "file for the step summary",
        example="summary.md",
        parse=Path,
        required=False,
    )

    @property
    def run_url(self) -> str:
        """Return the address of the run, for people."""
        return f"{self.server_url}/{self.repository or 'unknown/unknown'}/actions/runs/{self.run_id}"


@dataclass(frozen=True, kw_only=True)
class Deployment(Common):
    """What every job after validate-release reads."""

    deployment_id: str = variable(
        "DEPLOYMENT_ID",
        "id of this deployment, output deployment-id of validate-release",
        example="1764000000-abc123",
        parse=deployment_id,
    )
    version: str = variable(
        "VERSION",
        "release version, output version of validate-release",
        example="v1.2.3",
        parse=release_version,
    )
    git_sha: str = variable(
        "GIT_SHA",
        "commit of the release, output git-sha of validate-release",
        example="0123456789abcdef0123456789abcdef01234567",
        parse=git_sha,
    )


# --- groups of variables that several jobs read; inherit beside Deployment ----------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Aws:
    """Access to S3, as boto3 and the AWS command line read it; set by an OIDC role or by these standard variables."""

    aws_access_key_id: Secret | None = variable(
        "AWS_ACCESS_KEY_ID", "AWS access key; an OIDC role sets it", example="AKIA…", required=False, secret=True
    )
    aws_secret_access_key: Secret | None = variable(
        "AWS_SECRET_ACCESS_KEY", "AWS secret key; an OIDC role sets it", example="…", required=False, secret=True
    )
    aws_session_token: Secret | None = variable(
        "AWS_SESSION_TOKEN", "AWS session token; an OIDC role sets it", example="…", required=False, secret=True
    )
    aws_region: str = variable("AWS_REGION", "region of the bucket", example="eu-central-1", default="us-east-1")
    aws_endpoint_url_s3: str | None = variable(
        "AWS_ENDPOINT_URL_S3", "address of an S3-compatible store; unset: AWS", example="https://minio.example", required=False
    )


@dataclass(frozen=True, kw_only=True)
class DatabaseAccess:
    """Access to the production database."""

    database_url: Secret = variable(
        "PROD_DATABASE_URL",
        "connection string of the production database",
        example="postgresql://user:password@host:5432/azora",
        secret=True,
    )


@dataclass(frozen=True, kw_only=True)
class Health:
    """How health is probed; names and defaults are the guide's."""

    health_timeout: float = variable(
        "HEALTH_CHECK_TIMEOUT", "seconds a new instance may take to its first healthy answer", example="300", parse=number(0.1, 3600),
        default="300",
    )  # fmt: skip
    health_retries: int = variable(
        "HEALTH_CHECK_RETRIES", "consecutive failed probes of one endpoint before the verdict is abort", example="5",
        parse=whole_number(1, 1000), default="5",
    )  # fmt: skip
    health_interval: float = variable(
        "HEALTH_CHECK_INTERVAL", "seconds between probes", example="10", parse=number(0.05, 3600), default="10"
    )


def production_hosts(text: str) -> str:
    """Check a list of hosts (imported late: the SSH edge owns the format)."""
    from azora_ci.ssh import parse_hosts

    parse_hosts(text)
    return text


@dataclass(frozen=True, kw_only=True)
class ProductionHosts:
    """How production hosts are reached; only the docker_hosts target demands them. Names are the guide's."""

    prod_host: Secret | None = variable(
        "PROD_HOST", "production hosts, host or host:port, comma separated", example="web1.example,web2.example", parse=production_hosts,
        required=False, secret=True,
    )  # fmt: skip
    prod_user: Secret | None = variable(
        "PROD_USER", "user on them, who may use Docker's socket", example="deploy", required=False, secret=True
    )
    prod_key: Secret | None = variable(
        "PROD_KEY", "private SSH key of that user, all lines", example="-----BEGIN OPENSSH PRIVATE KEY-----…", required=False, secret=True
    )
    prod_known_hosts: str | None = variable(
        "PROD_KNOWN_HOSTS", "host keys as ssh-keyscan prints them", example="web1.example ssh-ed25519 AAAA…", required=False
    )
    prod_accept_new_host_key: bool = variable(
        "PROD_ACCEPT_NEW_HOST_KEY", "true: accept unknown host keys on the very first deployment", example="false", parse=truth,
        default="false",
    )  # fmt: skip
    docker_username: Secret | None = variable(
        "DOCKER_USERNAME", "user of the registry; unset: no login", example="azora", required=False, secret=True
    )
    docker_password: Secret | None = variable(
        "DOCKER_PASSWORD", "password or token of the registry", example="dckr_pat_…", required=False, secret=True
    )


@dataclass(frozen=True, kw_only=True)
class Notifications:
    """Where people are told."""

    slack_webhook: Secret | None = variable(
        "SLACK_WEBHOOK", "Slack incoming webhook; unset: nobody is notified", example="https://hooks.slack.com/services/…", required=False,
        secret=True,
    )  # fmt: skip
