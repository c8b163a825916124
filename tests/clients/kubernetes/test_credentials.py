"""Tokens that expire, rotate or are bought from programs, on a real API server with real, short-lived tokens of service accounts."""

from __future__ import annotations

import base64
import io
import json
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import requests
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from azora_ci.clients.kubernetes import credentials, kubeconfig, stream
from azora_ci.clients.kubernetes.api import Api
from azora_ci.clients.kubernetes.kubeconfig import ClusterAccess, parse
from azora_ci.core import environment
from azora_ci.core.actions import Actions
from azora_ci.core.clock import Clock, rfc3339
from azora_ci.core.errors import BadInputError, UnreachableError
from azora_ci.core.job_log import JobLog
from azora_ci.core.process import Processes
from azora_ci.targets.kubernetes import manifests
from tests.support.forwarding import Place
from tests.support.waiting import until

READS = [{"apiGroups": [""], "resources": ["configmaps"], "verbs": ["list"]}]


class Plugin:
    """A program as ``aws eks get-token`` is one; what it prints and does next is written by the test. Each call leaves its environment."""

    def __init__(self, folder: Path, name: str = "aws") -> None:
        self.folder = folder
        self.path = folder / name
        self.path.write_text(f'#!/bin/sh\ncd "{folder}"; env -0 > part-$$; mv part-$$ "env-$(ls | grep -c env-)"\n. ./act\n')
        self.path.chmod(0o755)

    def act(self, script: str) -> None:
        (self.folder / "act.part").write_text(script)
        (self.folder / "act.part").replace(self.folder / "act")

    def give(self, token: str, seconds: float | None = 900, version: str = "v1", **status: Any) -> None:
        """Print a credential. ``seconds``: until it expires, None for no word about it."""
        if seconds is not None:
            status["expirationTimestamp"] = rfc3339(datetime.now(UTC) + timedelta(seconds=seconds))
        document = {"apiVersion": f"client.authentication.k8s.io/{version}", "kind": "ExecCredential", "spec": {}, "status": status}
        status["token"] = token
        self.act(f"cat <<'END'\n{json.dumps(document)}\nEND\n")

    @property
    def calls(self) -> list[dict[str, str]]:
        files = sorted(self.folder.glob("env-*"), key=lambda path: int(path.name[4:]))
        return [dict(line.split("=", 1) for line in path.read_text().split("\0") if line) for path in files]


@pytest.fixture
def plugin(tmp_path) -> Plugin:
    return Plugin(tmp_path)


class Client:
    """Our client with a user entry of a kubeconfig. ``output``: what its job prints, and what it logs."""

    def __init__(self, user: dict[str, Any], server: str = "https://127.0.0.1:9", authority: str | None = None, **entry: Any) -> None:
        self.output = io.StringIO()
        cluster = {"server": server, **({"certificate-authority": authority} if authority else {}), **entry}
        text = json.dumps(
            {
                "current-context": "c",
                "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
                "clusters": [{"name": "c", "cluster": cluster}],
                "users": [{"name": "u", "user": user}],
            }
        )
        self._make(parse(text, None))

    def _make(self, access: ClusterAccess) -> None:
        clock = Clock()
        self.lines: list[str] = []
        log = JobLog(Actions(stream=self.output), clock)
        write = log.write
        log.write = lambda line: (self.lines.append(line), write(line))  # type: ignore[method-assign] # what a log file would have
        self.processes = Processes(log)
        self.api = Api(access, self.processes, clock)

    @property
    def shown(self) -> str:
        # The workflow command that has the runner mask a text names it, and is not shown.
        printed = [line for line in self.output.getvalue().splitlines() if not line.startswith("::add-mask::")]
        return "\n".join([*printed, *self.lines])


def bought(plugin: Plugin, *args: str, env: dict[str, str] | None = None, version: str = "v1", **more: Any) -> dict[str, Any]:
    """Return a user entry whose token a program prints."""
    pairs = [{"name": name, "value": value} for name, value in (env or {}).items()]
    api_version = f"client.authentication.k8s.io/{version}"
    table = {"apiVersion": api_version, "command": str(plugin.path), "args": list(args), "env": pairs, "interactiveMode": "Never"}
    return {"exec": table | more}


# --- without a cluster ----------------------------------------------------------------------------------------------------


