"""A receiver that answers as Slack's incoming webhooks do and keeps every accepted message in a JSON-lines file.

``python -m azora_ci.rehearsal.standins.slack MESSAGES --port 8065 --answers 429,500,ok`` runs one in the foreground.
"""

from __future__ import annotations

import argparse
import json
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from azora_ci.core.clock import Clock, rfc3339

LONGEST_BODY = 1024 * 1024


@dataclass(frozen=True)
class SlackAnswer:
    """An answer to a request: HTTP status, body, and the seconds of ``Retry-After`` (None: no such header)."""

    status: int
    body: str
    retry_after: float | None = None


ANSWERS = {
    "429": SlackAnswer(429, "rate_limited", 1),
    "500": SlackAnswer(500, "rollup_error"),
    "404": SlackAnswer(404, "no_service"),
    "empty": SlackAnswer(200, ""),
}


class SlackReceiver:
    """The server. It appends each accepted message to the file ``messages`` as a line ``{"received_at", "path", "text", "payload"}``.

    Each of ``answers`` is the answer to one request; after them every well-formed message is accepted with ``ok``.
    """

    def __init__(self, messages: Path, *, port: int = 0, answers: Iterable[SlackAnswer] = ()) -> None:
        self.messages = messages
        self.requests = 0
        self.refusals: list[str] = []  # why blocks were refused, of which Slack says nothing in its answer
        self._answers = list(answers)
        self._lock = threading.Lock()
        messages.parent.mkdir(parents=True, exist_ok=True)
        messages.touch()
        self._server = ThreadingHTTPServer(("127.0.0.1", port), _handler(self))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)

    @property
    def url(self) -> str:
        """Return the webhook's address."""
        return f"http://127.0.0.1:{self._server.server_address[1]}/services/T0/B0/rehearsal"

    def start(self) -> SlackReceiver:
        """Serve in a thread."""
        self._thread.start()
        return self

    def stop(self) -> None:
        """End serving and close the port."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def __enter__(self) -> SlackReceiver:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def answer_next(self, *answers: SlackAnswer) -> None:
        """Give these answers to the next requests."""
        with self._lock:
            self._answers.extend(answers)

    def texts(self) -> list[str]:
        """Return the texts of the messages that were accepted, oldest first."""
        with self._lock:
            return [json.loads(line)["text"] for line in self.messages.read_text(encoding="utf-8").splitlines()]

    def receive(self, path: str, body: bytes) -> SlackAnswer:
        """Return the answer to a request, with the names that Slack gives its errors; keep the message when it is accepted."""
        with self._lock:
            self.requests += 1
            if self._answers:
                return self._answers.pop(0)
            if not path.startswith("/services/"):
                return ANSWERS["404"]
            payload = _payload(body)
            if payload is None:
                return SlackAnswer(400, "invalid_payload")
            if not payload.get("text"):
                return SlackAnswer(400, "no_text")
            if (problem := blocks_problem(payload.get("blocks", []))) is not None:
                self.refusals.append(problem)
                return SlackAnswer(400, "invalid_blocks")
            entry = {"received_at": rfc3339(Clock().now()), "path": path, "text": payload["text"], "payload": payload}
            with self.messages.open("a", encoding="utf-8") as file:
                file.write(json.dumps(entry, ensure_ascii=False) + "\n")
            return SlackAnswer(200, "ok")


def blocks_problem(blocks: object) -> str | None:
    """Return why Slack refuses the blocks of a message, None if it takes them. Of its blocks it knows those that this project sends.

    https://docs.slack.dev/reference/block-kit/blocks/: what is required, how long it may be, and that nothing else is there.
    """
    if not isinstance(blocks, list) or len(blocks) > 50:
        return "blocks is no list of at most 50"
    for number, block in enumerate(blocks):
        kind = block.get("type") if isinstance(block, dict) else None
        check = {"header": _header_problem, "section": _section_problem, "actions": _actions_problem}.get(str(kind))
        problem = check({**block}) if check else "it is of no known type"
        if problem is not None:
            return f"block {number}: {problem}"
    return None


def _header_problem(block: dict[str, Any]) -> str | None:
    return _keys_problem(block, {"type", "text"}) or _text_problem(block["text"], 150, ("plain_text",))


def _section_problem(block: dict[str, Any]) -> str | None:
    if ("text" in block) == ("fields" in block):
        return "text or fields, one of them"
    if "text" in block:
        return _keys_problem(block, {"type", "text"}) or _text_problem(block["text"], 3000)
    fields = block["fields"]
    if not isinstance(fields, list) or not 1 <= len(fields) <= 10:
        return "fields is no list of 1 to 10"
    problems = (_text_problem(field, 2000) for field in fields)
    return _keys_problem(block, {"type", "fields"}) or next(filter(None, problems), None)


def _actions_problem(block: dict[str, Any]) -> str | None:
    elements = block.get("elements")
    if not isinstance(elements, list) or not 1 <= len(elements) <= 25:
        return "elements is no list of 1 to 25"
    for element in elements:
        if not isinstance(element, dict) or element.get("type") != "button":
            return "an element is no button"
        problem = _keys_problem(element, {"type", "text", "url", "action_id"}) or _text_problem(element["text"], 75, ("plain_text",))
        if problem or not 1 <= len(str(element["url"])) <= 3000 or not str(element["url"]).startswith(("https://", "http://")):
            return problem or f"url {element['url']!r}"
        if not 1 <= len(str(element["action_id"])) <= 255:
            return "action_id"
    if len({element["action_id"] for element in elements}) < len(elements):
        return "an action_id stands twice"
    return _keys_problem(block, {"type", "elements"})


def _text_problem(text: object, most: int, kinds: tuple[str, ...] = ("plain_text", "mrkdwn")) -> str | None:
    if not isinstance(text, dict) or text.get("type") not in kinds:
        return f"a text is none of {kinds}"
    if not isinstance(text.get("text"), str) or not 1 <= len(text["text"].encode("utf-16-le", "surrogatepass")) // 2 <= most:
        return f"a text has not 1 to {most} characters"
    return _keys_problem(text, {"type", "text", "emoji" if text["type"] == "plain_text" else "verbatim"})


def _keys_problem(part: dict[str, Any], keys: set[str]) -> str | None:
    return f"its keys are {sorted(part)}, not {sorted(keys)}" if set(part) != keys else None


def _payload(body: bytes) -> dict[str, Any] | None:
    try:
        document = json.loads(body)
    except ValueError:
        return None
    return document if isinstance(document, dict) else None


def _handler(receiver: SlackReceiver) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 30

        def do_POST(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            if not 0 <= length <= LONGEST_BODY:
                self._answer(SlackAnswer(400, "invalid_payload"))
                return
            self._answer(receiver.receive(self.path, self.rfile.read(length)))

        def _answer(self, answer: SlackAnswer) -> None:
            data = answer.body.encode()
            self.send_response(answer.status)
            self.send_header("Content-Type", "text/html")
            self.send_header("Content-Length", str(len(data)))
            if answer.retry_after is not None:
                self.send_header("Retry-After", f"{answer.retry_after:g}")
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name is http.server's
            """Print nothing: the accepted messages are in the file."""

    return Handler


def main(arguments: list[str] | None = None) -> None:
    """Serve in the foreground until interrupted. The webhook's address is the first printed line."""
    parser = argparse.ArgumentParser(description="Stand-in for Slack's incoming webhooks.")
    parser.add_argument("messages", type=Path, help="JSON-lines file for the messages")
    parser.add_argument("--port", type=int, default=0, help="port on 127.0.0.1 (0: a free one)")
    parser.add_argument("--answers", default="", help=f"comma separated answers for the first requests: {', '.join(ANSWERS)}")
    chosen = parser.parse_args(arguments)
    answers = [ANSWERS[name] for name in chosen.answers.split(",") if name]
    receiver = SlackReceiver(chosen.messages, port=chosen.port, answers=answers).start()
    print(receiver.url, flush=True)
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        receiver.stop()


if __name__ == "__main__":
    main()
