"""Which clusters of a person's kubeconfig a rehearsal takes."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from azora_ci.core.errors import BadInputError
from azora_ci.rehearsal.kubernetes import context


def kubeconfig(path: Path, name: str) -> Path:
    document = {
        "clusters": [{"name": name, "cluster": {"server": f"https://{name}.example:6443"}}],
        "users": [{"name": name, "user": {"token": "none"}}],
        "contexts": [{"name": name, "context": {"cluster": name, "user": name}}],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document), encoding="utf-8")
    return path


@pytest.mark.parametrize("name", ["production", "kind", "my-kind-x", "minikube-2", "arn:aws:eks:eu-west-1:1:cluster/kind-x"])
def test_a_cluster_that_may_be_somebodys_production_is_refused(tmp_path: Path, name: str) -> None:
    path = kubeconfig(tmp_path / "config", name)
    with pytest.raises(BadInputError, match="not named kind-… or minikube"):
        context.require(name, {"KUBECONFIG": str(path)})


def test_a_cluster_to_throw_away_is_found_in_every_file_of_a_person(tmp_path: Path) -> None:
    first, second = kubeconfig(tmp_path / "one", "production"), kubeconfig(tmp_path / "two", "kind-shop")
    environ = {"KUBECONFIG": f"{first}{os.pathsep}{second}", "HOME": str(tmp_path)}
    assert context.require("kind-shop", environ) == "https://kind-shop.example:6443"
    kubeconfig(tmp_path / ".kube" / "config", "minikube")
    assert context.require("minikube", {"HOME": str(tmp_path)}) == "https://minikube.example:6443"


def test_an_unknown_one_is_named_with_where_it_was_looked_for(tmp_path: Path) -> None:
    path = kubeconfig(tmp_path / "config", "kind-shop")
    with pytest.raises(BadInputError, match="contexts has no 'kind-other', only kind-shop") as caught:
        context.require("kind-other", {"KUBECONFIG": str(path)})
    assert caught.value.where == str(path)
    with pytest.raises(BadInputError, match="there is no kubeconfig"):
        context.require("kind-other", {"HOME": str(tmp_path / "nobody")})


def test_a_rehearsal_there_is_not_there_yet() -> None:
    assert "listen on loopback" in context.refusal("kind-shop", "https://kind-shop.example").what
