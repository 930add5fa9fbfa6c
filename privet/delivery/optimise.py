"""A smaller model after training: small weights set to zero, or weights as 8-bit integers.

Both are post-processing: they cost no privacy. Each is measured on the same records as the model
that it was made of, so that its loss of accuracy can be compared with its saving.
"""

from __future__ import annotations

import gzip
import logging
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from privet.common.errors import InputError


def require_share(share: float) -> None:
    """Check a share of the weights to prune.

    Raises:
        InputError: if it is out of range.
    """
    if not 0 <= share < 1:
        raise InputError(f"--prune takes a share from 0 to below 1, not {share:g}")


def pruned(network: nn.Module, share: float) -> None:
    """Set the smallest weights of all linear and convolution layers to zero, in place.

    By their size over the whole network (Han et al. 2015), by torch's own pruning.

    Args:
        network: is changed.
        share: of the weights, from 0 to below 1.

    Raises:
        InputError: if the share is out of range, or there is no such layer.
    """
    require_share(share)
    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d)
    layers = [(layer, "weight") for layer in network.modules() if isinstance(layer, kinds)]
    if not layers:
        raise InputError("this model has no linear layer to prune")
    frozen = {id(layer.weight): layer.weight.requires_grad for layer, _ in layers}
    prune.global_unstructured(layers, prune.L1Unstructured, amount=share)
    for layer, name in layers:
        prune.remove(layer, name)  # type: ignore[no-untyped-call]
        layer.weight.requires_grad_(frozen.get(id(layer.weight), True))


def quantised(source: Path, target: Path) -> None:
    """Write an ONNX model with weights as 8-bit integers, by onnxruntime.

    Activations are scaled as they come (dynamic quantisation), so no record is needed for it.

    Args:
        source: an ONNX file.
        target: the file to write.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    try:
        logging.disable(logging.WARNING)  # it recommends a step that this file does not need
        quantize_dynamic(source, target, weight_type=QuantType.QInt8)
    finally:
        logging.disable(logging.NOTSET)


class OnnxNetwork(nn.Module):
    """An ONNX file in the place of the network that it was written from.

    Args:
        path: the file.
        names: of its inputs, in order.
        whole: fills an input up to the size that the file was written for.
    """

    def __init__(self, path: Path, names: list[str], whole: Callable[[Tensor], Tensor]) -> None:
        import onnxruntime

        super().__init__()
        self._session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        self._names, self._whole = names, whole

    def forward(self, *given: Tensor, **named: Tensor) -> Tensor:
        """Return the logits."""
        inputs = given or tuple(named[name] for name in self._names)
        whole = [self._whole(tensor).numpy() for tensor in inputs]
        logits = self._session.run(None, dict(zip(self._names, whole, strict=True)))[0]
        found = torch.from_numpy(logits)
        # Logits of tokens that were filled up stand for nothing.
        return found[:, : inputs[-1].shape[1]] if found.ndim == 3 else found


def bytes_of(data: bytes) -> dict[str, int]:
    """Return the size of a file as it lies, and packed: zeros of a pruned model pack well."""
    return {"bytes": len(data), "packed": len(gzip.compress(data, 6))}
