"""Messages between two processes of one site: a line of JSON, then a flat stream of arrays."""

from __future__ import annotations

import json
from typing import Any, Protocol

from privet.common.errors import RunError
from privet.common.flat import CHUNK, Arrays, StreamDecoder, chunks, size_of

_MAX_TEXT_BYTES = 16 << 20


class Reads(Protocol):
    """A binary stream from which a pipe reads."""

    def read(self, count: int, /) -> bytes:
        """Return ``count`` bytes, fewer at the end."""
        ...


class Writes(Protocol):
    """A binary stream to which a pipe writes."""

    def write(self, data: Any, /) -> int:
        """Write all of ``data``."""
        ...

    def flush(self) -> None:
        """Send buffered bytes."""
        ...


class Pipe:
    """Two binary streams, one to read and one to write. The other end is trusted.

    Args:
        reading, writing: unbuffered or buffered.
    """

    def __init__(self, reading: Reads, writing: Writes) -> None:
        self._reading = reading
        self._writing = writing

    def send(self, value: dict[str, Any], arrays: Arrays | None = None) -> None:
        """Write a message.

        Args:
            value: JSON values.
            arrays: sent after them as a flat stream; None sends none.

        Raises:
            RunError: if the other process has ended.
        """
        text = json.dumps(value).encode()
        size = size_of(arrays or {})
        try:
            self._writing.write(len(text).to_bytes(8, "little") + size.to_bytes(8, "little") + text)
            for part in chunks(arrays or {}):
                self._writing.write(part)
            self._writing.flush()
        except (OSError, ValueError) as error:
            raise RunError(f"the other process has ended: {error}") from None

    def receive(self) -> tuple[dict[str, Any], Arrays]:
        """Wait for a message and return it.

        Raises:
            EOFError: if the other end was closed between two messages.
            RunError: if it was closed within one.
        """
        head = self._reading.read(16)
        if not head:
            raise EOFError
        length, size = int.from_bytes(head[:8], "little"), int.from_bytes(head[8:], "little")
        if len(head) < 16 or length > _MAX_TEXT_BYTES:
            raise RunError("the other process sent no message")
        try:
            value: dict[str, Any] = json.loads(self._exactly(length))
        except (ValueError, RecursionError):  # it would quote what came
            raise RunError("the other process sent no message") from None
        if not size:
            return value, {}
        # Both ends are this site's own: nothing is gained by hashing between them.
        intake = StreamDecoder(size, hashing=False)
        while intake.taken < size:
            intake.take(self._exactly(min(CHUNK, size - intake.taken)))
        return value, intake.finish()[0]

    def _exactly(self, count: int) -> bytes:
        data = self._reading.read(count)
        if len(data) < count:
            raise RunError("the other process ended within a message")
        return data
