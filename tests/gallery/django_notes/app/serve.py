"""A server that ends well: it answers what it has accepted."""

import os
import signal
import threading
from socketserver import ThreadingMixIn
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import packages  # noqa: F401 - finds Django


class Server(ThreadingMixIn, WSGIServer):
    request_queue_size = 64


class Handler(WSGIRequestHandler):
    def log_message(self, *_arguments):
        pass


if __name__ == "__main__":
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "settings")
    from django.core.wsgi import get_wsgi_application

    server = make_server("", int(os.environ.get("PORT", "8000")), get_wsgi_application(), Server, Handler)
    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
    server.serve_forever(poll_interval=0.05)
    server.server_close()
