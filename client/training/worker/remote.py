"""The endpoint's side of the pipe: a trainer in another process."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from privet.client.data.loader import FOLDER as SNAPSHOTS
from privet.client.data.loader import forget_snapshot, locate_records, probe_database
from privet.client.data.source import require_source
from privet.client.training.protocol import TrainerOutput
from privet.client.training.worker.idle import IdleWatch
from privet.client.training.worker.output import CapturedOutput
from privet.client.training.worker.pipe import Pipe
from privet.client.training.worker.pulse import BEAT, Pulse, TrainerWatch, WatchedTrainer
from privet.common.errors import (
    DataError,
    PrivetError,
    SelfTestError,
    TrainerLostError,
    TrainerUnconfinedError,
)
from privet.common.files.private_files import private_folder
from privet.common.flat import Arrays
from privet.common.order import Order
from privet.common.plan import Plan
from privet.privacy.accounting import events as ev
from privet.privacy.accounting.plan_events import training_event
from privet.privacy.policy import Policy

_LOG = logging.getLogger("privet.worker")
TRAINER_LOG = "trainer.log"
"""Name of the trainer's log, in the site's folder."""
# Only the variables that find programs, modules, the GPU and the number of threads: a password or a
# token in this process's environment is not for the trainer.
_PASSED_ON = (
    "HOME", "LANG", "LD_LIBRARY_PATH", "OMP_NUM_THREADS", "OMP_WAIT_POLICY", "PATH", "PRIVET_DATA",
    "PRIVET_MODELS", "TZ",
)  # fmt: skip
_PASSED_ON_ALL = ("CUDA_", "LC_", "MALLOC_", "MKL_", "NVIDIA_", "PYTORCH_", "TORCH_")
_STOP_WITHIN = 5.0
"""Seconds that a worker has to end once its pipe is closed."""
_BUSY_SILENCE_TIMEOUT_S = 120.0
"""Seconds without a beat after which a trainer at work hangs."""
_IDLE_SILENCE_TIMEOUT_S = 10.0
"""The same of one that has nothing to do."""
_MIN_ANSWER_TIMEOUT_S = 600.0
"""Least limit of a request in seconds; else twice the plan's time for a round."""


