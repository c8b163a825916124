"""Files that include and extend one another, and the paths in them."""

from __future__ import annotations

from pathlib import Path

import pytest

from azora_ci.cli.adopt.compose import model
from azora_ci.core.errors import BadInputError


def write(folder: Path, **files: str) -> Path:
    for name, content in files.items():
        path = folder / name.replace("__", "/").replace("_yml", ".yml").replace("_env", ".env")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return folder


def test_a_service_extends_another_of_its_file_and_of_other_files(tmp_path):
    write(
        tmp_path,
        compose_yml="""
services:
  base: {image: x, environment: {A: 1, B: 2}, ports: ['80:80']}
  near: {extends: base, environment: {B: 3}}
  far: {extends: {file: common/base.yml, service: app}, command: run}
""",
        common__base_yml="""
services:
  app: {extends: {service: root}, build: ./app, env_file: app.env}
  root: {build: {context: ., target: prod}, command: other}
""",
    )
    services = model.load(tmp_path, ["compose.yml"]).services
    assert services["near"] == {"image": "x", "environment": ["A=1", "B=3"], "ports": ["80:80"]}
    assert services["far"] == {"build": {"context": "common/app", "target": "prod"}, "env_file": ["common/app.env"], "command": "run"}


def test_files_are_included_with_paths_of_their_own_folder(tmp_path):
    write(
        tmp_path,
        docker__compose_yml="""
include:
  - ../db/compose.yml
  - {path: [../web/a.yml, ../web/b.yml], project_directory: ../web/app}
services: {api: {build: ..}}
""",
        db__compose_yml="services: {db: {build: ./image}}",
        web__a_yml="services: {web: {build: ., command: a}}",
        web__b_yml="services: {web: {command: b}}",
    )
    loaded = model.load(tmp_path, ["docker/compose.yml"])
    assert {name: service.get("build") for name, service in loaded.services.items()} == {
        "db": {"context": "db/image"},
        "web": {"context": "web/app"},
        "api": {"context": "."},
    }
    assert loaded.services["web"]["command"] == "b"
    assert loaded.files == ("docker/compose.yml", "db/compose.yml", "web/a.yml", "web/b.yml")
    assert loaded.notes == ()


def test_paths_of_all_named_files_are_those_of_the_first_and_env_stands_beside_it(tmp_path):
    write(
        tmp_path,
        deploy__base_yml="services: {a: {build: '${SRC:-.}/${PART}'}, b: {build: https://github.com/acme/b.git#main}}",
        deploy___env="PART=web\n",
        prod_yml="services: {a: {env_file: [x.env, {path: ../y.env, required: false}]}}\nname: shop-${PART}",
    )
    loaded = model.load(tmp_path, ["deploy/base.yml", "prod.yml"])
    assert loaded.services["a"] == {
        "build": {"context": "deploy/web"},
        "env_file": ["deploy/x.env", {"path": "y.env", "required": False}],
    }
    assert loaded.services["b"]["build"] == {"context": "https://github.com/acme/b.git#main"}
    assert loaded.name == "shop-web"


@pytest.mark.parametrize(
    ("content", "note"),
    [
        ("include: [oci://registry.example/x]\nservices: {a: {image: x}}", "include oci://registry.example/x"),
        ("include: [https://x.example/compose.git]\nservices: {a: {image: x}}", "include https://x.example/compose.git"),
        ("include: [missing.yml]\nservices: {a: {image: x}}", "include missing.yml"),
        ("include: [../outside.yml]\nservices: {a: {image: x}}", "include ../outside.yml"),
        ("include: [{path: b.yml, env_file: c.env}]\nservices: {a: {image: x}}", "include b.yml: its env_file"),
        ("services: {a: {image: x, extends: {file: missing.yml, service: b}}}", "extends missing.yml, service b"),
        ("services: {a: {image: x, extends: {service: nobody}}}", "extends compose.yml, service nobody"),
        ("services: {a: {image: x, extends: a}}", "extends compose.yml, service a"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path, content, note):
    write(tmp_path, compose_yml=content, b_yml="services: {b: {image: x}}")
    (tmp_path.parent / "outside.yml").write_text("services: {o: {image: x}}")
    loaded = model.load(tmp_path, ["compose.yml"])
    assert loaded.services["a"]["image"] == "x"
    assert note in "\n".join(loaded.notes)
    assert "o" not in loaded.services


@pytest.mark.parametrize(
    "content", ["services: [a]", "version: '3'", "services: {a: [x]}", "services: {a: text}", "services: {a: {}}\nvolumes: [a]"]
)
def test_a_file_without_services_is_refused_by_its_name(tmp_path, content):
    write(tmp_path, compose_yml=content)
    with pytest.raises(BadInputError) as caught:
        model.load(tmp_path, ["compose.yml"])
    assert "compose.yml" in caught.value.where


def test_files_that_include_one_another_end(tmp_path):
    write(tmp_path, compose_yml="include: [b.yml]\nservices: {a: {image: x}}", b_yml="include: [compose.yml]\nservices: {b: {image: x}}")
    assert set(model.load(tmp_path, ["compose.yml"]).services) == {"a", "b"}
    write(
        tmp_path, compose_yml="include: [b.yml, b.yml, b.yml]\nservices: {a: {image: x}}", b_yml="include: [compose.yml]\nservices: {b: {}}"
    )
    with pytest.raises(BadInputError, match="more than 100 files"):
        model.load(tmp_path, ["compose.yml"])


def test_a_link_that_leads_outside_is_not_read(tmp_path):
    repository = tmp_path / "repository"
    write(repository, compose_yml="services: {a: {image: x, extends: {file: link.yml, service: s}}}")
    (tmp_path / "secret.yml").write_text("services: {s: {environment: {A: outside}}}")
    (repository / "link.yml").symlink_to(tmp_path / "secret.yml")
    loaded = model.load(repository, ["compose.yml"])
    assert loaded.services == {"a": {"image": "x"}}
    assert "link.yml" in loaded.notes[0]
