"""NEEDS: what GitHub says of the jobs before is parsed strictly."""

from __future__ import annotations

import json

import pytest

from azora_ci.core.documents import LIMITS
from azora_ci.core.errors import BadInputError
from azora_ci.record.needs import Need, parse_needs


def test_results_and_outputs_by_job():
    text = json.dumps({"a": {"result": "success", "outputs": {"x": "1"}}, "b": {"result": "skipped", "outputs": None}})
    assert parse_needs(text) == {"a": Need("success", {"x": "1"}), "b": Need("skipped")}
    assert parse_needs(None) == parse_needs("{}") == {}


@pytest.mark.parametrize(
    "text",
    [
        "no json",
        "[]",
        '{"a": null}',
        '{"a": "failure"}',
        '{"a": {"result": "great"}}',
        '{"a": {"result": "success", "outputs": ["x"]}}',
        '{"a": {"result": "success", "outputs": {"x": 1}}}',
        "[" * 50_000,
        '{"a": {"result": "success", "outputs": {"x": "' + "1" * LIMITS.size + '"}}}',
    ],
    ids=lambda text: text[:40],
)
def test_anything_else_is_refused(text):
    with pytest.raises(BadInputError, match="NEEDS is not the result of jobs"):
        parse_needs(text)
