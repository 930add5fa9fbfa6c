"""The two messages that carry numbers, written and read without copying them about.

A ``Chunk`` is its field 1, and all but the first ``Piece`` of an upload are field 5: a tag, a
length, and the bytes. Python's protobuf copies these three times on the way out and twice on
the way in, which costs more than TLS; here it is once and never. The bytes are those of the
generated code (``tests/link/test_proto.py`` compares them), and whatever reads unlike them is left
to it.
"""

from __future__ import annotations

CHUNK, PIECE = 1, 5
"""Numbers of the fields ``Chunk.data`` and ``Piece.data``."""


def head(field: int, size: int) -> bytes:
    """Return what stands before ``size`` bytes of a field (wire type 2)."""
    out = bytearray([field << 3 | 2])
    while size > 0x7F:
        out.append(size & 0x7F | 0x80)
        size >>= 7
    out.append(size)
    return bytes(out)


def data_of(field: int, message: bytes) -> memoryview | None:
    """Return the bytes of a message that has this field and no other; else None."""
    if not message or message[0] != (field << 3 | 2):
        return None
    size = shift = 0
    for at, byte in enumerate(message[1:6], 2):
        size |= (byte & 0x7F) << shift
        shift += 7
        if not byte & 0x80:
            return memoryview(message)[at:] if len(message) - at == size else None
    return None
