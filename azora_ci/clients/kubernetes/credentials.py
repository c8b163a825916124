"""The token that shows an API server who we are: given, in a file that somebody renews, or printed by a program.

Such a program is ``aws eks get-token``, ``gke-gcloud-auth-plugin`` or any other that speaks client.authentication.k8s.io (ExecCredential:
https://kubernetes.io/docs/reference/config-api/client-authentication.v1/). It inherits nothing but what ``INHERITED`` names, and gets an
OIDC token of GitHub's where the kubeconfig asks for that (``identity``).
"""

from __future__ import annotations

import copy
import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, suppress
from typing import NamedTuple

from azora_ci.clients.kubernetes import identity
from azora_ci.clients.kubernetes.kubeconfig import ClusterAccess, ExecPlugin
from azora_ci.core.clock import Clock, parse_rfc3339
from azora_ci.core.documents import MEBIBYTE, expected_shape, read_json
from azora_ci.core.environment import application_environment, process_environment
from azora_ci.core.errors import AzoraError, BadInputError, UnreachableError
from azora_ci.core.job_log import JobLog
from azora_ci.core.process import Processes, ending

PLUGIN_SECONDS = 30.0  # for a program that fetches a token; aws and gcloud take 1 to 3 s
OUTPUT_BYTES = MEBIBYTE
RENEWED_AFTER = 0.8  # of a token's life
SHORTEST_SECONDS = 10.0  # between two calls of the program for a token that is not refused
# How to reach a cloud.
NETWORK = (
    "TMPDIR", "HTTPS_PROXY", "https_proxy", "NO_PROXY", "no_proxy",
    "AWS_CA_BUNDLE", "AWS_DEFAULT_REGION", "AWS_REGION", "AWS_STS_REGIONAL_ENDPOINTS", "AZURE_AUTHORITY_HOST",
)  # fmt: skip
# Where to find credentials, never credentials themselves: what the programs of the clouds need for OIDC and for roles of machines and pods.
INHERITED = (
    *NETWORK, "HOME",
    "AWS_CONFIG_FILE", "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_PROFILE", "AWS_ROLE_ARN", "AWS_ROLE_SESSION_NAME", "AWS_WEB_IDENTITY_TOKEN_FILE",
    "CLOUDSDK_AUTH_CREDENTIAL_FILE_OVERRIDE", "CLOUDSDK_CONFIG", "CLOUDSDK_CORE_PROJECT", "GOOGLE_APPLICATION_CREDENTIALS",
    "AZURE_CLIENT_ID", "AZURE_FEDERATED_TOKEN_FILE", "AZURE_TENANT_ID",
)  # fmt: skip
# A secret key of AWS has 40 characters, tokens have more; what a program says of itself seldom has such a word.
TOKEN_LIKE = re.compile(r"[A-Za-z0-9+/_=.~-]{40,}")
SECRET_NAME = re.compile(r"secret|passw|token|key|credential", re.IGNORECASE)  # of an option or a variable
SHORTEST_HIDDEN = 8  # characters of a value that is hidden in what a program says; shorter ones are parts of words


class Bought(NamedTuple):
    """A token that a program printed; ``renew_at``, ``expires``: on the monotonic clock, None where the program did not say."""

    token: str
    renew_at: float | None
    expires: float | None


class ProgramLog(JobLog):
    """A job's log for one program, whose arguments it does not show: a kubeconfig is a secret, and so may they be."""

    def __init__(self, log: JobLog, plugin: ExecPlugin) -> None:
        self.actions, self._log, self._arguments = log.actions, log, frozenset(plugin.argv[1:])

    def masked(self, text: str) -> str:
        """Return ``text`` as the job's log masks it; nothing of an argument."""
        return "***" if text in self._arguments else self._log.masked(text)

    def write(self, line: str) -> None:
        """Add a line to the job's log."""
        self._log.write(line)


