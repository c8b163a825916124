"""The reference pages in .github/docs are made of the schema and of the steps' settings: ``python -m tests.test_reference`` writes them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from azora_ci.cli.adopt.report import OF_WORKFLOWS
from azora_ci.core.markdown import code, lines, table
from azora_ci.core.pipeline import JOBS, TOOLS
from azora_ci.core.variables import Variable, declared_variables
from azora_ci.steps.runner import step_module
from tests.support import ROOT

FOLDER = ROOT / ".github" / "docs"
SCHEMA = ROOT / "schemas" / "deploy-config.schema.json"
NAMED = {"services": "<service>", "args": "<name>", "env": "<name>", "variables": "<name>"}  # tables whose keys the user chooses


def configuration_page() -> str:
    """Return the page of every key of the deployment configuration, a section for each of its tables."""
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    sections = [
        "# The deployment configuration",
        "Every key of `.github/deploy-production.toml`, made of `schemas/deploy-config.schema.json` by `python -m tests.test_reference`. "
        "[The example](../deploy-production.toml) shows them together. **Bold** keys must be there.",
    ]
    for name, description, rows in _tables(schema, ""):
        sections += [f"## {code(f'[{name}]') if name else 'At the top'}", *([description] if description else [])]
        sections.append(table(("Key", "Meaning", "Values", "For example"), rows))
    return "\n\n".join(sections) + "\n"


def _tables(schema: dict[str, Any], path: str) -> Iterator[tuple[str, str, list[tuple[object, ...]]]]:
    """Yield (name, description, rows) of a table and of those below it."""
    inner = {key: value for key, value in schema.get("properties", {}).items() if "properties" in _table_of(value)}
    rows = [_row(key, value, key in schema.get("required", ())) for key, value in schema["properties"].items() if key not in inner]
    if rows:
        yield path, schema["description"] if path else "", rows
    for key, value in inner.items():
        name = f"{path}.{key}" if path else key
        if "properties" in value:
            yield from _tables(value, name)
        else:
            entry = {"description": value["description"], **_table_of(value)}
            yield from _tables(entry, f"{name}.{NAMED[key]}" if value["type"] == "object" else f"[{name}]")


def _table_of(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of the table that a key leads to, itself, by name or in a list; empty for a plain value."""
    if "properties" in schema:
        return schema
    inner = schema.get("additionalProperties") or schema.get("items")
    return inner if isinstance(inner, dict) and "properties" in inner else {}


def _row(key: str, schema: dict[str, Any], required: bool) -> tuple[object, ...]:
    name = code(key)
    examples = [code(json.dumps(example, ensure_ascii=False)) for example in schema.get("examples", ())]
    return type(name)(f"**{name}**") if required else name, schema["description"], _values(schema), lines(examples)


def _values(schema: dict[str, Any]) -> str:
    if "const" in schema or "enum" in schema:
        return " or ".join(json.dumps(value) for value in schema.get("enum", [schema.get("const")]))
    bounds = [f"{word} {schema[name]}" for word, name in (("from", "minimum"), ("to", "maximum")) if name in schema]
    kind = {"string": "text", "boolean": "true or false", "array": "list", "object": "table", "integer": "whole number"}
    types = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    return " ".join([" or ".join(kind.get(name, name) for name in types), *bounds])


def variables_page() -> str:
    """Return the page of every environment variable that a job or tool reads, each once, with those who read it."""
    found: dict[str, tuple[Variable, list[str]]] = {}
    jobs = (*JOBS, *TOOLS)
    for job in jobs:
        for _, variable in declared_variables(step_module(job).Settings):
            found.setdefault(variable.name, (variable, []))[1].append(job)
    rows = []
    for name, (variable, readers) in sorted(found.items()):
        default = "required" if variable.required else code(variable.default) if variable.default else None
        rows.append(
            (code(name), variable.help, default, code(variable.example), "all" if len(readers) == len(jobs) else ", ".join(readers))
        )
    return "\n\n".join(
        [
            "# Environment variables",
            "What the entry points in `scripts/` read, made of their settings by `python -m tests.test_reference`; "
            "`python scripts/<job>.py --help` says the same of one job.",
            table(("Variable", "Meaning", "Default", "For example", "Read by"), rows),
            "The workflows themselves read these, where they are set on GitHub:",
            table(("Variable", "Meaning"), [(code(name), meaning) for name, meaning in OF_WORKFLOWS.items()]),
        ]
    ) + "\n"  # fmt: skip


PAGES = {"configuration.md": configuration_page, "variables.md": variables_page}


@pytest.mark.parametrize("name", PAGES)
def test_a_reference_page_is_what_schema_and_settings_say(name: str):
    assert (FOLDER / name).read_text(encoding="utf-8") == PAGES[name](), "python -m tests.test_reference writes the pages"


def test_every_key_and_variable_is_on_its_page():
    keys = set(json.dumps(json.loads(SCHEMA.read_text(encoding="utf-8"))["properties"]["services"]).split('"'))
    assert {"route_prefix", "max_connections"} <= keys
    assert "| `max_connections` |" in configuration_page()
    assert "| `HEALTH_CHECK_INTERVAL` |" in variables_page()


if __name__ == "__main__":
    for page, make in PAGES.items():
        (FOLDER / page).write_text(make(), encoding="utf-8")
