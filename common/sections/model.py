"""The model: a section for each kind, with its own options."""

from __future__ import annotations

from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from privet.common.schema import DIGEST, UNSAID, ByKind, Count, Finite, Options, OwnKind, Part

Layers = Annotated[int, Field(ge=0, le=10**9)]


class ScaleOptions(Options):
    """``scale`` multiplies the input of a linear head: it trades clipping bias against noise."""

    scale: Finite = 1.0


class DenseOptions(ScaleOptions):
    """A number of layers, each of one width."""

    width: Count = 64
    layers: Count = 2


class TransformerOptions(Options):
    """Size of a Transformer; ``width`` must be a multiple of ``heads``."""

    width: Count = 64
    heads: Count = 4
    layers: Layers = 2


class TableTransformerOptions(TransformerOptions):
    """``hidden`` is the width between the two layers of a block; default 2 × ``width``."""

    width: Count = 32
    hidden: Count | None = None


class WriterOptions(TransformerOptions):
    """Size of a Transformer that writes."""

    width: Count = 128


class PatchOptions(TransformerOptions):
    """``patch`` is the side of the squares that an image is cut into."""

    width: Count = 48
    patch: Count = 2


class ResidualOptions(Options):
    """``width`` is that of the first stage."""

    width: Count = 16
    stages: Count = 2


class HeadOptions(ScaleOptions):
    """A head is trained on frozen features, which are made of length ``scale``."""

    tuning: Literal["head"] = "head"


class TunedOptions(Options):
    """The encoder is trained, too: by LoRA with matrices of ``rank``, or in full.

    Attributes:
        scale: length that features are made to have; None leaves them as they are.
        precision: ``bfloat16`` is for runs without privacy.
    """

    tuning: Literal["lora", "full"]
    rank: Count = 8
    scale: Finite | None = None
    precision: Literal["float32", "bfloat16"] | None = None


Adapter = Literal[
    "lora", "dora", "rslora", "adalora", "adamss", "beft", "boft", "c3a", "deft", "delora",
    "fourierft", "frod", "glora", "gralora", "hira", "hra", "ia3", "ln-tuning", "loha",
    "lokr", "miss", "oft", "osf", "p-tuning", "peanut", "prefix", "prompt", "psoft", "randlora",
    "road", "shira", "supertuning", "tinylora", "unilora", "vblora", "vera", "waveft",
]  # fmt: skip
"""Adapters by their names in peft, in small letters.

Not among them: those that need other adapters, records, or an id of a task beside each record;
those for one family; Lily, whose layers mix the records of a batch (H6); and trainable tokens, of
which generated records would hold none.
"""


class HuggingFaceOptions(Options):
    """A ``folder``, or a ``name`` on the Hugging Face Hub with its commit as ``revision``.

    Attributes:
        sha256: digest that ``model.safetensors`` must have, as 64 hexadecimal digits.
        precision: of the layers during training; ``bfloat16`` is for runs without privacy.
        freeze, train: patterns of names of parameters, as ``*.embeddings.*``, that are not trained,
            or trained, whatever ``tuning`` says of them; ``train`` has the last word.
    """

    folder: str | None = None
    name: str | None = None
    revision: str | None = None
    sha256: str | None = None
    tuning: str = "full"
    precision: Literal["float32", "bfloat16"] = "float32"
    freeze: list[str] | None = None
    train: list[str] | None = None


class WholeModelOptions(HuggingFaceOptions):
    """All parameters are trained, or those of the head alone."""

    tuning: Literal["full", "head"] = "full"


class AdapterOptions(HuggingFaceOptions):
    """An adapter of peft is trained, and a fresh head of classes beside it.

    Attributes:
        rank: of its matrices, for an adapter that has such; None is 8 for LoRA, else peft's own.
        targets: names of the layers that it changes; None takes layers that fit the family.
        peft: further options, by the names of peft's configuration of this adapter.
    """

    tuning: Adapter
    rank: Count | None = None
    targets: list[str] | None = None
    peft: dict[str, Any] | None = None


_Kind = TypeVar("_Kind", bound=str)
_Options = TypeVar("_Options")


class ModelOf(Part, Generic[_Kind, _Options]):
    """A model of one kind, or of kinds with the same options.

    Attributes:
        start: digest of a file of weights that it starts from (:mod:`privet.common.models.start`);
            None for fresh ones.
        batch_norm: what takes the place of batch norms, which mix records while they train:
            ``group`` norms, or ``frozen`` ones with the statistics that they have.
    """

    kind: _Kind
    options: Annotated[_Options, Field(validate_default=True)] = UNSAID
    start: Annotated[str, Field(pattern=DIGEST)] | None = None
    batch_norm: Literal["group", "frozen"] | None = None

    @model_serializer(mode="wrap")
    def _without_new_keys(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # Plans of before keep their digest.
        value: dict[str, Any] = dump(self)
        if "batch_norm" in value and value["batch_norm"] is None:
            del value["batch_norm"]
        return value

    @property
    def reads_features(self) -> bool:
        """Whether it is a head on features of a frozen encoder."""
        return isinstance(self.options, HeadOptions)


class TableTransformerSpec(ModelOf[str, TableTransformerOptions]):
    """What is built where a plan names no model."""

    kind: Literal["ft-transformer"] = "ft-transformer"


class MiniLmSpec(ModelOf[str, HeadOptions | TunedOptions]):
    """MiniLM, whose options depend on what of it is trained."""

    kind: Literal["minilm"]
    options: Annotated[HeadOptions | TunedOptions, ByKind("head", key="tuning")] = HeadOptions()


class HuggingFaceSpec(ModelOf[str, WholeModelOptions | AdapterOptions]):
    """A model of transformers that lies on this machine."""

    kind: Literal["huggingface"]
    options: Annotated[WholeModelOptions | AdapterOptions, ByKind("full", key="tuning")] = (
        WholeModelOptions()
    )


ModelSpec = (
    ModelOf[Literal["linear"], ScaleOptions]
    | ModelOf[Literal["dense"], DenseOptions]
    | TableTransformerSpec
    | ModelOf[Literal["text-encoder"], TransformerOptions]
    | MiniLmSpec
    | ModelOf[Literal["decoder", "encoder-decoder", "t5"], WriterOptions]
    | ModelOf[Literal["vit"], PatchOptions]
    | ModelOf[Literal["resnet"], ResidualOptions]
    | HuggingFaceSpec
    | ModelOf[OwnKind, dict[str, Any]]
)
"""A model that Privet knows, or what a user's own factory makes of the task and the options."""
