from __future__ import annotations

from dataclasses import replace

from tests.bench import latency
from tests.bench.verdict import LIMIT, Cell, _detections, _false_aborts, null_cells, worse_cells


def test_rollouts_within_the_limit_seldom_end_and_worse_ones_do():
    within = _false_aborts(Cell(0.02), 30)
    assert within["share"] <= 0.1
    assert within["upper"] > within["share"]
    worse = _detections(Cell(0.02, rise=LIMIT + 0.2), 30)
    assert worse["found"] == 1.0
    assert worse["wald"] <= worse["median"] <= 8


def test_much_slower_versions_are_found_and_those_within_the_limit_are_not():
    assert latency.false_aborts(latency.LatencyCell(stalled=0.03, clump=5), 10)["share"] <= 0.1
    assert latency.false_aborts(latency.LatencyCell(factor=3.0), 10)["share"] <= 0.1
    worse = [latency.detections(latency.LatencyCell(factor=6.0), 10), latency.detections(latency.LatencyCell(hanging=0.3), 10)]
    assert [row["found"] for row in worse] == [1.0, 1.0]


def test_cells_cover_what_the_table_says():
    assert {cell.clump for cell in null_cells()} == {1, 2, 5, 10}
    assert {cell.rate for cell in null_cells()} == {1, 10, 100, 1000}
    assert all(replace(cell, rise=LIMIT) != cell for cell in worse_cells())
