"""Kubeconfigs: what is accepted, and what is refused without showing any of it."""

from __future__ import annotations

import base64
import json

import pytest

from azora_ci.clients.kubernetes.kubeconfig import in_cluster, parse
from azora_ci.core.errors import BadInputError

PEM = base64.b64encode(b"-----BEGIN CERTIFICATE-----\n").decode()


def text(cluster=None, user=None, **more) -> str:
    document = {
        "current-context": "here",
        "contexts": [
            {"name": "here", "context": {"cluster": "c", "user": "u"}},
            {"name": "there", "context": {"cluster": "d", "user": "u"}},
        ],
        "clusters": [
            {"name": "c", "cluster": {"server": "https://api.example:6443/", **(cluster or {})}},
            {"name": "d", "cluster": {"server": "https://there.example"}},
        ],
        "users": [{"name": "u", "user": user if user is not None else {"token": "hunter2"}}],
    }
    return json.dumps(document | more)  # JSON is YAML


def test_the_current_context_counts_unless_one_is_named():
    access = parse(text({"certificate-authority-data": PEM}), None)
    assert (access.server, access.token, access.ca) == ("https://api.example:6443", "hunter2", "-----BEGIN CERTIFICATE-----\n")
    assert parse(text(), "there").server == "https://there.example"
    assert "hunter2" not in repr(access)


def test_a_certificate_a_file_and_a_program_show_who_we_are(tmp_path):
    (tmp_path / "token").write_text("t")
    pair = {"client-certificate-data": PEM, "client-key-data": PEM}
    assert parse(text(user=pair), None).certificate == "-----BEGIN CERTIFICATE-----\n\n-----BEGIN CERTIFICATE-----\n"
    assert parse(text(user={"tokenFile": str(tmp_path / "token")}), None).token_file == tmp_path / "token"
    program = {
        "apiVersion": "client.authentication.k8s.io/v1",
        "command": "aws",
        "args": ["eks"],
        "env": [{"name": "AWS_PROFILE", "value": "p"}],
    }
    plugin = parse(text(user={"exec": program}), None).plugin
    assert (plugin.argv, plugin.env) == (("aws", "eks"), {"AWS_PROFILE": "p"})


@pytest.mark.parametrize(
    ("document", "problem"),
    [
        ("token: hunter2: {", "it is no YAML"),
        ("- hunter2", "TypeError"),
        (text(**{"current-context": "nowhere"}), "contexts has no 'nowhere', only here, there"),
        (text({"server": "http://api.example"}), "is not https"),
        (text({"insecure-skip-tls-verify": True}), "anybody on the way could take our credentials"),
        (text({"certificate-authority-data": "hunter2!"}), "certificate-authority-data is no base64"),
        (text(user={"client-certificate-data": PEM}), "one does nothing without the other"),
        (text(user={"username": "u", "password": "hunter2"}), r"users\.username is not supported"),
        (text(user={"tokenFile": "/nowhere/token", "client-key": "/nowhere"}), "No such file"),
    ],
)
def test_what_cannot_be_used_is_said_without_its_secrets(document, problem):
    with pytest.raises(BadInputError, match=problem) as refused:
        parse(document, None)
    assert "hunter2" not in refused.value.message()


def test_the_account_of_a_pod_is_used_only_in_one(tmp_path):
    with pytest.raises(BadInputError, match="does not run in a pod"):
        in_cluster({}, tmp_path)
    (tmp_path / "token").write_text("t")
    (tmp_path / "ca.crt").write_text("ca")
    access = in_cluster({"KUBERNETES_SERVICE_HOST": "fd00::1", "KUBERNETES_SERVICE_PORT": "6443"}, tmp_path)
    assert (access.server, access.ca, access.token_file) == ("https://[fd00::1]:6443", "ca", tmp_path / "token")
