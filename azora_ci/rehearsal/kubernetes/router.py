"""The process that stands for an ingress controller: it watches the API server and writes Envoy's files.

``python -m azora_ci.rehearsal.kubernetes.router KUBECONFIG FOLDER LISTEN ADMIN_SOCKET``. While the API server is away, the edge goes on
as it was.
"""

from __future__ import annotations

import json
import shutil
import sys
import threading
from pathlib import Path

import requests

from azora_ci.core.clock import Clock
from azora_ci.core.errors import AzoraError
from azora_ci.rehearsal.kubernetes.api import Api
from azora_ci.rehearsal.kubernetes.routes import Document, Seen, bootstrap, files

PATHS = {"ingresses": "/apis/networking.k8s.io/v1/ingresses", "services": "/api/v1/services", "pods": "/api/v1/pods"}
AGAIN_SECONDS = 0.2
GATHER_SECONDS = 0.01  # in which further events are gathered into one change
KEPT = 5  # generations


class Router:
    """Follows three kinds of objects, each in a thread, and writes what they say."""

    def __init__(self, api: Api, folder: Path, clock: Clock) -> None:
        self._api = api
        self._folder = folder
        self._clock = clock
        self._seen = Seen()
        self._lock = threading.Lock()
        self._changed = threading.Event()
        self._generation = max((int(path.name) for path in folder.glob("[0-9]*")), default=0)  # of an earlier life of this process
        self._written: dict[str, Document] = {}

    def serve(self) -> None:
        """Follow the API server until the process ends."""
        for kind in PATHS:
            threading.Thread(target=self._follow, args=(kind,), daemon=True).start()
        while True:
            self._clock.wait(self._changed, 60)
            self._clock.sleep(GATHER_SECONDS)
            self._changed.clear()
            self.write()

    def _follow(self, kind: str) -> None:
        while True:
            try:
                listed = self._api.get(PATHS[kind])
                self._replace(kind, {item["metadata"]["uid"]: item for item in listed["items"]})
                for event, item in self._api.watch(PATHS[kind], listed["metadata"]["resourceVersion"]):
                    if event == "ERROR":  # too old: list again
                        break
                    if event != "BOOKMARK":
                        self._change(kind, item, gone=event == "DELETED")
            except (AzoraError, requests.RequestException) as error:
                print(f"{kind}: {error}", file=sys.stderr, flush=True)
            self._clock.sleep(AGAIN_SECONDS)

    def _replace(self, kind: str, objects: dict[str, Document]) -> None:
        with self._lock:
            setattr(self._seen, kind, objects)
        self._changed.set()

    def _change(self, kind: str, item: Document, *, gone: bool) -> None:
        with self._lock:
            objects: dict[str, Document] = getattr(self._seen, kind)
            if gone:
                objects.pop(item["metadata"]["uid"], None)
            else:
                objects[item["metadata"]["uid"]] = item
        self._changed.set()

    def write(self) -> None:
        """Write a new generation when anything differs, and put it in force by one rename."""
        with self._lock:
            documents = files(self._seen, self._folder, "")
            if documents == self._written:
                return
            self._written = documents
            self._generation += 1
            generation = f"{self._generation:06}"
            documents = files(self._seen, self._folder, generation)
        folder = self._folder / generation
        folder.mkdir()
        for name, document in documents.items():
            (folder / name).write_text(json.dumps(document), encoding="utf-8")
        link = self._folder / "next"
        link.unlink(missing_ok=True)
        link.symlink_to(generation)
        link.rename(self._folder / "current")
        old = self._folder / f"{self._generation - KEPT:06}"
        shutil.rmtree(old, ignore_errors=True)


def main(arguments: list[str]) -> None:
    """Write what Envoy starts with when it is not there, then follow."""
    kubeconfig, folder, listen, admin = (Path(arguments[0]), Path(arguments[1]), arguments[2], Path(arguments[3]))
    router = Router(Api(kubeconfig), folder, Clock())
    if not (folder / "bootstrap.json").exists():
        router.write()
        part = folder / "bootstrap.part"
        part.write_text(json.dumps(bootstrap(folder, listen, admin)), encoding="utf-8")
        part.rename(folder / "bootstrap.json")
    router.serve()


if __name__ == "__main__":
    main(sys.argv[1:])
