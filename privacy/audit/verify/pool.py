"""Batches of lines, read by worker processes or in this one, in order, a few at a time."""

from __future__ import annotations

import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

#: Fewer lines than this are read in this process.
SMALL = 20_000
_Context = TypeVar("_Context")
_Result = TypeVar("_Result")


class Workers:
    """Runs functions of (context, lines) over batches; use as a context manager."""

    def __init__(self, processes: int | None, lines: int) -> None:
        wanted = min(2, os.cpu_count() or 1) if processes is None else processes
        self._executor: ProcessPoolExecutor | None = None
        self._ahead = 2 * wanted + 1
        if wanted > 1 and lines >= SMALL:
            self._executor = ProcessPoolExecutor(
                wanted, mp_context=multiprocessing.get_context("spawn")
            )

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        if self._executor is not None:
            self._executor.shutdown(cancel_futures=True)

    def run(
        self,
        function: Callable[[_Context, list[bytes]], _Result],
        batches: Iterable[tuple[_Context, list[bytes]]],
    ) -> Iterator[tuple[list[bytes], _Result]]:
        """Yield the lines and the result of each batch, in order.

        Batches are taken from the iterable only a few ahead, so memory stays bounded.

        Args:
            function: of a context and a batch of lines.
            batches: contexts with their lines.
        """
        waiting: deque[tuple[_Context, list[bytes], Future[Any] | None]] = deque()
        for context, lines in batches:
            waiting.append((context, lines, self._submit(function, context, lines)))
            if len(waiting) >= self._ahead or self._executor is None:
                yield self._result(function, *waiting.popleft())
        while waiting:
            yield self._result(function, *waiting.popleft())

    def _submit(self, function: Any, context: Any, lines: list[bytes]) -> Future[Any] | None:
        if self._executor is None:
            return None
        try:
            return self._executor.submit(function, context, lines)
        except (BrokenProcessPool, RuntimeError):
            self._executor = None
            return None

    def _result(
        self, function: Any, context: Any, lines: list[bytes], future: Future[Any] | None
    ) -> tuple[list[bytes], Any]:
        if future is not None:
            try:
                return lines, future.result()
            except (BrokenProcessPool, OSError):
                self._executor = None  # a worker was killed: continue without
        return lines, function(context, lines)
