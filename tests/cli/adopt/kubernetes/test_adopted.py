"""Whole repositories with Kubernetes manifests: what is chosen, what is written, and that it loads and can be checked."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from azora_ci.cli.adopt import deploy_toml, plan
from azora_ci.cli.adopt.discover import Wanted, discover
from azora_ci.cli.main import main
from azora_ci.core import config
from azora_ci.gates.readiness import FILL_IN
from tests.support.commands import git

SHA = "0123456789abcdef0123456789abcdef01234567"
DOCKERFILE = "FROM node:22\nEXPOSE 3000\nCMD node server.js\n"
ROLLOUT = """\
apiVersion: argoproj.io/v1alpha1
kind: Rollout
metadata: {name: api-gateway, namespace: shop}
spec:
  replicas: 4
  selector: {matchLabels: {app: api-gateway}}
  template:
    metadata: {labels: {app: api-gateway}}
    spec:
      initContainers:
      - {name: schema, image: ghcr.io/acme/api-gateway:1, command: [npx, prisma, migrate, deploy]}
      containers:
      - {name: mesh, image: envoyproxy/envoy:v1.37.0}
      - name: app
        image: ghcr.io/acme/api-gateway:1
        ports: [{name: http, containerPort: 3000}, {name: debug, containerPort: 9229}]
        readinessProbe: {httpGet: {path: /api/health, port: http}}
        env:
        - {name: SESSION_KEY, valueFrom: {secretKeyRef: {name: sessions, key: key}}}
        - {name: SMTP_PASSWORD, value: not-to-be-copied}
        - {name: LEVEL, value: info}
        envFrom: [{secretRef: {name: database}}]
  strategy:
    canary:
      stableService: api-gateway
      canaryService: api-gateway-canary
      trafficRouting: {nginx: {stableIngress: shop}}
      steps: [{setWeight: 5}, {pause: {}}, {setWeight: 50}, {pause: {}}, {setWeight: 100}, {pause: {}}]
"""
SERVICES = """\
apiVersion: v1
kind: List
items:
- kind: Service
  metadata: {name: api-gateway, namespace: shop}
  spec: {selector: {app: api-gateway}, ports: [{port: 80, targetPort: http}]}
- kind: Service
  metadata: {name: api-gateway-canary, namespace: shop}
  spec: {selector: {app: api-gateway}, ports: [{port: 80}]}
- kind: Service
  metadata: {name: mailer, namespace: shop}
  spec: {selector: {app: mailer}, ports: [{port: 80, targetPort: 8081}]}
---
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: shop, namespace: shop}
spec:
  tls: [{hosts: [shop.acme.io]}]
  rules:
  - host: shop.acme.io
    http: {paths: [{path: /api, pathType: Prefix, backend: {service: {name: api-gateway, port: {number: 80}}}}]}
"""
DEPLOYMENT = """\
apiVersion: apps/v1
kind: Deployment
metadata: {name: NAME}
spec:
  selector: {matchLabels: {app: NAME}}
  template:
    metadata: {labels: {app: NAME}}
    spec: {containers: [{name: NAME, image: "IMAGE", ports: [{containerPort: 8081}]}]}
