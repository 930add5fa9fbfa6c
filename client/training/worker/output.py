"""Append the output of the trainer's process to ``trainer.log``, in the endpoint's process.

The trainer may open no file of the site, so it could not open its log again after a rotation. It
writes into a pipe, and a thread of the endpoint's process appends each line to the file that has
the name now.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path

from privet.common.output.operator_log import MAX_LINE_CHARS, OperatorFile, one_line

_MAX_LINE_BYTES = 4 * MAX_LINE_CHARS
"""Of one line; a longer one is written in parts."""
_END_TIMEOUT_S = 1.0


class CapturedOutput:
    """A pipe for one process's standard error, and the thread that reads it.

    Args:
        path: of the trainer's log, which belongs to the operator's: it may contain a record.
    """

    def __init__(self, path: Path) -> None:
        reading, self._writing = os.pipe()
        self.wrote = False
        """Whether the process has written anything."""
        self._file = OperatorFile.of(path)
        self._thread = threading.Thread(target=self._bring, args=(reading,), daemon=True)
        self._thread.start()

    def fileno(self) -> int:
        """Return the descriptor that the process gets as its standard error."""
        return self._writing

    def started(self) -> None:
        """Close the process's end here, so that the pipe ends with the process."""
        os.close(self._writing)

    def finish(self) -> None:
        """Wait a moment for the last output of a process that has ended."""
        self._thread.join(_END_TIMEOUT_S)

    def _bring(self, reading: int) -> None:
        with os.fdopen(reading, "rb") as stream:
            while line := stream.readline(_MAX_LINE_BYTES):
                text = line.removesuffix(b"\n").decode("utf-8", "backslashreplace")
                self._file.write(one_line(text, _MAX_LINE_BYTES))
                self.wrote = True
