"""The scripts, commands, options, files, variables and defaults that the README and the pages beside it name exist."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest

from azora_ci.cli.main import main
from azora_ci.core import variables
from azora_ci.core.pipeline import JOBS, TOOLS
from azora_ci.rehearsal import cli, scenarios
from azora_ci.steps.runner import step_module
from tests import picture
from tests.support import ROOT

README = ROOT / "README.md"
TEXT = README.read_text(encoding="utf-8")
BLOCKS = "\n".join(re.findall(r"```bash\n(.*?)```", TEXT, re.DOTALL))
PAGES = [README, *sorted((ROOT / ".github" / "docs").glob("*.md"))]
VARIABLES = {variable.name: variable for job in (*JOBS, *TOOLS) for _, variable in variables.declared_variables(step_module(job).Settings)}

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)


def test_it_is_short():
    lines = TEXT.splitlines()
    assert len(lines) <= 150
    assert [line for line in lines if len(line) > 100 and "scripts/rehearse --fail" not in line] == []  # that command is one word


@each_page
def test_scripts_schemas_and_links_are_files(page: Path):
    text = page.read_text(encoding="utf-8")
    named = {ROOT / name for name in re.findall(r"\b((?:scripts|schemas)/[a-z_.-]+[a-z])", text)}
    linked = {page.parent / name for name in re.findall(r"\]\(([^):#]+)[^):]*\)", text)}
    assert sorted(str(path) for path in named | linked if not path.is_file()) == []


def test_the_picture_is_small_and_its_command_makes_it():
    shown = {ROOT / name for name in re.findall(r'(?:src|srcset)="([^"]+)"', TEXT)}
    assert shown == {picture.path_of(scheme) for scheme in picture.SCHEMES}
    assert all(path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size <= picture.LARGEST_BYTES for path in shown)
    assert "python -m tests.picture" in (ROOT / ".github" / "docs" / "operating.md").read_text(encoding="utf-8")


def test_every_page_is_reached_from_the_readme():
    linked = {(README.parent / name).resolve() for name in re.findall(r"\]\(([^):]+)\)", TEXT)}
    assert [page.name for page in PAGES if page != README and page not in linked] == []


@each_page
def test_commands_of_the_package_exist_with_their_options(page: Path):
    lines = re.findall(r"python -m azora_ci ([^#\n`]*)", page.read_text(encoding="utf-8"))
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


def test_the_readme_shows_commands_and_says_how_to_run_those_that_need_packages():
    assert len(re.findall("python -m azora_ci ", BLOCKS)) >= 5
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


@each_page
def test_no_command_shows_a_password_to_the_machine(page: Path):
    """A connection string on a command line can be read by everybody on the machine."""
    assert not re.search(r"psql[^\n|]*(postgres(ql)?://|_URL)", page.read_text(encoding="utf-8"))
