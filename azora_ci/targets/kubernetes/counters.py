"""Requests per ReplicaSet, as Prometheus counts them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from string import Template
from urllib.parse import urlencode

from azora_ci.clients.kubernetes.objects import member
from azora_ci.core.clock import Clock
from azora_ci.core.config import CounterSettings
from azora_ci.core.documents import UnreadableError, expected_shape, read_json
from azora_ci.core.errors import UnreachableError
from azora_ci.health.probes import ProbeRequest, fetch
from azora_ci.health.traffic import SLOWEST_MS, Counters

SECONDS = 5.0  # for one answer
LIMIT = 4 * 1024 * 1024  # bytes of one


class Prometheus:
    """A Prometheus server that is asked for the counters of ReplicaSets."""

    def __init__(self, settings: CounterSettings, clock: Clock) -> None:
        self._settings, self._clock = settings, clock

    def counters(self, given: Mapping[str, str]) -> Counters:
        """Return the counts of one ReplicaSet; ``given``: namespace, service, rollout and hash. Nothing counted yet is 0.

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
