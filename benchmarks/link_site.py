"""A site for the benchmarks of the link: endpoint, keys and ledger are real.

python benchmarks/link_site.py light SITE.TOML            its trainer answers at once
python benchmarks/link_site.py seeded SITE.TOML           its noise can be made again
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import privet.common.link
from privet.client import start
from privet.client.link import dial
from privet.client.training.protocol import TrainerOutput
from privet.common.flat import Arrays
from privet.common.order import Order
from privet.common.plan import Plan
from privet.privacy.accounting.events import Event
from privet.privacy.accounting.plan_events import training_event
from privet.privacy.policy import Policy

assert privet.common.link


class Light:
    """Stands in for a trainer: the update is the model that came."""

    def __init__(self, plan: Plan, policy: Policy, data_set: str) -> None:
        self._plan = plan
        self._model: Arrays = {}

    @property
    def event(self) -> Event:
        """What a round would cost."""
        return training_event(self._plan)

    def require_source(self) -> None:
        """Nothing is opened."""

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return those of the benchmark's models."""
        from link_model import shapes

        return shapes(self._plan)

    def self_test(self) -> tuple[str, ...]:
        """Return nothing: no mechanism was tested."""
        return ()

    def release(self, order: Order, model: Arrays) -> TrainerOutput:
        """Return the model as its own update."""
        return TrainerOutput(dict(model), self.event, True)

    def committed(self, order: Order) -> None:
        """Nothing is kept for later."""

    def close(self) -> None:
        """Nothing is held."""


def main() -> None:
    kind, policy = sys.argv[1], Path(sys.argv[2])
    dial._MAX_PAUSE_S = 1.0
    endpoint = start.make_endpoint(policy, None, seed="bench" if kind == "seeded" else "")
    if kind == "light":
        endpoint.close()
        endpoint.training_for = Light
    try:
        asyncio.run(start.run(start.dialer(endpoint)))
    finally:
        endpoint.close()


if __name__ == "__main__":
    main()
