"""The two messages that carry arrays, encoded and decoded without copies.

A ``Chunk`` is its field 1, and all but the first ``Piece`` of an upload are field 5: a tag, a
length, and the bytes. Python's protobuf copies these three times when it encodes and twice when it
decodes, which costs more than TLS; this module copies them once and never. The bytes are those of
the generated code (``tests/link/test_proto.py`` compares them), and a message of another form is
left to that code.
"""

from __future__ import annotations

CHUNK, PIECE = 1, 5
"""Numbers of the fields ``Chunk.data`` and ``Piece.data``."""


def head(field: int, size: int) -> bytes:
    """Return the bytes before a field's content (wire type 2): tag and length.

    Args:
        field: the field's number, at most 15.
        size: of the content in bytes.
    """
    out = bytearray([field << 3 | 2])
    while size > 0x7F:
        out.append(size & 0x7F | 0x80)
        size >>= 7
    out.append(size)
    return bytes(out)


def data_of(field: int, message: bytes) -> memoryview | None:
    """Return the content of a message that consists of one field, without a copy.

    Args:
        field: the field's number, at most 15.
        message: as received; it is not trusted.

    Returns:
        A view of the content; None if the message has another field or form.
    """
    if not message or message[0] != (field << 3 | 2):
        return None
    size = shift = 0
    for at, byte in enumerate(message[1:6], 2):
        size |= (byte & 0x7F) << shift
        shift += 7
        if not byte & 0x80:
            return memoryview(message)[at:] if len(message) - at == size else None
    return None
