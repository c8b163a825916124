"""A host's guard as the runner sees it: lock, journal and routes, each changed only with the fencing token.

The classes have the methods of ``lock.Lock``, ``journal.Journal`` and ``edge.Edge``, so that a ``node.Node`` works with either.
"""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import threading
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

from azora_ci.core.clock import Clock, parse_rfc3339, rfc3339
from azora_ci.core.documents import Limits, expected_shape, read_json
from azora_ci.core.errors import AzoraError, BadInputError, NotTrueError, UnreachableError
from azora_ci.core.variables import Secret
from azora_ci.health.probes import Dial, DialledConnection
from azora_ci.targets.base import FencedError, LockHolder, Owner
from azora_ci.targets.envoy import config
from azora_ci.targets.envoy.edge import Edge
from azora_ci.targets.envoy.state import EdgeState
from azora_ci.targets.journal import History

START_SECONDS = 30.0  # limit for the first answer of a guard that was just started
RENEWALS_PER_LEASE = 5
LONGEST_SILENCE = 2 / 3  # of a lease: the run then takes all hosts back together, before this guard takes its own back
ROLLBACK = ", rollback: "  # in the name of a lock's owner, before the reason
ANSWER_SECONDS = 10.0  # limit for one answer of the guard, which writes and syncs before it answers
# Events that are kept on a full disk, too, in the space reserved for that.
RESERVE_EVENTS = {"abort", "stopped", "removed", "rest", "resume", "job"}
EDGE_FOLDER = Path("/edge")  # the volume of the routes, as edge and guard see it
LIMITS = Limits(values=1_000_000)  # of one answer: the journal grows with every deployment
CLOCK_LIMIT = timedelta(minutes=5)  # between the clocks of host and runner: the times in journal and record must agree


class GuardClient:
    """Client of one guard, to which ``dial`` connects, whatever the address; ``recover`` opens a lost connection again.

    ``token`` is the fencing token while the lock is held, ``number`` that of the lock, which names what is changed under it.
    """

    def __init__(self, host: str, dial: Dial, clock: Clock, recover: Callable[[], None]) -> None:
        self.host = host
        self.token: Secret | int | None = None  # a number at a guard that an earlier version installed
        self.number = 0
        self.lease_seconds = 45.0
        self._dial, self._clock, self.recover = dial, clock, recover

    def await_answer(self) -> Any:
        """Wait for a guard that was just started and return its status. Raises UnreachableError."""
        deadline = self._clock.monotonic() + START_SECONDS
        while True:
            try:
                return self._ask("/status")
            except UnreachableError:
                if self._clock.monotonic() > deadline:
                    raise
                self._clock.sleep(0.1)

    def holder(self) -> LockHolder | None:
        """Return the owner of the lock with its times, or None when it is free."""
        status = self.ask("/status")
        with expected_shape(lambda problem: self.misunderstood("/status", problem)):
            return _holder(status)

    def ask(self, path: str, document: Mapping[str, Any] | None = None) -> Any:
        """Return the answer to a GET, or to a POST of ``document``. A lost request is sent once more: at worst its change is noted twice.

        Raises NotTrueError when the guard refuses, UnreachableError when it does not answer.
        """
        try:
            return self._ask(path, document)
        except UnreachableError:
            self.recover()
            return self._ask(path, document)

    def _ask(self, path: str, document: Mapping[str, Any] | None = None) -> Any:
        connection = DialledConnection("guard", None, ANSWER_SECONDS, self._dial)
        try:
            body = None if document is None else json.dumps(document, allow_nan=False)
            connection.request("GET" if document is None else "POST", path, body, {"connection": "close"})
            response = connection.getresponse()
            status, answer = response.status, read_json(response.read(LIMITS.size + 1), LIMITS)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise UnreachableError(
                "The guard does not answer",
                what=f"{type(error).__name__}: {error}",
                where=f"guard of {self.host}, {path}",
                next_step="traffic goes back by itself when the lease runs out; check the host, its sshd and the guard's container",
            ) from error
        finally:
            connection.close()
        problem = str(answer.get("error"))[:1000] if isinstance(answer, dict) else "an answer of another shape"
        if status == 409:
            raise self._refusal(path, problem)
        if status == 507:
            raise _disk_full(self.host, problem)
        if status != 200:
            raise self.misunderstood(path, f"HTTP {status}: {problem}")
        return answer

    def misunderstood(self, path: str, problem: str) -> UnreachableError:
        """Return the error for an answer that has another shape than this version expects."""
        return UnreachableError(
            "The guard did not understand",
            what=problem,
            where=f"guard of {self.host}, {path}",
            next_step="the guard may be of another version: see its container on the host",
        )

    def change(self, action: str, **document: Any) -> Any:
        """Make a change with the fencing token and return the guard's answer."""
        token = self.token.reveal() if isinstance(self.token, Secret) else self.token
        return self.ask(f"/{action}", {"token": token, **document})

    def take(self, answer: Mapping[str, Any]) -> None:
        """Remember what a guard answered to the request for its lock."""
        token = answer["token"]
        self.token = Secret(token) if isinstance(token, str) else token
        self.number = answer.get("number", token)
        self.lease_seconds = float(answer["lease_seconds"])

    def check_clock(self) -> None:
        """Raise NotTrueError when the host's clock differs from the runner's by more than ``CLOCK_LIMIT``."""
        status = self.ask("/status")
        with expected_shape(lambda problem: self.misunderstood("/status", problem)):
            difference = parse_rfc3339(status["now"]) - self._clock.now()
        if abs(difference) > CLOCK_LIMIT:
            raise NotTrueError(
                "The host's clock is off",
                what=f"it differs from the runner's by {difference.total_seconds():.0f} s, the limit is {CLOCK_LIMIT.seconds} s",
                where=self.host,
                next_step="set the host's clock (timedatectl, chrony) and deploy again; nothing was changed",
            )

    def _refusal(self, path: str, reason: str) -> NotTrueError:
        if path == "/lock":
            return _lock_refusal(self.host, reason)
        return FencedError(
            "The guard refused",
            what=reason,
            where=f"guard of {self.host}, {path}",
            next_step="read what happened in the guard's journal (python -m azora_ci lock status); a rerun starts from there",
        )


