"""The gate's side of the pipe: a :class:`~privet.client.training.Training` in another process."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from privet.client.data.loader import FOLDER as SNAPSHOTS
from privet.client.data.loader import locate_records, probe_database
from privet.client.data.source import require_source
from privet.client.training import Made
from privet.client.worker.pipe import Pipe
from privet.common.errors import DataError, PrivetError, SelfTestFailed, TrainerLost
from privet.common.flat import CHUNK, Arrays
from privet.common.operator_log import open_private
from privet.common.order import Order
from privet.common.plan import Plan
from privet.privacy import events as ev
from privet.privacy.policy import Policy
from privet.privacy.program import training_event

_LOG = logging.getLogger("privet.worker")
TRAINER_LOG = "trainer.log"
"""Name of the trainer's log, in the site's folder."""
# What finds programs, modules, the GPU and the number of threads, and no more: a password or a
# token that stands in this process's environment is not the trainer's.
_PASSED_ON = (
    "HOME", "LANG", "LD_LIBRARY_PATH", "OMP_NUM_THREADS", "OMP_WAIT_POLICY", "PATH", "PRIVET_DATA",
    "PRIVET_MODELS", "TZ",
)  # fmt: skip
_PASSED_ON_ALL = ("CUDA_", "LC_", "MALLOC_", "MKL_", "NVIDIA_", "PYTORCH_", "TORCH_")
_STOP_WITHIN = 5.0
"""Seconds that a worker has to end once its pipe is closed."""


@dataclass
class RemoteTrainer:
    """One plan's trainer, in a process without keys and without network.

    The process is started by :meth:`start`, or at the first question, and stays warm. If it
    ends, the question fails and the next one starts another.

    Args:
        plan: with its noise calibrated.
        policy: of the site; says where the records are.
        data_set: of the policy.
        home: the site's folder; the worker's log and temporary files lie there.
        closed: folders and files of keys and passwords, which the worker cannot open.
        unconfined: go on where the kernel cannot close the network.
        seed: makes the noise again, for tests only.
    """

    plan: Plan
    policy: Policy
    data_set: str
    home: Path
    closed: tuple[Path, ...]
    unconfined: bool = False
    seed: str = ""
    _process: subprocess.Popen[bytes] | None = None
    _pipe: Pipe | None = None
    _seen: tuple[int, int] | None = None
    _opened: bool = False
    _records: Path = Path()
    _shapes: dict[str, tuple[int, ...]] | None = None
    _begins: str = ""
    _tests: tuple[str, ...] | None = None
    _turn: threading.Lock = field(default_factory=threading.Lock)

    @property
    def event(self) -> ev.Event:
        """What a training release will cost."""
        return training_event(self.plan)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the trained parameters in order, each with its shape."""
        if self._shapes is None:
            told, _ = self._ask({"do": "shapes"})
            self._shapes = {name: tuple(shape) for name, shape in told["shapes"].items()}
        return self._shapes

    def begins(self) -> str:
        """Return the digest of the trained parameters as the plan has them before any training."""
        if not self._begins:
            told, _ = self._ask({"do": "begins"})
            self._begins = str(told["begins"])
        return self._begins

    def self_test(self) -> tuple[str, ...]:
        """Run the start-up tests; return the rows that passed.

        It is asked before each order is paid for, so a process that has ended since the last
        one is replaced here, where that costs no charge.
        """
        with self._turn:
            if self._process is not None and self._process.poll() is not None:
                self._end()
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

    def release(self, order: Order, model: Arrays) -> Made:
        """Train, or evaluate, as the order says."""
        if not self._opened:
            self._records = locate_records(self.policy, self.data_set, self.home)
            if self._seen != self._file():
                # A file that was replaced since the worker was confined is out of its reach.
                self.close()
        asked = {"do": "release", "order": order.to_dict(), "records": str(self._records)}
        told, arrays = self._ask(asked, model)
        self._opened = True
        event, notes = ev.from_json(told["event"]), tuple(told["notes"])
        return Made(arrays, event, told["reproducible"] is not False, notes)

    def committed(self, order: Order) -> None:
        """Hear that what was made for an order will leave."""
        self._ask({"do": "committed", "order": order.to_dict()})

    def start(self) -> None:
        """Start the process, without waiting until it is ready.

        Raises:
            TrainerLost: if it cannot be started.
        """
        with self._turn:
            if self._process is None:
                self._start()

    def close(self) -> None:
        """End the process."""
        with self._turn:
            self._end()

    def _file(self) -> tuple[int, int] | None:
        """Return which file the records are in now; a snapshot's folder is within reach."""
        path = self.policy.path_of(self.policy.data_set(self.data_set)[1])
        try:
            known = path.stat() if path is not None else None
        except OSError:
            return None
        return (known.st_dev, known.st_ino) if known is not None else None

    def _start(self) -> None:
        work = self.home / "trainer"
        for folder in (work, self.home / SNAPSHOTS):
            folder.mkdir(mode=0o700, exist_ok=True)
        self._seen, self._opened = self._file(), False
        log = self._open_log()
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "privet.client.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=_environment(work),
                bufsize=CHUNK,
                start_new_session=True,
            )
        except OSError as error:
            raise TrainerLost(f"the trainer cannot be started: {error.strerror}") from None
        finally:
            os.close(log)
        assert self._process.stdin is not None and self._process.stdout is not None
        self._pipe = Pipe(self._process.stdout, self._process.stdin)
        opening = {
            "plan": self.plan.to_dict(),
            "site": self.policy.site,
            "data": self.policy.data_set(self.data_set)[1].model_dump(mode="json"),
            "closed": [str(path.resolve()) for path in self.closed],
            "work": str(work.resolve()),
            "seed": self.seed,
        }
        self._pipe.send(opening)
        self._require_confined()

    def _open_log(self) -> int:
        """Open the trainer's log, which is a part of the operator's: a record may stand in it."""
        try:
            return open_private(self.home / TRAINER_LOG)
        except OSError as error:
            why = os.strerror(error.errno or 0)
            _LOG.error("the trainer's log cannot be written", extra={"why": why})
            return os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)

    def _require_confined(self) -> None:
        confined, _ = self._exchange(None, None)
        if not confined["network"]:
            if not self.unconfined:
                self._end()
                raise TrainerLost(
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
        if "error" in told:
            raise _error(told["error"], told["text"])
        return told, numbers

    def _exchange(
        self, value: dict[str, Any] | None, arrays: Arrays | None
    ) -> tuple[dict[str, Any], Arrays]:
        assert self._pipe is not None and self._process is not None
        try:
            if value is not None:
                self._pipe.send(value, arrays)
            return self._pipe.receive()
        except (EOFError, PrivetError, ValueError):
            process = self._process
            self._end()
            raise TrainerLost(
                f"the trainer's process has ended ({_how(process.returncode)}); its last words are "
                f"in {self.home / TRAINER_LOG}"
            ) from None

    def _end(self) -> None:
        process, self._process, self._pipe = self._process, None, None
        if process is None:
            return
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
            process.wait()


def _environment(work: Path) -> dict[str, str]:
    """Return the worker's environment; what it caches lies in its own folder."""
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
    """Return where models of the Hugging Face hub lie for this process, by the hub's own rules."""
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    home = Path(os.environ.get("HF_HOME") or caches / "huggingface")
    return Path(os.environ.get("HF_HUB_CACHE") or home / "hub").expanduser()


def _error(kind: str, text: str) -> PrivetError:
    return SelfTestFailed(text) if kind == "SelfTestFailed" else DataError(f"{kind}: {text}")


def _how(code: int | None) -> str:
    if code is None:
        return "not yet gone"
    return f"signal {-code}" if code < 0 else f"exit {code}"
