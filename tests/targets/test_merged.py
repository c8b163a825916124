"""Journals of several hosts that differ because one of them was out of reach."""

from __future__ import annotations

import pytest

from azora_ci.targets.journal import History, merged

OLD, NEW = "1764000000-aaaaaa", "1764000100-bbbbbb"


def history(*events: tuple[str, str]) -> History:
    replayed = History()
    for name, event in events:
        facts = {"version": f"v {name}", "digests": {}, "previous": replayed.serving} if event == "begin" else {}
        replayed.apply({"deployment_id": name, "event": event, "at": "2026-11-24T11:00:00.000Z", "reason": "r", "percent": 50, **facts})
    return replayed


SERVING = ((OLD, "begin"), (OLD, "promote"))
UNDER_WAY = (*SERVING, (NEW, "begin"), (NEW, "weight"))
PROMOTED = (*UNDER_WAY, (NEW, "promote"))
BACK = (*UNDER_WAY, (NEW, "going-back"), (NEW, "abort"))


def test_one_host_is_told_as_it_is():
    single = history(*UNDER_WAY)
    assert merged([single]) is single


@pytest.mark.parametrize(
    ("near", "far", "serving", "unfinished"),
    [
        (SERVING, SERVING, OLD, None),
        (SERVING, (), OLD, None),  # a host that is new
        (UNDER_WAY, SERVING, OLD, NEW),
        (BACK, UNDER_WAY, OLD, NEW),  # one host was out of reach when the others went back
        (BACK, BACK, OLD, None),
        (PROMOTED, UNDER_WAY, NEW, None),  # promoted anywhere is promoted: a rerun goes forward
        (PROMOTED, SERVING, NEW, None),
        ((*PROMOTED, (NEW, "going-back"), (NEW, "abort")), PROMOTED, OLD, NEW),  # a rollback that reached one host only goes on
        ((*PROMOTED, (NEW, "going-back")), PROMOTED, NEW, NEW),
    ],
)
@pytest.mark.parametrize("turned", [False, True])
def test_two_hosts_that_differ(near, far, serving, unfinished, turned):
    pair = [history(*near), history(*far)]
    result = merged(pair[::-1] if turned else pair)
    left = result.unfinished
    assert (left.id if left else None) == unfinished
    assert result.serving == serving


def test_merging_changes_no_host_s_own_history():
    near, far = history(*BACK), history(*PROMOTED)
    assert merged([near, far]).unfinished is not None
    assert (near.unfinished, far.unfinished) == (None, None)
