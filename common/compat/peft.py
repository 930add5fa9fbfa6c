"""The names that peft gives to the parameters of the model that it wraps."""

from __future__ import annotations


def plain_name(name: str) -> str:
    """Return a parameter's name without what peft writes into it.

    ``base_model.model`` and ``base_layer``, since 0.5. The public way is to save by
    ``save_pretrained``, which keeps no weights that were trained beside the adapters.
    """
    return name.replace("base_model.model.", "").replace(".base_layer", "")
