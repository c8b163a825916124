"""A small client of a Kubernetes API server: objects as the API has them, server-side apply, and watches.

Protocol: https://kubernetes.io/docs/reference/using-api/api-concepts/
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import requests
import yaml

from azora_ci.core.documents import MEBIBYTE, Limits, read_json
from azora_ci.core.errors import NotTrueError, UnreachableError

FIELD_MANAGER = "azora-rehearsal"
MERGE, JSON_PATCH, APPLY = "application/merge-patch+json", "application/json-patch+json", "application/apply-patch+yaml"
LIMITS = Limits(size=64 * MEBIBYTE, values=5_000_000, unique_keys=False)  # the API server is ours
SECONDS = 15.0  # for one answer

Document = dict[str, Any]


class RefusedError(NotTrueError):
    """The API server answered with a status that is no success."""

    def __init__(self, method: str, path: str, status: int, body: str) -> None:
        super().__init__(
            "The API server refuses a request",
            what=f"{status} {body[:500]}",
            where=f"{method} {path}",
            next_step="read its message",
        )
        self.status = status


class Api:
    """Requests to one API server, as the user of a kubeconfig with a token. Usable from several threads."""

    def __init__(self, kubeconfig: Path) -> None:
        document = read_json(kubeconfig.read_bytes())
        self.server: str = document["clusters"][0]["cluster"]["server"]
        self.certificate: str = document["clusters"][0]["cluster"]["certificate-authority"]
        self._token: str = document["users"][0]["user"]["token"]
        self._sessions = threading.local()
        self._resources: dict[tuple[str, str], tuple[str, bool]] = {}

    def _session(self) -> requests.Session:
        if not hasattr(self._sessions, "session"):
            session = requests.Session()
            session.trust_env = False  # no proxy, and no other certificates
            session.verify = self.certificate
            session.headers["Authorization"] = f"Bearer {self._token}"
            self._sessions.session = session
        session = self._sessions.session
        assert isinstance(session, requests.Session)  # noqa: S101 - a thread's attributes have no types
        return session

    def request(self, method: str, path: str, body: Any = None, kind: str = "application/json", **query: str) -> Any:
        """Send a request and return the answer's document. Raises RefusedError, UnreachableError."""
        try:
            response = self._session().request(
                method, self.server + path, json=body, headers={"Content-Type": kind}, params=query, timeout=SECONDS
            )
        except requests.RequestException as error:
            raise UnreachableError(
                "The API server does not answer", what=str(error)[:300], where=f"{method} {path}", next_step="does it run?"
            ) from error
        if response.status_code >= 300:
            raise RefusedError(method, path, response.status_code, response.text)
        return read_json(response.content, LIMITS) if "json" in response.headers.get("Content-Type", "") else response.text

    def get(self, path: str, **query: str) -> Any:
        """Return an object, a list of them, or a text."""
        return self.request("GET", path, **query)

    def create(self, path: str, document: Document) -> Any:
        """Create an object in a collection."""
        return self.request("POST", path, document)

    def patch(self, path: str, change: Any, kind: str = MERGE) -> Any:
        """Change an object by a merge patch, or another kind of patch."""
        return self.request("PATCH", path, change, kind)

    def delete(self, path: str, **options: Any) -> Any:
        """Delete an object; ``options``: of the API's DeleteOptions."""
        return self.request("DELETE", path, {"apiVersion": "v1", "kind": "DeleteOptions", **options})

    def apply(self, manifests: str | Iterable[Document], namespace: str = "default") -> None:
        """Have the objects of YAML documents exist as these say (server-side apply)."""
        documents = yaml.safe_load_all(manifests) if isinstance(manifests, str) else manifests
        for document in documents:
            if document:
                name = document["metadata"]["name"]
                collection = self.collection(document, namespace)
                self.request("PATCH", f"{collection}/{name}", document, APPLY, fieldManager=FIELD_MANAGER, force="true")

    def collection(self, document: Mapping[str, Any], namespace: str) -> str:
        """Return the path of an object's collection."""
        version, kind = document["apiVersion"], document["kind"]
        root = f"/apis/{version}" if "/" in version else f"/api/{version}"
        if (version, kind) not in self._resources:
            for resource in self.get(root)["resources"]:
                if "/" not in resource["name"]:
                    self._resources[version, resource["kind"]] = (resource["name"], resource["namespaced"])
        plural, namespaced = self._resources[version, kind]
        return f"{root}/namespaces/{document['metadata'].get('namespace', namespace)}/{plural}" if namespaced else f"{root}/{plural}"

    def watch(self, path: str, version: str) -> Iterator[tuple[str, Document]]:
        """Yield the type of each event and its object from a resourceVersion on, until the server ends it. Raises requests' errors."""
        query = {"watch": "true", "resourceVersion": version, "allowWatchBookmarks": "true"}
        session, address = self._session(), self.server + path
        with session.get(address, params=query, stream=True, timeout=(SECONDS, 300)) as response:
            response.raise_for_status()
            for line in response.iter_lines(chunk_size=None):
                if line:
                    event = read_json(line, LIMITS)
                    yield event["type"], event["object"]
