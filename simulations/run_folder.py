"""The files of a simulated run's folder: model, card, plots, ``result.json``."""

from __future__ import annotations

from dataclasses import replace

from privet.common.canonical import write_json
from privet.privacy.audit.card import write_card
from privet.server.snapshot import save_model
from privet.simulations import plots
from privet.simulations.result import Result, remarked

_SOURCES = {
    "public": "a test split that counts as public",
    "gate": "the sites' held-out records, noised and paid for",
    "off": "none",
}


def write_result(result: Result) -> Result:
    """Write model, card, plots and ``result.json`` into the run folder.

    The model comes first: if another file cannot be made, the run is paid for.

    Returns:
        The result, with a remark for each file that could not be made.
    """
    folder, remarks = result.out, list(result.remarks)
    facts = {"run": result.run, "plan": result.plan.digest, "claim": result.claim}
    save_model(folder / "model" / "model.safetensors", result.model, facts)
    with remarked(remarks, "the model card could not be made"):
        card = write_card(
            result.plan,
            result.metrics,
            result.standing,
            source=_SOURCES[result.plan.metrics.source],
            note=result.note,
        )
        (folder / "model" / "README.md").write_text(card, encoding="utf-8")
    with remarked(remarks, "the plots could not be made"):
        plots.write(result, folder / "plots")
    result = replace(result, remarks=tuple(remarks))
    write_json(folder / "result.json", result.to_dict())
    return result