@dataclass
class RemoteTrainer:
    """The trainer of one plan, in a process without keys and without network.

    :meth:`start` or the first request starts the process. It stays until it was idle for
    ``keep.trainer_minutes`` of the policy. If it ends, hangs or takes too long, the request fails
    and the next one starts another process. The snapshot of a database is removed with the process.

    Args:
        plan: with its noise calibrated.
        policy: of the site; it says where the records are.
        data_set: name of one of the policy's data sets.
        home: the site's folder, with the worker's log and temporary files.
        closed: folders and files of keys and passwords, which the worker cannot open.
        unconfined: continue even if the kernel cannot close the network.
        seed: makes the noise reproducible, for tests only; "" draws it freshly.
        still, still_idle: seconds without a beat after which the process hangs, at work and idle.
        limit: seconds that a request may take; None for twice the plan's ``strategy.timeout``,
            because a late answer is used if the quorum waits for it.
    """

    plan: Plan
    policy: Policy
    data_set: str
    home: Path
    closed: tuple[Path, ...]
    unconfined: bool = False
    seed: str = ""
    still: float = _BUSY_SILENCE_TIMEOUT_S
    still_idle: float = _IDLE_SILENCE_TIMEOUT_S
    limit: float | None = None
    _process: subprocess.Popen[bytes] | None = None
    _pipe: Pipe | None = None
    _ends: tuple[WatchedTrainer, ...] = ()
    _pulse: Pulse | None = None
    _output: CapturedOutput | None = None
    _idle: IdleWatch | None = None
    _seen: tuple[int, int] | None = None
    _opened: bool = False
    _records: Path = Path()
    _shapes: dict[str, tuple[int, ...]] | None = None
    _begins: str = ""
    _tests: tuple[str, ...] | None = None
    _turn: threading.Lock = field(default_factory=threading.Lock)

    @property
    def event(self) -> ev.Event:
        """The event of a training release."""
        return training_event(self.plan)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the trained parameters in order, each with its shape."""
        if self._shapes is None:
            told, _ = self._ask({"do": "shapes"})
            self._shapes = {name: tuple(shape) for name, shape in told["shapes"].items()}
        return self._shapes

    def begins(self) -> str:
        """Return the digest of the trained parameters before any training."""
        if not self._begins:
            told, _ = self._ask({"do": "begins"})
            self._begins = str(told["begins"])
        return self._begins

    def self_test(self) -> tuple[str, ...]:
        """Run the start-up tests; return the rows that passed.

        The site calls this before each order's charge. So a process that has ended or hangs since
        the last order is replaced here, at no charge.
        """
        with self._turn:
            if (idle := self._idle) is not None:
                idle.touch()  # nothing may end it between this and the order
            if self._process is not None and self._process.poll() is not None:
                self._end()
            if self._process is not None and not self._beats():
                _LOG.warning("the idle trainer gave no sign of life; it is replaced")
                self._end(at_once=True)
            if self._process is None:
                self._tests = None
        if self._tests is None:
            told, _ = self._ask({"do": "test"})
            self._tests = tuple(told["tests"])
        return self._tests

    def require_source(self) -> None:
        """Check file or database, unless the worker has the records already."""
        if not self._opened:
            require_source(self.policy, self.data_set, self.plan)
            probe_database(self.policy, self.data_set)

    def release(self, order: Order, model: Arrays) -> TrainerOutput:
        """Train or evaluate in the other process, as the order says.

        Args:
            order: already charged.
            model: trained parameters by name.

        Raises:
            TrainerLostError: if the process ends, hangs or takes too long.
            PrivetError: of the worker, with a text for the operator only.
        """
        if (idle := self._idle) is not None:
            idle.touch()
        if not self._opened:
            self._records = locate_records(self.policy, self.data_set, self.home)
            if self._seen != self._file():
                # A file that was replaced since the worker was confined is out of its reach.
                self.close()
        asked = {"do": "release", "order": order.to_dict(), "records": str(self._records)}
        told, arrays = self._ask(asked, model)
        self._opened = True
        event, notes = ev.from_json(told["event"]), tuple(told["notes"])
        return TrainerOutput(arrays, event, told["reproducible"] is not False, notes)

    def committed(self, order: Order) -> None:
        """Note that the output for an order will be released."""
        self._ask({"do": "committed", "order": order.to_dict()})

    def start(self) -> None:
        """Start the process, without waiting until it is ready.

        Raises:
            TrainerLostError: if it cannot be started.
        """
        with self._turn:
            if self._process is None:
                self._start()

    def close(self) -> None:
        """End the process."""
        with self._turn:
            self._end()

    def _end_idle(self) -> bool:
        """End the process if it had no request for a while; return False if it is at work."""
        # Do not wait: the lock's holder is using the trainer, so it is not idle.
        if not self._turn.acquire(blocking=False):
            return False
        try:
            # Again, under the lock: a request may have come and ended meanwhile.
            if self._idle is None or not self._idle.is_due:
                return False
            self._end()
        finally:
            self._turn.release()
        _LOG.info("the trainer was idle and has ended; the next order starts another")
        return True

    def _beats(self) -> bool:
        """Whether the idle process is alive; waits for a beat if the last one is a while ago."""
        pulse = self._pulse
        if pulse is None or time.monotonic() - pulse.last < 4 * BEAT:
            return True
        last, looks = pulse.last, int(self.still_idle / BEAT)
        for _ in range(looks):
            if pulse.last != last:
                return True
            time.sleep(BEAT)
        return pulse.last != last

    def _file(self) -> tuple[int, int] | None:
        """Return which file the records are in now; a snapshot's folder is within reach."""
        path = self.policy.path_of(self.policy.data_set(self.data_set)[1])
        if path is None:
            return None
        try:
            known = path.stat()
        except OSError:
            return None
        return known.st_dev, known.st_ino

    def _start(self) -> None:
        work = self.home / "trainer"
        for folder in (work, self.home / SNAPSHOTS):
            private_folder(folder)
        self._seen, self._opened = self._file(), False
        self._output = output = CapturedOutput(self.home / TRAINER_LOG)
        self._pulse, pulse = Pulse.make(work)
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "privet.client.training.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output.fileno(),
                env=_environment(work),
                bufsize=0,
                pass_fds=(pulse,),
                start_new_session=True,
            )
        except OSError as error:
            raise TrainerLostError(f"the trainer cannot be started: {error.strerror}") from None
        finally:
            output.started()
            os.close(pulse)
        assert self._process.stdin is not None and self._process.stdout is not None
        reading, writing = (
            WatchedTrainer(end.fileno()) for end in (self._process.stdout, self._process.stdin)
        )
        self._ends, self._pipe = (reading, writing), Pipe(reading, writing)
        opening = {
            "plan": self.plan.to_dict(),
            "site": self.policy.site,
            "data": self.policy.data_set(self.data_set)[1].model_dump(mode="json"),
            "closed": [str(path.resolve()) for path in self.closed],
            "work": str(work.resolve()),
            "seed": self.seed,
            "pulse": pulse,
        }
        self._require_confined(opening)
        self._idle = IdleWatch(self.policy.keep.trainer_minutes * 60, self._end_idle)

    def _require_confined(self, opening: dict[str, Any]) -> None:
        confined, _ = self._exchange(opening, None)
        if not confined["network"]:
            if not self.unconfined:
                self._end()
                raise TrainerUnconfinedError(
                    "the kernel does not close the network to the trainer (seccomp); run it where "
                    "it can, or accept that with --unconfined-trainer"
                )
            _LOG.warning("the trainer is not kept from the network")
        if not confined["files"]:
            _LOG.warning("the trainer is not kept from keys, nor from writing (Landlock)")

    def _ask(
        self, value: dict[str, Any], arrays: Arrays | None = None
    ) -> tuple[dict[str, Any], Arrays]:
        with self._turn:
            if self._process is None:
                self._start()
            told, numbers = self._exchange(value, arrays)
            if (idle := self._idle) is not None:
                idle.touch()
        if "error" in told:
            raise _error(told["error"], told["text"])
        return told, numbers

    def _exchange(
        self, value: dict[str, Any], arrays: Arrays | None
    ) -> tuple[dict[str, Any], Arrays]:
        assert self._pipe is not None and self._process is not None and self._pulse is not None
        limit = self.limit or max(_MIN_ANSWER_TIMEOUT_S, 2 * self.plan.strategy.timeout)
        watch = TrainerWatch(self._pulse, self.still, limit)
        for end in self._ends:
            end.watch = watch
        try:
            self._pipe.send(value, arrays)
            return self._pipe.receive()
        except TrainerLostError as error:
            self._end(at_once=True)
            raise TrainerLostError(
                f"{error}; it was ended, and the next order gets another"
            ) from None
        except (EOFError, PrivetError, ValueError):
            process, output = self._process, self._output
            self._end()
            log = self.home / TRAINER_LOG
            wrote = output is not None and output.wrote and log.exists()
            said = f"its last words are in {log}" if wrote else "it wrote nothing"
            raise TrainerLostError(
                f"the trainer's process has ended ({_how(process.returncode)}); {said}"
            ) from None

    def _end(self, *, at_once: bool = False) -> None:
        process, self._process, self._pipe = self._process, None, None
        self._pulse, self._ends = None, ()
        idle, self._idle, self._opened = self._idle, None, False
        if idle is not None:
            idle.stop()
        if process is None:
            return
        if at_once:
            process.kill()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                try:
                    stream.close()
                except OSError:
                    continue
        try:
            process.wait(_STOP_WITHIN)
        except subprocess.TimeoutExpired:
            process.kill()
            try:
                process.wait(_STOP_WITHIN)
            except subprocess.TimeoutExpired:  # in a driver's hands
                text = "the trainer cannot be ended now; another one takes its place"
                _LOG.error(text, extra={"process": process.pid})
        if self._output is not None:
            self._output.finish()
        with suppress(OSError):
            forget_snapshot(self.policy, self.data_set, self.home)


def _environment(work: Path) -> dict[str, str]:
    """Return the worker's environment; its caches are in its own folder."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if name in _PASSED_ON or name.startswith(_PASSED_ON_ALL)
    }
    path = os.pathsep.join(entry for entry in sys.path if entry)
    own = dict.fromkeys(("TMPDIR", "XDG_CACHE_HOME", "CUDA_CACHE_PATH"), str(work))
    hub = {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(_hub_cache())}
    return kept | own | hub | {"PYTHONPATH": path}


def _hub_cache() -> Path:
    """Return the folder of this process's models of the Hugging Face Hub, by its own rules."""
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    home = Path(os.environ.get("HF_HOME") or caches / "huggingface")
    return Path(os.environ.get("HF_HUB_CACHE") or home / "hub").expanduser()


def _error(kind: str, text: str) -> PrivetError:
    return SelfTestError(text) if kind == "SelfTestError" else DataError(f"{kind}: {text}")


def _how(code: int | None) -> str:
    if code is None:
        return "not yet gone"
    return f"signal {-code}" if code < 0 else f"exit {code}"
