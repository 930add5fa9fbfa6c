"""Orders, and the closed list of answers a site may give (H30)."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Self

from privet.common.canonical import canonical_json, digest
from privet.common.errors import InputError


class Status(StrEnum):
    """All that a site ever says about an order. The list is append-only.

    The first group is decided before data is opened. ``FAILED`` is the only failure
    after that: whatever went wrong, its reason stays in the operator's log.
    """

    RELEASED = "released"
    REFUSED_PLAN = "refused-plan"
    REFUSED_PARAMETERS = "refused-parameters"
    REFUSED_BUDGET = "refused-budget"
    REFUSED_CONFLICT = "refused-conflict"
    REFUSED_SELF_TEST = "refused-self-test"
    FAILED = "failed"
    REFUSED_SIGNATURE = "refused-signature"
    REFUSED_ROLLBACK = "refused-rollback"
    REFUSED_POLICY = "refused-policy"
    REFUSED_PAUSED = "refused-paused"


ORDER_TYPE = "application/vnd.privet.order+json"
"""DSSE payload type of a signed order."""


@dataclass(frozen=True)
class Order:
    """The coordinator's request to one site for one attempt at one round.

    Attributes:
        run: identifier of the run.
        site: name of the site that is asked.
        round, attempt: counted from 1; an attempt is asked again, never changed.
        purpose: ``train`` or ``evaluate``.
        plan: digest of the plan.
        model: digest of the model that the order carries.
        parameters: names of the parameters to train, in order.
        keyid, signature: who signed it (hex), and the signature (base64); no part of what
            is signed.
    """

    run: str
    site: str
    round: int
    attempt: int
    purpose: str
    plan: str
    model: str
    parameters: tuple[str, ...]
    keyid: str = field(default="", compare=False)
    signature: str = field(default="", compare=False)

    @property
    def slot(self) -> str:
        """What may be answered once: run, purpose, round and attempt."""
        return f"{self.run}/{self.purpose}/{self.round}/{self.attempt}"

    @property
    def digest(self) -> str:
        """``sha256:…`` of the order's canonical JSON."""
        return digest(self.encode())

    def encode(self) -> bytes:
        """Return what is signed: the order as canonical JSON."""
        return canonical_json(self.to_dict())

    def to_dict(self) -> dict[str, Any]:
        """Return what is signed as JSON values."""
        return {
            "run": self.run,
            "site": self.site,
            "round": self.round,
            "attempt": self.attempt,
            "purpose": self.purpose,
            "plan": self.plan,
            "model": self.model,
            "parameters": list(self.parameters),
        }

    @classmethod
    def decode(cls, value: Any, keyid: str = "", signature: str = "") -> Self:
        """Read an order from JSON values; its signature is not checked here.

        Raises:
            InputError: if a field is missing, unknown or of the wrong type.
        """
        fields = [name for name in cls.__dataclass_fields__ if name not in ("keyid", "signature")]
        if not isinstance(value, dict) or set(value) != set(fields):
            raise InputError(f"an order has exactly the fields {', '.join(fields)}")
        for name in ("run", "site", "purpose", "plan", "model"):
            if not isinstance(value[name], str):
                raise InputError(f"order: '{name}' must be a text")
        for name in ("round", "attempt"):
            if type(value[name]) is not int or not 1 <= value[name] <= 10**9:
                raise InputError(f"order: '{name}' must be an integer from 1 to 10^9")
        parameters = value["parameters"]
        if not isinstance(parameters, list) or not all(isinstance(p, str) for p in parameters):
            raise InputError("order: 'parameters' must be a list of names")
        if value["purpose"] not in ("train", "evaluate"):
            raise InputError("order: 'purpose' must be 'train' or 'evaluate'")
        signed = {"keyid": keyid, "signature": signature}
        return cls(**{**value, "parameters": tuple(parameters), **signed})
