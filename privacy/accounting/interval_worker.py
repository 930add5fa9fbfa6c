"""The other process of :mod:`privet.privacy.accounting.interval`; imports nothing of Privet.

Reads one JSON object from standard input, ``{"mechanisms": [[kind, [numbers], count]],
"delta", "error"}``, and writes ``{"low", "high"}`` or ``{"reason"}``.
"""

from __future__ import annotations

import json
import math
import sys
import warnings
from typing import Any


def main() -> None:
    """Answer one request."""
    request = json.load(sys.stdin)
    try:
        import prv_accountant as prv
    except ImportError as error:
        _say(
            {
                "reason": f"prv-accountant is not installed ({error}): install Privet with the "
                "extra [interval]"
            }
        )
        return
    warnings.simplefilter("ignore")
    kinds = {
        "gaussian": prv.GaussianMechanism,
        "sampled_gaussian": prv.PoissonSubsampledGaussianMechanism,
    }
    counts = [count for *_, count in request["mechanisms"]]
    delta = request["delta"]
    try:
        mechanisms = [kinds[kind](*numbers) for kind, numbers, _ in request["mechanisms"]]
        accountant = prv.PRVAccountant(mechanisms, request["error"], delta / 1000, counts)
        low, _, high = accountant.compute_epsilon(delta, counts)
    except Exception as fault:  # the package asserts and raises much at large ε
        _say({"reason": f"prv-accountant cannot compose these events: {fault!r}"})
        return
    if not low <= high < math.inf:
        _say({"reason": f"prv-accountant gave no interval: [{low}, {high}]"})
        return
    _say({"low": float(low), "high": float(high)})


def _say(answer: dict[str, Any]) -> None:
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
