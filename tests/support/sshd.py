"""A real sshd on loopback for tests: its own keys, its own configuration, ended by its own pid."""

from __future__ import annotations

import getpass
import http.server
import shutil
import socket
import socketserver
import subprocess
import threading
import time
from pathlib import Path


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def keygen(path: Path) -> Path:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path], check=True, timeout=30)
    return path


class Sshd:
    """One sshd that accepts the key in ``self.key`` for the user running the tests."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        self.address = "127.0.0.1"
        self.prefix: list[str] = []  # a command that starts it in another place
        self.user = getpass.getuser()
        self.host_key = keygen(folder / "host_key")
        self.key_file = keygen(folder / "user_key")
        self.key = self.key_file.read_text()
        authorized = folder / "authorized_keys"
        authorized.write_text(self.key_file.with_suffix(".pub").read_text())
        authorized.chmod(0o600)
        Path("/run/sshd").mkdir(exist_ok=True)
        lines = [
            f"Port {self.port}", "ListenAddress 127.0.0.1", f"HostKey {self.host_key}", f"AuthorizedKeysFile {authorized}",
            f"PidFile {folder / 'sshd.pid'}", "StrictModes no", "UsePAM no", "PasswordAuthentication no", "PermitRootLogin yes",
            *(options or ("AllowTcpForwarding yes", "AllowStreamLocalForwarding yes")),
        ]  # fmt: skip
        (folder / "sshd_config").write_text("\n".join(lines) + "\n")
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def known_hosts(self) -> str:
        kind, key = self.host_key.with_suffix(".pub").read_text().split()[:2]
        return f"[127.0.0.1]:{self.port} {kind} {key}\n"

    def start(self) -> None:
        """Start it, if it does not run."""
        if self.process is not None:
            return
        binary = shutil.which("sshd", path="/usr/sbin:/usr/local/sbin:/usr/bin")
        assert binary is not None, "sshd is missing: apt-get install openssh-server"
        log = (self.folder / "sshd.log").open("ab")
        self.process = subprocess.Popen([*self.prefix, binary, "-D", "-e", "-f", self.folder / "sshd_config"], stdout=log, stderr=log)
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            with socket.socket() as probe:
                if probe.connect_ex((self.address, self.port)) == 0:
                    return
            assert self.process.poll() is None, (self.folder / "sshd.log").read_text()
            time.sleep(0.05)
        raise AssertionError("sshd did not start")

    def sessions(self) -> list[int]:
        """Return the process ids of the connections that this sshd serves."""
        assert self.process is not None
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return [int(child) for child in children]

    def stop(self) -> None:
        if self.process is not None:
            for pid in self.sessions() if self.process.poll() is None else []:
                subprocess.run(["kill", "-9", str(pid)], check=False, capture_output=True)
            self.process.terminate()
            self.process.wait(30)
            self.process = None


def ping(path: Path) -> bytes:
    """Ask for ``/_ping`` over a Unix socket and return the last line of the answer."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(10)
        connection.connect(str(path))
        connection.sendall(b"GET /_ping HTTP/1.0\r\n\r\n")
        with connection.makefile("rb") as answer:
            return answer.read().splitlines()[-1]


class _UnixHttp(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True

    def get_request(self):
        request, _ = super().get_request()
        return request, ("unix", 0)


class DockerStandIn:
    """A Unix socket that answers ``/_ping`` as dockerd does; the tests of containers use a real dockerd."""

    def __init__(self, path: Path) -> None:
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(200)
                self.send_header("Content-Length", "2")
                self.end_headers()
                self.wfile.write(b"OK")

            def log_message(self, *_args):
                pass

        self.server = _UnixHttp(str(path), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