"""
TOP = {"Dockerfile": DOCKERFILE}


def deployment(name: str, image: str = "", *, namespace: str = "") -> str:
    text = DEPLOYMENT.replace("IMAGE", image or f"ghcr.io/acme/{name}:1").replace("NAME", name)
    return text.replace(f"metadata: {{name: {name}}}", f"metadata: {{name: {name}, namespace: {namespace}}}") if namespace else text


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    if not (folder / ".git").exists():
        git(folder, "init", "-q")
    return folder


def run(folder: Path, *arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(main, ["adopt", str(folder), "--ref", SHA, *arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


def written(folder: Path) -> str:
    return (folder / plan.CONFIG).read_text()


def lines_of(text: str, table: str) -> dict[str, str]:
    """Return key -> value with its comment, of one table."""
    part = text.split(f"[{table}]\n", 1)[1].split("\n\n", 1)[0]
    return dict(line.split(" = ", 1) for line in part.splitlines())


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """Return a repository whose Rollout, Deployment, Services and Ingress lie in one folder, beside a compose file for development."""
    return write(
        tmp_path / "shop",
        {
            "services/api-gateway/Dockerfile": DOCKERFILE,
            "services/mailer/Dockerfile": DOCKERFILE,
            "services/api-gateway/server.js": "",
            "docker-compose.yml": "services: {api-gateway: {build: services/api-gateway, ports: [3000]}}\n",
            "deploy/production/rollout.yaml": ROLLOUT,
            "deploy/production/mailer.yaml": deployment("mailer", namespace="shop"),
            "deploy/production/services.yaml": SERVICES,
            "deploy/production/redis.yaml": deployment("redis", "redis:7", namespace="shop"),
            "deploy/staging/rollout.yaml": ROLLOUT.replace("shop", "staging"),
        },
    )


def test_rollouts_are_written_with_the_place_where_each_value_was_found(shop):
    code, output = run(shop)
    assert code == 0, output
    text = written(shop)
    assert lines_of(text, "target") == {"kind": '"kubernetes"'}
    assert re.fullmatch(r'"shop" +# deploy/production/\w+.yaml', lines_of(text, "target.kubernetes")["namespace"])
    gateway = lines_of(text, "target.kubernetes.services.api_gateway")
    assert {key: value.partition(" ")[0] for key, value in gateway.items()} == {
        "rollout": '"api-gateway"',
        "container": '"app"',
        "stable_service": '"api-gateway"',
        "canary_service": '"api-gateway-canary"',
    }
    assert all("# " in value and FILL_IN not in value for value in gateway.values())
    service = lines_of(text, "services.api_gateway")
    assert {key: value.split(" ")[0] for key, value in service.items() if key != "title"} == {
        "route_prefix": '"/api"',
        "health_path": '"/api/health"',
        "public_health_url": '"/api/health"',
        "port": "3000",
        "context": '"services/api-gateway"',
        "dockerfile": '"Dockerfile"',
    }
    assert "# readinessProbe" in service["health_path"] and "# Ingress shop in deploy/production/services.yaml" in service["route_prefix"]
    assert 'public_url = "https://shop.acme.io"' in text
    assert 'repository = "ghcr.io/acme"' in text
    assert "not-to-be-copied" not in text + output


def test_the_written_configuration_loads_and_is_checked(shop):
    run(shop)
    loaded = config.load(shop / plan.CONFIG)
    assert loaded.target.kubernetes is not None
    assert (loaded.target.kubernetes.namespace, sorted(loaded.target.kubernetes.rollouts)) == ("shop", ["api_gateway", "mailer"])
    assert [worker.id for worker in loaded.workers] == ["mailer"]
    code, output = run(shop, "--check")
    assert code == 1
    assert "is still to be filled in: deploy/production/mailer.yaml has a Deployment: make it a Rollout" in output
    assert "Deployments to make Rollouts of (kubernetes.md has the lines): mailer" in output
    assert "docker_hosts" not in output
    assert "runner-alive" not in output  # which edge install adds


def test_what_stays_in_the_cluster_and_what_bypasses_the_backup_is_said(shop):
    output = run(shop)[1]
    assert "Found in deploy/production (manifests, production's, by its name):" in output
    assert "api_gateway: stays in the cluster's Secrets: SESSION_KEY (sessions/key), all of database" in output
    assert "api_gateway: looks like a secret and stands in deploy/production/rollout.yaml: SMTP_PASSWORD" in output
    assert "api_gateway migrates at its own start: prisma migrate deploy (initContainer schema in deploy/production/rollout.yaml)" in output
    assert "left out: Deployment redis, not built here (image redis:7)" in output
    assert "not read: deploy/staging" in output
    assert "docker-compose.yml is not said to be production's (--target kubernetes or docker_hosts chooses)" in output


@pytest.mark.parametrize(
    ("compose", "manifests", "target"),
    [
        ("docker-compose.yml", "k8s", "docker_hosts"),
        ("docker-compose.yml", "k8s/production", "kubernetes"),
        ("docker-compose.prod.yml", "k8s/production", "docker_hosts"),
        ("", "k8s", "kubernetes"),
        ("", "examples/k8s", "docker_hosts"),
    ],
)
def test_a_production_overlay_wins_over_a_compose_file_that_is_not_productions(tmp_path, compose, manifests, target):
    files = {f"{manifests}/a.yaml": deployment("api"), "api/Dockerfile": DOCKERFILE}
    folder = write(tmp_path, files | ({compose: "services: {api: {build: api, ports: [80]}}"} if compose else {}))
    application = discover(folder)
    assert application.target == target
    assert bool(application.target_reason) is bool(application.cluster.services)
    for chosen in ("kubernetes", "docker_hosts"):
        assert discover(folder, wanted=Wanted(target=chosen)).target == chosen


def test_a_compose_file_of_development_gives_way(tmp_path):
    compose = "services: {api: {build: api, ports: [80], command: npm run dev}}"
    folder = write(tmp_path, {"k8s/a.yaml": deployment("api"), "api/Dockerfile": DOCKERFILE, "compose.yaml": compose})
    assert (discover(folder).target, discover(folder).target_reason) == ("kubernetes", "compose.yaml has values of development")


def test_the_target_of_a_kept_configuration_stays(tmp_path):
    folder = write(tmp_path, {"k8s/a.yaml": deployment("api"), "api/Dockerfile": DOCKERFILE})
    run(folder, "--target", "docker_hosts")
    assert plan.plan(folder).application.target == "docker_hosts"
    (folder / plan.CONFIG).unlink()
    assert plan.plan(folder, plan.SetupAction("a/b", SHA)).application.target == "kubernetes"


def test_without_manifests_rollouts_are_to_be_filled_in(tmp_path):
    compose = "services: {api: {build: ., ports: [80], environment: {A: 1}}, seed: {build: ., restart: 'no'}}"
    folder = write(tmp_path, {"compose.yaml": compose, **TOP})
    code, output = run(folder, "--target", "kubernetes")
    assert code == 0, output
    assert "left out: seed, a job stays with Helm, Argo CD or a Kubernetes Job" in output
    table = lines_of(written(folder), "target.kubernetes.services.api")
    assert all(FILL_IN in value for value in table.values())
    assert not re.search("^env = ", written(folder), re.MULTILINE)
    assert config.load(folder / plan.CONFIG).target.kind == "kubernetes"


def test_manifests_may_be_named_and_must_be_there(tmp_path):
    folder = write(tmp_path, {"examples/one/a.yaml": deployment("api"), "api/Dockerfile": DOCKERFILE})
    application = discover(folder, wanted=Wanted(manifests=["examples/one"]))
    assert [service.id for service in application.services] == ["api"]
    for missing in ("examples/two", "../.."):
        code, output = run(folder, "--manifests", missing)
        assert (code, "No such manifests" in output) == (2, True)


def test_manifests_that_run_nothing_of_the_repository_are_named(tmp_path):
    folder = write(
        tmp_path, {"k8s/a.yaml": deployment("api"), "examples/b.yaml": deployment("b"), "web/Dockerfile": DOCKERFILE, "x/Dockerfile": ""}
    )
    output = run(folder)[1]
    assert "Kubernetes manifests that are not read, or run nothing that is built here: k8s, examples (--manifests PATH" in output


# --- Kustomize, Helm, GitOps ---------------------------------------------------------------------------------------------------


def test_the_production_overlay_is_read_and_the_others_are_named(tmp_path):
    files = {
        "k8s/base/kustomization.yaml": "resources: [a.yaml]\n",
        "k8s/base/a.yaml": deployment("api", "api"),
        "src/api/Dockerfile": DOCKERFILE,
    }
    for name in ("dev", "production", "staging"):
        files[f"k8s/overlays/{name}/kustomization.yaml"] = (
            f"resources: [../../base]\nnamespace: shop-{name}\nimages: [{{name: api, newName: registry.acme.io/{name}/api}}]\n"
        )
    cluster = discover(write(tmp_path, files)).cluster
    assert (cluster.files, cluster.reason) == (("k8s/overlays/production",), "production's, by its name")
    assert (cluster.namespace, cluster.namespace_from) == ("shop-production", "k8s/overlays/production")
    assert cluster.others == ("k8s/overlays/dev", "k8s/overlays/staging")
    assert cluster.registry == "registry.acme.io/production"
    assert cluster.services[0].context == "src/api"


def test_the_namespace_of_another_environment_is_to_be_filled_in(tmp_path):
    overlay = "resources: [../../base]\nnamespace: staging\n"
    files = {
        "k8s/base/kustomization.yaml": "resources: [a.yaml]\n",
        "k8s/base/a.yaml": deployment("api"),
        "k8s/overlays/staging/kustomization.yaml": overlay,
        "api/Dockerfile": DOCKERFILE,
    }
    text = deploy_toml.render(discover(write(tmp_path, files)))
    assert FILL_IN in lines_of(text, "target.kubernetes")["namespace"]


CHART = {
    "chart/Chart.yaml": "name: api\nversion: 1.0.0\n",
    "chart/values.yaml": "image: {repository: ghcr.io/acme/api, tag: latest}\n",
    "chart/templates/d.yaml": deployment("{{ .Release.Name }}-api", "{{ .Values.image.repository }}:{{ .Values.image.tag }}"),
    "api/Dockerfile": DOCKERFILE,
}
ARGO = """\
apiVersion: argoproj.io/v1alpha1
kind: Application
metadata: {name: live, namespace: argocd}
spec:
  source: {path: chart, helm: {valueFiles: [values.yaml]}}
  destination: {namespace: shop}
