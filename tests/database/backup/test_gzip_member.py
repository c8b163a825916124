from __future__ import annotations

import gzip
import random
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from azora_ci.core.clock import Clock
from azora_ci.database.backup.gzip_member import GzipMember, deflate_block
from azora_ci.database.backup.spool_reader import Orders, follow, inflate


def packed(blocks: list[bytes], level: int = 2) -> list[bytes]:
    with GzipMember(level=level) as member:
        pieces = [piece for block in blocks for piece in member.add(block)]
        return [*pieces, *member.finish()]


BLOCKS = [random.Random(4).randbytes(50) * size for size in (1, 2000, 1, 700, 3)]


@given(st.lists(st.binary(min_size=1, max_size=3000), max_size=12), st.integers(0, 3))
@settings(max_examples=40, deadline=None)
def test_any_blocks_come_back(blocks: list[bytes], level: int):
    whole = b"".join(packed(blocks, level))
    assert gzip.decompress(whole) == b"".join(blocks)
    assert b"".join(inflate(iter([whole]))) == b"".join(blocks)


def test_gunzip_reads_it_and_it_is_one_member():
    whole = b"".join(packed(BLOCKS))
    assert subprocess.run(["gunzip"], input=whole, stdout=subprocess.PIPE, check=True).stdout == b"".join(BLOCKS)
    assert len(inflate_member(whole)[1]) == 0


def inflate_member(data: bytes) -> tuple[bytes, bytes]:
    import zlib

    engine = zlib.decompressobj(31)
    return engine.decompress(data), engine.unused_data


def test_a_cut_anywhere_is_seen():
    pieces = packed(BLOCKS)
    whole = b"".join(pieces)
    ends = [sum(map(len, pieces[:number])) for number in range(len(pieces))]
    for end in {*ends, *(end - 1 for end in ends if end), len(whole) - 1, len(whole) - 8, len(whole) - 9}:
        with pytest.raises(EOFError):
            list(inflate(iter([whole[:end]])))
        if end:
            assert subprocess.run(["gunzip", "-t"], input=whole[:end], capture_output=True, check=False).returncode != 0


def test_a_flipped_bit_is_seen():
    whole = bytearray(b"".join(packed(BLOCKS)))
    for place in range(12, len(whole), 7):
        whole[place] ^= 1
        with pytest.raises(Exception):  # noqa: B017 - ISA-L's own error, ValueError or EOFError, never silence
            if b"".join(inflate(iter([bytes(whole)]))) != b"".join(BLOCKS):
                raise ValueError
            raise AssertionError(f"bit flip at {place} passed")
        whole[place] ^= 1


def test_something_after_the_member_is_refused():
    with pytest.raises(ValueError, match="follows"):
        list(inflate(iter([b"".join(packed(BLOCKS)) + b"x"])))


def test_a_block_ends_on_a_byte_boundary():
    assert deflate_block(b"some text", 2).endswith(b"\x00\x00\xff\xff")


def test_followed_spool_is_read_while_it_grows(tmp_path: Path):
    import os
    import threading

    spool = tmp_path / "spool"
    spool.touch()
    reader, writer = os.pipe()
    orders = Orders(os.fdopen(reader))

    def grow() -> None:
        with spool.open("ab", buffering=0) as file:
            for number in range(20):
                file.write(bytes([number]) * 1000)
        os.write(writer, b"done 20000\n")

    threading.Thread(target=grow).start()
    assert len(b"".join(follow(spool, orders, Clock()))) == 20000
    os.close(writer)


def test_abandoned_spool_is_not_complete(tmp_path: Path):
    import os

    spool = tmp_path / "spool"
    spool.write_bytes(b"something")
    reader, writer = os.pipe()
    os.close(writer)
    with pytest.raises(EOFError, match="gone"):
        list(follow(spool, Orders(os.fdopen(reader)), Clock()))


def test_a_bomb_is_inflated_in_bounded_pieces():
    whole = b"".join(packed([bytes(40 * 1024 * 1024)]))
    pieces = list(inflate(iter([whole])))
    assert sum(map(len, pieces)) == 40 * 1024 * 1024
    assert max(map(len, pieces)) <= 1024 * 1024
