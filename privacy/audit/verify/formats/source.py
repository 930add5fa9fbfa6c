"""The lines of a bundle, one after the other, and what a first pass finds in them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from privet.privacy.audit.verify.formats.strict import MAX_LINE

Progress = Callable[[int, int], None]
HEADER = b'{"format":"privet/bundle/v1","kind":"bundle"}'
LOG, RECEIPT, END = b'{"kind":"log",', b'{"kind":"receipt",', b'{"kind":"end",'
_BATCH, _BATCH_BYTES = 256, 1 << 20
_SIZE = re.compile(rb'\{"kind":"checkpoint","note":"[^"\\]*\\n([0-9]{1,16})\\n')


class Unreadable(Exception):
    """The bundle cannot be read on from here."""


@dataclass
class Scan:
    """The result of a first pass over a file.

    Attributes:
        headed: its first line is that of a bundle.
        cut: no line of it is an end line, so its last part is missing.
        lines: how many there are.
        sizes: for each log, the sizes of its checkpoints.
    """

    headed: bool = False
    cut: bool = True
    lines: int = 0
    sizes: list[set[int]] = field(default_factory=list)


def scan(stream: BinaryIO) -> Scan:
    """Scan every line once; stop at the first line if it is not that of a bundle."""
    found = Scan()
    first = stream.readline(len(HEADER) + 1)
    found.headed = first.removesuffix(b"\n") == HEADER
    if not found.headed:
        return found
    found.lines = 1
    while line := stream.readline(MAX_LINE + 1):
        found.lines += 1
        if len(line) > MAX_LINE:
            found.cut = False  # the reader says where it is too long
            break
        if line.startswith(LOG):
            found.sizes.append(set[int]())
        elif found.sizes and (match := _SIZE.match(line)):
            found.sizes[-1].add(int(match[1]))
        elif line.startswith(END) and line.endswith(b"\n"):
            found.cut = False
    return found


class Source:
    """The lines of a bundle, one ahead, without their newlines; keeps the running digest.

    Args:
        stream: the file.
        total: its size in bytes.
        progress: called with bytes done and bytes in all.
        cut: it has no end line, so a last line without a newline is only what was left of one.
    """

    def __init__(
        self, stream: BinaryIO, total: int, progress: Progress | None, *, cut: bool = False
    ) -> None:
        self._stream, self._total, self._progress, self._cut = stream, total, progress, cut
        self._hash = hashlib.sha256()
        self._done = self._told = 0
        self.number = 0
        self.line: bytes | None = None
        self.advance()

    def advance(self) -> None:
        """Go to the next line; ``line`` is None at the end of the file."""
        if self.line is not None:
            self._hash.update(self.line + b"\n")
        raw = self._stream.readline(MAX_LINE + 1)
        self.number += 1
        self._done += len(raw)
        if len(raw) > MAX_LINE:
            raise Unreadable(f"line {self.number} is too long")
        partial = bool(raw) and not raw.endswith(b"\n")
        if partial and not self._cut:
            raise Unreadable(f"line {self.number} does not end in a newline")
        self.line = raw[:-1] if raw and not partial else None
        if self._progress is not None and (self._done - self._told > 1 << 20 or not raw):
            self._told = self._done
            self._progress(self._done, self._total)

    @property
    def ended_early(self) -> bool:
        """Whether the rest of the bundle is missing from here on."""
        return self._cut and self.line is None

    def starts(self, prefix: bytes) -> bool:
        """Return whether the line begins with ``prefix``."""
        return self.line is not None and self.line.startswith(prefix)

    def digest(self) -> str:
        """Return the SHA-256 of all lines before this one, in hex."""
        return self._hash.hexdigest()

    def batches(self, prefix: bytes, context: Callable[[], Any], most: int | None = None,
                ) -> Iterator[tuple[Any, list[bytes]]]:  # fmt: skip
        """Yield batches of the next lines that begin with ``prefix``, at most ``most``.

        Args:
            prefix: of the lines that belong to it.
            context: asked for each batch, when it is complete.
            most: lines in all; None for no limit.
        """
        left = most
        while self.starts(prefix) and left != 0:
            batch: list[bytes] = []
            weight = 0
            while (
                self.line is not None and self.line.startswith(prefix) and left != 0
                and len(batch) < _BATCH and weight < _BATCH_BYTES
            ):  # fmt: skip
                batch.append(self.line)
                weight += len(self.line)
                if left is not None:
                    left -= 1
                self.advance()
            yield context(), batch
