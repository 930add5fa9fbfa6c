"""Privet: federated training of Transformers whose privacy budget anyone can verify.

The public names load lazily, so that ``import privet`` and the auditor's commands
stay light: nothing here imports torch or Flower.
"""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# A thread that waits for others sleeps: where another process holds a core, one that spins takes
# twenty times as long. OpenMP reads this when torch is imported, so it comes first.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

if TYPE_CHECKING:
    from privet.common.errors import PrivetError as PrivetError
    from privet.common.plan import Plan as Plan
    from privet.common.tasks import Task as Task
    from privet.delivery.trained import Trained as Trained
    from privet.delivery.trained import load as load
    from privet.privacy.accounting.units import PrivacyLoss as PrivacyLoss
    from privet.privacy.audit.verify import verify as verify
    from privet.privacy.mechanism.dpsgd import DpSgd as DpSgd
    from privet.server.rounds import Progress as Progress
    from privet.simulations.repeat import repeat as repeat
    from privet.simulations.result import Result as Result
    from privet.simulations.run import simulate as simulate

# The five rooms are links beside this file. Tools that drop links (a Flower bundle does)
# leave the rooms in the checkout's root: find them there.
if not (Path(__file__).parent / "common").exists():
    __path__.append(str(Path(__file__).resolve().parent.parent))

_PUBLIC = {
    "DpSgd": "privet.privacy.mechanism.dpsgd",
    "Plan": "privet.common.plan",
    "PrivacyLoss": "privet.privacy.accounting.units",
    "PrivetError": "privet.common.errors",
    "Progress": "privet.server.rounds",
    "Result": "privet.simulations.result",
    "Task": "privet.common.tasks",
    "Trained": "privet.delivery.trained",
    "load": "privet.delivery.trained",
    "repeat": "privet.simulations.repeat",
    "simulate": "privet.simulations.run",
    "verify": "privet.privacy.audit.verify",
}

__all__ = [
    "DpSgd", "Plan", "PrivacyLoss", "PrivetError", "Progress", "Result", "Task", "Trained",
    "__version__", "load", "repeat", "simulate", "verify",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'privet' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