def test_a_program_inherits_nothing_but_where_credentials_are(plugin, monkeypatch):
    inherited = {"AWS_ROLE_ARN": "arn:role", "AWS_WEB_IDENTITY_TOKEN_FILE": "/var/token", "GOOGLE_APPLICATION_CREDENTIALS": "/g.json"}
    kept_away = {"PROD_KEY": "k", "AWS_SECRET_ACCESS_KEY": "s", "OWN_SERVICE_SECRET": "o", "ACTIONS_ID_TOKEN_REQUEST_TOKEN": "a"}
    for name, value in {**inherited, **kept_away}.items():
        monkeypatch.setenv(name, value)
    plugin.give("t0ken-of-the-program")
    client = Client(bought(plugin, env={"AWS_PROFILE": "deploy"}, provideClusterInfo=True), **{"tls-server-name": "api.internal"})
    assert client.api.headers() == {"Authorization": "Bearer t0ken-of-the-program"}
    (seen,) = plugin.calls
    info = json.loads(seen.pop("KUBERNETES_EXEC_INFO"))
    assert info["spec"] == {"interactive": False, "cluster": {"server": "https://127.0.0.1:9", "tls-server-name": "api.internal"}}
    assert inherited.items() <= seen.items()
    assert seen["AWS_PROFILE"] == "deploy"
    assert {"PATH", "HOME"} <= seen.keys()
    assert not kept_away.keys() & seen.keys()
    rest = seen.keys() - inherited.keys() - {"AWS_PROFILE", "PWD", "OLDPWD", "SHLVL", "_", *credentials.INHERITED}
    assert {name for name in rest if not name.startswith("LC_")} <= environment.ALLOWED


def test_a_program_that_fails_or_hangs_is_said_without_what_it_should_not_have_printed(plugin, monkeypatch):
    secret, key = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJhem9yYSJ9.c2lnbmF0dXJl", "from-users-exec-env"
    plugin.act(f'echo "no session; token {secret}; key $OWN_KEY" >&2; echo "{secret}"; exit 7')
    client = Client(bought(plugin, env={"OWN_KEY": key}))
    with pytest.raises(BadInputError) as failed:
        client.api.get("/version")
    assert "exit code 7; standard error: no session; token ***; key ***" in failed.value.what
    for text in (failed.value.message(), client.shown):
        assert secret not in text
        assert key not in text
    plugin.act("exec sleep 60")
    monkeypatch.setattr(credentials, "PLUGIN_SECONDS", 0.5)
    begun = time.monotonic()
    with pytest.raises(BadInputError, match=r"no end after 0\.5 s; it was stopped"):
        client.api.get("/version")
    assert time.monotonic() - begun < 10
    for nonsense in ("echo no JSON", 'echo "{}"', "true", """echo '{"status": {"clientCertificateData": "x"}}'"""):
        plugin.act(nonsense)
        with pytest.raises(BadInputError, match="gives no token"):
            client.api.get("/version")
    with pytest.raises(BadInputError, match="cannot be started"):
        Client({"exec": {"apiVersion": "client.authentication.k8s.io/v1", "command": "no-such-program"}}).api.get("/version")


def test_what_a_program_is_given_is_not_shown(plugin, monkeypatch):
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    arguments = ("login", "--client-secret=s3cret-behind=equals", "--password", "s3cret-in-a-word", "-ps3cret-of-a-letter", "eu-central-1")
    plugin.act('echo "bad: $*" >&2; exit 7')
    plugin.path.write_text(plugin.path.read_text().replace(". ./act", '. ./act "$@"'))
    client = Client(bought(plugin, *arguments, env={"OWN_KEY": "s3cret-in-a-variable", "REGION": "eu-central-1"}))
    with pytest.raises(BadInputError) as failed:
        client.api.get("/version")
    absent = {"exec": {"apiVersion": "client.authentication.k8s.io/v1", "command": "no-such-program", "args": list(arguments)}}
    other = Client(absent)
    with pytest.raises(BadInputError, match="cannot be started") as missing:
        other.api.get("/version")
    for text in (failed.value.message(), missing.value.message(), client.shown, other.shown):
        assert "s3cret" not in text
    assert f"$ {plugin.path} *** *** *** *** *** ***" in client.shown
    assert "bad: login --client-secret=*** --password *** -p*** ***" in failed.value.what
    log = client.processes.log
    assert log.masked("s3cret-behind=equals s3cret-in-a-word s3cret-in-a-variable") == "*** *** ***"
    assert log.masked("s3://backups-eu-central-1/login") == "s3://backups-eu-central-1/login"


def test_a_program_that_hangs_is_ended_with_the_job(plugin):
    plugin.act("exec sleep 60")
    client = Client(bought(plugin))
    outcome: list[BadInputError] = []

    def buy() -> None:
        try:
            client.api.credentials.token()
        except BadInputError as error:
            outcome.append(error)

    threading.Thread(target=buy, daemon=True).start()
    until(lambda: plugin.calls, "it runs")
    client.processes.end_all()
    until(lambda: outcome, "it is over", 10)


