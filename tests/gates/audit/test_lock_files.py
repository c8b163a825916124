"""What is read from lock files that the real managers wrote is what those managers themselves ask the registry about."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from azora_ci.core.errors import BadInputError, NotTrueError
from azora_ci.gates.audit import bun_lock, lock_files, npm_lock, pnpm_lock, yarn_lock
from azora_ci.gates.audit.packages import Locked
from azora_ci.rehearsal.standins.advisories import BULK, RETIRED, AdvisoryServer
from tests.support import package_managers
from tests.support.package_managers import BUN, NPM, YARN_1, YARN_4

LOCK = {"npm": ["install", "--package-lock-only", "--ignore-scripts", "--no-audit", "--no-fund"],
        "pnpm": ["install", "--lockfile-only", "--ignore-scripts"],
        YARN_1: ["install", "--ignore-scripts"],
        YARN_4: ["install", "--mode=update-lockfile"],
        "bun": ["install", "--lockfile-only", "--ignore-scripts"]}  # fmt: skip
# An alias, an optional one, two versions of one package, workspaces that depend on each other, a local folder, development only.
ROOT_MANIFEST = {
    "name": "shop",
    "version": "1.0.0",
    "private": True,
    "workspaces": ["packages/*"],
    "dependencies": {
        "lodash": "4.17.11",
        "old-minimist": "npm:minimist@0.0.8",
        "mkdirp": "0.5.1",
        "ajv": "6.12.0",
        "ajv-keywords": "3.5.2",
        "local": "file:vendor/local",
    },
    "optionalDependencies": {"ms": "2.0.0"},
    "devDependencies": {"minimatch": "3.0.0", "debug": "2.6.8"},
}
EXPECTED = {
    "ajv": ["6.12.0"],
    "ajv-keywords": ["3.5.2"],
    "debug": ["4.3.1"],
    "fast-deep-equal": ["3.1.3"],
    "fast-json-stable-stringify": ["2.1.0"],
    "is-number": ["6.0.0"],
    "is-odd": ["3.0.1"],
    "json-schema-traverse": ["0.4.1"],
    "lodash": ["4.17.11"],
    "minimist": ["0.0.8", "1.2.0"],
    "mkdirp": ["0.5.1"],
    "ms": ["2.0.0", "2.1.2"],
}
OWN_FOLDERS = {"@shop/a", "@shop/b", "local"}  # npm 10 asks about these, too
ANY_VERSION = {"punycode", "uri-js"}  # transitive, by a range: what is newest changes


def write_shop(folder: Path, spec: str) -> None:
    workspace = "1.0.0" if spec in {NPM, YARN_1} else "workspace:*"
    manifests = {
        ".": ROOT_MANIFEST,
        "packages/a": {"name": "@shop/a", "version": "1.0.0", "dependencies": {"minimist": "1.2.0", "@shop/b": workspace},
                       "devDependencies": {"semver": "5.3.0"}},
        "packages/b": {"name": "@shop/b", "version": "1.0.0", "dependencies": {"debug": "4.3.1"}},
        "vendor/local": {"name": "local", "version": "9.9.9", "dependencies": {"is-odd": "3.0.1"}},
    }  # fmt: skip
    for path, manifest in manifests.items():
        (folder / path).mkdir(parents=True, exist_ok=True)
        (folder / path / "package.json").write_text(json.dumps(manifest))
    if spec.startswith("pnpm"):
        (folder / "pnpm-workspace.yaml").write_text("packages:\n  - packages/*\n")


def write_lock(folder: Path, spec: str, *more: str) -> None:
    completed = package_managers.run(spec, *(LOCK.get(spec) or LOCK[spec.partition("@")[0]]), *more, folder=folder)
    assert completed.returncode == 0, completed.stdout + completed.stderr


def versions(locked: Locked) -> dict[str, list[str]]:
    names: dict[str, list[str]] = {}
    for package in sorted(locked.packages):
        names.setdefault(package.name, []).append(package.version)
    return names


def asked_by_manager(spec: str, folder: Path, server: AdvisoryServer) -> tuple[str, Any]:
    """Return path and body of what the manager's own audit asks."""
    commands = {
        "npm": ["audit", "--json", "--omit=dev", "--registry", server.url],
        "pnpm": ["audit", "--json", "--prod"],
        YARN_4: ["npm", "audit", "--all", "--recursive", "--json", "--environment", "production"],
        "bun": ["audit", "--json", "--prod"],
    }
    arguments = commands.get(spec) or commands[spec.partition("@")[0]]
    registry = {"npm_config_registry": server.url, "pnpm_config_registry": server.url, "YARN_NPM_REGISTRY_SERVER": server.url,
                "YARN_UNSAFE_HTTP_WHITELIST": "127.0.0.1", "BUN_CONFIG_REGISTRY": server.url}  # fmt: skip
    completed = package_managers.run(spec, *arguments, folder=folder, **registry)
    assert server.asked, completed.stdout + completed.stderr
    return server.asked[0]


