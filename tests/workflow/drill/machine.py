"""A runner's machine in namespaces of its own, on which one job runs with what its block of the workflow gives it.

``python machine.py < task.json > outcome.json`` runs as root in new PID, mount and network namespaces (``test_drill.py`` makes them).
Canaries lie where secrets lie on machines: in files of the home, the workspace, RUNNER_TEMP and /tmp, behind Unix sockets, and at the
metadata address of clouds.
"""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import socket
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from azora_ci.core.actions import Actions
from azora_ci.core.clock import Clock, rfc3339
from azora_ci.core.job_log import JobLog
from azora_ci.core.pipeline import APPLICATION_JOBS
from azora_ci.core.process import Processes
from azora_ci.database.backup import manifest
from azora_ci.database.cluster import Cluster
from azora_ci.database.postgres import DatabaseUrl
from tests.support import ROOT, backups, deploy_config, trees

HOME = Path("/home/runner")
TEMP = HOME / "work" / "_temp"
COMMAND_FILES = TEMP / "_runner_file_commands"
WORKSPACE = HOME / "work" / "azora" / "azora"
ID = "1764000000-abc123"
HUNT = ["/usr/bin/python3", "hunt.py", str(WORKSPACE)]
METADATA = """
import http.server, subprocess, sys, time
while subprocess.run(["ip", "addr", "add", "169.254.169.254/16", "dev", "cloud"], capture_output=True).returncode:
    time.sleep(0.05)
for device in ("lo", "cloud"):
    subprocess.run(["ip", "link", "set", device, "up"], check=True)
class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200), self.end_headers(), self.wfile.write(sys.stdin_text.encode())
sys.stdin_text = sys.stdin.readline()
http.server.HTTPServer(("169.254.169.254", 80), Answer).serve_forever()
"""


def arrange(canaries: Mapping[str, str]) -> None:
    """Make homes, workspace and temporary folders, and put the canaries of the machine where anybody may read them."""
    for folder in ("/tmp", "/home", "/mnt", "/run", "/var/tmp", "/dev/shm"):
        subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=1777", "drill", folder], check=True)
    COMMAND_FILES.mkdir(parents=True)
    WORKSPACE.mkdir(parents=True)
    (WORKSPACE / "hunt.py").write_bytes(Path(__file__).with_name("hunt.py").read_bytes())
    places = {
        "HOME": HOME / ".aws" / "credentials",
        "RUNNER_TEMP": TEMP / "credentials.json",
        "TMP": Path("/tmp/token"),
        "WORKSPACE": WORKSPACE / "deployment-logs.refused-1" / "log",
        "COMMAND_FILE": COMMAND_FILES / "set_env_0",
    }
    for name, path in places.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(canaries[name], encoding="utf-8")
        path.chmod(0o666)


class _Answer(socketserver.BaseRequestHandler):
    canary = ""

    def handle(self) -> None:
        self.request.sendall(self.canary.encode())


@contextlib.contextmanager
def served(canaries: Mapping[str, str]) -> Iterator[None]:
    """Serve a canary on a Unix socket in /run and in /tmp, and one at the metadata address, which lies beyond this machine."""
    _Answer.canary = canaries["SOCKET"]
    for path in ("/run/agent.sock", "/tmp/agent.sock"):
        server = socketserver.ThreadingUnixStreamServer(path, _Answer)
        Path(path).chmod(0o777)
        threading.Thread(target=server.serve_forever, daemon=True).start()
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    subprocess.run(["ip", "link", "add", "machine", "type", "veth", "peer", "name", "cloud"], check=True)
    argv = ["unshare", "--net", sys.executable, "-c", METADATA]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, text=True) as cloud:
        assert cloud.stdin is not None
        cloud.stdin.write(canaries["METADATA"] + "\n")
        cloud.stdin.flush()
        own = Path("/proc/self/ns/net").readlink()
        while Path(f"/proc/{cloud.pid}/ns/net").readlink() == own:
            time.sleep(0.02)
        subprocess.run(["ip", "link", "set", "cloud", "netns", str(cloud.pid)], check=True)
        subprocess.run(["ip", "addr", "add", "169.254.0.1/16", "dev", "machine"], check=True)
        subprocess.run(["ip", "link", "set", "machine", "up"], check=True)
        deadline = time.monotonic() + 30
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("169.254.169.254", 80), 1):
                break
            assert time.monotonic() < deadline
            time.sleep(0.05)
        try:
            yield
        finally:
            cloud.kill()


