"""The models whose steps are timed: shapes of the table, with random weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

Batch = dict[str, Tensor]
Loss = Callable[[Any, Batch], Tensor]

_BERTS: dict[str, tuple[dict[str, int], int, int, int]] = {
    # shape, words, tokens, records
    "bert": ({"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4,
              "intermediate_size": 1024}, 30522, 128, 32),
    "tiny": ({"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
              "intermediate_size": 128}, 1000, 64, 32),
    "minilm": ({"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12,
                "intermediate_size": 1536}, 30522, 128, 32),
    "bert-base": ({"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12,
                   "intermediate_size": 3072}, 30522, 128, 64),
}  # fmt: skip


def make(name: str, device: str) -> tuple[Any, Loss, Batch]:
    """Return a model, its per-record loss and a batch.

    Masks are of four dimensions and positions are of each record, so that every peer can treat
    the model; book-keeping needs neither.
    """
    torch.manual_seed(0)
    if name == "gpt2":
        return _gpt2(device)
    if name == "llama-1b-lora":
        return _llama(device)
    if name == "lending":
        return _lending(device)
    return _bert("bert" if name == "lora" else name, device, lora=name == "lora")


def _bert(name: str, device: str, *, lora: bool) -> tuple[Any, Loss, Batch]:
    import transformers

    shape, words, tokens, records = _BERTS[name]
    config = transformers.BertConfig(
        vocab_size=words, num_labels=2, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        **shape,
    )  # fmt: skip
    model: Any = transformers.BertForSequenceClassification(config)
    if lora:
        import peft

        settings = peft.LoraConfig(
            r=8, target_modules=["query", "value"], lora_dropout=0.0, task_type="SEQ_CLS"
        )
        model = peft.get_peft_model(model, settings)
    batch = {
        "input_ids": torch.randint(0, words, (records, tokens)),
        "position_ids": torch.arange(tokens).repeat(records, 1),
        "token_type_ids": torch.zeros(records, tokens, dtype=torch.long),
        "attention_mask": torch.zeros(records, 1, 1, tokens),
        "label": torch.randint(0, 2, (records,)),
    }
    return model.train().to(device), _classify, {k: t.to(device) for k, t in batch.items()}


def _classify(model: Any, batch: Batch) -> Tensor:
    inputs = {name: tensor for name, tensor in batch.items() if name != "label"}
    logits = model(**inputs).logits
    return functional.cross_entropy(logits, batch["label"], reduction="none")


def _gpt2(device: str) -> tuple[Any, Loss, Batch]:
    import transformers

    config = transformers.GPT2Config(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    model: Any = transformers.GPT2LMHeadModel(config)
    batch = {
        "input_ids": torch.randint(0, config.vocab_size, (8, 256)),
        "position_ids": torch.arange(256).repeat(8, 1),
    }
    return model.train().to(device), _speak, {k: t.to(device) for k, t in batch.items()}


def _llama(device: str) -> tuple[Any, Loss, Batch]:
    import peft
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=32000, hidden_size=2048, num_hidden_layers=16, num_attention_heads=32,
        num_key_value_heads=8, intermediate_size=8192,
    )  # fmt: skip
    settings = peft.LoraConfig(
        r=8, target_modules=["q_proj", "v_proj"], lora_dropout=0.0, task_type="CAUSAL_LM"
    )
    model: Any = peft.get_peft_model(transformers.LlamaForCausalLM(config), settings)
    batch = {"input_ids": torch.randint(0, 32000, (8, 512), device=device)}
    return model.train().to(device), _speak, batch


def _lending(device: str) -> tuple[Any, Loss, Batch]:
    """The main job's Transformer, on made-up loans."""
    from privet.common.models import build_model
    from privet.common.tasks import build_task
    from privet.simulations import scenarios

    plan = scenarios.get("lending").make_plan("ft-transformer")
    task = build_task(plan)
    batch = task.random_batch(1024, 0)
    return build_model(plan).to(device), task.loss, {k: t.to(device) for k, t in batch.items()}


def _speak(model: Any, batch: Batch) -> Tensor:
    logits = model(**batch).logits[:, :-1]
    losses = functional.cross_entropy(logits.mT, batch["input_ids"][:, 1:], reduction="none")
    return losses.mean(1)
