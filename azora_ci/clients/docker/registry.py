"""A registry's own protocol, as far as it tells whether a login may push: an upload is begun and cancelled, so nothing is stored.

Protocol: OCI Distribution Specification 1.1, "Pushing a blob in chunks" (``POST /v2/<name>/blobs/uploads/``, answered by 202 and the
session's ``Location``) and "DELETE" of that session. A registry says itself how to log in (``WWW-Authenticate``): Basic, or Bearer with
the address of a token service ("Distribution Registry Token Authentication Specification").
"""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin, urlsplit

from azora_ci import __version__
from azora_ci.clients import http
from azora_ci.core.documents import UnreadableError, read_json
from azora_ci.core.errors import AzoraError, BadInputError, UnreachableError
from azora_ci.core.hosts import is_loopback
from azora_ci.core.variables import Secret

if TYPE_CHECKING:
    import requests

TIMEOUTS = (10.0, 30.0)  # seconds to connect, to read
LONGEST = 300  # characters of a registry's own words


class Registry:
    """The registry at ``url``, and a login for it (user, password) or None. ``names``: the variables that hold the login, for errors."""

    def __init__(self, url: str, login: tuple[Secret, Secret] | None, names: str) -> None:
        self._url, self._login, self._names = url.rstrip("/"), login, names
        self._session: requests.Session | None = None

    def try_login(self) -> str:
        """Return what was observed when the login was shown to the registry. Raises BadInputError, UnreachableError."""
        url = f"{self._url}/v2/"
        answer = self._ask("GET", url, "")
        if answer.status_code != 200:
            raise self._refusal(answer, f"GET {url}")
        return f"the registry accepts {self._names}" if self._login else "the registry asks for no login"

    def try_push(self, name: str) -> str:
        """Begin an upload to a repository and cancel it; return what was observed. Raises BadInputError, UnreachableError."""
        url = f"{self._url}/v2/{name}/blobs/uploads/"
        answer = self._ask("POST", url, f"repository:{name}:pull,push")
        if answer.status_code != 202:
            raise self._refusal(answer, f"POST {url}")
        who = self._names if self._login else "everybody"
        return f"{who} may push: an upload was begun and {self._cancel(name, url, answer)}"

    def _cancel(self, name: str, url: str, begun: requests.Response) -> str:
        """End an upload and say so. Registries may want the right to delete for it, which who pushes need not have."""
        session = urljoin(url, begun.headers.get("Location", ""))
        if urlsplit(session)[:2] != urlsplit(url)[:2]:  # the login is for this registry alone
            return "left to expire, for it is on another server"
        try:
            status = self._ask("DELETE", session, f"repository:{name}:delete").status_code
        except AzoraError as error:
            return f"left to expire: {error.title}"
        return "cancelled" if status == 204 else f"left to expire: the registry answers HTTP {status} to cancelling it"

    def _ask(self, method: str, url: str, scope: str) -> requests.Response:
        """Return the answer to a request, with the login that the registry asks for; ``scope`` is what a token is to be for."""
        answer = self._send(method, url, {})
        if answer.status_code != 401:
            return answer
        authorization = self._authorization(answer.headers.get("WWW-Authenticate", ""), scope)
        return self._send(method, url, {"Authorization": authorization}) if authorization else answer

    def _authorization(self, challenge: str, scope: str) -> str | None:
        from requests.utils import parse_dict_header

        kind, _, rest = challenge.strip().partition(" ")
        if kind.lower() == "basic":
            return self._basic()
        if kind.lower() != "bearer":
            return None
        fields: dict[str, str | None] = parse_dict_header(rest)  # type: ignore[no-untyped-call]  # has no types
        realm = fields.get("realm") or ""
        if not realm.startswith("https://") and not (is_loopback(realm) and is_loopback(self._url)):
            raise self._strange(f"it sends logins to {realm[:LONGEST] or '(nowhere)'}, which is not https")
        query = {"service": fields.get("service"), "scope": scope or None}
        basic = self._basic()
        answer = self._send("GET", realm, {"Authorization": basic} if basic else {}, {name: text for name, text in query.items() if text})
        if answer.status_code != 200:
            raise self._refusal(answer, f"GET {realm}")
        document = self._document(answer)
        token = document.get("token") or document.get("access_token")
        if not isinstance(token, str) or not token.isprintable():
            raise self._strange(f"{realm} gives no token")
        return f"Bearer {token}"

    def _basic(self) -> str | None:
        if self._login is None:
            return None
        user, password = self._login
        return "Basic " + base64.b64encode(f"{user.reveal()}:{password.reveal()}".encode()).decode()

    def _send(self, method: str, url: str, headers: dict[str, str], query: dict[str, str] | None = None) -> requests.Response:
        import requests

        if self._session is None:
            self._session = requests.Session()
            self._session.auth = lambda request: request  # nobody's ~/.netrc
            self._session.hooks["response"].append(http.take_unless_streamed)
            self._session.headers["User-Agent"] = f"azora-ci/{__version__}"
        options: dict[str, Any] = {"params": query, "timeout": TIMEOUTS, "allow_redirects": False}
        try:
            return self._session.request(method, url, headers=headers, **options)
        except (requests.RequestException, UnreadableError) as error:
            raise UnreachableError(
                "The registry does not answer",
                what=f"{method} {url}: {type(error).__name__}: {error}"[:LONGEST],
                where=self._url,
                next_step="check registry.repository, and that the runner reaches the registry",
            ) from error

    def _refusal(self, answer: requests.Response, request: str) -> AzoraError:
        status = answer.status_code
        what = f"{request}: HTTP {status}{self._words(answer)}; login: {self._names if self._login else 'none is set'}"
        if status in {401, 403}:
            step = f"check {self._names}, and that this user may push there" if self._login else f"set {self._names}"
            return BadInputError("The registry refuses access", what=what, where=self._url, next_step=step)
        if status in {404, 405}:
            step = "check registry.repository; some registries (AWS ECR) want each service's repository made before the first push"
            return BadInputError("The registry takes no images there", what=what, where=self._url, next_step=step)
        return self._strange(what)

    def _words(self, answer: requests.Response) -> str:
        """Return what a registry says of itself, from ``{"errors": [{"code", "message"}]}``."""
        errors = self._document(answer).get("errors")
        first = errors[0] if isinstance(errors, list) and errors and isinstance(errors[0], dict) else {}
        words = " ".join(str(first.get(key) or "") for key in ("code", "message"))
        return f", {' '.join(words.split())[:LONGEST]}" if words.strip() else ""

    def _document(self, answer: requests.Response) -> dict[str, Any]:
        try:
            document = read_json(answer.content)
        except UnreadableError:
            return {}
        return document if isinstance(document, dict) else {}

    def _strange(self, what: str) -> UnreachableError:
        step = "check registry.repository, and any proxy before the registry; then re-run the job"
        return UnreachableError("The registry does not do what was asked", what=what, where=self._url, next_step=step)
