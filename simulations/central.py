"""A simulated coordinator that sees every site's update, clips it as a whole, and adds the noise.

This is the central model of cross-device studies (DP-FedAvg; McMahan, Ramage, Talwar and Zhang
2018, arXiv:1710.06963): the unit is a site with all records that it trains on. Metrics of its test
records, where the plan has a public test split, are outside the guarantee (H13). It exists in
simulations alone: a real coordinator would see each site's update without noise, and no ledger
could show what it did.

A round's model changes by ``(Σ clip(Δ_i, C) + N(0, (σC)²)) / M``, M the sites of a round, also
where fewer answered: with or without one site the sum moves by C at most. A site takes part in
the rounds of the plan's schedule, which is public, so nothing is gained by sampling (H22).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from privet.common.flat import Arrays
from privet.common.plan import Plan
from privet.privacy.accounting.events import Repeated
from privet.privacy.accounting.plan_events import training_event
from privet.privacy.accounting.pld import privacy_loss
from privet.privacy.accounting.units import PrivacyLoss, Relation, Unit
from privet.privacy.mechanism.noise import Stream
from privet.server.app import FlowerLink
from privet.server.replies import Reply
from privet.server.rounds import Outcome, Progress


def sites_plan(plan: Plan) -> Plan:
    """Return what the sites do under a plan with ``trust = "central"``: they train without noise.

    Args:
        plan: as its author wrote it.
    """
    return plan.changed(privacy=None)


class CentralLink(FlowerLink):
    """Join the sites' updates with central noise, and leave the rest to the plan's strategy.

    Args:
        plan: with its noise calibrated, and ``trust = "central"``.
        grid: of Flower or of Privet; reaches the sites, which train by :func:`sites_plan`.
        noise_seed: makes the noise reproducible, for tests; None takes a fresh key each round.
        scratch: a folder for aggregated models; None keeps them in memory.
    """

    def __init__(
        self, plan: Plan, grid: Any, noise_seed: int | None, scratch: Path | None = None
    ) -> None:
        super().__init__(sites_plan(plan), grid, scratch)
        self._central, self._noise_seed = plan, noise_seed

    def join(self, round_number: int, model: Arrays, replies: list[Reply]) -> Arrays:
        """As :meth:`FlowerLink.join`, of one update, which is the noised mean of all."""
        released = [reply for reply in replies if reply.release is not None]
        if not released:
            return super().join(round_number, model, replies)
        seed, stream = self._noise_seed, Stream.fresh()
        if seed is not None:
            stream = Stream.seeded("central", seed, round_number)
        updates = (reply.release.arrays for reply in released if reply.release is not None)
        mean = noised_mean(self._central, updates, stream)
        one = released[0]
        assert one.release is not None
        one = replace(one, release=replace(one.release, arrays=mean))
        return super().join(round_number, model, [one])


def noised_mean(plan: Plan, updates: Iterable[Arrays], stream: Stream) -> Arrays:
    """Return the mean of clipped updates with the plan's noise.

    Args:
        plan: with its noise calibrated; gives clip, noise and number of sites.
        updates: of sites that released, at least one; all of the same shapes.
        stream: of the noise.
    """
    privacy = plan.privacy
    assert privacy is not None and privacy.noise_multiplier is not None
    total: dict[str, torch.Tensor] = {}
    for update in updates:
        arrays = {name: np.asarray(array, dtype=np.float64) for name, array in update.items()}
        if not total:
            total = {name: torch.zeros(array.shape).double() for name, array in arrays.items()}
        if share := clip_factor(arrays, privacy.clip):
            for name, array in arrays.items():
                total[name] += torch.from_numpy(array * share)
    flat = torch.cat([array.reshape(-1) for array in total.values()])
    stream.add_normal(flat, privacy.noise_multiplier * privacy.clip)
    flat /= plan.sites_in_a_round
    parts = torch.split(flat, [array.numel() for array in total.values()])
    return {
        name: part.reshape(array.shape).numpy().astype(np.float32)
        for (name, array), part in zip(total.items(), parts, strict=True)
    }


def clip_factor(arrays: Arrays, clip: float) -> float:
    """Return by what an update is multiplied so that its L2 norm is at most ``clip``.

    It is 0 for an update that is not finite.

    Args:
        arrays: the update by name, in double precision.
        clip: bound of the norm.
    """
    largest = max((float(np.abs(a).max()) for a in arrays.values() if a.size), default=0.0)
    if largest == 0.0:
        return 1.0
    if not math.isfinite(largest):
        return 0.0
    # Scaled first: squares of the largest and the smallest doubles are out of range.
    norm = largest * math.sqrt(sum(float(((a / largest) ** 2).sum()) for a in arrays.values()))
    return min(1.0, clip / norm)


class CentralSpending:
    """What each site has spent: its rounds so far, each with the noise of the whole round.

    Args:
        plan: with its noise calibrated.
        observe: called with the progress of each round and what its sites have spent.
        seeded: whether the noise comes from a seed.
    """

    def __init__(
        self, plan: Plan, observe: Callable[[Progress], None], *, seeded: bool = False
    ) -> None:
        self._plan, self._observe, self._seeded = plan, observe, seeded
        self._turns: Counter[str] = Counter()
        self._spent: list[dict[str, Any]] = []

    def see(self, progress: Progress) -> None:
        """Take the next round.

        Args:
            progress: of the round, whose sites made releases without noise.
        """
        plan, spent = self._plan, dict[str, dict[str, Any]]()
        for site in plan.participants:
            if plan.takes_part(site.name, progress.round):
                self._turns[site.name] += 1
                spent[site.name] = loss_of_turns(plan, self._turns[site.name]).to_dict()
        self._spent.append(spent)
        self._observe(replace(progress, spent=spent, reproducible=self._seeded))

    def into(self, outcome: Outcome) -> Outcome:
        """Return the outcome of the rounds that were seen, with what their sites have spent."""
        steps = zip(outcome.progress, self._spent, strict=True)
        told = [replace(step, spent=spent, reproducible=self._seeded) for step, spent in steps]
        return replace(outcome, progress=told)


@lru_cache(maxsize=4096)
def loss_of_turns(plan: Plan, turns: int) -> PrivacyLoss:
    """Return what a site has spent that took part in that many rounds.

    Args:
        plan: with its noise calibrated.
        turns: rounds of the site.
    """
    privacy = plan.privacy
    assert privacy is not None
    relation = Relation(privacy.relation)
    events = [Repeated(training_event(plan), turns)] if turns else []
    return privacy_loss(events, privacy.delta, Unit(privacy.unit), relation)