class Credentials:
    """The token of an access, which stays valid. Safe in several threads."""

    def __init__(self, access: ClusterAccess, processes: Processes, clock: Clock) -> None:
        self._access, self._processes, self._clock = access, processes, clock
        self._buying = threading.Lock()
        self._bought: Bought | None = None
        self._worked = False  # whether the program gave a token before
        if access.token:
            processes.log.add_secret(access.token)
        # Only what is named a secret is masked everywhere: the runner withholds outputs that hold a masked text, such as a region.
        for name, value in _values(access.plugin) if access.plugin else ():
            if SECRET_NAME.search(name) and len(value) >= SHORTEST_HIDDEN:
                processes.log.add_secret(value)

    def token(self) -> str | None:
        """Return the token of now; None where a certificate shows who we are.

        A token that was bought is renewed in the background before it expires: a slow program holds nobody up, least of all who renews the
        lock. Raises BadInputError or UnreachableError where there is none.
        """
        if self._access.token_file is not None:
            return self._read()
        if self._access.plugin is None:
            return self._access.token
        bought, now = self._bought, self._clock.monotonic()
        if bought is not None and (bought.expires is None or now < bought.expires):
            if bought.renew_at is not None and now > bought.renew_at and self._buying.acquire(blocking=False):
                threading.Thread(target=self._renew, args=(self._access.plugin, bought), name="token", daemon=True).start()
            return bought.token
        with self._buying:
            if self._bought is None or self._bought is bought:
                self._bought = self._buy(self._access.plugin)
            return self._bought.token

    def refused(self, token: str | None) -> bool:
        """Note that the API server refuses a token; return whether there may be another one by now."""
        if self._access.token_file is not None:
            return self._read() != token
        with self._buying:  # who renews it at this moment is waited for
            if self._bought is not None and self._bought.token == token:
                self._bought = None
        return self._access.plugin is not None

    def _read(self) -> str:
        assert self._access.token_file is not None  # noqa: S101 - callers asked
        try:
            token = self._access.token_file.read_text(encoding="utf-8").strip()
        except OSError as error:
            raise UnreachableError(
                "The token of the service account cannot be read",
                what=str(error),
                where=str(self._access.token_file),
                next_step="check that the file is mounted, and that this user may read it",
            ) from error
        self._processes.log.add_secret(token)
        return token

    def _renew(self, plugin: ExecPlugin, before: Bought) -> None:
        """Replace a token that is still valid; where that fails it is tried again soon. Gives back the lock, which its caller took."""
        try:
            self._bought = self._buy(plugin)
        except AzoraError as error:
            self._processes.log.say(f"the token is not renewed yet: {error.title.lower()}: {error.what}")
            self._bought = before._replace(renew_at=self._clock.monotonic() + SHORTEST_SECONDS)
        finally:
            self._buying.release()

    def _buy(self, plugin: ExecPlugin) -> Bought:
        audience = plugin.env.get(identity.AUDIENCE)
        try:
            with ExitStack() as stack:
                asked = identity.files(audience, process_environment(), self._processes.log.add_secret) if audience else None
                return self._run(plugin, stack.enter_context(asked) if asked else {})
        except OSError as error:  # a full disk may be empty again when somebody asks next
            raise UnreachableError(
                "The kubeconfig's program cannot be run",
                what=f"{type(error).__name__}: {error}",
                where="temporary files and processes of this machine",
                next_step="give the machine room, and re-run the job",
            ) from error

    def _run(self, plugin: ExecPlugin, files: Mapping[str, str]) -> Bought:
        info = {"apiVersion": plugin.api_version, "kind": "ExecCredential", "spec": {"interactive": False}}
        if plugin.cluster is not None:
            info["spec"] = {"interactive": False, "cluster": dict(plugin.cluster)}
        # Who is given an identity finds no other one.
        inherited = NETWORK if files else INHERITED
        own = application_environment({**files, **plugin.env, "KUBERNETES_EXEC_INFO": json.dumps(info)}, inherited)
        # Its standard output holds the token, and is not logged; what looks like one elsewhere is not either.
        processes = copy.copy(self._processes)  # it shares the list of children, which are ended with the job
        processes.log = ProgramLog(self._processes.log, plugin)
        child = processes.start(plugin.argv, only_env=own, stdout_pipe=True, stderr_filter=lambda line: self._without_secrets(plugin, line))
        assert child.stdout is not None  # noqa: S101 - a pipe was asked for
        late = threading.Event()

        def stop() -> None:
            late.set()
            child.end()

        timer = threading.Timer(PLUGIN_SECONDS, stop)
        timer.start()
        try:
            output = child.stdout.read(OUTPUT_BYTES)
            code = child.wait(PLUGIN_SECONDS)
        except TimeoutError:
            late.set()
            code = -9
        finally:
            timer.cancel()
            child.end()
        outcome = f"no end after {PLUGIN_SECONDS:g} s; it was stopped" if late.is_set() else ending(code)
        problem = self._problem(plugin, f"{outcome}; standard error: {child.stderr_text.strip()[-500:] or '(none)'}")
        if code != 0 or late.is_set():
            raise problem
        with expected_shape(lambda _: problem):
            status = read_json(output)["status"]
            token, expires = status.get("token"), status.get("expirationTimestamp")
        if not isinstance(token, str) or not token:
            raise self._problem(plugin, "it prints an ExecCredential without status.token; client certificates are not supported")
        self._processes.log.add_secret(token)
        self._worked = True
        return self._dated(token, expires)

    def _dated(self, token: str, expires: object) -> Bought:
        with suppress(ValueError, TypeError):
            life = (parse_rfc3339(str(expires)) - self._clock.now()).total_seconds()
            now = self._clock.monotonic()
            return Bought(token, now + max(SHORTEST_SECONDS, life * RENEWED_AFTER), now + max(SHORTEST_SECONDS, life))
        return Bought(token, None, None)  # it is used until it is refused

    def _without_secrets(self, plugin: ExecPlugin, line: str) -> str:
        parts = {part for _, value in _values(plugin) for part in value.splitlines() if len(part) >= SHORTEST_HIDDEN}
        for part in sorted(parts, key=len, reverse=True):
            line = line.replace(part, "***")
        return TOKEN_LIKE.sub("***", line)

    def _problem(self, plugin: ExecPlugin, what: str) -> AzoraError:
        """Return the error; what gave a token before may give one again, so that whoever repeats requests asks once more."""
        kind = UnreachableError if self._worked else BadInputError
        return kind(
            "The kubeconfig's program gives no token",
            what=what,
            where=f"users.exec.command of KUBECONFIG_DATA: {plugin.argv[0]}",
            next_step="the program gets no secret of the job: name in users.exec.env what it needs, and have it in the runner's PATH",
        )


def _values(plugin: ExecPlugin) -> Iterator[tuple[str, str]]:
    """Yield the values that a program is given, each with the name of its variable or option; "" where it has none."""
    yield from plugin.env.items()
    before = ""
    for argument in plugin.argv[1:]:
        name, equals, value = argument.partition("=")
        if equals:
            yield name, value
        elif not argument.startswith("-"):
            yield before, argument
        elif not argument.startswith("--"):
            yield argument[:2], argument[2:]  # a value right behind a letter
        before = argument if argument.startswith("-") and not equals else ""