"""
FLUX = """\
apiVersion: helm.toolkit.fluxcd.io/v2
kind: HelmRelease
metadata: {name: live, namespace: shop}
spec: {chart: {spec: {chart: ./chart}}, values: {image: {tag: "2"}}}
"""


def test_a_charts_names_are_guesses_until_somebody_says_the_release(tmp_path):
    application = discover(write(tmp_path, CHART))
    (service,) = application.services
    assert (service.id, service.rollout.rollout, service.context) == ("api_api", "api-api", "api")
    assert "its name is made of the release's name" in service.marks["rollout.rollout"]


@pytest.mark.parametrize(("entry", "tool"), [(ARGO, "Argo CD"), (FLUX, "Flux")])
def test_a_gitops_tool_says_release_and_namespace_and_is_told_what_to_ignore(tmp_path, entry, tool):
    application = discover(write(tmp_path, {**CHART, "gitops/live.yaml": entry}))
    (service,) = application.services
    assert (service.rollout.rollout, application.cluster.namespace) == ("live-api", "shop")
    assert application.cluster.reason == f"{tool} deploys it, by gitops/live.yaml"
    (note,) = [note for note in application.cluster.notes if "would set a release's image back" in note]
    assert "/spec/template" in note


def test_an_application_that_ignores_the_template_is_not_told_again(tmp_path):
    ignoring = f"{ARGO}  ignoreDifferences: [{{group: argoproj.io, kind: Rollout, jsonPointers: [/spec/template]}}]\n"
    notes = discover(write(tmp_path, {**CHART, "gitops/live.yaml": ignoring})).cluster.notes
    assert any("leaves the Rollouts' spec.template alone" in note for note in notes)
    assert not any("would set" in note for note in notes)
