"""Architectures of torch, transformers and peft, each tiny, with made-up records for it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

Batch = dict[str, Tensor]
PLACES, WORDS, WIDTH, CLASSES = 12, 120, 16, 3


@dataclass(frozen=True)
class Architecture:
    """One model to try.

    Attributes:
        name: of the architecture.
        group: ``torch``, ``transformers`` or ``peft``.
        make: builds the model.
        loss: per-record losses of a model and a batch.
        random_batch: makes a batch of (records, seed).
        is_coupled: whether its records depend on each other, so that it must be refused.
    """

    name: str
    group: str
    make: Callable[[], nn.Module]
    loss: Callable[[nn.Module, Batch], Tensor]
    random_batch: Callable[[int, int], Batch]
    is_coupled: bool = False


# --- records -------------------------------------------------------------------------------


def texts(count: int, seed: int) -> Batch:
    """Return token ids of different lengths, their mask, a class and a target for each place."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 100, (count, PLACES), generator=generator)
    lengths = torch.randint(PLACES // 2, PLACES + 1, (count,), generator=generator)
    mask = (torch.arange(PLACES) < lengths.unsqueeze(1)).long()
    ids[:, 1] = 2  # some classifiers read the last end of a text
    return {
        "input_ids": ids * mask,
        "attention_mask": mask,
        "label": torch.randint(0, CLASSES, (count,), generator=generator),
        "target": torch.randint(3, 100, (count, PLACES), generator=generator),
    }


def numbers(name: str, *shape: int) -> Callable[[int, int], Batch]:
    """Return what makes real numbers of a shape under a name, with a class."""

    def make(count: int, seed: int) -> Batch:
        generator = torch.Generator().manual_seed(seed)
        return {
            name: torch.randn(count, *shape, generator=generator),
            "label": torch.randint(0, CLASSES, (count,), generator=generator),
        }

    return make


def class_loss(model: nn.Module, batch: Batch) -> Tensor:
    """Cross entropy of one class for each record."""
    return functional.cross_entropy(_scores(model, batch), batch["label"], reduction="none")


def token_loss(model: nn.Module, batch: Batch) -> Tensor:
    """Mean cross entropy over places, from scores [B, L, V]."""
    scores = _scores(model, batch)
    target = batch["target"][:, : scores.shape[1]]
    scores = scores[:, : target.shape[1]].transpose(1, 2)
    return functional.cross_entropy(scores, target, reduction="none").mean(1)


def tag_loss(model: nn.Module, batch: Batch) -> Tensor:
    """Mean cross entropy of a class for each place."""
    return token_loss(model, {**batch, "target": batch["target"] % CLASSES})


def decoder_loss(model: nn.Module, batch: Batch) -> Tensor:
    """As :func:`token_loss`, of an encoder-decoder."""
    return token_loss(model, {**batch, "decoder_input_ids": batch["target"]})


def _scores(model: nn.Module, batch: Batch) -> Tensor:
    given = {name: t for name, t in batch.items() if name not in ("label", "target")}
    made = model(**given)
    return made if isinstance(made, Tensor) else made.logits if "logits" in made else made[0]  # type: ignore[no-any-return]


# --- torch ---------------------------------------------------------------------------------


class Around(nn.Module):
    """An embedding, a layer [B, T, d] → [B, T, d], and a head over the vocabulary."""

    def __init__(self, layer: nn.Module, call: Callable[..., Tensor] | None = None) -> None:
        super().__init__()
        self.table, self.layer = nn.Embedding(WORDS, WIDTH), layer
        self.head = nn.Linear(WIDTH, WORDS)
        self._call = call or (lambda layer, h, padding: layer(h))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return scores [B, T, V]."""
        h = self._call(self.layer, self.table(input_ids), attention_mask == 0)
        return self.head(h)  # type: ignore[no-any-return]


class SourceAndTarget(nn.Module):
    """``nn.Transformer``; the target is the source, backwards."""

    def __init__(self, *, batch_first: bool) -> None:
        super().__init__()
        self.source, self.target = nn.Embedding(WORDS, WIDTH), nn.Embedding(WORDS, WIDTH)
        self.core = nn.Transformer(WIDTH, 2, 2, 2, 24, batch_first=batch_first)
        self.head, self.turn = nn.Linear(WIDTH, WORDS), not batch_first

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return scores [B, T, V]."""
        source, target = self.source(input_ids), self.target(input_ids.flip(1))
        if self.turn:
            source, target = source.transpose(0, 1), target.transpose(0, 1)
        mask = nn.Transformer.generate_square_subsequent_mask(input_ids.shape[1])
        made = self.head(self.core(source, target, tgt_mask=mask, tgt_is_causal=True))
        return made.transpose(0, 1) if self.turn else made  # type: ignore[no-any-return]


class Own(nn.Module):
    """A layer of one's own with raw parameters: a scale, and positions [T, d]."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.places = (
            nn.Parameter(torch.ones(WIDTH)),
            nn.Parameter(torch.randn(PLACES, WIDTH)),
        )
        self.inner = nn.Linear(WIDTH, WIDTH)

    def forward(self, h: Tensor) -> Tensor:
        """Return [B, T, d]."""
        return self.inner(h + self.places) * self.scale


class Positions(nn.Module):
    """Positions of a table, read once for all records."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(PLACES, WIDTH)

    def forward(self, h: Tensor) -> Tensor:
        """Return [B, T, d]."""
        return h + self.table(torch.arange(h.shape[1]))


class Experts(nn.Module):
    """A mixture of experts without a limit: each place goes to one of them."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(WIDTH, 3)
        self.experts = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def forward(self, h: Tensor) -> Tensor:
        """Return [B, T, d]."""
        weights = self.router(h).softmax(-1)
        chosen, made = weights.argmax(-1), torch.zeros_like(h)
        for number, expert in enumerate(self.experts):
            mine = chosen == number
            made[mine] = expert(h[mine]) * weights[mine][:, number : number + 1]
        return made


class ByStep(nn.Module):
    """A recurrent cell, step by step."""

    def __init__(self, cell: nn.Module) -> None:
        super().__init__()
        self.cell = cell

    def forward(self, h: Tensor) -> Tensor:
        """Return [B, T, d]."""
        state, made = None, []
        for place in range(h.shape[1]):
            state = self.cell(h[:, place], state)
            made.append(state[0] if isinstance(state, tuple) else state)
        return torch.stack(made, 1)


class Mixing(nn.Module):
    """What couples records, in some way."""

    def __init__(self, how: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.inner, self._how = nn.Linear(WIDTH, WIDTH), how

    def forward(self, h: Tensor) -> Tensor:
        """Return [B, T, d]."""
        return self._how(self.inner(h))


def _turned(call: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda layer, h, padding: call(layer, h.transpose(0, 1), padding).transpose(0, 1)


def _plain(layer: Any, h: Tensor, padding: Tensor) -> Tensor:
    return layer(h)  # type: ignore[no-any-return]


def _padded(layer: Any, h: Tensor, padding: Tensor) -> Tensor:
    return layer(h, src_key_padding_mask=padding)  # type: ignore[no-any-return]


def _attends(layer: Any, h: Tensor, padding: Tensor) -> Tensor:
    return layer(h, h, h, key_padding_mask=padding)[0]  # type: ignore[no-any-return]


def _first(layer: Any, h: Tensor, padding: Tensor) -> Tensor:
    return layer(h)[0]  # type: ignore[no-any-return]


def _channels(layer: Any, h: Tensor, padding: Tensor) -> Tensor:
    return layer(h.transpose(1, 2)).transpose(1, 2)  # type: ignore[no-any-return]


def _grid(layer: Any, h: Tensor, padding: Tensor) -> Tensor:
    made = layer(h.transpose(1, 2).unflatten(2, (3, 4)))
    return made.flatten(2).transpose(1, 2)  # type: ignore[no-any-return]


def _cube(layer: Any, h: Tensor, padding: Tensor) -> Tensor:
    made = layer(h.transpose(1, 2).unflatten(2, (2, 2, 3)))
    return made.flatten(2).transpose(1, 2)  # type: ignore[no-any-return]


def _twice(layer: Any, h: Tensor, padding: Tensor) -> Tensor:
    return layer(h, h.flip(1))  # type: ignore[no-any-return]


def _encoder(**more: Any) -> nn.Module:
    given = {"batch_first": True, **more}
    return nn.TransformerEncoder(nn.TransformerEncoderLayer(WIDTH, 2, 24, **given), 2)


def _decoder(layer: Any, h: Tensor, padding: Tensor) -> Tensor:
    return layer(h, h.flip(1))  # type: ignore[no-any-return]


def _bags(layer: Any, h: Tensor, padding: Tensor) -> Tensor:
    ids = (h.detach()[..., :4] > 0).long().flatten(0, 1)
    return h + layer(ids).view_as(h)  # type: ignore[no-any-return]


def _frozen(norm: nn.Module) -> nn.Module:
    return norm.eval()


_TORCH: dict[str, tuple[Callable[[], nn.Module], Callable[..., Tensor]]] = {
    "TransformerEncoder": (lambda: _encoder(), _padded),
    "TransformerEncoder, norm first": (lambda: _encoder(norm_first=True), _padded),
    "TransformerEncoder [T, B, d]": (
        lambda: _encoder(batch_first=False), _turned(_padded),
    ),
    "TransformerDecoder": (
        lambda: nn.TransformerDecoder(
            nn.TransformerDecoderLayer(WIDTH, 2, 24, batch_first=True), 2
        ), _decoder,
    ),
    "MultiheadAttention": (lambda: nn.MultiheadAttention(WIDTH, 2, batch_first=True), _attends),
    "MultiheadAttention [T, B, d]": (
        lambda: nn.MultiheadAttention(WIDTH, 2), _turned(_attends),
    ),
    "MultiheadAttention, bias of keys": (
        lambda: nn.MultiheadAttention(WIDTH, 2, add_bias_kv=True, batch_first=True), _attends,
    ),
    "LSTM": (lambda: nn.LSTM(WIDTH, WIDTH, 2, batch_first=True), _first),
    "LSTM [T, B, d], both ways": (
        lambda: nn.LSTM(WIDTH, WIDTH // 2, bidirectional=True), _turned(_first),
    ),
    "LSTM, projected": (lambda: nn.LSTM(WIDTH, 24, proj_size=WIDTH, batch_first=True), _first),
    "GRU": (lambda: nn.GRU(WIDTH, WIDTH, 2, batch_first=True), _first),
    "RNN": (lambda: nn.RNN(WIDTH, WIDTH, batch_first=True), _first),
    "LSTMCell": (lambda: ByStep(nn.LSTMCell(WIDTH, WIDTH)), _plain),
    "GRUCell": (lambda: ByStep(nn.GRUCell(WIDTH, WIDTH)), _plain),
    "RNNCell": (lambda: ByStep(nn.RNNCell(WIDTH, WIDTH)), _plain),
    "Linear": (lambda: nn.Linear(WIDTH, WIDTH), _plain),
    "Bilinear": (lambda: nn.Bilinear(WIDTH, WIDTH, WIDTH), _twice),
    "Conv1d": (lambda: nn.Conv1d(WIDTH, WIDTH, 3, padding=1, groups=2), _channels),
    "Conv1d, same": (lambda: nn.Conv1d(WIDTH, WIDTH, 3, padding="same"), _channels),
    "Conv1d, circular": (
        lambda: nn.Conv1d(WIDTH, WIDTH, 3, padding=1, padding_mode="circular"), _channels,
    ),
    "Conv2d": (lambda: nn.Conv2d(WIDTH, WIDTH, 3, padding=1), _grid),
    "Conv3d": (lambda: nn.Conv3d(WIDTH, WIDTH, 3, padding=1), _cube),
    "ConvTranspose1d": (lambda: nn.ConvTranspose1d(WIDTH, WIDTH, 3, padding=1), _channels),
    "ConvTranspose2d": (lambda: nn.ConvTranspose2d(WIDTH, WIDTH, 3, padding=1), _grid),
    "ConvTranspose3d": (lambda: nn.ConvTranspose3d(WIDTH, WIDTH, 3, padding=1), _cube),
    "LayerNorm": (lambda: nn.LayerNorm(WIDTH), _plain),
    "LayerNorm, two dimensions": (lambda: nn.LayerNorm([PLACES, WIDTH]), _plain),
    "RMSNorm": (lambda: nn.RMSNorm(WIDTH), _plain),
    "GroupNorm": (lambda: nn.GroupNorm(2, WIDTH), _channels),
    "InstanceNorm1d": (lambda: nn.InstanceNorm1d(WIDTH, affine=True), _channels),
    "BatchNorm1d, frozen": (lambda: _frozen(nn.BatchNorm1d(WIDTH)), _channels),
    "PReLU": (lambda: nn.PReLU(WIDTH), _channels),
    "EmbeddingBag": (lambda: nn.EmbeddingBag(2, WIDTH, mode="sum"), _bags),
    "weight norm": (
        lambda: nn.utils.parametrizations.weight_norm(nn.Linear(WIDTH, WIDTH)), _plain,
    ),
    "orthogonal": (
        lambda: nn.utils.parametrizations.orthogonal(nn.Linear(WIDTH, WIDTH)), _plain,
    ),
    "raw parameters": (Own, _plain),
    "positions [T]": (Positions, _plain),
    "mixture of experts": (Experts, _plain),
    "depthwise and dropout": (
        lambda: nn.Sequential(
            nn.Conv1d(WIDTH, WIDTH, 3, padding=1, groups=WIDTH), nn.Dropout(0.1), nn.GELU()
        ), _channels,
    ),
}  # fmt: skip

_COUPLED: dict[str, tuple[Callable[[], nn.Module], Callable[..., Tensor]]] = {
    "BatchNorm1d": (lambda: nn.BatchNorm1d(WIDTH), _channels),
    "BatchNorm1d without statistics": (
        lambda: nn.BatchNorm1d(WIDTH, track_running_stats=False), _channels,
    ),
    "SyncBatchNorm": (lambda: nn.SyncBatchNorm(WIDTH), _channels),
    "InstanceNorm1d with statistics": (
        lambda: nn.InstanceNorm1d(WIDTH, affine=True, track_running_stats=True), _channels,
    ),
    "mean of the batch": (lambda: Mixing(lambda h: h - h.mean(0)), _plain),
    "softmax over records": (lambda: Mixing(lambda h: h * h.softmax(0)), _plain),
    "shuffled neighbours": (lambda: Mixing(lambda h: h + h.roll(1, 0)), _plain),
    "largest of the batch": (lambda: Mixing(lambda h: h / h.detach().abs().max()), _plain),
    "TransformerEncoder, wrong order": (lambda: _encoder(batch_first=False), _plain),
    "LSTM, wrong order": (lambda: nn.LSTM(WIDTH, WIDTH), _first),
}  # fmt: skip


def _contrastive(model: nn.Module, batch: Batch) -> Tensor:
    """A contrastive loss: each record against all others."""
    h = functional.normalize(_scores(model, batch).mean(1), dim=1)
    return functional.cross_entropy(h @ h.T * 5, torch.arange(len(h)), reduction="none")


def _of_torch() -> Iterator[Architecture]:
    for name, (layer, call) in _TORCH.items():
        yield Architecture(name, "torch", _around(layer, call), token_loss, texts)
    for batch_first in (True, False):
        name = "Transformer" if batch_first else "Transformer [T, B, d]"
        yield Architecture(
            name, "torch", lambda first=batch_first: SourceAndTarget(batch_first=first),  # type: ignore[misc]
            token_loss, texts,
        )  # fmt: skip
    for name, (layer, call) in _COUPLED.items():
        yield Architecture(name, "torch", _around(layer, call), token_loss, texts, True)
    layer = _TORCH["Linear"][0]
    make = _around(layer, _plain)
    yield Architecture("contrastive loss", "torch", make, _contrastive, texts, True)


def _around(layer: Callable[[], nn.Module], call: Callable[..., Tensor]) -> Callable[[], nn.Module]:
    return lambda: Around(layer(), call)


# --- transformers --------------------------------------------------------------------------

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


def _of_kind(kind: str, name: str, **changes: Any) -> nn.Module:
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
    "wav2vec2": (numbers("input_values", 1600), {"mask_time_length": 2}),
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
            "glm4 gpt2 gpt_bigcode gpt_neo gpt_neox gpt_oss helium ibert jetmoe llama "
            "longformer mbart megatron-bert mistral mixtral mobilebert modernbert mpnet mpt mra "
            "nystromformer olmo olmo2 opt persimmon phi phi3 plbart qwen2 qwen2_moe "
            "qwen3 qwen3_moe rembert roberta roberta-prelayernorm roc_bert roformer smollm3 "
            "stablelm starcoder2 xlm xlm-roberta xlm-roberta-xl xlnet yoso"
        ).split()
    }
    | {"esm": {"vocab_size": WORDS, "mask_token_id": 3}, "gptj": {"rotary_dim": 4}},
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


def _of_transformers() -> Iterator[Architecture]:
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
    return lambda: _of_kind(kind, name, **changes)


# --- peft ----------------------------------------------------------------------------------

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
    base = _of_kind("SequenceClassification", "bert")
    adapted: nn.Module = peft.get_peft_model(base, config(**given))
    return adapted


def _of_peft() -> Iterator[Architecture]:
    for method, options in _METHODS.items():
        make = _adapted(method, options)
        yield Architecture(f"BERT, {method}", "peft", make, class_loss, texts)


def _adapted(method: str, options: dict[str, Any]) -> Callable[[], nn.Module]:
    return lambda: _with_peft(method, options)


def architectures() -> list[Architecture]:
    """Return all architectures."""
    return [*_of_torch(), *_of_transformers(), *_of_peft()]


# --- larger, for the cost of a step --------------------------------------------------------


def _long_texts(words: int, places: int) -> Callable[[int, int], Batch]:
    def make(count: int, seed: int) -> Batch:
        generator = torch.Generator().manual_seed(seed)
        return {
            "input_ids": torch.randint(3, words, (count, places), generator=generator),
            "attention_mask": torch.ones(count, places, dtype=torch.long),
            "label": torch.randint(0, CLASSES, (count,), generator=generator),
        }

    return make


class Pooled(nn.Module):
    """An embedding, a layer over [B, T, d], the mean over places, and a head of three classes."""

    def __init__(self, words: int, width: int, layer: nn.Module) -> None:
        super().__init__()
        self.table, self.layer = nn.Embedding(words, width), layer
        self.head = nn.Linear(width, CLASSES)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return scores [B, classes]."""
        made = self.layer(self.table(input_ids))
        made = made[0] if isinstance(made, tuple) else made
        return self.head(made.mean(1))  # type: ignore[no-any-return]


def _torch_encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(256, 4, 1024, batch_first=True)
    return Pooled(1000, 256, nn.TransformerEncoder(layer, 4))


def _base(name: str, words: int, layers: int) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        import transformers

        config: Any = transformers.AutoConfig.for_model(
            name, vocab_size=words, hidden_size=768, num_hidden_layers=layers,
            num_attention_heads=12, intermediate_size=3072, num_labels=CLASSES,
        )  # fmt: skip
        if name == "deberta-v2":  # as DeBERTa-v3 is published
            config.relative_attention, config.position_buckets = True, 256
            config.norm_rel_ebd, config.share_att_key = "layer_norm", True
            config.pos_att_type, config.position_biased_input = ["p2c", "c2p"], False
        model: nn.Module = transformers.AutoModelForSequenceClassification.from_config(config)
        return model

    return make


def _timed(name: str, make: Callable[[], nn.Module], words: int, places: int) -> Architecture:
    return Architecture(name, "cost", make, class_loss, _long_texts(words, places))


_LSTM_256 = _timed(
    "LSTM", lambda: Pooled(1000, 256, nn.LSTM(256, 256, 2, batch_first=True)), 1000, 64
)
COSTS: dict[str, tuple[Architecture, int, str, float]] = {
    # model, records, method, goal of the ratio
    "TransformerEncoder": (
        _timed("TransformerEncoder", _torch_encoder, 1000, 128), 32, "bookkeeping", 1.3,
    ),
    "LSTM": (_LSTM_256, 32, "bookkeeping", 3.0),
    "LSTM, one by one": (_LSTM_256, 32, "one-by-one", 1.1),
    "TransformerEncoder, one by one": (
        _timed("TransformerEncoder", _torch_encoder, 1000, 128), 16, "one-by-one", 1.1,
    ),
    "MPNet-base": (_timed("MPNet", _base("mpnet", 30527, 12), 30527, 128), 16, "bookkeeping", 1.6),
    "DeBERTa-v3-small": (
        _timed("DeBERTa", _base("deberta-v2", 128100, 6), 128100, 128), 16, "bookkeeping", 1.6,
    ),
}  # fmt: skip
