"""The journal: JSON lines in a ConfigMap, which only the owner of the lock can extend."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from azora_ci.clients.kubernetes.api import Api, ConflictError, NotFoundError
from azora_ci.clients.kubernetes.objects import Document, annotation, member
from azora_ci.core.clock import Clock
from azora_ci.core.documents import UnreadableError, expected_shape, read_json
from azora_ci.core.errors import AzoraError, BadInputError, NotTrueError
from azora_ci.targets.base import FencedError
from azora_ci.targets.journal import DEPLOYING, PROMOTED, History, lines_of, replay
from azora_ci.targets.kubernetes import rollouts
from azora_ci.targets.kubernetes.cluster import Names
from azora_ci.targets.kubernetes.lock import TRIES, ClusterLock, stamp_each
from azora_ci.targets.kubernetes.rollouts import FENCE

KEY = "journal"
LIMIT = 700_000  # bytes, of the 1 MiB that a ConfigMap may have
EMPTY: Document = {"op": "add", "path": "/data", "value": {KEY: ""}}
KEPT = 400_000  # bytes that are left of a journal that outgrew the limit
STAGE = 20_000  # characters of a stage's evidence: three stages of each of three releases are far below the limit
TEXT = 2_000  # characters of a text in an entry, such as a reason


class ClusterJournal:
    """The journal of a namespace.

    A promotion is noted in the lease first, by the change with which the watch over a dead runner ends: a runner that dies between that
    and the journal's own entry leaves a promoted release, not one with all traffic that nobody takes back.
    """

    def __init__(self, api: Api, names: Names, clock: Clock, lock: ClusterLock) -> None:
        self._api, self._names, self._clock, self._lock = api, names, clock, lock
        self._path = f"{names.core('configmaps')}/{names.journal}"

    def history(self) -> History:
        """Return the history; that of an absent ConfigMap is empty."""
        text = self._text(self._read())
        history = self._replay(text)
        if (entry := self._only_in_lease(text, history)) is not None:
            history.apply(entry)
        return history

    def _only_in_lease(self, text: str, history: History) -> Document | None:
        """Return the entry of a promotion that the lease has and the journal has not."""
        release = history.unfinished
        if release is None or release.outcome != DEPLOYING or release.going_back:
            return None
        with expected_shape(self._unreadable):
            entry: Document = read_json(self._lock.promotion() or "{}")
            return entry if entry.get("deployment_id") == release.id and entry["begun"] == _begun(text, release.id) else None

    def promote(self, at: str, deployment_id: str) -> None:
        """End the watch over a dead runner and note a promotion, in this order. Raises FencedError when the lock was taken over."""
        text = self._text(self._read())
        entry = {"at": at, "event": "promote", "deployment_id": deployment_id, "begun": _begun(text, deployment_id)}
        self._lock.stop_watch(json.dumps(entry))
        if self._replay(text).releases[deployment_id].outcome != PROMOTED:
            self.add(at, "promote", deployment_id)

    def _read(self) -> Document | None:
        try:
            return self._api.get(self._path)
        except NotFoundError:
            return None

    def _text(self, document: Document | None) -> str:
        return member(document, "data", KEY) or ""

    def _replay(self, text: str) -> History:
        with expected_shape(self._unreadable):
            return replay(lines_of(text))

    def stamp(self, token: str, confirm: Callable[[], None]) -> None:
        """Write the lock's token on the journal: from now on nobody else can extend it. See ``lock.stamp_each``."""
        document = self._read()
        with suppress(ConflictError):  # another run makes it in this moment
            if document is None:
                self._api.create(self._names.core("configmaps"), {"metadata": {"name": self._names.journal}, "data": {KEY: ""}})
            elif member(document, "data", KEY) is None:
                self._api.patch(self._path, [rollouts.unchanged(document), EMPTY])
        stamp_each(self._api, self._clock, self._path, token, confirm)

    def add(self, at: str, event: str, deployment_id: str, **facts: Any) -> None:
        """Append an entry. Raises FencedError when the lock was taken over."""
        cut = {name: _cut(value) for name, value in facts.items()}
        line = json.dumps({"at": at, "event": event, "deployment_id": deployment_id, **cut}, ensure_ascii=False)
        for attempt in self._clock.attempts(TRIES, 0.1):
            document = self._api.get(self._path)
            text = self._text(document)
            if line in lines_of(text)[-3:]:
                return  # an answer was lost on its way, and the entry is there
            # The lease keeps one promotion, which that of the release that begins here will replace.
            if event == "begin" and (promotion := self._only_in_lease(text, self._replay(text))) is not None:
                text += f"{json.dumps(promotion)}\n"
            operations = [
                {"op": "test", "path": annotation(FENCE), "value": self._lock.token},
                rollouts.unchanged(document),
                {"op": "replace", "path": f"/data/{KEY}", "value": self._shortened(f"{text}{line}\n")},
            ]
            try:
                self._api.patch(self._path, operations)
            except ConflictError:
                self._lock.confirm()
                if attempt.last and not self._text(self._read()).endswith(f"{line}\n"):
                    raise
            else:
                return

    def go_back(self, at: str, deployment_id: str, reason: str) -> list[str]:
        """Note that traffic is to go back, which it does all the same where that fails: return a note then. Raises FencedError."""
        try:
            self.add(at, "going-back", deployment_id, reason=reason)
        except FencedError:
            raise
        except AzoraError as error:
            return [f"traffic goes back although the journal could not be written: {error.title}: {error.what}"]
        return []

    def end(self, at: str, deployment_id: str, reason: str) -> None:
        """Note that traffic went back. Raises FencedError, and NotTrueError which says that it did."""
        try:
            self.add(at, "abort", deployment_id, reason=reason)
        except FencedError:
            raise
        except AzoraError as error:
            raise NotTrueError(
                "Traffic went back, but the journal could not be written",
                what=f"{error.title}: {error.what}",
                where=self._path,
                next_step="see to its size, quotas and rights, and re-run the job: it goes back once more, then goes on",
            ) from error

    def _shortened(self, text: str) -> str:
        """Return a journal without its oldest releases where it outgrew the limit; what serves, what was before and the newest stay.

        These stay without the evidence of their stages where they alone are more than is left.
        """
        if len(text.encode()) <= LIMIT:
            return text
        history = self._replay(text)
        before = history.before(history.serving) if history.serving else None
        unfinished = history.unfinished
        needed = {history.serving, *(each.id for each in (before, unfinished) if each), next(reversed(history.releases), None)}
        lines = [(line, _member_of(line, "deployment_id")) for line in lines_of(text)]
        for release in history.releases:
            if _size(lines) <= KEPT:
                break
            if release not in needed:
                lines = [(line, name) for line, name in lines if name != release]
        if _size(lines) > KEPT:
            lines = [(line, name) for line, name in lines if _member_of(line, "event") != "stage"]
        return "".join(f"{line}\n" for line, _ in lines)

    def _unreadable(self, problem: str) -> BadInputError:
        return BadInputError(
            "The journal cannot be read",
            what=f"an entry has another shape: {problem}",
            where=self._path,
            next_step="find out who wrote it; without its journal nothing is known of the releases of this namespace",
        )


def _begun(text: str, deployment_id: str) -> int:
    """Return how often a release was begun: a lease's promotion is of one of these times."""
    entries = [read_json(line) for line in lines_of(text)]
    return sum(entry["event"] == "begin" and entry["deployment_id"] == deployment_id for entry in entries)


def _size(lines: Sequence[tuple[str, str]]) -> int:
    return sum(len(line.encode()) + 1 for line, _ in lines)


def brief(evidence: Mapping[str, object]) -> dict[str, object]:
    """Return a stage's evidence without its ticks, which are in the job's fragment; of one that is still too long, its plain values."""
    stage = {**evidence, **({"decisions": []} if "decisions" in evidence else {})}
    if len(json.dumps(stage)) <= STAGE:
        return stage
    return {name: type(value)() if isinstance(value, dict | list) else _cut(value) for name, value in stage.items()}


def _cut(value: Any) -> Any:
    return f"{value[:TEXT]}…" if isinstance(value, str) and len(value) > TEXT else value


def _member_of(line: str, name: str) -> str:
    """Return a member of a journal line, "" where the line is cut."""
    try:
        return str(read_json(line).get(name, ""))
    except UnreadableError:
        return ""