def installed_by_yarn_1(folder: Path) -> dict[str, list[str]]:
    """Return name -> versions of what an installation for production has."""
    completed = package_managers.run(YARN_1, "install", "--production", "--frozen-lockfile", "--ignore-scripts", folder=folder)
    assert completed.returncode == 0, completed.stdout + completed.stderr
    names: dict[str, set[str]] = {}
    for path in folder.rglob("node_modules/**/package.json"):
        manifest = json.loads(path.read_text())
        if path.parent.parent.name in {"node_modules"} and not path.parent.is_symlink() and manifest["name"] not in OWN_FOLDERS:
            names.setdefault(manifest["name"], set()).add(manifest["version"])
    return {name: sorted(numbers) for name, numbers in names.items()}


def of_tree(document: Any) -> dict[str, list[str]]:
    """Return name -> versions of the tree that the older protocol sends."""
    names: dict[str, set[str]] = {}
    waiting = [document.get("dependencies", {})]
    while waiting:
        for name, entry in waiting.pop().items():
            waiting.append(entry.get("dependencies") or {})
            if "integrity" in entry:
                names.setdefault(name, set()).add(entry["version"])
    return {name: sorted(numbers) for name, numbers in names.items()}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[AdvisoryServer]:
    with AdvisoryServer(tmp_path / "advisories.json") as server:
        server.write()
        yield server


@pytest.mark.parametrize("spec", package_managers.MANAGERS)
def test_production_packages_of_every_manager_are_those_that_it_asks_about(spec, tmp_path, server):
    shop = tmp_path / "shop"
    write_shop(shop, spec)
    write_lock(shop, spec)
    (file,) = lock_files.find(shop)
    found = versions(file.locked)
    assert {name: numbers for name, numbers in found.items() if name not in ANY_VERSION} == EXPECTED
    assert set(found) == set(EXPECTED) | ANY_VERSION
    assert file.manager == spec.partition("@")[0]
    assert set(file.locked.left_out) == (set() if spec == NPM else {"local"})
    if spec == YARN_1:  # its audit asks one retired address, which no option changes
        assert installed_by_yarn_1(shop) == found
        return
    path, question = asked_by_manager(spec, shop, server)
    if path == BULK:
        asked = {name: sorted(numbers) for name, numbers in question.items() if name not in OWN_FOLDERS}
        if spec == BUN:  # it counts what workspaces and the root need for development, too
            assert {name: [number for number in asked[name] if number in numbers] for name, numbers in found.items()} == found
        else:
            assert asked == found
    else:
        assert path in RETIRED
        assert {name.removeprefix("old-") for name in of_tree(question)} == set(found)


def test_an_older_lock_file_of_npm_reads_the_same(tmp_path):
    write_shop(tmp_path, NPM)
    write_lock(tmp_path, NPM, "--lockfile-version", "1")
    (file,) = lock_files.find(tmp_path)
    assert set(versions(file.locked)) == set(EXPECTED) | ANY_VERSION
    assert versions(file.locked)["minimist"] == ["0.0.8", "1.2.0"]


# --- what managers write in other cases -----------------------------------------------------------------------------------


def test_pnpm_8_wrote_another_layout():
    document = {
        "lockfileVersion": "6.0",
        "dependencies": {
            "ajv-keywords": {"specifier": "3.5.2", "version": "3.5.2(ajv@6.12.0)"},
            "old": {"specifier": "npm:minimist@0.0.8", "version": "/minimist@0.0.8"},
        },
        "devDependencies": {"debug": {"specifier": "2.6.8", "version": "2.6.8"}},
        "packages": {
            "/ajv-keywords@3.5.2(ajv@6.12.0)": {"dependencies": {"ajv": "6.12.0", "@types/node": "20.1.0"}},
            "/ajv@6.12.0": {},
            "/@types/node@20.1.0": {},
            "/minimist@0.0.8": {},
            "/debug@2.6.8": {"dev": "true"},
        },
    }
    assert versions(pnpm_lock.read([document])) == {
        "@types/node": ["20.1.0"],
        "ajv": ["6.12.0"],
        "ajv-keywords": ["3.5.2"],
        "minimist": ["0.0.8"],
    }


def test_a_lock_file_of_pnpm_7_is_refused_with_what_to_do():
    with pytest.raises(ValueError, match="pnpm 8 or newer"):
        pnpm_lock.read([{"lockfileVersion": "5.4"}])


