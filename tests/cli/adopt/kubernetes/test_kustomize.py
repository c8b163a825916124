"""Folders of Kustomize are built as Kustomize builds them, as far as files of the repository say it."""

from __future__ import annotations

from pathlib import Path

import pytest

from azora_ci.cli.adopt.files import walk
from azora_ci.cli.adopt.kubernetes import kustomize, patches
from azora_ci.cli.adopt.kubernetes.manifests import Manifest, Reader
from azora_ci.cli.adopt.repository import Files

BASE = """\
apiVersion: apps/v1
kind: Deployment
metadata: {name: api}
spec:
  replicas: 1
  template:
    spec:
      containers:
      - {name: api, image: "shop/api:dev", env: [{name: A, value: "1"}, {name: B, value: "2"}]}
      - {name: beside, image: beside}
---
apiVersion: v1
kind: Service
metadata: {name: api}
---
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: api}
spec: {rules: [{http: {paths: [{path: /, backend: {service: {name: api, port: {number: 80}}}}]}}]}
"""


def built(folder: Path, overlay: str, **files: str) -> tuple[list[Manifest], Reader]:
    contents = {"base/kustomization.yaml": "resources: [all.yaml]\n", "base/all.yaml": BASE, "prod/kustomization.yaml": overlay, **files}
    for name, content in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    paths = walk(folder)
    reader = Reader(Files(folder, paths), paths)
    return kustomize.build(reader, "prod"), reader


def containers(manifests: list[Manifest]) -> list[dict]:
    (deployment,) = [manifest.document for manifest in manifests if manifest.kind == "Deployment"]
    return deployment["spec"]["template"]["spec"]["containers"]


def test_only_what_nobody_names_is_built_by_itself(tmp_path):
    _, reader = built(
        tmp_path,
        "resources: [../base]\ncomponents: [../component]\n",
        **{"component/kustomization.yaml": "kind: Component\n", "alone/kustomization.yaml": "kind: Component\n"},
    )
    assert kustomize.folders(reader) == ["prod"]


def test_an_overlay_says_namespace_names_images_and_replicas(tmp_path):
    overlay = (
        "resources: [../base]\nnamespace: shop\nnamePrefix: live-\nreplicas: [{name: api, count: 4}]\n"
        "images: [{name: shop/api, newName: ghcr.io/acme/api, newTag: '7'}]\n"
    )
    manifests, _ = built(tmp_path, overlay)
    assert [(manifest.kind, manifest.name, manifest.namespace) for manifest in manifests] == [
        ("Deployment", "live-api", "shop"),
        ("Service", "live-api", "shop"),
        ("Ingress", "live-api", "shop"),
    ]
    assert containers(manifests)[0]["image"].startswith("ghcr.io/acme/api:")
    assert manifests[0].document["spec"]["replicas"] == 4
    assert manifests[2].document["spec"]["rules"][0]["http"]["paths"][0]["backend"]["service"]["name"] == "live-api"


STRATEGIC = "kind: Deployment\nmetadata: {name: api}\nspec: {template: {spec: {containers: [{name: api, env: [{name: B, value: '3'}]}]}}}\n"


@pytest.mark.parametrize(
    "overlay",
    [
        "resources: [../base]\npatchesStrategicMerge: [patch.yaml]\n",
        "resources: [../base]\npatches: [{path: patch.yaml}]\n",
        "resources: [../base]\npatches: [{path: patch.yaml, target: {kind: Deployment}}]\n",
        "resources: [../base]\npatches:\n- target: {kind: Deployment, name: api}\n  patch: |-\n"
        "    - op: replace\n      path: /spec/template/spec/containers/0/env/1/value\n      value: '3'\n",
        "resources: [../base]\npatchesJson6902: [{target: {kind: Deployment, name: api}, path: json.yaml}]\n",
        "resources: [../base]\ncomponents: [../component]\n",
    ],
)
def test_every_form_of_a_patch_is_applied(tmp_path, overlay):
    json_patch = "- {op: replace, path: /spec/template/spec/containers/0/env/1/value, value: '3'}\n"
    files = {
        "prod/patch.yaml": STRATEGIC,
        "prod/json.yaml": json_patch,
        "component/patch.yaml": STRATEGIC,
        "component/kustomization.yaml": "kind: Component\npatches: [{path: patch.yaml}]\n",
    }
    manifests, reader = built(tmp_path, overlay, **files)
    api, beside = containers(manifests)
    assert (api["image"], api["env"], beside) == (
        "shop/api:dev",
        [{"name": "A", "value": "1"}, {"name": "B", "value": "3"}],
        {"name": "beside", "image": "beside"},
    )
    assert reader.notes == {}


def test_a_patch_takes_away_what_it_names(tmp_path):
    deletes = "kind: Deployment\nmetadata: {name: api}\nspec: {template: {spec: {containers: [{name: beside, $patch: delete}]}}}\n"
    manifests, _ = built(
        tmp_path,
        "resources: [../base]\npatches: [{path: a.yaml}, {path: b.yaml}]\n",
        **{
            "prod/a.yaml": deletes,
            "prod/b.yaml": "$patch: delete\nkind: Service\nmetadata: {name: api}\n",
        },
    )
    assert [container["name"] for container in containers(manifests)] == ["api"]
    assert [manifest.kind for manifest in manifests] == ["Deployment", "Ingress"]


@pytest.mark.parametrize(
    ("operation", "result"),
    [
        ({"op": "add", "path": "/a/-", "value": 3}, {"a": [1, 2, 3], "b/c": 1}),
        ({"op": "remove", "path": "/a/0"}, {"a": [2], "b/c": 1}),
        ({"op": "replace", "path": "/b~1c", "value": 2}, {"a": [1, 2], "b/c": 2}),
        ({"op": "add", "path": "/a/0", "value": 0}, {"a": [0, 1, 2], "b/c": 1}),
    ],
)
def test_json_patches_are_those_of_their_rfc(operation, result):
    assert patches.changed({"a": [1, 2], "b/c": 1}, [operation]) == result


@pytest.mark.parametrize(
    "operation", [{"op": "add", "path": "/x/y", "value": 1}, {"op": "add", "path": "/a/99999999999"}, "x", {"path": 1}]
)
def test_a_json_patch_that_does_not_fit_is_refused(operation):
    with pytest.raises(ValueError, match=r"there is no|does not fit|no operation"):
        patches.changed({"a": [1]}, [operation])


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "overlay",
    [
        "resources: [../prod]\n",
        "resources: [../b0, ../b1]\n",
        "resources: [https://example.com/x, ../../outside, /etc]\n",
        "components: [.]\n",
    ],
)
def test_folders_that_name_one_another_or_lie_outside_end_in_time(tmp_path, overlay):
    many = {f"b{number}/kustomization.yaml": f"resources: [../b{(number + 1) % 9}, ../b{(number + 2) % 9}]\n" for number in range(9)}
    manifests, reader = built(tmp_path, overlay, **many)
    assert manifests == []
    assert reader.notes
