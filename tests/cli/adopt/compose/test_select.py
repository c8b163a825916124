"""Which compose files of a repository are read."""

from __future__ import annotations

import pytest

from azora_ci.cli.adopt.compose.select import Selection, compose_files, select

BUILT = {"api": {"build": "."}, "db": {"image": "x"}}
IMAGES = {"api": {"image": "x"}}
CHANGES = {"api": {"restart": "always"}}


@pytest.mark.parametrize(
    ("files", "chosen", "others"),
    [
        ({"docker-compose.yml": BUILT}, ["docker-compose.yml"], []),
        ({"compose.yaml": BUILT, "docker-compose.yml": BUILT}, ["compose.yaml"], ["docker-compose.yml"]),
        ({"docker-compose.yml": BUILT, "docker-compose.override.yml": CHANGES}, ["docker-compose.yml", "docker-compose.override.yml"], []),
        ({"compose.yaml": BUILT, "compose.override.yaml": CHANGES}, ["compose.yaml", "compose.override.yaml"], []),
        ({"docker-compose.yml": BUILT, "docker-compose.prod.yml": CHANGES}, ["docker-compose.yml", "docker-compose.prod.yml"], []),
        ({"docker-compose.yml": BUILT, "docker-compose.prod.yml": IMAGES}, ["docker-compose.yml", "docker-compose.prod.yml"], []),
        ({"docker-compose.yml": BUILT, "docker-compose.production.yml": BUILT}, ["docker-compose.production.yml"], ["docker-compose.yml"]),
        (
            {
                "docker-compose.yml": BUILT,
                "docker-compose.prod.yml": CHANGES,
                "docker-compose.override.yml": CHANGES,
                "docker-compose.dev.yml": BUILT,
            },
            ["docker-compose.yml", "docker-compose.prod.yml"],
            ["docker-compose.dev.yml", "docker-compose.override.yml"],
        ),
        ({"docker-compose.yml": IMAGES, "docker-compose.build.yml": BUILT}, ["docker-compose.yml", "docker-compose.build.yml"], []),
        ({"compose.build.yml": BUILT}, ["compose.build.yml"], []),
        ({"docker-compose.prod.yml": IMAGES}, ["docker-compose.prod.yml"], []),
        ({"docker-compose.yml": IMAGES}, ["docker-compose.yml"], []),
        ({"docker-compose.yml": IMAGES, "docker/docker-compose.yml": BUILT}, ["docker/docker-compose.yml"], ["docker-compose.yml"]),
        ({"docker/compose.prod.yml": BUILT, "deploy/compose.yml": BUILT}, ["docker/compose.prod.yml"], ["deploy/compose.yml"]),
        ({"hosting/docker-compose.yml": BUILT}, ["hosting/docker-compose.yml"], []),
        ({".docker/compose.yml": BUILT}, [".docker/compose.yml"], []),
        ({"infra/prod/docker-compose.prod.yml": BUILT}, ["infra/prod/docker-compose.prod.yml"], []),
        ({"examples/demo/docker-compose.yml": BUILT}, [], ["examples/demo/docker-compose.yml"]),
        ({"docker-compose.dev.yml": BUILT}, [], ["docker-compose.dev.yml"]),
        ({"README.md": {}, "docker-compose.md": {}}, [], []),
    ],
)
def test_production_files_are_chosen_by_their_names_and_what_they_hold(files, chosen, others):
    selection = select(files, lambda path: files[path])
    assert list(selection.files) == chosen
    assert list(selection.others) == others


def test_without_compose_files_there_is_nothing_to_read():
    assert select(["package.json"], lambda path: {}) == Selection()


@pytest.mark.parametrize(
    "name", ["compose.yml", "Docker-Compose.yaml", "docker-compose-prod.yml", "docker-compose.ci_test.yml", "compose.prod.yaml"]
)
def test_a_compose_file_is_known_by_its_name(name):
    assert compose_files([name, f"x{name}", f"{name}.bak"]) == [name]
