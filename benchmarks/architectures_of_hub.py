"""Families of transformers and adapters of peft, each tiny."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

from architecture import (
    CLASSES,
    WORDS,
    Architecture,
    Batch,
    class_loss,
    decoder_loss,
    numbers,
    tag_loss,
    texts,
    token_loss,
)
from torch import nn

_SMALL: dict[str, Any] = {
    **dict.fromkeys(("vocab_size",), WORDS),
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "dim", "embed_dim", "emb_dim"), 32),
    **dict.fromkeys(
        ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers",
         "decoder_layers", "num_decoder_layers"), 2,
    ),
    **dict.fromkeys(
        ("num_attention_heads", "n_head", "n_heads", "num_heads", "encoder_attention_heads",
         "decoder_attention_heads"), 4,
    ),
    **dict.fromkeys(("head_dim", "d_kv"), 8),
    **dict.fromkeys(
        ("intermediate_size", "n_inner", "d_ff", "hidden_dim", "ffn_dim", "encoder_ffn_dim",
         "decoder_ffn_dim"), 48,
    ),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), 24),
    **dict.fromkeys(
        ("max_position_embeddings", "n_positions", "max_source_positions",
         "max_target_positions"), 64,
    ),
    **dict.fromkeys(("embedding_size", "image_size", "classifier_proj_size", "num_mel_bins",
                     "projection_dim"), 16),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "patch_size"), 4),
    **dict.fromkeys(("num_key_value_heads", "num_experts_per_tok", "type_vocab_size"), 2),
    "num_channels": 3, "pooler_hidden_size": 32, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2, "decoder_start_token_id": 1,
}  # fmt: skip
"""What makes a config tiny, by the names that configs of transformers have."""
_AFTER_NONE = ("pad_token_id", "decoder_start_token_id", "eos_token_id")


def _shrink(config: Any, depth: int = 0) -> None:
    """Make a config and those within it tiny."""
    from transformers import PretrainedConfig

    for name, value in _SMALL.items():
        now = getattr(config, name, False)
        whole = isinstance(now, int) and not isinstance(now, bool)
        if whole or (now is None and name in _AFTER_NONE):
            with suppress(AttributeError, NotImplementedError):  # it follows from another
                setattr(config, name, value)
    for value in list(vars(config).values()):
        if isinstance(value, PretrainedConfig) and depth < 3:
            _shrink(value, depth + 1)
    for name in ("layer_types", "mlp_layer_types"):
        kinds = vars(config).get(name)
        if isinstance(kinds, list):
            setattr(config, name, kinds[:1] + kinds[-1:])
    if hasattr(config, "num_labels"):
        config.num_labels = CLASSES
    for name in list(vars(config)):  # of all its stages, of which there are fewer now
        if name.startswith("_") and name.endswith(("out_features", "out_indices")):
            setattr(config, name, None)


def tiny(kind: str, name: str, **changes: Any) -> nn.Module:
    """Return a tiny model of a family.

    Args:
        kind: as in ``AutoModelFor…``.
        name: of the family, ``model_type``.
        changes: of its config, with dots for configs within it.
    """
    import transformers

    config = transformers.AutoConfig.for_model(name)
    _shrink(config)
    for key, value in changes.items():
        *path, last = key.split("__")
        inner = config
        for part in path:
            inner = getattr(inner, part)
        setattr(inner, last, value)
    model: nn.Module = getattr(transformers, f"AutoModelFor{kind}").from_config(config)
    return model.float()


_LOSSES = {
    "SequenceClassification": class_loss, "ImageClassification": class_loss,
    "AudioClassification": class_loss, "CausalLM": token_loss, "MaskedLM": token_loss,
    "TokenClassification": tag_loss, "Seq2SeqLM": decoder_loss,
}  # fmt: skip


_IMAGES: dict[str, tuple[int, dict[str, Any]]] = {
    # family: size of the image, changes of the config
    "vit": (16, {}), "vit_msn": (16, {}), "ijepa": (16, {}), "dinov2": (16, {}),
    "dinov2_with_registers": (16, {}), "beit": (16, {}), "data2vec-vision": (16, {}),
    "clip": (16, {}), "siglip": (16, {}), "metaclip_2": (16, {}),
    "swin": (16, {"embed_dim": 16, "num_heads": [2, 2], "depths": [1, 1], "window_size": 2}),
    "swinv2": (16, {"embed_dim": 16, "num_heads": [2, 2], "depths": [1, 1], "window_size": 2}),
    "convnext": (32, {"hidden_sizes": [16, 32], "depths": [1, 1]}),
    "convnextv2": (32, {"hidden_sizes": [16, 32], "depths": [1, 1]}),
    "poolformer": (64, {"hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1]}),
    "segformer": (64, {"hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1]}),
    "pvt": (64, {
        "hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1], "image_size": 64,
        "num_attention_heads": [1, 1, 2, 2],
    }),
}  # fmt: skip
_SOUNDS: dict[str, tuple[Callable[[int, int], Batch], dict[str, Any]]] = {
    "wav2vec2": (numbers("input_values", 1600), {"mask_time_length": 2, "conv_dim": [32] * 7}),
    "hubert": (numbers("input_values", 1600), {"mask_time_length": 2}),
    "wavlm": (numbers("input_values", 1600), {"mask_time_length": 2}),
    "data2vec-audio": (numbers("input_values", 1600), {"mask_time_length": 2}),
    "unispeech": (numbers("input_values", 1600), {"mask_time_length": 2}),
    "unispeech-sat": (numbers("input_values", 1600), {"mask_time_length": 2}),
    "sew": (numbers("input_values", 1600), {"mask_time_length": 2}),
    "whisper": (numbers("input_features", 16, 128), {}),
}  # fmt: skip
_TEXTS: dict[str, dict[str, dict[str, Any]]] = {
    "SequenceClassification": {
        name: {}
        for name in (
            "albert arcee bart bert big_bird bigbird_pegasus biogpt bloom camembert canine "
            "convbert ctrl data2vec-text deberta deberta-v2 diffllama distilbert doge electra "
            "ernie eurobert exaone4 falcon flaubert fnet funnel gemma gemma2 gemma3_text glm "
            "glm4 gpt2 gpt_bigcode gpt_neox gpt_oss helium ibert jetmoe llama "
            "longformer mbart megatron-bert mistral mixtral mobilebert modernbert mpnet mpt mra "
            "nystromformer olmo olmo2 opt persimmon phi phi3 plbart qwen2 qwen2_moe "
            "qwen3 qwen3_moe rembert roberta roberta-prelayernorm roc_bert roformer smollm3 "
            "stablelm starcoder2 xlm xlm-roberta xlm-roberta-xl yoso"
        ).split()
    }
    | {
        "esm": {"vocab_size": WORDS, "mask_token_id": 3},
        "gpt_neo": {
            "attention_types": [[["global", "local"], 1]],
            "attention_layers": ["global", "local"],
        },
        "gptj": {"rotary_dim": 4},
        "longformer": {"attention_window": [4, 4]},
        "xlnet": {"d_head": 8},
    },
    "CausalLM": {
        name: {}
        for name in (
            "apertus cohere cohere2 ernie4_5 ernie4_5_moe glm4_moe granite granitemoe "
            "gpt_neox_japanese olmoe flex_olmo nanochat mamba xglm"
        ).split()
    }
    | {"codegen": {"rotary_dim": 4}},
    "Seq2SeqLM": {
        name: {}
        for name in (
            "blenderbot blenderbot-small led longt5 m2m_100 marian mvp nllb-moe pegasus "
            "switch_transformers t5 mt5 umt5"
        ).split()
    },
    "MaskedLM": {name: {} for name in ("bert", "nomic_bert", "gte")},
    "TokenClassification": {"bert": {}, "deberta-v2": {}, "roberta": {}},
}


def hub_families() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield class, family and changes of the configuration of each family."""
    for kind, families in _TEXTS.items():
        for name, changes in families.items():
            yield kind, name, changes
    for name, (_, changes) in _IMAGES.items():
        yield "ImageClassification", name, changes