def _holder(status: Mapping[str, Any]) -> LockHolder | None:
    lock = status["lock"]
    if lock is None:
        return None
    actor, _, fence = lock["owner"].partition(ROLLBACK)
    expires = parse_rfc3339(status["now"]) + timedelta(seconds=status["lock_seconds"])
    renewed = expires - timedelta(seconds=lock["seconds"])
    silent = lock["seconds"] - status["lock_seconds"]
    alive = silent <= LONGEST_SILENCE * lock["seconds"] / 2  # a lock is taken for two leases
    owner = Owner(lock["deployment_id"], lock["run_url"], actor, fence or None)
    return LockHolder(owner, rfc3339(renewed), rfc3339(expires), alive, silent)


class Lease:
    """The lock and lease at a guard. A thread of its own renews them, so that a long pull does not lose them."""

    def __init__(self, guard: GuardClient, clock: Clock) -> None:
        self._guard, self._clock = guard, clock
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._renewed = 0.0
        self._refused: NotTrueError | None = None
        self.taken_over: str | None = None

    def acquire(self, owner: Owner) -> None:
        """Take the lock. Raises NotTrueError, which names the owner, when another deployment holds it or when any rollback does."""
        held = self._guard.holder()
        if held is not None and held.owner.fence is not None:
            until = f"it holds the lock until {held.expires_at} unless it renews it ({held.owner.run_url})"
            raise _lock_refusal(self._guard.host, f"a rollback by {held.owner.actor} is running: {held.owner.fence}; {until}")
        request = {"owner": _owner_text(owner), "run_url": owner.run_url, "deployment_id": owner.deployment_id}
        answer = self._guard.ask("/lock", {**request, "fence": owner.fence is not None, "reason": owner.fence})
        with expected_shape(lambda problem: self._guard.misunderstood("/lock", problem)):
            self._guard.take(answer)
        self.taken_over = f"{held.owner.deployment_id} ({held.owner.run_url})" if held else None
        self._refused, self._renewed = None, self._clock.monotonic()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._keep_renewing, args=(self._stop,), daemon=True)
        self._thread.start()

    def _keep_renewing(self, stop: threading.Event) -> None:
        while not self._clock.wait(stop, self._guard.lease_seconds / RENEWALS_PER_LEASE):
            sent_at = self._clock.monotonic()
            try:
                self._guard.change("renew")
                self._renewed = sent_at
            except NotTrueError as error:
                self._refused = error
                return
            except AzoraError:
                continue  # the next renewal comes soon; renew() raises when there was none for too long

    def silent(self) -> float:
        """Return for how many seconds the guard has not answered."""
        return self._clock.monotonic() - self._renewed

    def renew(self) -> None:
        """Raise NotTrueError when the lock was taken over, UnreachableError when the lease is about to run out."""
        if self._refused is not None:
            raise self._refused
        overdue = self.overdue()
        if overdue is not None:
            raise overdue

    def overdue(self) -> UnreachableError | None:
        """Return an UnreachableError when the lease is about to run out, else None."""
        silent = self.silent()
        if silent <= self._guard.lease_seconds * LONGEST_SILENCE:
            return None
        return UnreachableError(
            "A production host is not reached any more",
            what=f"its guard has not answered for {silent:.0f} s; the lease of {self._guard.lease_seconds:g} s is about to run out",
            where=self._guard.host,
            next_step="check the host and the network; its guard takes traffic back by itself",
        )

    def release(self) -> None:
        """Unlock the host if the lock is still this run's. If the lease is still held, the guard then puts the old routes back."""
        self._stop.set()
        if self._guard.token is not None:
            with contextlib.suppress(NotTrueError, UnreachableError):
                self._guard.change("unlock", reason="the run has ended")
        self._guard.token = None

    def break_open(self, reason: str, actor: str) -> LockHolder | None:
        """Take the lock from whoever holds it and free it; return that owner, or None when it was free."""
        held = self._guard.holder()
        if held is not None:
            request = {"owner": actor, "run_url": "", "deployment_id": "released by hand"}
            token = self._guard.ask("/lock", {**request, "fence": True, "reason": reason})["token"]
            self._guard.ask("/unlock", {"token": token, "reason": reason})
        return held


