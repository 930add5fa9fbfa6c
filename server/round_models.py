"""The models of a round: before it, after it, and as published."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

from privet.common.flat import Arrays, digest_arrays

T = TypeVar("T", Arrays, str)


@dataclass(frozen=True)
class RoundModels(Generic[T]):
    """The models of one round, or their digests.

    Attributes:
        before: the model that the updates start from.
        after: the model that the strategy made of the updates.
        published: the model that is measured and stored: the mean of the last rounds, if the plan
            averages.
    """

    before: T
    after: T
    published: T


def digests_of(models: RoundModels[Arrays]) -> RoundModels[str]:
    """Return the digests of a round's models."""
    return RoundModels(*map(digest_arrays, (models.before, models.after, models.published)))
