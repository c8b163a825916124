"""The evidence of a stage holds its numbers per service with bounds that are right, and nothing where nothing was counted."""

from __future__ import annotations

from azora_ci.health.traffic import Counters
from azora_ci.rollout.decision import Action, Decision, Limits, Pair, Trial
from azora_ci.rollout.report import service_evidence, share_text, tick_evidence


def pair(new: Counters, old: Counters | None, in_stage: Counters | None = None) -> Pair:
    return Pair(Trial(Limits(1, 2, 100), 1, old), new, old, in_stage or Counters())


def test_every_service_and_version_has_its_numbers_and_bounds():
    slow = Counters(requests=100, errors=2, buckets=((10.0, 50), (50.0, 90), (100.0, 100)))
    before = Counters(requests=900)
    evidence = service_evidence(["v2", "v1"], {"api": pair(slow, before, Counters(requests=40))})["api"]
    assert list(evidence) == ["v2", "v1"] and evidence["v1"]["requests"] == 40, "the old version's numbers are of the stage, too"
    new = evidence["v2"]
    low, high = new["error_bounds"]
    assert (new["failed"], new["error_rate"]) == (2, 0.02) and 0.0024 < low < 0.0025 and 0.070 < high < 0.071  # tables of Clopper-Pearson
    fast, slowest = new["p95_bounds_ms"]
    assert 45 < fast < new["p95_ms"] == 75 < slowest <= 100


def test_without_requests_nothing_is_claimed():
    evidence = service_evidence(["v2", "v1"], {"api": pair(Counters(), None)})["api"]
    assert list(evidence) == ["v2"], "there is no old version to tell of"
    assert evidence["v2"]["error_bounds"] == [0.0, 1.0] and evidence["v2"]["p95_bounds_ms"] == [None, None]


def test_a_tick_tells_of_our_own_requests_and_of_latency():
    sides = {"v2": Counters(requests=4, errors=1, ours=9, buckets=((10.0, 0), (20.0, 13))), "v1": Counters()}
    evidence = tick_evidence(1.00049, Decision(Action.HOLD, "too few"), (5, 6), sides, 7)
    assert evidence["probes"] == {"total": 6, "failed": 1} and (evidence["after_seconds"], evidence["lacking"]) == (1.0, 7)
    assert evidence["ours"] == {"v2": 9, "v1": 0} and evidence["failed"]["v2"] == 1
    assert evidence["p95_ms"] == {"v2": 19.5, "v1": None}


def test_a_share_that_is_one_of_pods_is_no_share_of_traffic():
    routed = {"/api": {"api-1-a": 5, "api-0-b": 95}}
    assert share_text("1-a", "v2", routed, 5) == "the edge answers that 5 % of traffic goes to v2"
    pods = routed | {"pods of jobs": {"jobs-1-a": 50, "jobs-0-b": 50}}
    assert share_text("1-a", "v2", pods, 5) == "5 % were asked for; v2 has 5 % of /api, 50 % of pods of jobs"
    assert "were asked for" in share_text("1-a", "v2", {"pods of jobs": {"jobs-1-a": 100}}, 100)
