"""Verify a whole archive: which record was changed, is missing, was inserted or lies in another's place. Pure.

Each record names SHA-256 and URL of the newest one before it, so a believed record shows whether that one is as it was. Nothing a record
says counts once a later one shows that it was changed. No later record names the newest: only its signature, or its SHA-256 from the
page of its run, shows that it is as it was written.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from azora_ci.record.chain import Document, archived_bytes, flaw, parse_record, sha256

CHANGED, MISSING, INSERTED, REORDERED = "changed", "missing", "inserted", "reordered"
# A run looks for the newest record, archives its artifacts, then writes its own: what was written meanwhile it cannot name.
WRITING = timedelta(hours=1)
MOST_DIGITS = 12  # of the numbers in a record's URL
NOT_CANONICAL = "its bytes are not canonical JSON, in which every record is written"
_PLACE = re.compile(r".*/records/([^/]+)/([^/]+)/(rollback-)?([0-9]+)\.json")


@dataclass(frozen=True)
class Finding:
    """What is wrong with the record at a URL; None: no URL is known of it."""

    kind: str  # changed | missing | inserted | reordered
    location: str | None
    detail: str


@dataclass(frozen=True)
class Link:
    """One object in a record's place. ``names``: (URL or None, SHA-256) of records that it says were written before it.

    ``flaw``: why it is no record; ``is_strayed``: it is one, in another's place; ``signature``: why its signature is not believed;
    ``is_signed``: there is one that is.
    """

    location: str
    sha256: str
    modified: datetime
    names: tuple[tuple[str | None, str], ...] = ()
    flaw: str | None = None
    signature: str | None = None
    is_signed: bool = False
    is_strayed: bool = False

    @property
    def order(self) -> tuple[datetime, str]:
        """Return its place in the order of writing."""
        return self.modified, self.location


def link(location: str, data: bytes, modified: datetime, *, damage: str | None = None, is_signing: bool = False) -> Link:
    """Return the link of an object in a record's place. ``damage``: why it was set aside when it was read, which may be its signature."""
    place = _PLACE.fullmatch(location)
    assert place is not None  # noqa: S101 - only such objects are records
    document = parse_record(data)
    own_id = str(document.get("deployment_id"))
    is_record = flaw(data, own_id) is None
    problem = None if is_record else damage or flaw(data, place[2])
    if is_record and archived_bytes(document) != data:
        problem = NOT_CANONICAL
    strayed = None if problem else _strayed(document, place)
    names = () if problem or strayed else tuple((_here(named, location), digest) for named, digest in _names(document))
    signature = damage if is_record and own_id == place[2] else None
    is_signed = is_signing and damage is None
    return Link(location, sha256(data), modified, names, problem or strayed, signature, is_signed, is_strayed=strayed is not None)


def _here(named: object, location: str) -> str | None:
    """Return the URL that a record names, in the bucket that is verified: an archive may be moved to another. Forged ones name anything."""
    path = named.partition("/records/")[2] if isinstance(named, str) else ""
    return f"{location.partition('/records/')[0]}/records/{path}" if path else None


def _names(document: Document) -> Iterator[tuple[object, str]]:
    if document.get("previous_record_sha256"):
        yield document.get("previous_record_location"), document["previous_record_sha256"]
    deployed = document.get("deployment_record")
    if isinstance(deployed, dict) and isinstance(deployed.get("sha256"), str):
        yield deployed.get("location"), deployed["sha256"]


def _strayed(document: Document, place: re.Match[str]) -> str | None:
    expected: dict[str, Any] = {"deployment_id": place[2], "environment": place[1]} | ({} if place[3] else {"run_attempt": int(place[4])})
    others = [f"{name} {document[name]}" for name, value in expected.items() if name in document and document[name] != value]
    return f"it is the record of {', '.join(others)}, whose place is another" if others else None


@dataclass(frozen=True)
class _Claim:
    by: Link
    location: str | None
    sha256: str


