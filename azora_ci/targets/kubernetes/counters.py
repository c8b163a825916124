"""Requests per ReplicaSet, as Prometheus or the edge counts them. What is asked for: namespace, service, rollout, hash and side."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Mapping
from string import Template
from typing import Any, Protocol
from urllib.parse import quote, urlencode

from azora_ci.clients.kubernetes.objects import member
from azora_ci.core.clock import Clock
from azora_ci.core.config import CounterSettings, EnvoySettings, KubernetesSettings
from azora_ci.core.documents import UnreadableError, expected_shape, read_json
from azora_ci.core.errors import UnreachableError
from azora_ci.health.probes import ProbeRequest, fetch
from azora_ci.health.traffic import SLOWEST_MS, Counters
from azora_ci.targets.envoy.counting import histograms

SECONDS = 5.0  # for one answer
LIMIT = 4 * 1024 * 1024  # bytes of one
STABLE, CANARY = "stable", "canary"  # sides: the Service of the ReplicaSet that is stable, and that of any other


class Counting(Protocol):
    """Where requests are counted. ``delay``: seconds until it knows what was counted; ``name``: for people."""

    delay: float
    name: str

    def counters(self, given: Mapping[str, str]) -> Counters:
        """Return the counts of one ReplicaSet, which only grow. Raises UnreachableError."""

    def answers(self, given: Mapping[str, str]) -> tuple[int | None, int | None]:
        """Return requests and errors as ``counters`` does, None for what is not counted at all. Raises UnreachableError."""


def counting(settings: KubernetesSettings, clock: Clock) -> Counting | None:
    """Return where requests are counted; None where they are not."""
    if settings.edge is not None:
        return Envoys(settings.edge, clock)
    return Prometheus(settings.counters, clock) if settings.counters is not None else None


class Prometheus:
    """A Prometheus server that is asked for the counters of ReplicaSets."""

    def __init__(self, settings: CounterSettings, clock: Clock) -> None:
        self._settings, self._clock = settings, clock
        self.delay, self.name = settings.scrape_seconds, "Prometheus"

    def counters(self, given: Mapping[str, str]) -> Counters:
        """Return the counts of one ReplicaSet. Nothing counted yet is 0.

        Raises UnreachableError.
        """
        requests, errors = (self._number(query, given) for query in (self._settings.requests, self._settings.errors))
        return Counters(requests=requests, errors=min(errors, requests), buckets=self._buckets(given))

    def answers(self, given: Mapping[str, str]) -> tuple[int | None, int | None]:
        """Return requests and errors as ``counters`` does, None for a query that matches nothing. Raises UnreachableError."""
        asked = self._settings.requests, self._settings.errors
        requests, errors = (self._number(query, given) if self._ask(query, given) else None for query in asked)
        return requests, errors

    def _number(self, query: str, given: Mapping[str, str]) -> int:
        series = self._ask(query, given)
        if len(series) > 1:
            raise self._error(query, f"{len(series)} series answer; the query must sum them up to one")
        return sum(value for _, value in series)

    def _buckets(self, given: Mapping[str, str]) -> tuple[tuple[float, int], ...]:
        if self._settings.latency is None:
            return ()
        series = sorted((float(labels.get("le", "inf")) * 1000, value) for labels, value in self._ask(self._settings.latency, given))
        return tuple((SLOWEST_MS if math.isinf(bound) else bound, count) for bound, count in series)

    def _ask(self, query: str, given: Mapping[str, str]) -> list[tuple[Mapping[str, str], int]]:
        """Return the labels and the value of each series."""
        text = Template(query).safe_substitute(given)
        url = f"{self._settings.prometheus.rstrip('/')}/api/v1/query?{urlencode({'query': text})}"
        answer = fetch(ProbeRequest(url), SECONDS, self._clock, limit=LIMIT)
        if answer.failure is not None or answer.status != 200:
            raise self._error(text, answer.detail or f"HTTP {answer.status}: {answer.body[:200].decode('utf-8', 'replace')}")
        with expected_shape(lambda problem: self._error(text, problem)):
            try:
                document = read_json(answer.body)
            except UnreadableError as error:
                raise self._error(text, str(error)) from error
            result = member(document, "data", "result")
            if document["status"] != "success" or member(document, "data", "resultType") != "vector":
                raise self._error(text, f"the answer is no vector: {answer.body[:200].decode('utf-8', 'replace')}")
            return [(each["metric"], int(float(each["value"][1]))) for each in result]  # NaN is no count, and raises

    def _error(self, query: str, problem: str) -> UnreachableError:
        return UnreachableError(
            "Requests cannot be counted",
            what=f"{problem}; query: {query}",
            where=f"target.kubernetes.counters.prometheus = {self._settings.prometheus}",
            next_step="check the address and the query (promtool query instant); what is not counted makes a stage inconclusive",
        )


class Envoys:
    """The Envoys of an edge that is not ours, which count by cluster: that of the canary Service counts whatever is not stable.

    Its clusters count attempts, and do not tell our probes from users. Protocol: Envoy's "cluster manager statistics".
    """

    def __init__(self, settings: EnvoySettings, clock: Clock) -> None:
        self._settings, self._clock = settings, clock
        self.delay, self.name = 0.0, "the edge"

    def counters(self, given: Mapping[str, str]) -> Counters:
        """Return the counts of a side, of all Envoys together. Raises UnreachableError, also for a cluster that none of them has."""
        name = Template(self._settings.stable if given["side"] == STABLE else self._settings.canary).safe_substitute(given)
        found = [counted for address in self._settings.admin if (counted := self._ask(address, name)) is not None]
        if not found:
            raise self._error(f"no cluster {name}", ", ".join(self._settings.admin))
        return functools.reduce(Counters.plus, found)

    def answers(self, given: Mapping[str, str]) -> tuple[int | None, int | None]:
        """Return the requests and errors of a side. Raises UnreachableError."""
        counted = self.counters(given)
        return counted.requests, counted.errors

    def _ask(self, address: str, cluster: str) -> Counters | None:
        pattern = quote(rf"^cluster\.{re.escape(cluster)}\.(retry\.)?upstream_rq_[a-z0-9_]+$")
        url = f"{address.rstrip('/')}/stats?format=json&histogram_buckets=cumulative&filter={pattern}"
        answer = fetch(ProbeRequest(url), SECONDS, self._clock, limit=LIMIT)
        if answer.failure is not None or answer.status != 200:
            raise self._error(answer.detail or f"HTTP {answer.status}", address)
        with expected_shape(lambda problem: self._error(problem, address)):
            try:
                return of_cluster(read_json(answer.body), cluster)
            except UnreadableError as error:
                raise self._error(str(error), address) from error

    @staticmethod
    def _error(problem: str, address: str) -> UnreachableError:
        return UnreachableError(
            "Requests cannot be counted",
            what=problem,
            where=f"target.kubernetes.edge.admin = {address}",
            next_step="check the address and the names of the clusters (GET /clusters there); what is not counted passes no stage",
        )


def of_cluster(stats: Mapping[str, Any], cluster: str) -> Counters | None:
    """Return what a cluster of Envoy counted; None where there is no such cluster. Pure.

    A request that its user gave up has neither status nor latency: it was begun, and is neither completed nor under way nor tried again.
    """
    prefix = f"cluster.{cluster}.upstream_rq_"
    values = {stat["name"].removeprefix(prefix): int(stat["value"]) for stat in stats["stats"] if "value" in stat}
    if "total" not in values:
        return None
    completed, retried = values.get("completed", 0), values.get("retry", 0)
    given_up = max(0, values["total"] - completed - values.get("active", 0) - retried)
    return Counters(
        requests=completed + given_up,
        errors=values.get("5xx", 0),
        failovers=values.get("retry_success", 0),
        given_up=given_up,
        timeouts=values.get("timeout", 0),
        not_found=values.get("404", 0),
        buckets=dict(histograms(stats)).get(f"{prefix}time", ()),
    )