def test_what_resolutions_replaced_is_found_by_its_name():
    classic = 'lodash@4.17.21:\n  version "4.17.21"\n'
    manifests = {".": {"dependencies": {"lodash": "^3.0.0"}}}
    assert versions(yarn_lock.read_classic(classic, manifests)) == {"lodash": ["4.17.21"]}
    berry = {
        "__metadata": {"version": "8"},
        "lodash@npm:4.17.21": {"version": "4.17.21", "resolution": "lodash@npm:4.17.21"},
        "shop@workspace:.": {"resolution": "shop@workspace:.", "dependencies": {"lodash": "npm:^3.0.0"}},
    }
    assert versions(yarn_lock.read_berry(berry, manifests)) == {"lodash": ["4.17.21"]}


def test_patched_packages_and_those_of_a_repository():
    berry = {
        "__metadata": {"version": "8"},
        "typescript@patch:typescript@npm%3A^5.0.0#optional!builtin<compat/typescript>": {
            "version": "5.0.2",
            "resolution": "typescript@patch:typescript@npm%3A5.0.2#optional!builtin<compat/typescript>::version=5.0.2&hash=1",
        },
        "mine@https://github.com/me/mine.git": {"version": "1.0.0", "resolution": "mine@https://github.com/me/mine.git#commit=1"},
        "shop@workspace:.": {
            "resolution": "shop@workspace:.",
            "dependencies": {
                "typescript": "patch:typescript@npm%3A^5.0.0#optional!builtin<compat/typescript>",
                "mine": "https://github.com/me/mine.git",
                "gone": "npm:^1.0.0",
            },
        },
    }
    locked = yarn_lock.read_berry(berry, {})
    assert versions(locked) == {"typescript": ["5.0.2"]}
    assert set(locked.left_out) == {"mine", "gone"}
    classic = '"mine@github:me/mine":\n  version "1.0.0"\n  resolved "https://codeload.github.com/me/mine/tar.gz/1"\n'
    locked = yarn_lock.read_classic(classic, {".": {"dependencies": {"mine": "github:me/mine", "gone": "1"}}})
    assert (versions(locked), set(locked.left_out)) == ({}, {"mine", "gone"})
    npm = {
        "lockfileVersion": 3,
        "packages": {"node_modules/mine": {"version": "1.0.0", "resolved": "git+ssh://git@github.com/me/mine.git#1"}},
    }
    locked = npm_lock.read(npm)
    assert (versions(locked), set(locked.left_out)) == ({}, {"mine"})


# --- where lock files lie -------------------------------------------------------------------------------------------------


