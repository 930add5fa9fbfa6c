"""The model: a section for each kind, with its own options."""

from __future__ import annotations

from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import Field

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


class HuggingFaceOptions(Options):
    """A ``folder``, or a ``name`` on the Hugging Face Hub with its commit as ``revision``.

    Attributes:
        sha256: digest that ``model.safetensors`` must have, as 64 hexadecimal digits.
        tuning: what is trained; LoRA with matrices of ``rank``, in the layers ``targets``.
    """

    folder: str | None = None
    name: str | None = None
    revision: str | None = None
    sha256: str | None = None
    tuning: Literal["full", "lora", "head"] = "full"
    rank: Count = 8
    targets: list[str] | None = None


_Kind = TypeVar("_Kind", bound=str)
_Options = TypeVar("_Options")


class ModelOf(Part, Generic[_Kind, _Options]):
    """A model of one kind, or of kinds with the same options.

    Attributes:
        start: digest of a file of weights that it starts from (:mod:`privet.common.models.start`);
            None for fresh ones.
    """

    kind: _Kind
    options: Annotated[_Options, Field(validate_default=True)] = UNSAID
    start: Annotated[str, Field(pattern=DIGEST)] | None = None

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


class HuggingFaceSpec(ModelOf[str, HuggingFaceOptions]):
    """A model of transformers that lies on this machine."""

    kind: Literal["huggingface"]


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