class Chain:
    """The links of one environment. ``schema_flaw`` says why the record at a URL does not fit its schema; it is asked of few."""

    def __init__(self, links: Iterable[Link], schema_flaw: Callable[[str], str | None] = lambda _location: None) -> None:
        self.links = sorted(links, key=lambda item: item.order)
        self._schema_flaw = schema_flaw
        self._places = {item.location: item for item in self.links}
        self._by_hash: dict[str, Link] = {}
        for item in self.links:
            self._by_hash.setdefault(item.sha256, item)
        self._signing_since = min((item.modified for item in self.links if item.is_signed), default=None)
        self._claimed = {self._key(claim) for claim in self._claims(self.links)}
        self._refuted = self._refute()

    def unsigned_before(self) -> set[str]:
        """Return the URLs of the records that are not signed because they were written before the first signed one."""
        return {item.location for item in self.links if self._is_early(item)}

    def findings(self, expected: Collection[str] = (), signed: Collection[str] = ()) -> list[Finding]:
        """Return what is wrong, oldest first. ``expected``: SHA-256 of records that must be there; ``signed``: URLs with a signature."""
        found = list(self._of_claims())
        accused = {finding.location for finding in found}
        found += (Finding(*problem) for item in self.links if item.location not in accused and (problem := self._own(item)))
        found += (
            Finding(MISSING, location, "its signature is there, and no record")
            for location in sorted(signed)
            if location not in self._places and location not in accused
        )
        found += (
            Finding(MISSING, None, f"no record has the SHA-256 {value}, which you expect: it was changed, or is missing")
            for value in expected
            if value not in self._by_hash
        )
        order = {item.location: number for number, item in enumerate(self.links)}
        return sorted(dict.fromkeys(found), key=lambda finding: order.get(finding.location or "", len(order)))

    # --- whom to believe ----------------------------------------------------------------------------------------------

    def _is_early(self, item: Link) -> bool:
        """Say whether a record is unsigned only because signing was turned on later. Nobody can write at an earlier time."""
        since = self._signing_since
        return item.signature is not None and not item.is_signed and since is not None and item.modified < since and not item.flaw

    def _is_sound(self, item: Link) -> bool:
        return item.flaw is None and (item.signature is None or self._is_early(item))

    def _claims(self, links: Iterable[Link]) -> Iterator[_Claim]:
        return (_Claim(item, *name) for item in links if self._is_sound(item) for name in item.names)

    def _target(self, claim: _Claim) -> Link | None:
        """Return the record that has the claimed SHA-256, where possible at the claimed place."""
        place = self._places.get(claim.location or "")
        return place if place and place.sha256 == claim.sha256 else self._by_hash.get(claim.sha256)

    def _key(self, claim: _Claim) -> str:
        """Return the URL of the record that a claim is about, else its SHA-256."""
        target = self._target(claim)
        return claim.location or (target.location if target else claim.sha256)

    def _refute(self) -> set[str]:
        """Return the URLs of records that believed ones show to be changed, and of strangers; the claims of those do not count.

        Hashes lead back in time, so that this settles from the newest record on.
        """
        wrong = [claim for claim in self._claims(self.links) if self._target(claim) is None]
        strangers = {claim.by.location for claim in wrong if self._is_stranger(claim)}
        refuted = strangers
        for _ in range(len(self.links) + 1):
            now = strangers | {claim.location for claim in wrong if claim.location in self._places and claim.by.location not in refuted}
            if now == refuted:
                break
            refuted = now
        return refuted

    def _is_stranger(self, claim: _Claim) -> bool:
        """Say whether who makes a wrong claim is more likely forged than right: nobody vouches for it, and it names no recent record."""
        item = claim.by
        if item.is_signed or item.location in self._claimed or item is self.links[-1]:
            return False
        newest, claimed = self._newest_before(item), self._places.get(claim.location or "")
        if claim.location is None or newest is None:
            return claim.location is None
        return claimed.order < newest.order if claimed else _place(claim.location) < _place(newest.location)

    def _newest_before(self, item: Link) -> Link | None:
        """Return the newest record that a run must have seen before it wrote this one."""
        until = item.modified - WRITING
        earlier = (other for other in reversed(self.links) if other.modified <= until and self._is_sound(other))
        return next((other for other in earlier if other is not item and other.is_signed == item.is_signed), None)

    # --- what is wrong ------------------------------------------------------------------------------------------------

    def _of_claims(self) -> Iterator[Finding]:
        for claim in self._claims(item for item in self.links if item.location not in self._refuted):
            target, by = self._target(claim), claim.by.location
            doubt = "" if claim.by.is_signed or by in self._claimed else f". Or {by} was changed: no later record names that one"
            if target is not None and claim.location not in {None, target.location}:
                yield Finding(REORDERED, target.location, f"{by} names it as {claim.location}: it lies in another's place{doubt}")
            elif target is not None and target.modified > claim.by.modified:
                yield Finding(REORDERED, target.location, f"it was written, or written again, after {by}, which names it{doubt}")
            elif target is None and claim.location in self._places:
                has = self._places[claim.location or ""].sha256
                more = self._also(self._places[claim.location or ""])
                yield Finding(CHANGED, claim.location, f"{by} names it with SHA-256 {claim.sha256}, and it has {has}{more}{doubt}")
            elif target is None and claim.location:
                yield Finding(MISSING, claim.location, f"{by} names it, with SHA-256 {claim.sha256}{doubt}")
            elif target is None:
                yield self._unplaced(claim)

    def _also(self, changed: Link) -> str:
        """Return what else may be changed, by what a changed record says: it is not believed, but worth a look."""
        places = [claim.location for claim in self._claims([changed]) if self._target(claim) is None and claim.location in self._places]
        return "".join(f". It names another SHA-256 than that of {place}: look at that one, too" for place in places)

    def _unplaced(self, claim: _Claim) -> Finding:
        """Return the finding for an unknown SHA-256 in a record of an earlier version of this project, which gives no URL with it."""
        by = claim.by
        text = f"{by.location} names {claim.sha256} as the record before it, and there is none with that SHA-256"
        loose = [item for item in self.links if item.location not in self._claimed and item is not by]
        suspects = [
            item
            for item in loose
            if not self._is_sound(item) or (item.modified > by.modified and _place(item.location) < _place(by.location))
        ]
        if len(suspects) == 1:
            return Finding(CHANGED, suspects[0].location, text)
        before = [item for item in loose if item.order < by.order]
        if not before:
            return Finding(MISSING, None, text)
        return Finding(MISSING, None, f"{text}: {before[-1].location} was changed, or the one behind it is missing")

    def _own(self, item: Link) -> tuple[str, str, str] | None:
        """Return what is wrong with a record that no other record shows to be wrong."""
        named = item.location in self._claimed
        if item.signature is not None and not self._is_early(item):
            if named and item.flaw is None:
                return MISSING, item.location, f"a later record names it, but {item.signature}: its signature is missing, or was changed"
            return (CHANGED if "another document" in item.signature else INSERTED), item.location, item.signature
        if item.flaw:
            return (
                (REORDERED if item.is_strayed else CHANGED if named or item.flaw == NOT_CANONICAL else INSERTED),
                item.location,
                item.flaw,
            )
        if item.location in self._refuted:
            return INSERTED, item.location, "it names a record before it that is not there, and no later record names it"
        if named:
            return None
        if problem := self._schema_flaw(item.location):
            return CHANGED, item.location, f"it does not fit its schema: {problem}"
        skipped = self._skipped(item)
        return (INSERTED, item.location, skipped) if skipped else None

    def _skipped(self, item: Link) -> str | None:
        """Return why a record that no later one names was not written by a run of ours: each names the newest one."""
        before = [self._target(_Claim(item, *name)) for name in item.names[:1]]
        if None in before:
            return None  # that is another finding
        newest = self._newest_before(item)
        if newest is None or newest.location in self._refuted or any(target and target.order >= newest.order for target in before):
            return None
        return (
            f"{newest.location} was written more than {WRITING.seconds // 60} minutes before it; it does not name that one, nor any later"
        )


def _place(location: str) -> tuple[int, int]:
    """Return the order that a record's URL shows: the second in which its deployment began, and its number."""
    match = _PLACE.fullmatch(location)
    seconds = match[2].split("-")[0] if match else ""
    is_plain = match and seconds.isdecimal() and max(len(seconds), len(match[4])) <= MOST_DIGITS
    return (int(seconds), int(match[4])) if match and is_plain else (0, 0)


def texts(findings: Sequence[Finding]) -> list[str]:
    """Return a line for each finding."""
    return [f"{finding.kind}: {finding.location or 'a record'}: {finding.detail}" for finding in findings]


def documents(findings: Sequence[Finding]) -> list[Mapping[str, Any]]:
    """Return the findings as they stand in JSON documents."""
    return [{"finding": finding.kind, "record": finding.location, "detail": finding.detail} for finding in findings]
