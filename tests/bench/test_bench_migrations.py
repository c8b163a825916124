from __future__ import annotations

from tests.bench.migrations import STATEMENTS, compared


def test_enough_statements_are_measured():
    assert len(set(STATEMENTS)) >= 20


def test_ratios_are_of_what_can_be_measured():
    rows = [{"predicted": 1.0, "real": 1.5}, {"predicted": 2.0, "real": 1.8}, {"predicted": 0.01, "real": 0.2}]
    report = compared(rows)
    assert [row["ratio"] for row in report["migrations"]] == [1.5, 0.9, None]
    assert (report["ratio_median"], report["ratio_lowest"], report["ratio_highest"]) == (1.2, 0.9, 1.5)
    assert (report["predicted_seconds"], report["real_seconds"]) == (3.01, 3.5)
    assert compared([{"predicted": 0.0, "real": 0.0}])["ratio_median"] is None