def small_lock(folder: Path, name: str, version: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    lock = {"lockfileVersion": 3, "packages": {"": {}, f"node_modules/{name}": {"version": version}}}
    (folder / "package-lock.json").write_text(json.dumps(lock))


def test_lock_files_of_the_root_of_workspaces_and_of_services_are_read(tmp_path):
    (tmp_path / "package.json").write_text('{"workspaces": {"packages": ["packages/*"]}}')
    for folder in (".", "packages/web", "services/auth", "examples/old", "node_modules/x", "packages/node_modules"):
        small_lock(tmp_path / folder, "lodash", "1.0.0")
    found = [file.path for file in lock_files.find(tmp_path, [Path("services/auth"), Path(), Path("../elsewhere")])]
    assert found == ["package-lock.json", "packages/web/package-lock.json", "services/auth/package-lock.json"]


@pytest.mark.parametrize("manifest", ["\ufeff{}", '{"workspaces": null}', '{"workspaces": {"packages": null}}'])
def test_a_package_json_as_editors_and_people_leave_it_is_read(tmp_path, manifest):
    (tmp_path / "package.json").write_text(manifest, encoding="utf-8")
    (tmp_path / "pnpm-workspace.yaml").write_text("packages:\n")
    small_lock(tmp_path, "lodash", "1.0.0")
    assert [file.path for file in lock_files.find(tmp_path)] == ["package-lock.json"]


def test_two_managers_in_one_folder_are_both_read(tmp_path):
    small_lock(tmp_path, "lodash", "4.17.11")
    (tmp_path / "yarn.lock").write_text("# yarn lockfile v1\n")
    assert {file.manager for file in lock_files.find(tmp_path)} == {"npm", "yarn"}


def test_no_lock_file_is_no_audit(tmp_path):
    with pytest.raises(NotTrueError, match="no lock file in 1 folders"):
        lock_files.find(tmp_path)


def linked_out(folder: Path) -> None:
    secret = folder.parent / "outside.json"
    secret.write_text('{"lockfileVersion": 3, "packages": {}}')
    (folder / "package-lock.json").symlink_to(secret)


def dangling(folder: Path) -> None:
    (folder / "package-lock.json").symlink_to(folder / "nothing")


def text(name: str, content: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text(content) and None


@pytest.mark.parametrize(
    ("prepare", "named"),
    [
        (linked_out, "no file of this repository"),
        (dangling, "no file of this repository"),
        (text("package-lock.json", "[" * 1000), ""),
        (text("package-lock.json", "[" * 100_000), ""),
        (text("package-lock.json", "[]"), "no object"),
        (text("package-lock.json", "{}"), "no lockfileVersion"),
        (text("package-lock.json", "\x00{"), ""),
        (text("bun.lock", "[" * 100_000), ""),
        (text("bun.lockb", "x"), "--save-text-lockfile"),
        (text("pnpm-lock.yaml", "[" * 100_000), ""),
        (text("pnpm-lock.yaml", "- " * 100_000), "nested deeper"),
        (text("pnpm-lock.yaml", "a: &a [x]\nb: *a\n"), "aliases"),
        (text("pnpm-lock.yaml", "a: [\n"), ""),
        (text("yarn.lock", "lodash@1:\n   version 1\n"), "line 2"),
        (text("yarn.lock", "__metadata:\n  version: 8\n- x\n"), ""),
        (text("yarn.lock", "# __metadata:\n"), "no __metadata"),
        (text("yarn.lock", "- __metadata:\n"), "no __metadata"),
    ],
)
def test_a_file_that_is_no_lock_file_is_named_and_no_bug(tmp_path, prepare, named):
    folder = tmp_path / "application"
    folder.mkdir()
    prepare(folder)
    with pytest.raises(BadInputError) as caught:
        lock_files.find(folder)
    assert named in caught.value.what
    assert caught.value.where.endswith(("lock.json", ".lock", ".lockb", ".yaml"))


@pytest.mark.parametrize("pattern", ["a**b", "a" * 5000, "*/" * 3000])
def test_a_pattern_of_workspaces_that_no_folder_can_have_is_named_and_no_bug(tmp_path, pattern):
    (tmp_path / "package.json").write_text(json.dumps({"workspaces": ["packages/*", pattern]}))
    (tmp_path / "packages").mkdir()
    with pytest.raises((BadInputError, NotTrueError)) as caught:  # later versions of Python take some of these, and find nothing
        lock_files.find(tmp_path)
    assert repr(pattern[:200]) in caught.value.what or caught.value.title == "Nothing to audit"


def test_a_huge_file_is_not_read(tmp_path):
    with (tmp_path / "yarn.lock").open("wb") as file:
        file.truncate(lock_files.LIMITS.size + 1)
    with pytest.raises(BadInputError, match="more than"):
        lock_files.find(tmp_path)


KEYS = ["packages", "dependencies", "version", "a@1", "importers", "workspaces", "snapshots", "node_modules/x", "name", "."]
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(st.sampled_from(["packages", "dependencies", "importers", "workspaces", "snapshots", "x@workspace:."]), json_values))
@example({"workspaces": {"": {"optionalPeers": 5}}})
@example({"workspaces": {"": {"dependencies": {"a": "1"}}}, "packages": {"a": ["a@1.0.0", {"optionalPeers": [{}]}]}})
def test_no_document_ends_in_a_bug(document):
    readers: list[Callable[[], object]] = [
        lambda: npm_lock.read({"lockfileVersion": 3, **document}),
        lambda: pnpm_lock.read([{"lockfileVersion": "9.0", **document}]),
        lambda: bun_lock.read(json.dumps({"lockfileVersion": 1, **document})),
        lambda: yarn_lock.read_berry({"__metadata": {}, **document}, {}),
    ]
    for reader in readers:
        with contextlib.suppress(ValueError):
            reader()


# --- nothing of the application runs ------------------------------------------------------------------------------------------


def test_what_a_hostile_repository_brings_does_not_run(tmp_path):
    """Each of these runs code, or chooses what runs, when the manager's own audit starts in that folder."""
    ran = tmp_path / "ran"
    shop = tmp_path / "shop"
    write_shop(shop, YARN_4)
    write_lock(shop, YARN_4)
    code = f"require('fs').writeFileSync({str(ran)!r}, 'x')\n"
    (shop / "evil.cjs").write_text(code)
    (shop / ".yarnrc.yml").write_text("yarnPath: ./evil.cjs\n")
    (shop / ".pnpmfile.cjs").write_text(code)
    (shop / ".npmrc").write_text("registry=http://127.0.0.1:1\nnode-options=--require ./evil.cjs\n")
    manifest = json.loads((shop / "package.json").read_text())
    (shop / "package.json").write_text(json.dumps(manifest | {"scripts": {"preinstall": f"touch {ran}"}, "packageManager": "yarn@9.9.9"}))
    package_managers.run(YARN_4, "npm", "audit", folder=shop)
    assert ran.exists(), "yarn itself runs what yarnPath names: the test's own premise"
    ran.unlink()
    (file,) = lock_files.find(shop)
    assert set(versions(file.locked)) == set(EXPECTED) | ANY_VERSION
    assert not ran.exists()
