"""Whether Prisma can read a file of SQL: it takes every one for UTF-8. Pure.

Of UTF-16 it leaves a failed migration in production; of any other encoding it refuses the file or stores other characters, as its engine
is. A byte order mark before UTF-8 does no harm: Prisma 6 applies such a file, and an applied file must stay as it is.
"""

from __future__ import annotations

import codecs

_MARKS = (  # byte order marks, the longer ones first: UTF-32's begins with UTF-16's
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)


def problem(content: bytes) -> str | None:
    """Return what is wrong with a file's encoding, such as ``it is UTF-16``, or None for UTF-8."""
    for mark, name in _MARKS:
        if content.startswith(mark):
            return f"it is {name}"
    zero = content.find(b"\0")
    if zero >= 0:
        wide = any(half.count(0) * 3 > len(content) for half in (content[0::2], content[1::2]))
        return "it is UTF-16 without a byte order mark" if wide else f"byte {zero} ({_line(content, zero)}) is NUL, which SQL never holds"
    try:
        content.decode("utf-8")
    except UnicodeDecodeError as error:
        byte = content[error.start]
        return f"byte {error.start} ({_line(content, error.start)}) is 0x{byte:02X}, which is no UTF-8: it may be Windows-1252 or Latin-1"
    return None


def _line(content: bytes, position: int) -> str:
    number = content.count(b"\n", 0, position) + 1
    return f"line {number}"