def test_a_token_is_renewed_before_it_expires_and_a_slow_program_holds_nobody_up(plugin, monkeypatch):
    monkeypatch.setattr(credentials, "SHORTEST_SECONDS", 0.3)
    plugin.give("first", seconds=4)
    client = Client(bought(plugin))
    assert client.api.credentials.token() == "first"
    plugin.act("sleep 0.7; exit 1")  # the cloud is unwell
    time.sleep(3.3)
    begun = time.monotonic()
    assert client.api.credentials.token() == "first"
    assert time.monotonic() - begun < 0.3
    until(lambda: "is not renewed yet" in client.shown, "it is said")
    plugin.give("second")
    time.sleep(1)
    until(lambda: client.api.credentials.token() == "second", "it is renewed", 10)


def test_threads_that_want_a_token_at_once_buy_one(plugin):
    plugin.give("only")
    client = Client(bought(plugin))
    threads = [threading.Thread(target=client.api.credentials.token) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(plugin.calls) == 1


def test_one_refusal_that_many_threads_heard_buys_one_token(plugin):
    plugin.give("old", seconds=None)
    wallet = Client(bought(plugin)).api.credentials
    wallet.token()
    plugin.give("new")
    for _ in range(4):
        assert wallet.refused("old")
        assert wallet.token() == "new"
    assert len(plugin.calls) == 2


@pytest.mark.parametrize(
    ("address", "environment", "proxy"),
    [
        ("https://api.example:6443", {"HTTPS_PROXY": "http://proxy.example:3128"}, "http://proxy.example:3128"),
        ("https://api.example:6443", {"HTTPS_PROXY": "http://proxy.example:3128", "NO_PROXY": ".example"}, None),
        ("https://127.0.0.1:6443", {"HTTPS_PROXY": "http://proxy.example:3128"}, None),
        ("https://localhost:6443", {"https_proxy": "http://proxy.example:3128"}, None),
        ("https://api.example:6443", {}, None),
    ],
)
def test_proxies_of_the_environment_lead_to_no_loopback(monkeypatch, address, environment, proxy):
    for name in ("HTTPS_PROXY", "https_proxy", "NO_PROXY", "no_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert Client({"token": "t"}, address).api._proxy == proxy


def test_only_jobs_that_talk_to_a_cluster_import_its_client():
    script = """
import importlib, pkgutil, sys
import azora_ci.steps, azora_ci.steps.runner
for module in pkgutil.iter_modules(azora_ci.steps.__path__):
    importlib.import_module(f"azora_ci.steps.{module.name}")
import azora_ci.targets.kubernetes.kind
print(sorted(name for name in sys.modules if name.startswith(("azora_ci.clients.kubernetes", "urllib3", "kubernetes"))))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# --- with one -------------------------------------------------------------------------------------------------------------


def client_of(cluster, user: dict[str, Any]) -> Client:
    return Client(user, cluster.api.server, str(cluster._certificate))


def made_account(cluster, name: str) -> str:
    """Make an account that may list ConfigMaps, in a namespace of its own, and return the path of what it may list."""
    cluster.user(name, READS, f"tokens-{name}")
    return f"/api/v1/namespaces/tokens-{name}/configmaps"


def parts(token: str) -> list[dict[str, Any]]:
    """Return the header and the claims of a token."""
    return [json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))) for part in token.split(".")[:2]]


def brief(cluster, name: str) -> str:
    """Return a token that the API server takes for two seconds, and from its cache for ten more; it issues none under 600 seconds itself.

    It is signed with the cluster's own key. The server's leeway is a minute.
    """
    header, claims = parts(cluster.token(name, f"tokens-{name}", 600))
    claims["exp"] = int(time.time()) - 58
    claims["iat"] = claims["nbf"] = claims["exp"] - 300
    signed = ".".join(base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in (header, claims))
    key = serialization.load_pem_private_key((cluster.folder / "accounts.key").read_bytes(), None)
    r, s = decode_dss_signature(key.sign(signed.encode(), ec.ECDSA(hashes.SHA256())))
    signature = r.to_bytes(32, "big") + s.to_bytes(32, "big")
    return f"{signed}.{base64.urlsafe_b64encode(signature).decode().rstrip('=')}"


def wait_refused(cluster, token: str, path: str) -> None:
    """Wait until the API server refuses a token."""
    asking = {"headers": {"Authorization": f"Bearer {token}"}, "verify": str(cluster._certificate), "timeout": 10}
    until(lambda: requests.get(cluster.api.server + path, **asking).status_code == 401, "the token has expired", 40)


@pytest.mark.kubernetes
def test_a_token_that_ends_in_the_middle_is_bought_anew(kubernetes, plugin):
    path, first = made_account(kubernetes, "bought"), brief(kubernetes, "bought")
    plugin.give(first, seconds=None)
    client = client_of(kubernetes, bought(plugin))
    assert client.api.get(path)["kind"] == "ConfigMapList"
    wait_refused(kubernetes, first, path)
    second = brief(kubernetes, "bought")
    plugin.give(second, seconds=None)
    assert client.api.get(path)["kind"] == "ConfigMapList"
    assert client.api.credentials.token() == second
    wait_refused(kubernetes, second, path)
    plugin.act("echo 'the session ended' >&2; exit 255")
    with pytest.raises(UnreachableError, match="the session ended"):
        client.api.create(path, {"metadata": {"name": "x"}})


@pytest.mark.kubernetes
def test_a_given_token_that_ended_is_said(kubernetes):
    path, token = made_account(kubernetes, "given"), brief(kubernetes, "given")
    client = client_of(kubernetes, {"token": token})
    client.api.get(path)
    wait_refused(kubernetes, token, path)
    with pytest.raises(UnreachableError, match="refuses our credentials") as caught:
        client.api.get(path)
    assert "set KUBECONFIG_DATA anew" in caught.value.next_step


@pytest.mark.kubernetes
def test_the_account_of_a_pod_goes_on_when_its_token_is_rotated(kubernetes, tmp_path):
    path, token = made_account(kubernetes, "pod"), brief(kubernetes, "pod")
    (tmp_path / "ca.crt").write_text(kubernetes._certificate.read_text())
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    (tmp_path / "one" / "token").write_text(token + "\n")
    (tmp_path / "..data").symlink_to("one")  # a kubelet swaps a link
    (tmp_path / "token").symlink_to("..data/token")
    host, port = kubernetes.api.server.removeprefix("https://").split(":")
    client = Client({"token": "unused"})
    client._make(kubeconfig.in_cluster({"KUBERNETES_SERVICE_HOST": host, "KUBERNETES_SERVICE_PORT": port}, tmp_path))
    client.api.get(path)
    wait_refused(kubernetes, token, path)
    with pytest.raises(UnreachableError, match="refuses our credentials"):
        client.api.create(path, {})
    (tmp_path / "two" / "token").write_text(kubernetes.token("pod", "tokens-pod", 600))
    (tmp_path / "..new").symlink_to("two")
    (tmp_path / "..new").replace(tmp_path / "..data")
    assert client.api.get(path)["kind"] == "ConfigMapList"
    (tmp_path / "token").unlink()
    with pytest.raises(UnreachableError, match="token of the service account cannot be read"):
        client.api.create(path, {})


@pytest.mark.kubernetes
def test_a_forward_is_opened_with_a_new_token(kubernetes, plugin, tmp_path):
    place = Place(kubernetes, tmp_path)
    place.add("talker")
    rules = manifests.rules(manifests.rights_to_database(place.settings()))
    place.cluster.user("forwarder", rules, place.namespace)
    plugin.give("not-a-token", seconds=None)
    client = client_of(kubernetes, bought(plugin))
    client.api.credentials.token()
    plugin.give(kubernetes.token("forwarder", place.namespace, 600))
    with stream.Stream(client.api, place.namespace, "talker", 5432) as opened:
        assert opened.pod == "talker"
    assert len(plugin.calls) == 2


@pytest.mark.kubernetes
@pytest.mark.parametrize(
    ("name", "arguments", "version"),
    [
        ("aws", ("--region", "eu-central-1", "eks", "get-token", "--cluster-name", "shop"), "v1beta1"),
        ("gke-gcloud-auth-plugin", (), "v1beta1"),
    ],
)
def test_what_the_clouds_print_opens_a_cluster(kubernetes, tmp_path, name, arguments, version):
    account = name.split("-", maxsplit=1)[0]
    path = made_account(kubernetes, account)
    plugin = Plugin(tmp_path, name)
    token = kubernetes.token(account, f"tokens-{account}", 600)
    left = parts(token)[1]["exp"] - time.time()
    assert 500 < left <= 610
    plugin.give(token, left, version)
    client = client_of(kubernetes, bought(plugin, *arguments, env={"AWS_STS_REGIONAL_ENDPOINTS": "regional"}, version=version))
    for _ in range(5):
        assert client.api.get(path)["kind"] == "ConfigMapList"
    (call,) = plugin.calls
    assert json.loads(call["KUBERNETES_EXEC_INFO"])["apiVersion"] == f"client.authentication.k8s.io/{version}"
    assert token not in client.shown
