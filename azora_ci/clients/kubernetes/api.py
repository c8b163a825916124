"""Requests to an API server: JSON in and out, each bounded in time and size, with errors that say what to do.

Reads are repeated while the API server restarts. A change is repeated only where that is safe: JSON patches carry their conditions
(``test``), so that a second one cannot do a second thing.
"""

from __future__ import annotations

import base64
import http.client
import json
import os
import socket
import ssl
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import SplitResult, unquote, urlencode, urlsplit

from azora_ci.clients.kubernetes.credentials import Credentials
from azora_ci.clients.kubernetes.deadline import DeadlineSocket
from azora_ci.clients.kubernetes.kubeconfig import ClusterAccess
from azora_ci.clients.kubernetes.objects import Document
from azora_ci.core.clock import Clock
from azora_ci.core.documents import Limits, UnreadableError, expected_shape, read_json
from azora_ci.core.environment import proxy_for
from azora_ci.core.errors import AzoraError, NotTrueError, UnreachableError
from azora_ci.core.job_log import secrets_of_url
from azora_ci.core.process import Processes

if TYPE_CHECKING:
    import urllib3

MERGE, JSON_PATCH = "application/merge-patch+json", "application/json-patch+json"
LIMITS = Limits(size=64 * 1024 * 1024, values=4_000_000)  # a namespace with hundreds of Rollouts, with their managed fields
SECONDS = 10.0  # for one request; as much again where a new connection's handshake takes all of it
ATTEMPTS, WAIT, GROWTH = 8, 0.25, 1.6  # 16 s in all: an API server that restarts answers after 3 to 6 s
PROMPT = 2.0  # seconds; a slower answer says too little of when the server looked at its clock
TEMPORARY = frozenset({429, 500, 502, 503, 504})


class NotFoundError(NotTrueError):
    """The object, or its namespace, does not exist."""


class ConflictError(NotTrueError):
    """The object exists already, changed since it was read, or is not as a patch's ``test`` demands."""


class ForbiddenError(NotTrueError):
    """The API server knows us, and does not allow this."""


def bearer(token: str | None) -> dict[str, str]:
    """Return the header that shows a token; nothing where there is none."""
    return {"Authorization": f"Bearer {token}"} if token else {}


