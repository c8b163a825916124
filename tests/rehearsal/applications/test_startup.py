"""How a service starts as a process, read from its Dockerfile or package.json."""

from __future__ import annotations

from pathlib import Path

import pytest

from azora_ci.rehearsal.applications.startup import bases, find, read


@pytest.mark.parametrize(
    ("dockerfile", "target", "command"),
    [
        ('FROM node\nCMD ["node", "a.js"]', None, ("node", "a.js")),
        ("FROM node\nCMD node a.js", None, ("sh", "-c", "exec node a.js")),
        ('FROM node\nENTRYPOINT ["node"]\nCMD ["a.js"]', None, ("node", "a.js")),
        ('FROM node\nENTRYPOINT ["docker-entrypoint.sh"]\nCMD ["node", "a.js"]', None, ("node", "a.js")),
        ('FROM node AS base\nCMD ["node", "a.js"]\nFROM base\nENV A=1', None, ("node", "a.js")),
        ('FROM node AS web\nCMD ["node", "web.js"]\nFROM node AS worker\nCMD ["node", "worker.js"]', "web", ("node", "web.js")),
        ('FROM --platform=$BUILDPLATFORM node as web\nCMD [ \\\n "node", \\\n "a.js"]', None, ("node", "a.js")),
        ('from node\ncmd ["node", "1.js"]\ncmd ["node", "2.js"]', None, ("node", "2.js")),
        ("FROM node\nRUN true", None, ()),
        ("# nothing", None, ()),
    ],
)
def test_the_dockerfile_says_it(dockerfile: str, target: str | None, command: tuple[str, ...]) -> None:
    image = read(dockerfile, target)
    assert image.entrypoint + image.command == command


def test_a_script_is_found_in_the_context_or_beside_the_dockerfile(tmp_path: Path) -> None:
    (tmp_path / "apps" / "web").mkdir(parents=True)
    (tmp_path / "apps" / "web" / "Dockerfile").write_text('FROM node\nCMD ["node", "server.js"]', encoding="utf-8")
    service = {"dockerfile": "apps/web/Dockerfile"}
    assert find(tmp_path, service) is None, "a script that is nowhere starts nothing"
    (tmp_path / "apps" / "web" / "server.js").touch()
    beside = find(tmp_path, service)
    assert beside is not None and beside.command == ("sh", "-c", "cd apps/web && exec node server.js")
    (tmp_path / "server.js").touch()
    inside = find(tmp_path, service)
    assert inside is not None and inside.command == ("node", "server.js")
    assert inside.source == "ENTRYPOINT and CMD of apps/web/Dockerfile"


def test_a_path_of_the_image_is_one_of_the_context(tmp_path: Path) -> None:
    (tmp_path / "dist").mkdir()
    (tmp_path / "dist" / "main.js").touch()
    (tmp_path / "Dockerfile").write_text('FROM node\nCMD ["node", "/app/dist/main.js"]', encoding="utf-8")
    found = find(tmp_path, {})
    assert found is not None and found.command == ("node", "dist/main.js")


def test_without_a_dockerfile_package_json_says_it(tmp_path: Path) -> None:
    assert find(tmp_path, {}) is None
    (tmp_path / "package.json").write_text('\ufeff{"scripts": {"start": "node server.js"}}', encoding="utf-8")
    found = find(tmp_path, {})
    assert found is not None and found.command == ("sh", "-c", "exec node server.js") and found.source == "scripts.start of package.json"
    (tmp_path / "package.json").write_text('{"scripts": null}', encoding="utf-8")
    assert find(tmp_path, {}) is None


def test_a_working_directory_of_the_image_is_a_folder_of_the_context(tmp_path: Path) -> None:
    for name in ("web", "worker"):
        (tmp_path / "apps" / name).mkdir(parents=True)
        (tmp_path / "apps" / name / f"{name}.js").touch()
    stages = "FROM node AS base\nWORKDIR /shop\nFROM base AS web\nWORKDIR /shop/apps/web\nCMD node web.js\n"
    stages += "FROM base AS worker\nWORKDIR /shop/apps/worker\n"
    (tmp_path / "Dockerfile").write_text(stages, encoding="utf-8")
    web = find(tmp_path, {"build": {"target": "web"}})
    assert web is not None and web.command == ("sh", "-c", "cd apps/web && exec node web.js")
    worker = find(tmp_path, {"build": {"target": "worker"}, "command": ["node", "worker.js"]})
    assert worker is not None and worker.command == ("sh", "-c", "cd apps/worker && exec node worker.js")
    assert worker.source == "the configuration"
    replaced = find(tmp_path, {"build": {"target": "web"}, "entrypoint": ["/bin/true"]})
    assert replaced is not None and replaced.command == ("/bin/true",), "another entrypoint takes the image's command away"


def test_a_module_is_named_without_its_ending(tmp_path: Path) -> None:
    (tmp_path / "dist").mkdir()
    (tmp_path / "dist" / "main.js").touch()
    found = find(tmp_path, {"command": ["node", "dist/main"]})
    assert found is not None and found.command == ("node", "dist/main")


def test_base_images_are_those_that_no_stage_makes() -> None:
    text = "ARG BASE=x\nFROM node:22 AS build\nFROM --platform=linux/amd64 build AS again\nFROM $BASE\nFROM scratch\n"
    text += "from nginx as web\nFROM node:22\n"
    assert bases(text) == ["node:22", "nginx"]
