"""The scripts, commands, options, files, variables and defaults that the README names exist."""

from __future__ import annotations

import re

import click
import pytest

from azora_ci.cli.main import main
from azora_ci.core import variables
from azora_ci.core.pipeline import JOBS, TOOLS
from azora_ci.rehearsal import cli, scenarios
from azora_ci.steps.runner import step_module
from tests.support import ROOT

TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = "\n".join(re.findall(r"```bash\n(.*?)```", TEXT, re.DOTALL))
VARIABLES = {variable.name: variable for job in (*JOBS, *TOOLS) for _, variable in variables.declared_variables(step_module(job).Settings)}


def test_it_is_short():
    assert len(TEXT.splitlines()) <= 150


def test_scripts_schemas_and_links_are_files():
    paths = set(re.findall(r"\b((?:scripts|schemas)/[a-z_.-]+[a-z])", TEXT)) | set(re.findall(r"\]\(([^):]+)\)", TEXT))
    assert {"scripts/rehearse", "scripts/test", "schemas/deploy-config.schema.json"} <= paths
    assert [name for name in sorted(paths) if not (ROOT / name).is_file()] == []


def test_commands_of_the_package_exist_with_their_options():
    lines = re.findall(r"python -m azora_ci ([^#\n`]*)", TEXT)
    assert len(lines) >= 5
    for line in lines:
        words = line.split()
        command: click.Command = main
        while isinstance(command, click.Group) and words:
            name = words.pop(0)
            assert name in command.commands, line
            command = command.commands[name]
        options = {option for parameter in command.params for option in parameter.opts}
        options |= (
            {f"--{field.replace('_', '-')}" for field, _ in variables.declared_variables(step_module("rollback").Settings)}
            if "rollback" in line
            else set()
        )
        assert set(re.findall(r"--[a-z-]+", line)) <= options, line


def test_who_has_only_python_is_told_how_to_run_commands_that_need_packages():
    assert "python " in BLOCKS
    assert TEXT.index(". .venv/bin/activate") < TEXT.index("python -m azora_ci")


def test_every_failure_and_option_of_the_rehearsal_is_named():
    assert f"scripts/rehearse --fail {'|'.join(scenarios.FAILURES)}`" in TEXT
    options = {option for parameter in cli.main.params for option in parameter.opts}
    documented = set(re.findall(r"`(--[a-z]+)", TEXT.split("## The flow")[0]))
    assert documented and documented <= options


@pytest.mark.parametrize(
    ("name", "default"),
    [
        (name.strip("` "), default)
        for names, defaults in re.findall(r"^\| (`[A-Z_`/ ]+) \| ([^|]+) \|", TEXT.split("## Configuration")[1], re.MULTILINE)
        for name, default in zip(names.split(" / "), defaults.split(" / "), strict=True)
    ],
)
def test_variables_have_the_defaults_that_are_shown(name: str, default: str):
    full = name if not name.startswith("_") else f"HEALTH_CHECK{name}"
    documented = default.strip("` ").removesuffix(" s")
    assert VARIABLES[full].default == documented or (full, documented) == ("BACKUP_PROOF", "full")


def test_no_command_shows_a_password_to_the_machine():
    """A connection string on a command line can be read by everybody on the machine."""
    assert not re.search(r"psql[^\n|]*(postgres(ql)?://|_URL)", TEXT)