def of_transformers() -> Iterator[Architecture]:
    for kind, families in _TEXTS.items():
        for name, changes in families.items():
            label = name if kind == "SequenceClassification" else f"{name}, {kind}"
            make = _maker(kind, name, changes)
            yield Architecture(label, "transformers", make, _LOSSES[kind], texts)
    for name, (size, changes) in _IMAGES.items():
        make = _maker("ImageClassification", name, changes)
        records = numbers("pixel_values", 3, size, size)
        yield Architecture(name, "transformers", make, class_loss, records)
    for name, (records, changes) in _SOUNDS.items():
        make = _maker("AudioClassification", name, changes)
        yield Architecture(name, "transformers", make, class_loss, records)
    for name in ("resnet", "mobilenet_v2", "efficientnet"):  # batch norm
        make = _maker("ImageClassification", name, {})
        yield Architecture(
            name, "transformers", make, class_loss, numbers("pixel_values", 3, 32, 32), True
        )


def _maker(kind: str, name: str, changes: dict[str, Any]) -> Callable[[], nn.Module]:
    return lambda: tiny(kind, name, **changes)


_TOKENS = {"num_virtual_tokens": 3}
_METHODS: dict[str, dict[str, Any]] = {
    "LoraConfig": {},
    "LoraConfig, DoRA": {"use_dora": True},
    "LoraConfig, rsLoRA": {"use_rslora": True},
    "LoraConfig, biases": {"bias": "all"},
    "LoraConfig, embeddings": {"target_modules": ["word_embeddings"]},
    "AdaLoraConfig": {"total_step": 10},
    "IA3Config": {},
    "VeraConfig": {},
    "LoHaConfig": {},
    "LoKrConfig": {},
    "OFTConfig": {"oft_block_size": 4, "r": 0},
    "BOFTConfig": {"boft_block_size": 4},
    "HRAConfig": {},
    "LNTuningConfig": {},
    "FourierFTConfig": {"n_frequency": 8},
    "VBLoRAConfig": {"vector_length": 8, "num_vectors": 8},
    "PromptTuningConfig": _TOKENS,
    "PrefixTuningConfig": _TOKENS,
    "PromptEncoderConfig": _TOKENS,
    "MissConfig": {"r": 4},
    "RandLoraConfig": {},
    "ShiraConfig": {"r": 2},
    "C3AConfig": {"block_size": 4},
}
"""By the name of a config of peft: its options."""


def _with_peft(method: str, options: dict[str, Any]) -> nn.Module:
    """Return a tiny BERT classifier, adapted."""
    import peft

    config = getattr(peft, method.partition(",")[0])
    given = {"task_type": "SEQ_CLS", **options}
    taken = inspect.signature(config).parameters
    if "target_modules" in taken and "target_modules" not in given:
        given["target_modules"] = ["query", "value"]
    if method == "IA3Config":
        given |= {
            "target_modules": ["key", "output.dense"],
            "feedforward_modules": ["output.dense"],
        }
    if method == "LNTuningConfig":
        given["target_modules"] = ["LayerNorm"]
    base = tiny("SequenceClassification", "bert")
    adapted: nn.Module = peft.get_peft_model(base, config(**given))
    return adapted


def of_peft() -> Iterator[Architecture]:
    for method, options in _METHODS.items():
        make = _adapted(method, options)
        yield Architecture(f"BERT, {method}", "peft", make, class_loss, texts)


def _adapted(method: str, options: dict[str, Any]) -> Callable[[], nn.Module]:
    return lambda: _with_peft(method, options)
