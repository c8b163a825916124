"""What each workload becomes: left out with a reason, asked where its probes ask, reached as its Ingress says, built from its folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from azora_ci.cli.adopt.discover import Application, Wanted, discover
from tests.cli.adopt.kubernetes.test_adopted import DOCKERFILE, TOP, deployment, write


def only(folder: Path, files: dict[str, str]) -> Application:
    return discover(write(folder, {"api/Dockerfile": DOCKERFILE, **files}))


def test_what_argo_rollouts_cannot_run_is_left_out_with_the_reason(tmp_path):
    recreated = deployment("once").replace("spec:\n  selector", "spec:\n  strategy: {type: Recreate}\n  selector")
    files = {
        "k8s/a.yaml": deployment("api"),
        "k8s/b.yaml": recreated,
        "k8s/c.yaml": deployment("store").replace("Deployment", "StatefulSet"),
        "k8s/d.yaml": deployment("api-migrate", "ghcr.io/acme/api:1").replace("apps/v1\nkind: Deployment", "batch/v1\nkind: Job"),
        "k8s/e.yaml": deployment("idle").replace("spec:\n  selector", "spec:\n  replicas: 0\n  selector"),
        **{f"{name}/Dockerfile": DOCKERFILE for name in ("once", "store", "idle")},
    }
    left = only(tmp_path, files).left_out
    assert set(left) == {"Deployment once", "StatefulSet store", "Job api-migrate", "Deployment idle"}
    assert "Recreate" in left["Deployment once"]
    assert "database-migrations does that" in left["Job api-migrate"]


def test_a_rollout_with_a_workload_ref_is_read_and_not_driven(tmp_path):
    spec = "{workloadRef: {kind: Deployment, name: api}, strategy: {canary: {}}}"
    referring = f"apiVersion: argoproj.io/v1alpha1\nkind: Rollout\nmetadata: {{name: api}}\nspec: {spec}\n"
    application = only(tmp_path, {"k8s/a.yaml": deployment("api"), "k8s/b.yaml": referring})
    (service,) = application.services
    assert service.rollout.container == "api"
    assert "workloadRef" in service.marks["rollout.rollout"]
    assert any("move the template into the Rollout" in line for line in application.cluster.advice)


def test_one_namespace_is_driven_and_the_others_are_named(tmp_path):
    files = {
        "k8s/a.yaml": "---\n".join(
            [deployment("api", namespace="one"), deployment("web", namespace="one"), deployment("jobs", namespace="two")]
        )
    }
    application = only(tmp_path, {**files, "web/Dockerfile": DOCKERFILE, "jobs/Dockerfile": DOCKERFILE})
    assert [service.id for service in application.services] == ["api", "web"]
    assert application.cluster.namespace == "one"
    assert application.left_out == {"Deployment jobs": "in namespace two: this target drives one"}


@pytest.mark.parametrize(
    ("probe", "expected"),
    [
        ("readinessProbe: {httpGet: {path: /ready, port: 9000}}", (9000, "/ready")),
        ("livenessProbe: {httpGet: {path: /live, port: http}}", (8081, "/live")),
        ("startupProbe: {exec: {command: [curl, -f, 'http://localhost:7000/up']}}", (7000, "/up")),
        ("readinessProbe: {exec: {command: [check, http, 'localhost:7001/up']}}", (7001, "/up")),
        ("readinessProbe: {grpc: {port: 8081}}", (8081, None)),
        ("readinessProbe: {httpGet: {path: '/x y', port: 1}}", (8081, None)),
    ],
)
def test_health_is_asked_where_the_probes_ask(tmp_path, probe, expected):
    text = deployment("api").replace("ports: [{containerPort: 8081}]", f"ports: [{{name: http, containerPort: 8081}}], {probe}")
    (service,) = only(tmp_path, {"k8s/a.yaml": text}).services
    assert (service.port, service.health_path) == expected
    assert ("health_path" in service.marks) is ("grpc" in probe)


@pytest.mark.parametrize(
    ("annotations", "path", "public"),
    [
        ("", "/", "/health"),
        ("", "/api", None),
        ("annotations: {nginx.ingress.kubernetes.io/rewrite-target: /$2}, ", "/api(/|$)(.*)", "/api/health"),
        ("annotations: {nginx.ingress.kubernetes.io/rewrite-target: /}, ", "/", None),
    ],
)
def test_the_public_health_address_is_what_the_ingress_leads_to_it(tmp_path, annotations, path, public):
    service = "apiVersion: v1\nkind: Service\nmetadata: {name: s}\nspec: {selector: {app: api}, ports: [{port: 80}]}\n"
    ingress = (
        f"apiVersion: networking.k8s.io/v1\nkind: Ingress\nmetadata: {{{annotations}name: i}}\n"
        f"spec: {{rules: [{{http: {{paths: [{{path: '{path}', backend: {{service: {{name: s}}}}}}]}}}}]}}\n"
    )
    probed = deployment("api").replace("ports:", "readinessProbe: {httpGet: {path: /health, port: 1}}, ports:")
    (found,) = only(tmp_path, {"k8s/a.yaml": "---\n".join([probed, service, ingress])}).services
    assert (found.kind, found.public_health_url) == ("web", public)


@pytest.mark.parametrize(
    ("image", "files", "context"),
    [
        ("ghcr.io/acme/api:1", {"src/api/Dockerfile": DOCKERFILE, "x/Dockerfile": DOCKERFILE}, "src/api"),
        ("acme/shop-api", {"src/api/Dockerfile": DOCKERFILE, "x/Dockerfile": DOCKERFILE}, "src/api"),
        (
            "registry.acme.io/gateway",
            {"skaffold.yaml": "build: {artifacts: [{image: gateway, context: x}]}\n", "x/Dockerfile": DOCKERFILE},
            "x",
        ),
        ("acme/gateway", {"compose.yaml": "services: {g: {image: acme/gateway, build: y}}\n", "y/Dockerfile": DOCKERFILE}, "y"),
        ("acme/thing", TOP, "."),
        ("acme/api", {"apps/api/Dockerfile": "FROM node\nCOPY packages/shared ./\nEXPOSE 1\n", "packages/shared/a": ""}, "."),
        ("nginx:1", {"src/api/Dockerfile": DOCKERFILE}, None),
    ],
)
def test_images_are_matched_to_what_builds_them(tmp_path, image, files, context):
    folder = write(tmp_path, {**files, "k8s/production/a.yaml": deployment("gateway", image)})
    services = discover(folder, wanted=Wanted(target="kubernetes")).cluster.services
    assert [service.context for service in services] == ([] if context is None else [context])
