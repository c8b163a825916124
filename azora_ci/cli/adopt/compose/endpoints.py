"""Where a service answers: its ports, and the port and path that its health check asks, whatever program asks. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from azora_ci.cli.adopt.compose.document import text
from azora_ci.cli.adopt.compose.merge import as_list

# Debuggers and live reload of Node.js, the JVM, Python, Ruby, .NET, Go: nobody's users.
DEBUG_PORTS = frozenset({1234, 2345, 4024, 5005, 5678, 9229, 9230, 24678, 35729, 40000})
_SHORT = re.compile(r"(?:.*:)?(?P<first>\d{1,5})(?:-\d{1,5})?(?:/(?P<protocol>\w+))?")
_NUMBER = re.compile(r"\d{1,5}")

_HOST = r"(?:localhost|127\.0\.0\.1|0\.0\.0\.0|\[::1?\]|\$\{?HOSTNAME\}?|%s)"
_PORT = r"(?::(?P<port>\d{1,5}|\$\{?(?P<variable>[A-Za-z_]\w*)(?::?-(?P<default>\d{1,5}))?\}?))?"
_PATH = r"(?P<path>/[^\s\"'`|;&?#,)\]}<>$]*)?"
_ADDRESS = r"(?:(?P<scheme>https?://)|(?<![\w.@/-]))" + _HOST + _PORT + _PATH + r"(?![\w.@-])"
_ASKS = re.compile(r"\b(?:curl|wget|http|https|fetch|urllib|requests|httpie|xh|hey)\b")
_OPTION_PORT = re.compile(r"\bport['\"]?\s*[:=]\s*['\"]?(\d{1,5})|\bnc\b[^|;&]*\s(?:localhost|127\.0\.0\.1)\s+(\d{1,5})")
_OPTION_PATH = re.compile(r"\bpath['\"]?\s*[:=]\s*['\"](/[^\s\"'?#]*)")


def command_of(check: Any) -> str:
    """Return the text of a health check's command; nothing when there is none, or it is switched off."""
    if not isinstance(check, dict) or check.get("disable") is True:
        return ""
    words = [text(word) for word in as_list(check.get("test"))]
    return "" if words[:1] == ["NONE"] else " ".join(words)


def asked(command: str, service: str, env: Mapping[str, str]) -> tuple[int | None, str | None]:
    """Return the port and the path that a command asks of its own container. ``env``: values that the command's variables may name."""
    address = re.search(_ADDRESS % re.escape(service), command)
    if address and (address["scheme"] or (address["port"] and _ASKS.search(command))):
        named = env.get(address["variable"]) if address["variable"] else address["port"]
        return port_number(named or address["default"]), _path(address["path"] or "/")
    port, path = _OPTION_PORT.search(command), _OPTION_PATH.search(command)
    return port_number(port[1] or port[2]) if port else None, _path(path[1]) if path and _ASKS.search(command) else None


def _path(path: str) -> str | None:
    return path if re.fullmatch(r"/[^\s?#\"\\]*", path) else None


def container_ports(service: dict[str, Any], plain: Callable[[Any], str | None]) -> list[int]:
    """Return the ports inside the container, without those of debuggers and UDP; published ones first. Of a range the first counts."""
    found = [_port(mapping, plain) for name in ("ports", "expose") for mapping in as_list(service.get(name))]
    return list(dict.fromkeys(port for port in found if port is not None and port not in DEBUG_PORTS))


def port_number(value: object) -> int | None:
    """Return a port; None for what is none."""
    return int(str(value)) if _NUMBER.fullmatch(str(value)) and 0 < int(str(value)) < 65536 else None


def _port(mapping: Any, plain: Callable[[Any], str | None]) -> int | None:
    """Return the container's port of one mapping: ``127.0.0.1:80:3000/tcp``, ``3000-3005``, ``{target: 3000, protocol: tcp}``."""
    if isinstance(mapping, dict):
        protocol, number = plain(mapping.get("protocol")), plain(mapping.get("target"))
        return port_number(number) if protocol in {None, "tcp"} else None
    short = _SHORT.fullmatch(plain(mapping) or "")
    return port_number(short["first"]) if short and short["protocol"] in {None, "tcp"} else None
