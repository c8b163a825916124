"""JSON from outside: a value, or a sentence about what is wrong with it; and nobody reads it in another way."""

from __future__ import annotations

import ast
import gzip
import json
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from azora_ci.core.documents import LIMITS, Limits, UnreadableError, inflated, read_file, read_json
from tests.support import ROOT
from tests.support.hostile import BOMB, DOCUMENTS, FEW, NESTED

# The guard's server stands alone on the standard library and has limits of its own; the rehearsal reads what it wrote itself.
READERS = {
    "core/documents.py",
    "targets/guard/server.py",
    "targets/guard/store.py",
    "core/process/init.py",
    "record/audit/verify_record.py",
}


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        (NESTED, "a bracket is not closed"),
        (b"[" * 65 + b"]" * 65, "nested deeper than 64"),
        (b'{"a":[' * 33 + b"]}" * 33, "nested deeper than 64"),
        (b"]" * 1000, "not opened"),
        (b"1" * 33, "a number of more than 32 characters"),
        (b"[-1." + b"1" * 33 + b"]", "a number of more than 32 characters"),
        (b"1e999", "a number is too large"),
        (b"-1e999", "a number is too large"),
        (b"NaN", "NaN is no number"),
        (b"[-Infinity]", "-Infinity is no number"),
        (b'[{"a": 1, "b": 2, "a": 1}]', "a key stands twice"),
        (b'"\\ud800"', "surrogates not allowed"),
        (b"\xff", "no JSON: 'utf-8' codec"),
        (b"[" + b"0," * 200_001 + b"0]", "200001 values"),
        (b'"' + b"a" * LIMITS.size + b'"', "8388610 bytes, and at most 8388608 are read"),
        (b"", "no JSON: Expecting value"),
        (b'{"a": "', "no JSON: "),
        (b'"' + b'\\"' * 1_000_000, "no JSON: Unterminated string"),  # in linear time
    ],
)
def test_what_is_refused_and_why(document, reason):
    with pytest.raises(UnreadableError) as caught:
        read_json(document)
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    "document", [b"[" * 64 + b"]" * 64, b'"[[[[{{{{ 99999999999999999999999999999999999999"', b'"\\\\\\"[["', b"-9223372036854775808",
                 b"1.7976931348623157e+308", b'"\\ud83d\\ude00"', b'{"a": {"b": 1}, "c": {"b": 2}}', b"\xef\xbb\xbf{}"],
)  # fmt: skip
def test_what_is_read(document):
    assert read_json(document) == json.loads(document)


@FEW
@given(DOCUMENTS)
def test_every_document_is_read_or_refused_with_a_sentence(document):
    try:
        read_json(document)
    except UnreadableError as error:
        assert 0 < len(str(error)) <= 400


TEXTS = st.text(st.characters(codec="utf-8"))
OURS = st.none() | st.booleans() | st.integers(-(2**63), 2**64) | st.floats(allow_nan=False, allow_infinity=False) | TEXTS


@FEW
@given(st.recursive(OURS, lambda inner: st.lists(inner) | st.dictionaries(TEXTS, inner)))
def test_what_our_own_jobs_write_is_read_back(value):
    assert read_json(json.dumps(value).encode()) == value
    assert read_json(json.dumps(value, ensure_ascii=False)) == value


def test_two_equal_keys_are_taken_where_a_format_allows_them():
    assert read_json(b'{"a": 1, "a": 2}', Limits(unique_keys=False)) == {"a": 2}


def test_a_bomb_of_gzip_costs_no_more_than_the_limit():
    tracemalloc.start()
    try:
        with pytest.raises(UnreadableError, match=r"\d+ bytes of gzip hold more than 8388608 bytes"):
            inflated(BOMB, "gzip")
        assert tracemalloc.get_traced_memory()[1] < 64 * 1024 * 1024
    finally:
        tracemalloc.stop()


def test_bodies_of_answers():
    body = b'{"a": 1}'
    assert inflated(body, None) == inflated(body, "identity") == inflated(gzip.compress(body), "gzip") == body
    for damaged, encoding in ((gzip.compress(body)[:-9], "gzip"), (body, "gzip"), (body, "br"), (b"x" * (LIMITS.size + 1), None)):
        with pytest.raises(UnreadableError):
            inflated(damaged, encoding)


def test_no_more_of_a_file_is_read_than_the_limit(tmp_path):
    path = tmp_path / "sparse.json"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(UnreadableError, match="8388609 bytes"):
        read_file(path)


def test_nobody_reads_json_in_another_way():
    """``json.load``, ``json.loads``, JSONDecoder, ``.json()`` and tomllib stand in the reader only, so that no door is forgotten."""
    trees = {path.relative_to(ROOT / "azora_ci").as_posix(): path for path in sorted((ROOT / "azora_ci").rglob("*.py"))}
    ours = {name: path for name, path in trees.items() if name not in READERS and not name.startswith("rehearsal/")}
    assert len(ours) > 100
    others = [
        f"{name}:{node.lineno}"
        for name, path in ours.items()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if _reads_json(node)
    ]
    assert others == []


def _reads_json(node: ast.AST) -> bool:
    if isinstance(node, ast.ImportFrom):
        return node.module in {"json", "tomllib"}
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "json":
        return True
    names = {"load", "loads", "JSONDecoder"}
    return (
        isinstance(node, ast.Attribute) and node.attr in names and isinstance(node.value, ast.Name) and node.value.id in {"json", "tomllib"}
    )