class DiskFullError(NotTrueError):
    """The host's disk has no room for a change; the routes are unchanged."""


def _disk_full(host: str, reason: str) -> DiskFullError:
    return DiskFullError(
        "The host's disk is full",
        what=f"the guard cannot write to its volume ({reason}); routes are as they were",
        where=f"guard of {host}",
        next_step="make room on the host (docker system df, journalctl --vacuum-size=…), then re-run the job",
    )


def _owner_text(owner: Owner) -> str:
    return owner.actor if owner.fence is None else f"{owner.actor}{ROLLBACK}{owner.fence}"


def _lock_refusal(host: str, reason: str) -> NotTrueError:
    return NotTrueError(
        "Another deployment is running",
        what=reason,
        where=f"guard of {host}",
        next_step="wait for that run to end, or cancel it; a lock whose owner died is taken over when it expires",
    )


class GuardedJournal:
    """The runner's events in the guard's journal. Only the holder of the lock writes, so the journal is read once per lock."""

    def __init__(self, guard: GuardClient) -> None:
        self._guard = guard
        self._cached: tuple[Secret | int, History] | None = None
        self._cache_lock = threading.Lock()

    def history(self) -> History:
        """Return the history that the guard's events add up to."""
        with self._cache_lock:
            if self._cached is not None and self._cached[0] == self._guard.token:
                return self._cached[1]
            history = History()
            events = self._guard.ask("/journal")
            with expected_shape(lambda problem: self._guard.misunderstood("/journal", problem)):
                for event in events:
                    history.apply(event)
            self._cached = (self._guard.token, history) if self._guard.token is not None else None
            return history

    def add(self, at: str, event: str, deployment_id: str, **facts: Any) -> None:
        """Add an event. Two of them also change traffic: "promote" ends the lease, "going-back" puts the old routes back."""
        entry = {"at": at, "event": event, "deployment_id": deployment_id, **facts}
        history = self.history()
        if event == "promote":
            self._guard.change("promote", event=entry)
        elif event == "going-back":
            self._guard.change("abort", reason=facts.get("reason"), event=entry)
        else:
            self._guard.change("note", event=entry, back=event in RESERVE_EVENTS)
        with self._cache_lock:
            history.apply(entry)


class GuardedEdge(Edge):
    """An Envoy whose files are written by the guard only."""

    def __init__(self, guard: GuardClient, clock: Clock, dial: Dial) -> None:
        super().__init__(EDGE_FOLDER, clock, dial)
        self._guard = guard
        self._numbers = itertools.count(1)

    def state(self) -> EdgeState:
        """Return the state in force, from the guard's files. Raises BadInputError when there is none."""
        try:
            return EdgeState.from_document(read_json(self._guard.ask("/files")["edge.json"]))
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise BadInputError(
                "No edge is installed",
                what=f"the guard has no state of the edge: {type(error).__name__}: {error}",
                where=self._guard.host,
                next_step="deploy to this host once, or run: python -m azora_ci edge install",
            ) from error

    def _get(self, path: str) -> Mapping[str, Any]:
        try:
            return super()._get(path)
        except UnreachableError:
            self._guard.recover()  # the connection may have failed, not the edge
            return super()._get(path)

    def switch(self, state: EdgeState) -> str:
        """Put a state in force by one rename in the guard; return the generation. From a canary's first weight on, a lease holds it.

        Without a stable release there is no lease: nothing could be put back, and a first release without a runner beats no routes.
        """
        generation = f"{self._guard.number}-{next(self._numbers)}"
        files = {name: json.dumps(document) for name, document in config.render(state, EDGE_FOLDER, generation).items()}
        hold = state.canary is not None and state.percent > 0 and state.stable is not None
        self._guard.change("apply", generation=generation, files=files, hold=hold, back=state.canary is None)
        return generation