def environment(given: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of the job's step: the workflow's own, and what a runner sets."""
    runner = {
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": str(HOME), "LANG": "C.UTF-8", "CI": "true", "GITHUB_ACTIONS": "true",
        "GITHUB_WORKSPACE": str(WORKSPACE), "RUNNER_TEMP": str(TEMP), "GITHUB_RUN_ID": "1",
        "GITHUB_ENV": str(COMMAND_FILES / "set_env_1"), "GITHUB_OUTPUT": str(COMMAND_FILES / "set_output_1"),
    }  # fmt: skip
    return {**runner, "PYTHONPATH": str(ROOT), **given}


def run_step(argv: list[str], given: Mapping[str, str]) -> str:
    """Run the job's step as the runner does, and return what it printed."""
    completed = subprocess.run(argv, env=environment(given), cwd=WORKSPACE, capture_output=True, text=True, check=False, timeout=120)
    return completed.stdout + completed.stderr


def run_application_job(job: str, given: Mapping[str, str]) -> str:
    """Run the step of audit, build or images on a repository whose commands and install scripts are the hunt."""
    scripts = dict.fromkeys(("preinstall", "install", "postinstall", "prepare"), " ".join(HUNT))
    (WORKSPACE / "package.json").write_text(json.dumps({"name": "shop", "version": "1.0.0", "scripts": scripts}), encoding="utf-8")
    (WORKSPACE / "package-lock.json").write_text(json.dumps({"lockfileVersion": 3, "packages": {}}), encoding="utf-8")
    commands = {"checks": {"required": ["test"], "build": [HUNT]}, "build": {"commands": [HUNT]}, "validation": {}}
    path = deploy_config.write(WORKSPACE / "deploy.toml", **commands)
    return run_step([sys.executable, str(ROOT / "scripts" / f"{job}.py")], {**given, "DEPLOY_CONFIG": str(path)})


def run_migrations(given: Mapping[str, str], password: str) -> str:
    """Run database-migrations with the hunt as the migrate command, behind a backup of a real database."""
    from tests.support import fragments_builder

    folder = Path("/mnt/cluster")
    cluster = Cluster.start(folder, processes=Processes(JobLog(Actions(stream=io.StringIO()), Clock())))
    try:
        admin = DatabaseUrl.parse(cluster.url()).connect()
        with admin.cursor() as cursor:
            cursor.execute(f"CREATE ROLE drill SUPERUSER LOGIN PASSWORD '{password}'")
        admin.close()
        url = DatabaseUrl("127.0.0.1", str(cluster.port), "drill", password, "postgres")
        built = Path("/mnt/built")
        for checkout in (WORKSPACE, built):
            migration = checkout / "prisma" / "migrations" / "1_first" / "migration.sql"
            migration.parent.mkdir(parents=True)
            migration.write_text("SELECT 1;\n", encoding="utf-8")
        shutil.move(WORKSPACE / "hunt.py", built / "hunt.py")
        path = deploy_config.write(WORKSPACE / "deploy.toml", database={"migrate": HUNT, "prepare": []})
        received = TEMP / "received-artifacts"
        trees.hand_over(built, received, ID)
        document = backups.describe(url.text, ID, timedelta(minutes=1))
        backups.fragment(received, manifest.Manifest(document, "key", backups.sha256(document)))
        step = {**given, "PROD_DATABASE_URL": url.text, "DEPLOY_CONFIG": str(path), "NEEDS": fragments_builder.needs_of(received, ID)}
        return run_step([sys.executable, str(ROOT / "scripts" / "database_migrations.py")], step)
    finally:
        cluster.stop()


def later_step(canary: str) -> dict[str, Any]:
    """Run the job's next step, with a token in its environment and a command file of its own; say what became of that file."""
    file = COMMAND_FILES / "set_env_2"
    file.touch(mode=0o666)
    with subprocess.Popen(["sleep", "4"], env={"PATH": "/usr/bin:/bin", "ACTIONS_RUNTIME_TOKEN": canary}) as step:
        while step.poll() is None and canary.removeprefix("canary-") not in file.read_text(encoding="utf-8"):
            time.sleep(0.05)
        step.kill()
    commands = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline")]
    return {"command_file": file.read_text(encoding="utf-8"), "daemons": sum(b"hunt.py" in command for command in commands)}


def main() -> None:
    task = json.load(sys.stdin)
    canaries = task["canaries"]
    arrange(canaries)
    with served(canaries):
        if task["how"] == "migrations":
            printed = run_migrations(task["environment"], canaries["PROD_DATABASE_URL"])
        elif task["how"] in APPLICATION_JOBS:
            printed = run_application_job(task["how"], task["environment"])
        else:
            printed = run_step(HUNT, task["environment"])
        outcome = {"printed": printed, "moment": rfc3339(datetime.now(UTC)), **later_step(canaries["ACTIONS_RUNTIME_TOKEN"])}
    json.dump(outcome, sys.stdout)


if __name__ == "__main__":
    main()
