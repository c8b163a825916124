"""Forwards TCP connections from one address to another: ``python -m azora_ci.rehearsal.relay HOST:PORT HOST:PORT``.

Lets a network namespace and this machine reach what listens on the other's loopback or inner networks. Prints the address it listens at.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys

CHUNK_BYTES = 1 << 16


def address(text: str) -> tuple[str, int]:
    """Return host and port of ``host:port``."""
    host, _, port = text.rpartition(":")
    return host, int(port)


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(CHUNK_BYTES):
            writer.write(data)
            await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()


async def serve(listen: tuple[str, int], target: tuple[str, int]) -> None:
    """Forward until this process is ended. A target that cannot be reached closes the connection that asked for it."""

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer), contextlib.suppress(OSError):
            there_reader, there_writer = await asyncio.open_connection(*target)
            with contextlib.closing(there_writer):
                await asyncio.gather(_copy(reader, there_writer), _copy(there_reader, writer))

    server = await asyncio.start_server(forward, *listen)
    host, port = server.sockets[0].getsockname()[:2]
    print(f"{host}:{port}", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(address(sys.argv[1]), address(sys.argv[2])))
