"""The groups of variables that several jobs read.

How a variable becomes a typed field is in ``variables``.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from azora_ci.core.errors import BadInputError
from azora_ci.core.hosts import normal_key, parse_hosts, parse_jump, user_name
from azora_ci.core.variables import (
    Secret,
    checked_by,
    deployment_id,
    git_sha,
    number,
    one_of,
    release_version,
    truth,
    variable,
    whole_number,
)

# Secrets that are user names: masked in logs, but not in the evidence, whose image references contain them.
NAMES = frozenset({"DOCKER_USERNAME", "PROD_USER", "PULL_USERNAME"})


def names_within(variable_name: str, text: str) -> dict[str, bool]:
    """Return the hosts and the user in a secret, so that each is masked by itself, and whether each may be part of a word.

    Loopback addresses are left out, as they reveal nothing.
    """
    hosts, user = [], None
    with suppress(ValueError):  # of a text that a job did not parse yet
        if variable_name == "PROD_HOST":
            hosts = [address.host for address in parse_hosts(text)]
        elif variable_name == "PROD_JUMP_HOST":
            jump = parse_jump(text)
            hosts, user = [jump.address.host], jump.user
    names = {host: "." not in host and ":" not in host for host in hosts if host != "localhost" and not host.startswith("127.")}
    return names | ({user: True} if user else {})


# --- what every job reads ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Common:
    """What every job reads. The names are those of the production deployment guide and of GitHub."""

    log_dir: Path = variable(
        "DEPLOYMENT_LOG_DIR",
        "folder for logs and records, becomes the artifact; relative: below RUNNER_TEMP where that is set",
        example="deployment-logs",
        parse=Path,
        default="deployment-logs",
    )
    received_dir: Path = variable(
        "RECEIVED_ARTIFACTS_DIR",
        "folder into which earlier jobs' artifacts were downloaded; relative: below RUNNER_TEMP where that is set",
        example="received-artifacts",
        parse=Path,
        default="received-artifacts",
    )
    needs: str | None = variable(
        "NEEDS", "results and outputs of the jobs before: toJSON(needs)", required=False,
        example='{"database-backup": {"result": "success", "outputs": {}}}',
    )  # fmt: skip
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

    workspace: Path | None = variable(
        "GITHUB_WORKSPACE", "the checkout, set by GitHub", example="/home/runner/work/azora/azora", parse=Path, required=False
    )
    runner_temp: Path | None = variable(
        "RUNNER_TEMP", "the runner's folder for temporary files, set by GitHub", example="/home/runner/work/_temp", parse=Path,
        required=False,
    )  # fmt: skip

    def __post_init__(self) -> None:
        """Place relative folders of artifacts below RUNNER_TEMP: outside of the workspace, whose files come from the release itself."""
        if self.runner_temp is not None:
            for name in ("log_dir", "received_dir"):
                object.__setattr__(self, name, self.runner_temp / getattr(self, name))

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


# --- groups of variables that several jobs read: further base classes of a step's settings ------------------------------


@dataclass(frozen=True, kw_only=True)
class Aws:
    """Access to S3. These are the standard variables of boto3 and the AWS command line; an OIDC role sets them, too."""

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
class DatabaseTransport:
    """How connections to the production database are protected."""

    database_ca: str | None = variable(
        "PROD_DATABASE_CA", "file of the CA that signed the database's certificate, or system; unset: what the connection string says",
        example=".github/database-ca.pem", required=False,
    )  # fmt: skip
    database_plain: bool = variable(
        "PROD_DATABASE_PLAIN", "true: accept a database without TLS; lands in the record", example="false", parse=truth, default="false"
    )


@dataclass(frozen=True, kw_only=True)
class DatabaseAccess(DatabaseTransport):
    """Access to the production database."""

    database_url: Secret = variable(
        "PROD_DATABASE_URL",
        "connection string of the production database",
        example="postgresql://user:password@host:5432/azora",
        secret=True,
    )


@dataclass(frozen=True, kw_only=True)
class Health:
    """How health is probed. Names and defaults are those of the production deployment guide."""

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


@dataclass(frozen=True, kw_only=True)
class PinnedHostKeys:
    """The host keys that the production hosts may present."""

    prod_known_hosts: str | None = variable(
        "PROD_KNOWN_HOSTS", "host keys as ssh-keyscan -H prints them (logs show variables); unset: those that the last deployment recorded",
        example="web1.example ssh-ed25519 AAAA…", required=False,
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class SshAccess(PinnedHostKeys):
    """How production hosts are reached: required by the docker_hosts target and database.via_ssh. The names are the guide's."""

    prod_host: Secret | None = variable(
        "PROD_HOST", "production hosts, host or host:port, comma separated", example="web1.example,web2.example",
        parse=checked_by(parse_hosts), required=False, secret=True,
    )  # fmt: skip
    prod_jump_host: Secret | None = variable(
        "PROD_JUMP_HOST", "host through which the production hosts are reached, [user@]host[:port]; unset: none",
        example="jump@bastion.example", parse=checked_by(parse_jump), required=False, secret=True,
    )  # fmt: skip
    prod_user: Secret | None = variable(
        "PROD_USER", "user on them, who may use Docker's socket", example="deploy", parse=user_name, required=False, secret=True
    )
    prod_key: Secret | None = variable(
        "PROD_KEY", "private SSH key of that user, all lines", example="-----BEGIN OPENSSH PRIVATE KEY-----…", parse=normal_key,
        required=False, secret=True,
    )  # fmt: skip
    prod_accept_new_host_key: bool = variable(
        "PROD_ACCEPT_NEW_HOST_KEY", "true: accept host keys where none is pinned or recorded (the very first deployment)",
        example="false", parse=truth, default="false",
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ImagePull(SshAccess):
    """How images get to production hosts that are reached by SSH: hosts pull, with a login that may do nothing else where there is one."""

    pull_username: Secret | None = variable(
        "PULL_USERNAME", "user of the registry who may only pull; unset: DOCKER_USERNAME", example="azora-pull", required=False, secret=True
    )
    pull_password: Secret | None = variable(
        "PULL_PASSWORD", "password or token of PULL_USERNAME", example="dckr_pat_…", required=False, secret=True
    )
    docker_username: Secret | None = variable(
        "DOCKER_USERNAME",
        "user of the registry where PULL_USERNAME is unset; unset: no login",
        example="azora",
        required=False,
        secret=True,
    )
    docker_password: Secret | None = variable(
        "DOCKER_PASSWORD", "password or token of DOCKER_USERNAME", example="dckr_pat_…", required=False, secret=True
    )

    @property
    def registry_login(self) -> tuple[Secret, Secret] | None:
        """Return user and password with which hosts pull, or None. Raises BadInputError when PULL_USERNAME or PULL_PASSWORD is missing."""
        if bool(self.pull_username) != bool(self.pull_password):
            raise BadInputError(
                "Half a login of the registry",
                what="one of PULL_USERNAME and PULL_PASSWORD is set, the other is not",
                where="environment variables of this step",
                next_step="set both as secrets of the environment, or neither",
            )
        if self.pull_username and self.pull_password:
            return self.pull_username, self.pull_password
        return (self.docker_username, self.docker_password) if self.docker_username and self.docker_password else None

    @property
    def hosts_may_push(self) -> bool:
        """Return whether hosts pull with the login that pushes images."""
        return not self.pull_username and self.registry_login is not None


@dataclass(frozen=True, kw_only=True)
class Kubeconfig:
    """How a cluster is reached."""

    kubeconfig_data: Secret | None = variable(
        "KUBECONFIG_DATA", "kubeconfig of a user with the rights that doctor lists, its whole text; required by target.kind kubernetes",
        example="apiVersion: v1…", required=False, secret=True,
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ProductionHosts(ImagePull, Kubeconfig):
    """How production is reached, whatever the kind of target."""


@dataclass(frozen=True, kw_only=True)
class DockerDaemon:
    """The Docker daemon of the runner."""

    docker_host: str = variable(
        "DOCKER_HOST", "address of the Docker daemon", example="unix:///var/run/docker.sock", default="unix:///var/run/docker.sock"
    )


@dataclass(frozen=True, kw_only=True)
class ProofPlace:
    """Where a backup is restored to prove it."""

    verify_url: Secret | None = variable(
        "BACKUP_VERIFY_DATABASE_URL", "server to which the backup is restored; unset: a private cluster on this machine",
        example="postgresql://user:password@scratch:5432/postgres", required=False, secret=True,
    )  # fmt: skip
    scratch_dir: Path | None = variable(
        "BACKUP_SCRATCH_DIR", "folder for the spool and the private cluster; unset: the machine's temporary files", example="/mnt/scratch",
        parse=Path, required=False,
    )  # fmt: skip


def _folders(text: str) -> tuple[Path, ...]:
    paths = tuple(map(Path, filter(None, text.split(":"))))
    if not all(path.is_absolute() for path in paths):
        raise ValueError("not all are absolute paths")
    return paths


@dataclass(frozen=True, kw_only=True)
class Isolated:
    """How code of the application runs beside a secret."""

    isolation: str = variable(
        "ISOLATION", "namespaces: application code runs as another user in namespaces of its own (needs root or sudo); none: as ours",
        example="namespaces", parse=one_of("namespaces", "none"), default="namespaces",
    )  # fmt: skip
    isolation_reason: str | None = variable(
        "ISOLATION_REASON", "why ISOLATION is none; lands in the record", example="a runner without sudo", required=False
    )
    isolation_shown: tuple[Path, ...] | None = variable(
        "ISOLATION_SHOWN", "folders in homes or temporary folders that the isolated command may read, such as a toolchain; with : between",
        example="/home/runner/.nvm", parse=_folders, required=False,
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Notifications:
    """Where notifications are sent."""

    slack_webhook: Secret | None = variable(
        "SLACK_WEBHOOK", "Slack incoming webhook; unset: nobody is notified", example="https://hooks.slack.com/services/…", required=False,
        secret=True,
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class GitHubDeployments:
    """What sets the state of GitHub's own deployment."""

    github_token: Secret | None = variable("GITHUB_TOKEN", "sets deployment statuses, if set", example="ghs_…", required=False, secret=True)


@dataclass(frozen=True, kw_only=True)
class ServiceSecrets:
    """The secrets of services, of a caller of the reusable workflow, which cannot know their names."""

    service_secrets: Secret | None = variable(
        "SERVICE_SECRETS", "secrets of services as lines NAME=value (dotenv); unset: each has a variable of its own",
        example="API_TOKEN=…", required=False, secret=True,
    )  # fmt: skip
