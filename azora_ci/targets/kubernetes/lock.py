"""The lock: a Lease whose holder is a token, and the same token as an annotation of everything that its owner changes.

Each change is a JSON patch that tests this annotation, so that the API server itself refuses one whose lock was taken. All times are the
API server's: a runner with a wrong clock neither loses its lock nor takes another's.

The AnalysisTemplate of every Rollout reads the same Lease. It passes where nobody holds it, so that a canary that a person starts goes on.
"""

from __future__ import annotations

import json
import threading
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from datetime import timedelta
from functools import partial

from azora_ci.clients.kubernetes.api import Api, ConflictError, NotFoundError
from azora_ci.clients.kubernetes.objects import Document, annotation, member
from azora_ci.core.clock import Clock, parse_rfc3339, rfc3339
from azora_ci.core.documents import expected_shape, read_json
from azora_ci.core.errors import AzoraError, BadInputError, NotTrueError, UnreachableError
from azora_ci.targets.base import FencedError, LockHolder, Owner
from azora_ci.targets.kubernetes.cluster import Names
from azora_ci.targets.kubernetes.manifests import PROMOTING
from azora_ci.targets.kubernetes.rollouts import stamped

# Annotations: who holds the lock, who last took it away by hand, and the journal's entry of the promotion at which the watch last ended.
OWNER, RELEASED, PROMOTION = "azora-ci/owner", "azora-ci/released", "azora-ci/promotion"
RENEWALS = 6  # per lease: several may fail before it runs out
TRIES = 5  # to take a lock for which others try, too
PAST = "1970-01-01T00:00:00.000000Z"  # as the time of the last renewal: whoever held the lock is dead
FREE = ""  # as the holder
LEFT = " left a release under way"  # after a holder's token


