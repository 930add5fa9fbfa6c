"""The memory that a step takes on a CPU, measured in a process of its own.

    python -m privet.simulations.peak_memory     reads a plan as JSON, prints bytes

A process keeps what it once took from the system, so that two steps cannot be told apart in one.
"""

from __future__ import annotations

import ctypes
import gc
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from privet.common.plan import Plan
from privet.simulations.model_step import step_of

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_LIMIT_S = 300


def peaks(plan: Plan) -> tuple[int, int] | None:
    """Return the most memory of a step with privacy and without, over that of the model, in bytes.

    Args:
        plan: names the clipping method; its records are not opened.

    Returns:
        None where the system does not say it (it is Linux that does), or a step fails there.
    """
    if not _RESET.exists():
        return None
    work = [json.dumps({"plan": plan.to_dict(), "is_private": flag}) for flag in (True, False)]
    command = [sys.executable, "-m", __name__]
    running = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                         stderr=subprocess.DEVNULL)
        for _ in work
    ]  # fmt: skip
    try:
        for process, told in zip(running, work, strict=True):
            assert process.stdin is not None
            with process.stdin as stream:
                stream.write(told)
        for process in running:
            process.stdin = None  # closed: both are at work
        found = [process.communicate(timeout=_LIMIT_S)[0] for process in running]
        private, plain = (int(text.splitlines()[-1]) for text in found)
    except (OSError, subprocess.TimeoutExpired, ValueError, IndexError):
        return None
    finally:
        for process in running:
            process.kill()
            process.wait()
    return private, plain


def main() -> None:
    """Measure the plan on standard input."""
    told: dict[str, Any] = json.load(sys.stdin)
    step = step_of(Plan.parse(told["plan"]), is_private=told["is_private"])
    gc.collect()
    if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)
    before = _resident("VmRSS")
    _RESET.write_text("5")  # the peak starts here (proc_pid_clear_refs(5))
    for _ in range(2):
        step()
    print(max(0, _resident("VmHWM") - before))


def _resident(name: str) -> int:
    lines = _STATUS.read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) << 10


if __name__ == "__main__":
    main()
