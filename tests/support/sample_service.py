"""A small real service for rollout tests: PORT, VERSION, SERVICE from its environment, misbehaviour from flag files.

``$FLAGS/<version>.<behaviour>``, or ``<version>.<service>.<behaviour>``: error (500 on work), sick (500 on health), nested (1,000
brackets on health), hang, stuck (no answer to work), html, liar (answers another version), plain (health is "ok" and
names no version), slow (a second of work), down (ends at start), deaf (does not end
when told to), orders.<port> and
orders.<host name> (500 on …/orders, by that instance).
``/…/chat`` echoes over an upgraded connection, ``/…/events`` streams a line every tenth of a second.
"""

import json
import os
import signal
import socket
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

FLAGS, VERSION, SERVICE = Path(os.environ["FLAGS"]), os.environ["VERSION"], os.environ["SERVICE"]


def flag(behaviour: str) -> bool:
    return (FLAGS / f"{VERSION}.{behaviour}").exists() or (FLAGS / f"{VERSION}.{SERVICE}.{behaviour}").exists()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # headers and body are two writes; the second would wait 40 ms

    def do_GET(self):
        if self.path.endswith(("/chat", "/events")):
            return self.talk(chat=self.path.endswith("/chat"))
        health = self.path.endswith("/health")
        if flag("hang"):
            time.sleep(30)
        if flag("stuck") and not health:
            time.sleep(30)
        if flag("slow") and not health:
            time.sleep(1)
        if flag("html"):
            return self.answer(200, b"<html>Welcome</html>", "text/html")
        if health and flag("nested"):
            return self.answer(200, b"[" * 1000)
        own = [flag(f"orders.{name}") for name in (os.environ["PORT"], socket.gethostname())]
        orders = self.path.partition("?")[0].endswith("/orders") and any(own)
        if flag("sick") if health else flag("error") or orders:
            return self.answer(500, b'{"status": "broken"}')
        version = "9.9.9" if flag("liar") else VERSION
        if health and flag("plain"):
            return self.answer(200, b'{"status": "ok"}')
        secret = os.environ.get("SERVICE_SECRET", "")
        document = {"status": "healthy", "version": version, "service": SERVICE, "path": self.path, "secret_length": len(secret)}
        return self.answer(200, json.dumps(document).encode())

    def talk(self, *, chat):
        self.close_connection = True
        self.send_response(101 if chat else 200)
        kind = {"connection": "Upgrade", "upgrade": "websocket"} if chat else {"content-type": "text/event-stream", "connection": "close"}
        for name, value in kind.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.flush()
        try:
            while not chat:
                self.wfile.write(f"data: {VERSION}\n\n".encode())
                time.sleep(0.1)
            while heard := self.connection.recv(4096):
                self.wfile.write(f"{VERSION} heard ".encode() + heard)
        except OSError:
            pass

    def do_POST(self):
        self.rfile.read(int(self.headers.get("content-length") or 0))
        self.do_GET()

    def answer(self, status, body, kind="application/json"):
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


class Server(ThreadingHTTPServer):
    request_queue_size = 128


if flag("down"):
    sys.exit("told not to start")
print(f"{SERVICE} {VERSION} starts on {os.environ['PORT']}", flush=True)
signal.signal(signal.SIGTERM, lambda *_: None if flag("deaf") else os._exit(0))
Server((os.environ.get("HOST", "127.0.0.1"), int(os.environ["PORT"])), Handler).serve_forever()
