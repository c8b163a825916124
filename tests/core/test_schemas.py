"""Schemas are documentation: every key is described with an example, unknown keys fail, errors carry the path."""

from __future__ import annotations

import json

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from azora_ci.core import schemas
from azora_ci.core.errors import BadInputError
from azora_ci.core.pipeline import JOBS

NAMES = sorted(path.name.removesuffix(".schema.json") for path in schemas.schema_folder().glob("*.schema.json"))


def properties(schema: object, path: str = ""):
    """Yield (path, schema) of every described property."""
    if isinstance(schema, dict):
        for name, part in schema.get("properties", {}).items() if isinstance(schema.get("properties"), dict) else ():
            if not path.endswith("/then") and not path.endswith("/else") and not path.endswith("/if"):
                yield f"{path}/{name}", part
        for name, part in schema.items():
            if name not in {"examples", "enum", "const"}:
                yield from properties(part, f"{path}/{name}")
    elif isinstance(schema, list):
        for number, part in enumerate(schema):
            yield from properties(part, f"{path}/{number}")


def conditional(path: str) -> bool:
    """Say whether a path lies in a condition, which repeats keys that are described elsewhere."""
    return any(part in {"if", "then", "else", "oneOf", "anyOf", "allOf", "not"} for part in path.split("/"))


def described(key_schema: dict) -> bool:
    """Say whether a key has a description, and an example unless it is a table of described keys."""
    table = "properties" in key_schema or isinstance(key_schema.get("additionalProperties"), dict)
    return "$ref" in key_schema or ("description" in key_schema and (table or "examples" in key_schema))


@pytest.mark.parametrize("name", NAMES)
def test_schema_is_valid_and_describes_every_key(name):
    schema = schemas.load(name)
    jsonschema.Draft202012Validator.check_schema(schema)
    bare = [path for path, key_schema in properties(schema) if not conditional(path) and not described(key_schema)]
    assert not bare, f"keys without description and example: {bare}"


@pytest.mark.parametrize("name", NAMES)
def test_every_example_fits_its_own_key(name):
    schema = schemas.load(name)
    for path, key_schema in properties(schema):
        for example in key_schema.get("examples", []):
            errors = list(jsonschema.Draft202012Validator({**key_schema, "$defs": schema.get("$defs", {})}).iter_errors(example))
            assert not errors, f"{path}: {errors[0].message}"


def test_every_job_has_a_fragment_schema():
    assert {f"fragment-{job}" for job in JOBS} <= set(NAMES)


def test_errors_carry_the_path_and_unknown_keys_fail():
    with pytest.raises(BadInputError) as caught:
        schemas.validate({"schema_version": 1, "surprise": 1, "target": {"kind": "ftp"}}, "deploy-config", where="x.toml")
    assert "target.kind: 'ftp'" in caught.value.what
    assert "surprise" in caught.value.what
    assert "x.toml" in caught.value.where


@given(st.dictionaries(st.text(), st.integers() | st.text() | st.none() | st.booleans()))
def test_canonical_json_does_not_depend_on_order(document):
    backwards = dict(reversed(document.items()))
    try:
        data = schemas.canonical(document)
    except UnicodeEncodeError:  # a lone surrogate has no UTF-8
        return
    assert data == schemas.canonical(backwards)
    assert json.loads(data) == document
    assert data.endswith(b"\n")
