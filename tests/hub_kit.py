"""Tiny models of transformers, saved as a folder with a tokenizer of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from privet.common.plan import Plan
from privet.common.sections.model import Adapter

WORDS = 60
CLASSES = ["a", "b", "c"]
PADDING, BEGIN, END, MASK = 1, 0, 2, 3
"""As RoBERTa and BART have them: padding is not 0."""
_SIZES: dict[str, dict[str, Any]] = {
    "bert": {}, "roberta": {}, "xlm-roberta": {}, "deberta-v2": {},
    "distilbert": {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
    "llama": {"num_key_value_heads": 2, "head_dim": 8},
    "bart": {
        "d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 4,
        "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48,
    },
    "t5": {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 1, "num_heads": 4},
    "xlnet": {"d_model": 32, "n_layer": 1, "n_head": 4, "d_head": 8, "d_inner": 48},
    "fnet": {},
    "mistral": {},
    "resnet": {
        "embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic",
    },
    "vit": {"image_size": 16, "patch_size": 4},
}  # fmt: skip
_USUAL = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
    "max_position_embeddings": 64,
}  # fmt: skip
_TEXT = {
    "vocab_size": WORDS, "pad_token_id": PADDING, "bos_token_id": BEGIN, "eos_token_id": END,
    "decoder_start_token_id": END,
}  # fmt: skip
_CLASSES = {
    "text": "SequenceClassification", "causal-text": "CausalLM", "masked-text": "MaskedLM",
    "text-to-text": "Seq2SeqLM", "image": "ImageClassification",
    "question-answering": "QuestionAnswering",
}  # fmt: skip

SMALL_ADAPTERS: dict[str, dict[str, Any]] = {
    "c3a": {"peft": {"block_size": 4}}, "miss": {"rank": 4}, "shira": {"rank": 2},
    "vblora": {"peft": {"vector_length": 8, "num_vectors": 8}},
    "waveft": {"peft": {"n_frequency": 8}}, "road": {"peft": {"group_size": 4}},
    "fourierft": {"peft": {"n_frequency": 8}}, "oft": {"peft": {"oft_block_size": 4}},
    "boft": {"peft": {"boft_block_size": 4}},
    "prompt": {"peft": {"num_virtual_tokens": 3}}, "prefix": {"peft": {"num_virtual_tokens": 3}},
    "p-tuning": {"peft": {"num_virtual_tokens": 3}},
}  # fmt: skip
"""What a tiny model needs; the adapters' own sizes are for layers of hundreds."""


SHORT = ("lora", "dora", "ia3", "vera", "prompt", "prefix", "tinylora")
"""Adapters that every change is tried on, one of each clipping method and way of delivery."""
EACH_ADAPTER = [
    name if name in SHORT else pytest.param(name, marks=pytest.mark.long)
    for name in get_args(Adapter)
]


def hub_folder(folder: Path, family: str, task: str, **changes: Any) -> Path:
    """Save a tiny model of a family, and for texts a tokenizer of words; return its folder.

    Args:
        folder: that is made.
        family: of :data:`_SIZES`.
        task: kind of a plan's task, which decides the class that is saved.
        changes: of the model's configuration.
    """
    sizes = _SIZES[family] or _USUAL
    if family in ("llama", "vit"):
        sizes = {**_USUAL, **_SIZES[family]}
    text = {} if task == "image" else _TEXT
    config = transformers.AutoConfig.for_model(family, **{**sizes, **text, **changes})
    kind = getattr(transformers, f"AutoModelFor{_CLASSES[task]}")
    torch.manual_seed(0)
    kind.from_config(config).float().save_pretrained(folder)
    if task != "image":
        hub_tokenizer(folder, is_framed=family not in ("gpt2", "llama", "mistral"))
    return folder


def hub_tokenizer(
    folder: Path, *, is_framed: bool, words: int = WORDS, **names: str | None
) -> None:
    """Write a tokenizer of the words ``w5``, ``w6`` and so on.

    Args:
        folder: of a model.
        is_framed: whether each text is between a begin and an end.
        words: number of tokens.
        names: of special tokens; None takes one out.
    """
    special = {"<s>": BEGIN, "<pad>": PADDING, "</s>": END, "<mask>": MASK, "<unk>": 4}
    vocabulary = special | {f"w{number}": number for number in range(5, words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(list(special))
    if is_framed:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", special_tokens=[("<s>", BEGIN), ("</s>", END)]
        )
    usual = {
        "pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "mask_token": "<mask>",
        "unk_token": "<unk>",
    }  # fmt: skip
    kept = {key: name for key, name in {**usual, **names}.items() if name is not None}
    saved = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **kept)
    saved.save_pretrained(folder)


def hub_plan(folder: Path, task: str, *, max_tokens: int = 24, **options: Any) -> Plan:
    """Return a plan of one site for a folder of :func:`hub_folder`.

    Args:
        folder: of the model.
        task: kind of the plan's task.
        max_tokens: of the task.
        options: of the plan's model.
    """
    section: dict[str, Any] = {"kind": task}
    if task in ("text", "image"):
        section["classes"] = CLASSES
    if task == "image":
        section["image"] = {"height": 8, "width": 8}
    else:
        section["max_tokens"] = max_tokens
    return Plan.parse(
        {
            "name": "hub",
            "threads": 1,
            "task": section,
            "model": {"kind": "huggingface", "options": {"folder": str(folder), **options}},
            "training": {"rounds": 1, "steps": 1, "sample_rate": 0.5, "micro_batch": 16},
            "privacy": {"epsilon": 8, "delta": 1e-3},
            "sites": [{"name": "A", "nominal_size": 40}],
        }
    )
