"""Tiny models of transformers with random weights, and a small tokenizer made for them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from families_kit import SPANISH, WORDS

START, PAD, END, UNKNOWN, MASK = range(5)
SPECIAL = ("[CLS]", "[PAD]", "[SEP]", "[UNK]", "[MASK]")
"""No model here has its padding at 0, where a wrong reading would pass."""
VOCABULARY = [*SPECIAL, *WORDS, *SPANISH, *(f"word{k}" for k in range(40)), ".", ","]


@dataclass(frozen=True)
class Kind:
    """A model.

    Attributes:
        task: that it does.
        make: returns the model.
        frame: the tokens that its tokenizer puts around a text.
        names: further names of special tokens.
    """

    task: str
    make: Callable[[Any], Any]
    frame: str = "[CLS] $A [SEP]"
    names: tuple[str, ...] = ("cls_token", "sep_token", "pad_token", "unk_token", "mask_token")


_SIZE: dict[str, Any] = {
    "vocab_size": len(VOCABULARY), "pad_token_id": PAD, "bos_token_id": START, "eos_token_id": END,
}  # fmt: skip
_BERT = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
    "max_position_embeddings": 40, **_SIZE,
}  # fmt: skip
_GPT2 = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 40, **_SIZE}
_LLAMA = {**_BERT, "num_key_value_heads": 1, "tie_word_embeddings": False}
_BART = {
    "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32,
    "max_position_embeddings": 40, "decoder_start_token_id": END, **_SIZE,
}  # fmt: skip
_T5 = {
    "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2,
    "decoder_start_token_id": PAD, **_SIZE,
}  # fmt: skip
_DISTIL = {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32, **_SIZE}
_TURNS = ("bos_token", "eos_token", "pad_token", "unk_token")
TINY: dict[str, Kind] = {
    "bert": Kind("text", lambda hf: hf.BertForSequenceClassification(hf.BertConfig(**_BERT))),
    "distilbert": Kind(
        "text", lambda hf: hf.DistilBertForSequenceClassification(hf.DistilBertConfig(**_DISTIL))
    ),
    "roberta": Kind(
        "text", lambda hf: hf.RobertaForSequenceClassification(hf.RobertaConfig(**_BERT))
    ),
    "gpt2": Kind(
        "text", lambda hf: hf.GPT2ForSequenceClassification(hf.GPT2Config(**_GPT2)), "$A", _TURNS
    ),
    "llama": Kind(
        "text", lambda hf: hf.LlamaForSequenceClassification(hf.LlamaConfig(**_LLAMA)),
        "[CLS] $A", _TURNS,
    ),
    "bert-masked": Kind("masked-text", lambda hf: hf.BertForMaskedLM(hf.BertConfig(**_BERT))),
    "gpt2-causal": Kind(
        "causal-text", lambda hf: hf.GPT2LMHeadModel(hf.GPT2Config(**_GPT2)), "$A", _TURNS
    ),
    "llama-causal": Kind(
        "causal-text", lambda hf: hf.LlamaForCausalLM(hf.LlamaConfig(**_LLAMA)), "[CLS] $A", _TURNS
    ),
    "qwen2-causal": Kind(
        "causal-text", lambda hf: hf.Qwen2ForCausalLM(hf.Qwen2Config(**_LLAMA)), "$A",
        ("eos_token", "pad_token", "unk_token"),
    ),
    "t5": Kind(
        "text-to-text", lambda hf: hf.T5ForConditionalGeneration(hf.T5Config(**_T5)), "$A [SEP]",
        ("eos_token", "pad_token", "unk_token"),
    ),
    "bart": Kind(
        "text-to-text", lambda hf: hf.BartForConditionalGeneration(hf.BartConfig(**_BART)),
        "[CLS] $A [SEP]", (*_TURNS, "cls_token", "sep_token", "mask_token"),
    ),
}  # fmt: skip
_TOKENS = {
    "cls_token": "[CLS]", "bos_token": "[CLS]", "sep_token": "[SEP]", "eos_token": "[SEP]",
    "pad_token": "[PAD]", "unk_token": "[UNK]", "mask_token": "[MASK]",
}  # fmt: skip


def save_tiny(name: str, folder: Path) -> Path:
    """Write a tiny model's folder, with its tokenizer.

    Args:
        name: of :data:`TINY`.
        folder: new.
    """
    import torch
    import transformers

    kind = TINY[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = kind.make(transformers)
        for parameter in model.parameters():  # the usual start is so small that nothing matters
            parameter.data.mul_(4)
        model.save_pretrained(folder)
    names = {key: _TOKENS[key] for key in kind.names}
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer(kind.frame), **names)
    fast.save_pretrained(folder)
    return folder


def tokenizer(frame: str) -> Any:
    """Return a tokenizer of words, with a frame around each text."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = {word: number for number, word in enumerate(VOCABULARY)}
    found = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    found.add_special_tokens(list(SPECIAL))
    found.pre_tokenizer = pre_tokenizers.Whitespace()
    found.post_processor = processors.TemplateProcessing(
        single=frame, special_tokens=[(name, words[name]) for name in SPECIAL]
    )
    return found
