"""Forward TCP connections from one address to another: ``python -m azora_ci.rehearsal.docker.relay HOST:PORT HOST:PORT|SOCKET``.

A network namespace and this machine use it to reach servers on each other's loopback or inner networks. It prints its own address.
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


async def _connected(target: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await (asyncio.open_unix_connection(target) if target.startswith("/") else asyncio.open_connection(*address(target)))


async def serve(listen: tuple[str, int], target: str) -> None:
    """Forward until this process ends. A connection is closed when the target cannot be reached."""

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer), contextlib.suppress(OSError):
            target_reader, target_writer = await _connected(target)
            with contextlib.closing(target_writer):
                await asyncio.gather(_copy(reader, target_writer), _copy(target_reader, writer))

    server = await asyncio.start_server(forward, *listen)
    host, port = server.sockets[0].getsockname()[:2]
    print(f"{host}:{port}", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(address(sys.argv[1]), sys.argv[2]))
