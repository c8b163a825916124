"""The wall: on every production host, keeps instances from the machine's metadata service, which hands out the machine's credentials.

It adds a routing rule that drops TCP packets from the instances' networks to 169.254.169.254. The host's own way there stays open, and so
does UDP: at some providers the name server has that address. It runs in a container with the host's network, which has no other right
than to change it, listens nowhere, and starts with the host: rules do not survive a boot. Standard library only.
Protocol: rtnetlink, RTM_NEWRULE (linux/rtnetlink.h, linux/fib_rules.h).
"""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import struct
import sys
import time

METADATA = "169.254.169.254"
SECONDS = 1.0  # between two looks; a rule that is there stays as it is
PRIORITY = 1  # directly behind the table of the machine's own addresses
RTM_NEWRULE, NLMSG_ERROR = 32, 2
REQUEST, ACKNOWLEDGE, EXCLUSIVE, CREATE = 0x1, 0x4, 0x200, 0x400  # flags of a message
BLACKHOLE = 6  # action of a rule
DESTINATION, SOURCE, RULE_PRIORITY, IP_PROTOCOL = 1, 2, 6, 22  # attributes of a rule


def _attribute(number: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), number) + value.ljust(-(-len(value) // 4) * 4, b"\0")


def rule(network: ipaddress.IPv4Network) -> bytes:
    """Return the message that adds the rule for a network; EEXIST answers it when the rule is there."""
    header = struct.pack("=8BI", socket.AF_INET, 32, network.prefixlen, 0, 0, 0, 0, BLACKHOLE, 0)
    body = header + _attribute(DESTINATION, socket.inet_aton(METADATA)) + _attribute(SOURCE, network.network_address.packed)
    body += _attribute(RULE_PRIORITY, struct.pack("=I", PRIORITY)) + _attribute(IP_PROTOCOL, bytes([socket.IPPROTO_TCP]))
    return struct.pack("=IHHII", 16 + len(body), RTM_NEWRULE, REQUEST | ACKNOWLEDGE | EXCLUSIVE | CREATE, 1, 0) + body


def ensure(network: ipaddress.IPv4Network) -> None:
    """Add the rule of a network unless it is there. Raises OSError when the kernel refuses it."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as kernel:
        kernel.settimeout(10)
        kernel.sendto(rule(network), (0, 0))
        answer = kernel.recv(4096)
    _, kind, _, _, _, code = struct.unpack_from("=IHHIIi", answer)
    if kind == NLMSG_ERROR and code not in {0, -errno.EEXIST}:
        raise OSError(-code, os.strerror(-code))


def main() -> None:
    """Keep the rules of the networks that are the arguments; a rule that a kernel refuses ends it, with the reason in its log."""
    networks = [ipaddress.IPv4Network(text) for text in sys.argv[1:]]
    while True:
        for network in networks:
            ensure(network)
        time.sleep(SECONDS)


if __name__ == "__main__":
    main()