class ClusterLock:
    """The lock of a namespace.

    ``stamp`` writes a token on everything that the lock protects, by the rule of ``stamp_each``. ``under_way`` says whether a release that
    changed Rollouts is unfinished: then the lock is not freed, but left as a dead runner's, so that Argo Rollouts takes the release back.
    """

    def __init__(
        self, api: Api, names: Names, clock: Clock, stamp: Callable[[str, Callable[[], None]], None], under_way: Callable[[], bool]
    ) -> None:
        self._api, self._names, self._clock, self._stamp, self._under_way = api, names, clock, stamp, under_way
        self._path = f"{names.leases}/{names.lease}"
        self._seconds = names.settings.lease_seconds
        self._token: str | None = None
        self._renewed = 0.0  # monotonic seconds
        self._problem = ""
        self._lost, self._ended = threading.Event(), threading.Event()
        self._renewer: threading.Thread | None = None
        self.taken_over: str | None = None
        self.fenced: str | None = None

    @property
    def token(self) -> str:
        """Return the token of the lock that is held. Raises FencedError when it is not."""
        if self._token is None:
            raise self._lost_error(None)
        return self._token

    def acquire(self, owner: Owner) -> None:
        """Take the lock. Raises NotTrueError naming the owner when somebody else holds it and may not be fenced."""
        token = uuid.uuid4().hex
        self.taken_over = self.fenced = None
        try:
            for attempt in self._clock.attempts(TRIES, 0.2):
                try:
                    self._take(owner, token)
                    break
                except ConflictError:  # somebody else took it between our read and our write; read again who
                    if attempt.last:
                        raise
            self._token, self._renewed = token, self._clock.monotonic()
            self._lost.clear()
            self._ended.clear()
            self._renewer = threading.Thread(target=self._keep_renewing, args=(token,), daemon=True)
            self._renewer.start()  # before the stamps, which may take longer than the lease where there are many Rollouts
            self._stamp(token, self.confirm)
            self.confirm()
        except BaseException:  # an answer may be lost after the lease became ours: nobody is to wait for its end
            self._token = token
            with suppress(AzoraError):
                self.release()
            raise

    def _take(self, owner: Owner, token: str) -> None:
        try:
            lease = self._api.get(self._path)
        except NotFoundError:
            meta = {"name": self._names.lease}
            lease = self._api.create(self._names.leases, self._document({"metadata": meta}, owner, token))
            return
        if member(lease, "spec", "holderIdentity") == token:
            return  # the answer to our own change was lost
        holder = self._holder(lease)
        if holder is not None:
            if holder.alive:
                self._fence(holder, owner)
            self.taken_over = f"{holder.owner.deployment_id} ({holder.owner.run_url}), expiry {holder.expires_at}"
        self._api.replace(self._path, self._document(lease, owner, token))

    def _document(self, lease: Document, owner: Owner, token: str) -> Document:
        now = _micro(rfc3339(self._api.now()))
        meta = {**lease["metadata"], "annotations": {**(member(lease, "metadata", "annotations") or {}), OWNER: json.dumps(asdict(owner))}}
        spec = {"holderIdentity": token, "leaseDurationSeconds": self._seconds, "acquireTime": now, "renewTime": now}
        return {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": meta, "spec": spec}

    def _fence(self, holder: LockHolder, owner: Owner) -> None:
        held = holder.owner
        if owner.fence is None or held.fence is not None:
            raise _held_error(holder, self._path)
        self.fenced = f"{held.deployment_id} of {held.actor} ({held.run_url})"

    # --- renewal -------------------------------------------------------------------------------------------------------

    def _keep_renewing(self, token: str) -> None:
        while not self._clock.wait(self._ended, self._seconds / RENEWALS):
            try:
                self._renew_once(token)
            except ConflictError:
                self._lost.set()
                return
            except AzoraError as error:
                self._problem = f"{error.title}: {error.what}"

    def _renew_once(self, token: str) -> None:
        sent = self._clock.monotonic()
        operations = [
            {"op": "test", "path": "/spec/holderIdentity", "value": token},
            {"op": "replace", "path": "/spec/renewTime", "value": _micro(rfc3339(self._api.now()))},
        ]
        self._api.patch(self._path, operations)
        self._renewed = sent

    def renew(self) -> None:
        """Check that the lock is still ours; it is renewed in the background.

        Raises FencedError when it was taken over, UnreachableError when it could not be renewed before it ran out.
        """
        if self._token is None or self._lost.is_set():
            raise self._lost_error(self.holder())
        silent = self._clock.monotonic() - self._renewed
        if silent > self._seconds:
            raise UnreachableError(
                "The lock ran out",
                what=f"it could not be renewed for {silent:.0f} s of {self._seconds}: {self._problem or 'no answer yet'}; "
                "Argo Rollouts takes the release back by itself",
                where=self._path,
                next_step="make the API server reachable and re-run the job: it reads the journal, and goes back or on",
            )

    def confirm(self) -> None:
        """Ask the API server whether the lock is still ours. Raises FencedError when it is not."""
        try:
            self._require(self.token)
        except FencedError:
            self._lost.set()
            raise

    def _require(self, identity: str) -> None:
        lease = self._api.get(self._path)
        if member(lease, "spec", "holderIdentity") != identity:
            raise self._lost_error(self._holder(lease))

    def stop_watch(self, promotion: str) -> None:
        """Have the analysis pass until the lock is next taken: what is promoted is not taken back when its runner dies.

        ``promotion``: what ``promotion()`` returns from then on.
        """
        test = {"op": "test", "path": "/spec/holderIdentity", "value": self.token}
        noted = {"op": "add", "path": annotation(PROMOTION), "value": promotion}
        try:
            self._api.patch(self._path, [test, noted, {"op": "add", "path": "/spec/leaseTransitions", "value": PROMOTING}])
        except ConflictError:
            self.confirm()
            raise

    def promotion(self) -> str | None:
        """Return what was noted when the watch last ended, whoever held the lock."""
        try:
            noted: str | None = member(self._api.get(self._path), "metadata", "annotations", PROMOTION)
        except NotFoundError:
            return None
        return noted

    def release(self) -> None:
        """Free the lock if it is still ours; where a release is under way, have Argo Rollouts take that back, as a dead runner's."""
        self._ended.set()
        if self._renewer is not None:
            self._renewer.join(timeout=self._seconds / RENEWALS)
        if self._token is None:
            return
        test = {"op": "test", "path": "/spec/holderIdentity", "value": self._token}
        try:
            left = self._under_way()
        except AzoraError:  # what cannot be read may be under way
            left = True
        spec = {"holderIdentity": f"{self._token}{LEFT}", "renewTime": PAST, "leaseTransitions": 0} if left else {"holderIdentity": FREE}
        self._token = None
        with suppress(ConflictError, NotFoundError):  # somebody else's by now, or gone with its namespace
            self._api.patch(self._path, [test, *({"op": "add", "path": f"/spec/{name}", "value": value} for name, value in spec.items())])

    # --- who holds it --------------------------------------------------------------------------------------------------

    def holder(self) -> LockHolder | None:
        """Return the owner of the lock, dead or alive, or None when the lock is free."""
        try:
            return self._holder(self._api.get(self._path))
        except NotFoundError:
            return None

    def _holder(self, lease: Document) -> LockHolder | None:
        spec = lease.get("spec") or {}
        if not spec.get("holderIdentity"):
            return None
        with expected_shape(self._unreadable):
            owner = Owner(**read_json(lease["metadata"]["annotations"][OWNER]))
            renewed = parse_rfc3339(spec["renewTime"])
            expires = renewed + timedelta(seconds=spec["leaseDurationSeconds"])
        now = self._api.now()
        return LockHolder(owner, rfc3339(renewed), rfc3339(expires), expires > now, (now - renewed).total_seconds())

    def break_open(self, reason: str, actor: str) -> LockHolder | None:
        """Take the lock from its holder, whose release Argo Rollouts then takes back; return that holder."""
        for attempt in self._clock.attempts(TRIES, 0.2):
            try:
                lease = self._api.get(self._path)
            except NotFoundError:
                return None
            held = self._holder(lease)
            if held is None:
                return None
            noted = json.dumps({"at": rfc3339(self._api.now()), "by": actor, "reason": reason, "from": held.owner.deployment_id})
            token = uuid.uuid4().hex
            identity = f"{token} taken away by {actor}"[:200]
            spec = {**lease["spec"], "holderIdentity": identity, "renewTime": PAST}
            meta = {**lease["metadata"], "annotations": {**lease["metadata"]["annotations"], RELEASED: noted}}
            try:
                self._api.replace(self._path, {**lease, "metadata": meta, "spec": spec})
            except ConflictError:  # its holder renewed it in this moment
                if attempt.last:
                    raise
            else:
                with suppress(FencedError):  # somebody has taken it since, and stamps
                    self._stamp(token, partial(self._require, identity))
                return held
        return None

    def _unreadable(self, problem: str) -> BadInputError:
        return BadInputError(
            "The lock cannot be read",
            what=problem,
            where=self._path,
            next_step="find out who wrote it; when no deployment runs, delete the Lease",
        )

    def _lost_error(self, holder: LockHolder | None) -> FencedError:
        owner = holder.owner if holder else None
        reason = f", a rollback: {owner.fence}" if owner and owner.fence else ""
        return FencedError(
            "The lock was taken over",
            what=f"it now belongs to {owner.deployment_id if owner else 'nobody'}{reason}",
            where=self._path,
            next_step="read what the other deployment or rollback did before starting this one again",
        )


def stamp_each(api: Api, clock: Clock, path: str, token: str, confirm: Callable[[], None]) -> None:
    """Write the lock's token on an object. Raises FencedError when the lock is somebody else's by now.

    Its former token is read before ``confirm`` asks whose the lock is, and must still be there: who took the lock since is not stamped
    over.
    """
    for attempt in clock.attempts(TRIES, 0.1):
        document = api.get(path)
        confirm()
        try:
            api.patch(path, stamped(document, token))
        except ConflictError:
            if attempt.last:
                raise
        else:
            return


def _micro(moment: str) -> str:
    """Return a moment as a MicroTime, which the API server demands of leases."""
    return moment.replace("Z", "000Z")


def _held_error(holder: LockHolder, where: str) -> NotTrueError:
    owner = holder.owner
    if owner.fence is not None:
        return NotTrueError(
            "A rollback is running",
            what=f"a rollback by {owner.actor} holds the lock until {holder.expires_at}: {owner.fence} ({owner.run_url})",
            where=where,
            next_step="wait for that rollback to end; it holds the lock for a minute or two",
        )
    return NotTrueError(
        "Another deployment is running",
        what=f"deployment {owner.deployment_id} of {owner.actor} holds the lock until {holder.expires_at} ({owner.run_url})",
        where=where,
        next_step="wait for that run to end, or cancel it; a lock whose owner died is taken over when it expires",
    )
