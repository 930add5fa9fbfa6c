"""Orders, and the closed list of answers a site may give (H30)."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from typing import Any, Self

from privet.common.canonical import canonical_json, digest
from privet.common.errors import InputError


class Status(StrEnum):
    """All that a site ever says. The list is append-only.

    The refusals are decided before data is opened. ``FAILED`` is the only failure after
    that: whatever went wrong, its reason stays in the operator's log. ``NOT_NOW`` is a state
    that passes, found before the reservation by probes that read no record (a pause, a full
    disk, a database or trainer that is down, a key that is being replaced): it leaves no entry
    and costs nothing, and the same order may be asked again. ``PRESENT`` answers the question
    which site this is, and no order. ``WAITS_FOR_APPROVAL`` answers an offer alone: nobody said
    no, the operator has not decided yet.
    """

    RELEASED = "released"
    REFUSED_PLAN = "refused-plan"
    REFUSED_PARAMETERS = "refused-parameters"
    REFUSED_BUDGET = "refused-budget"
    REFUSED_CONFLICT = "refused-conflict"
    REFUSED_SELF_TEST = "refused-self-test"
    FAILED = "failed"
    PRESENT = "present"
    REFUSED_SIGNATURE = "refused-signature"
    REFUSED_ROLLBACK = "refused-rollback"
    REFUSED_POLICY = "refused-policy"
    REFUSED_PAUSED = "refused-paused"
    WAITS_FOR_APPROVAL = "waits-for-approval"
    NOT_NOW = "not-now"


ORDER_TYPE = "application/vnd.privet.order+json"
"""DSSE payload type of a signed order."""

_RUN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


@dataclass(frozen=True)
class Order:
    """The coordinator's request to one site for one attempt at one round.

    Attributes:
        run: identifier of the run: letters, digits, ``.``, ``_`` and ``-``, because it is
            written into the site's logs, ledger and file names.
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

    @cached_property
    def digest(self) -> str:
        """``sha256:…`` of the order's canonical JSON."""
        return digest(self.encode())

    def encode(self) -> bytes:
        """Return what is signed: the order as canonical JSON."""
        return self._encoded

    @cached_property
    def _encoded(self) -> bytes:
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
        # They are written into the site's ledger, also where the order is refused.
        for name in ("plan", "model"):
            if not _DIGEST.fullmatch(value[name]):
                raise InputError(f"order: '{name}' must be a digest, sha256: and 64 hex digits")
        if not _RUN.fullmatch(value["run"]):
            raise InputError(
                "order: 'run' must begin with a letter or digit and hold at most 128 letters, "
                "digits, dots, underscores and hyphens"
            )
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
