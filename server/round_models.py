"""The models of a round: what sites train, what their updates make of it, what is published."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

from privet.common.flat import Arrays, digest_arrays

T = TypeVar("T", Arrays, str)


@dataclass(frozen=True)
class RoundModels(Generic[T]):
    """The models of one round, or their digests.

    Attributes:
        before: what the updates start from.
        after: what the strategy made of them.
        published: what is measured and kept: the mean of the last rounds, where the plan averages.
    """

    before: T
    after: T
    published: T


def digests_of(models: RoundModels[Arrays]) -> RoundModels[str]:
    """Return the digests of a round's models."""
    return RoundModels(*map(digest_arrays, (models.before, models.after, models.published)))
