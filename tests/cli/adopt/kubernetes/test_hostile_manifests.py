"""Manifests that mean harm: they end in time and in words, write nothing that they were not asked for, and read nothing outside."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from azora_ci.cli.adopt import deploy_toml
from azora_ci.cli.adopt.discover import Wanted, discover
from tests.cli.adopt.kubernetes.test_adopted import DOCKERFILE, deployment, write

API = {"api/Dockerfile": DOCKERFILE, "k8s/api.yaml": deployment("api")}
ROLLOUT = "apiVersion: argoproj.io/v1alpha1\nkind: Rollout\nmetadata: {name: api}\n"
TEMPLATE = "template: {spec: {containers: [{name: api, image: api}]}}"
DOUBLING = "".join(f"x{number}: &a{number} [{', '.join([f'*a{number - 1}'] * 9)}]\n" for number in range(1, 12))
V1 = "apiVersion: v1\nkind:"
DOCUMENTS = {
    "aliases that double": f"{V1} Deployment\nx0: &a0 [1]\n{DOUBLING}",
    "deep": V1 + " Deployment\nx: " + "[" * 3000 + "]" * 3000,
    "no YAML": V1 + " Deployment\n\t: {",
    "a program": V1 + " Deployment\nx: !!python/object/apply:os.system ['touch executed']\n",
    "spec is a text": V1 + " Deployment\nmetadata: x\nspec: x\n",
    "containers are numbers": V1 + " Deployment\nmetadata: {name: a}\nspec: {template: {spec: {containers: [1, [], null]}}}\n",
    "metadata is a list": V1 + " Service\nmetadata: []\nspec: {selector: [], ports: {}}\n",
    "an Ingress of other shapes": V1 + " Ingress\nmetadata: {annotations: x}\nspec: {rules: [1, {http: x}], defaultBackend: 3}\n",
    "an HTTPRoute of other shapes": V1 + " HTTPRoute\nspec: {rules: [{matches: 1, backendRefs: [2], filters: x}], hostnames: 3}\n",
    "a List of no list": V1 + " List\nitems: {a: 1}\n---\napiVersion: v1\nkind: Deployment\n",
    "steps of other shapes": f"{ROLLOUT}spec: {{{TEMPLATE}, strategy: {{canary: {{steps: [1, {{pause: x}}, null]}}}}}}\n",
    "a canary that is a text": f"{ROLLOUT}spec: {{{TEMPLATE}, strategy: {{canary: x}}}}\n",
    "an Application of other shapes": ROLLOUT.replace("Rollout", "Application") + "spec: {sources: [1], source: x, destination: 2}\n",
    "templates of analysis": "apiVersion: v1\nkind: AnalysisTemplate\nspec: {metrics: [1, {provider: {prometheus: x}}]}\n",
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("content", DOCUMENTS.values(), ids=DOCUMENTS.keys())
@pytest.mark.parametrize("place", ["k8s/other.yaml", "chart/templates/other.yaml", "kustomize/kustomization.yaml", "chart/values.yaml"])
def test_what_no_reader_expects_stops_nothing(tmp_path, content, place):
    files = {**API, place: content}
    if place.startswith("chart"):
        files = {"chart/Chart.yaml": "name: x\n", "chart/templates/a.yaml": "{{ .Values }}\n", **files}
    folder = write(tmp_path, files)
    application = discover(folder, wanted=Wanted(target="kubernetes"))
    assert "api" in [service.id for service in application.services]
    tomllib.loads(deploy_toml.render(application))
    assert not (tmp_path / "executed").exists()


INJECTED = 'x"\\n[target.kubernetes.services.evil]\\nrollout = "evil'


@pytest.mark.parametrize(
    "content",
    [
        deployment("api").replace("metadata: {name: api}", f'metadata: {{name: "{INJECTED}"}}'),
        deployment("api").replace("metadata: {name: api}", f'metadata: {{name: api, namespace: "{INJECTED}"}}'),
        deployment("api").replace("containers: [{name: api", f'containers: [{{name: "{INJECTED}"'),
        deployment("api", INJECTED.replace('"', '\\"')),
        deployment("api")
        .replace("ports:", f'readinessProbe: {{httpGet: {{path: "/{INJECTED}".replace, port: 1}}}}, ports:')
        .replace(".replace", ""),
    ],
)
def test_no_name_of_a_manifest_writes_more_than_a_value(tmp_path, content):
    folder = write(
        tmp_path, {**API, "Dockerfile": DOCKERFILE, "k8s/api.yaml": content.replace('x"', 'x\\"').replace('= "evil', '= \\"evil')}
    )
    document = tomllib.loads(deploy_toml.render(discover(folder, wanted=Wanted(target="kubernetes"))))
    assert "evil" not in document["target"]["kubernetes"]["services"]


def test_the_name_of_a_file_writes_nothing(tmp_path):
    folder = write(tmp_path, {"api/Dockerfile": DOCKERFILE, "k8s/a\n[evil]\nb = 1.yaml": deployment("api")})
    application = discover(folder, wanted=Wanted(target="kubernetes"))
    assert [service.id for service in application.services] == ["api"]
    assert "evil" not in tomllib.loads(deploy_toml.render(application))


@pytest.mark.parametrize("place", ["k8s", "k8s/a.yaml", "kustomization.yaml", "chart/values.yaml"])
def test_nothing_is_read_through_a_link_that_leads_out(tmp_path, place):
    outside = write(tmp_path / "outside", {"a.yaml": deployment("api"), "b/kustomization.yaml": "resources: [../a.yaml]\n"})
    folder = write(tmp_path / "inside", {"api/Dockerfile": DOCKERFILE})
    (folder / place).parent.mkdir(parents=True, exist_ok=True)
    (folder / place).symlink_to(outside if place == "k8s" else outside / "a.yaml")
    assert discover(folder).cluster.services == ()
    (folder / "kustomization.yaml").unlink(missing_ok=True)
    (folder / "kustomization.yaml").write_text("resources: [../outside/a.yaml, ../outside/b]\n")
    assert discover(folder).cluster.services == ()


@pytest.mark.timeout(90)
def test_a_repository_of_nothing_but_manifests_is_read_in_time(tmp_path: Path):
    many = {f"k8s/{number:04}.yaml": f"{deployment(f'a{number}')}# {'x' * 4000}\n" for number in range(1500)}
    application = discover(write(tmp_path, {**API, **many}), wanted=Wanted(target="kubernetes"))
    assert any("are there" in note for note in application.cluster.notes)