class Api:
    """One API server. Safe in several threads."""

    def __init__(self, access: ClusterAccess, processes: Processes, clock: Clock) -> None:
        self._access, self._clock = access, clock
        self.credentials = Credentials(access, processes, clock)
        self._proxy = access.proxy or proxy_for(access.server)
        for secret in secrets_of_url(self._proxy) if self._proxy and urlsplit(self._proxy).password else ():
            processes.log.add_secret(secret)
        self._pool: urllib3.PoolManager | None = None
        self._tls: ssl.SSLContext | None = None
        self._skew = timedelta(0)  # of this machine's clock behind the API server's

    # --- requests ------------------------------------------------------------------------------------------------------

    def get(self, path: str, **params: str) -> Document:
        """Return an object, or a list of objects. Raises NotFoundError, ForbiddenError, UnreachableError."""
        return self._send("GET", path + (f"?{urlencode(params)}" if params else ""), repeat=True)

    def create(self, path: str, document: Document) -> Document:
        """Create an object. Raises ConflictError where there is one of its name."""
        return self._send("POST", path, document)

    def replace(self, path: str, document: Document) -> Document:
        """Replace an object that is still of the document's ``resourceVersion``. Raises ConflictError otherwise."""
        return self._send("PUT", path, document, repeat=True)

    def patch(self, path: str, operations: list[Document]) -> Document:
        """Apply a JSON patch whose ``test`` operations hold. Raises ConflictError where one does not."""
        return self._send("PATCH", path, operations, JSON_PATCH, repeat=True)

    def apply(self, path: str, document: Document) -> Document:
        """Create an object or have the one of its name contain what the document says. ``path``: of its kind."""
        try:
            return self.create(path, document)
        except ConflictError:
            return self._send("PATCH", f"{path}/{document['metadata']['name']}", document, MERGE, repeat=True)

    def now(self) -> datetime:
        """Return the time by the API server's clock, to a second: runners' clocks may be wrong, and one decides for all."""
        return self._clock.now() + self._skew

    # --- for probes through the API server --------------------------------------------------------------------------------

    @property
    def host(self) -> str:
        """Return ``host:port`` of the API server."""
        return urlsplit(self._access.server).netloc

    @property
    def base_path(self) -> str:
        """Return what every path begins with, of an API server behind a gateway; mostly empty."""
        return urlsplit(self._access.server).path

    def dial(self, _host: str, _port: int, timeout: float) -> ssl.SSLSocket:
        """Return a TLS connection to the API server; see ``probes.Dial``."""
        server = urlsplit(self._access.server)
        host, port = str(server.hostname), server.port or 443
        plain = self._through_proxy(host, port, timeout) if self._proxy else socket.create_connection((host, port), timeout)
        try:
            return self._tls_context().wrap_socket(plain, server_hostname=self._access.server_name or host)
        except BaseException:
            plain.close()
            raise

    def headers(self) -> dict[str, str]:
        """Return the headers that say who we are."""
        return bearer(self.credentials.token())

    # --- inside --------------------------------------------------------------------------------------------------------

    def _send(self, method: str, path: str, body: Any = None, content_type: str = "application/json", *, repeat: bool = False) -> Document:
        data = None if body is None else _encoded(body)
        for attempt in self._clock.attempts(ATTEMPTS if repeat else 1, WAIT, growth=GROWTH):
            try:
                token = self.credentials.token()
                status, answer = self._once(method, path, data, content_type, token)
                if status == 401 and self.credentials.refused(token):
                    status, answer = self._once(method, path, data, content_type, self.credentials.token())
            except UnreachableError:
                if attempt.last:
                    raise
                continue
            if status in TEMPORARY and not attempt.last:
                continue
            return self.document(method, path, status, answer)
        raise AssertionError("the last attempt returns or raises")

    def _once(self, method: str, path: str, data: bytes | None, content_type: str, token: str | None) -> tuple[int, bytes]:
        import urllib3

        headers = {"Accept": "application/json", "Content-Type": content_type, "User-Agent": "azora-ci", **bearer(token)}
        sent, begun = self._clock.now(), self._clock.monotonic()
        try:
            response = self._connections().request(
                method, self._access.server + path, body=data, headers=headers, timeout=urllib3.Timeout(total=SECONDS), retries=False,
                redirect=False, preload_content=False,
            )  # fmt: skip
            took = self._clock.monotonic() - begun
            answer = response.read(LIMITS.size + 1)
            response.release_conn()
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise UnreachableError(
                "The API server does not answer",
                what=f"{method} {urlsplit(path).path}: {type(error).__name__}: {str(error)[:300]}",
                where=self._access.server,
                next_step="check the address, the network and the certificate of the kubeconfig in KUBECONFIG_DATA",
            ) from error
        self._note_time(response.headers.get("Date"), sent, took)
        return response.status, answer

    def _note_time(self, date: str | None, sent: datetime, took: float) -> None:
        """Note how far the clocks are apart, where that is more than the second to which the server tells the time.

        ``took``: seconds until the answer's head arrived; the server looked at its clock in the midst of them.
        """
        if date is None or took > PROMPT:
            return
        try:
            server = parsedate_to_datetime(date).astimezone(UTC)
        except ValueError:
            return
        skew = server - (sent + timedelta(seconds=took / 2))
        self._skew = skew if abs(skew) > timedelta(seconds=2) else timedelta(0)

    def document(self, method: str, path: str, status: int, answer: bytes) -> Document:
        """Return the document of an answer to a request. Raises the error that its status stands for."""
        place = f"{method} {self._access.server}{urlsplit(path).path}"
        try:
            with expected_shape(lambda problem: self._no_answer(place, status, problem)):
                document = read_json(answer, LIMITS)
                message = str(document.get("message", ""))[:500]
        except UnreadableError as error:
            raise self._no_answer(place, status, str(error)) from error
        except AzoraError:
            if status < 400:
                raise
            message, document = answer[:200].decode("utf-8", "replace"), {}
        if status < 400:
            return dict(document)
        facts = {"what": f"HTTP {status}: {message or '(no message)'}", "where": place}
        if status == 404:
            raise NotFoundError(
                "Not in the cluster", **facts, next_step="create it, or correct target.kubernetes; doctor says what is missing"
            )
        if status in {409, 422}:
            raise ConflictError("The cluster changed in the meantime", **facts, next_step="find out who changed it, and re-run the job")
        if status == 403:
            raise ForbiddenError(
                "Not allowed in the cluster", **facts, next_step="python -m azora_ci doctor names every right that is missing"
            )
        if status == 401:
            raise UnreachableError(
                "The API server refuses our credentials",
                **facts,
                next_step="they may have expired: set KUBECONFIG_DATA anew, and re-run the job",
            )
        raise self._no_answer(place, status, message)

    @staticmethod
    def _no_answer(place: str, status: int, problem: str) -> UnreachableError:
        return UnreachableError(
            "The API server gives no usable answer",
            what=f"HTTP {status}: {problem}",
            where=place,
            next_step="check that KUBECONFIG_DATA names an API server, and its state (kubectl get --raw /readyz)",
        )

    def _through_proxy(self, host: str, port: int, timeout: float) -> socket.socket:
        proxy = urlsplit(str(self._proxy))
        if proxy.scheme != "http":
            raise ConnectionError(f"connections through a proxy of the scheme {proxy.scheme} are not supported, only http")
        connection = http.client.HTTPConnection(str(proxy.hostname), proxy.port or 80, timeout=timeout)
        connection.set_tunnel(host, port, _login(proxy))
        connection.connect()
        opened: socket.socket = connection.sock
        return opened

    def _connections(self) -> urllib3.PoolManager:
        if self._pool is None:
            import urllib3

            options: dict[str, Any] = {"ssl_context": self._tls_context(), "maxsize": 16, "server_hostname": self._access.server_name}
            if self._proxy:
                self._pool = urllib3.ProxyManager(self._proxy, proxy_headers=_login(urlsplit(self._proxy)), **options)
            else:
                self._pool = urllib3.PoolManager(**options)
        return self._pool

    def _tls_context(self) -> ssl.SSLContext:
        if self._tls is None:
            context = ssl.create_default_context(cadata=self._access.ca)
            context.sslsocket_class = DeadlineSocket
            if self._access.certificate:
                # Python reads keys from files only; this one is in memory, and nobody else can open it.
                descriptor = os.memfd_create("certificate")
                try:
                    os.write(descriptor, self._access.certificate.encode())
                    context.load_cert_chain(f"/proc/self/fd/{descriptor}")
                finally:
                    os.close(descriptor)
            self._tls = context
        return self._tls


def _login(proxy: SplitResult) -> dict[str, str]:
    """Return the header that a proxy wants; nothing where its address has no login."""
    if not proxy.username:
        return {}
    login = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}"
    return {"Proxy-Authorization": f"Basic {base64.b64encode(login.encode()).decode()}"}


def _encoded(body: Any) -> bytes:
    """Return a document in Go's spelling of JSON: a patch's ``test`` compares texts as they are spelled, and "&" is not "\\u0026" there."""
    text = json.dumps(body, ensure_ascii=False)
    for character in "&<>\u2028\u2029":  # outside of strings JSON has none of them
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text.encode(errors="replace")
