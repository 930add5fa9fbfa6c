"""Start a model from the trained weights of an earlier run, by the digest of their file.

A plan names the digest, so that it is the same plan wherever the file is. Files are searched for in
the folders of the environment variable ``PRIVET_MODELS`` (one path, or several as in ``PATH``).
Tensors are matched by name and shape, with or without LoRA around a layer, so that a masked encoder
can continue as a classifier: a parameter that is not in the file keeps its fresh value.
"""

from __future__ import annotations

import hashlib
import os
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from privet.common.compat.peft import plain_name
from privet.common.errors import DataMissingError, PlanError

if TYPE_CHECKING:
    from torch import nn

FOLDERS = "PRIVET_MODELS"
_OTHER = "these are weights of another model, or of another task"


def digest_of(path: Path) -> str:
    """Return ``sha256:…`` of a file.

    Raises:
        DataMissingError: if there is no such file.
    """
    if not path.is_file():
        raise DataMissingError(f"{path}: there is no such file")
    with path.open("rb") as stream:
        return f"sha256:{hashlib.file_digest(stream, 'sha256').hexdigest()}"


def offer(path: Path) -> str:
    """Make a file findable for this process and its children; return its digest."""
    digest = digest_of(path)
    folders = os.environ.get(FOLDERS, "").split(os.pathsep)
    here = str(path.resolve().parent)
    if here not in folders:
        os.environ[FOLDERS] = os.pathsep.join([here, *filter(None, folders)])
    return digest


def find(digest: str) -> Path:
    """Return the file of a digest.

    Raises:
        DataMissingError: naming the folders that were searched.
    """
    folders = [Path(name) for name in os.environ.get(FOLDERS, "").split(os.pathsep) if name]
    for folder in folders:
        for path in sorted(folder.glob("*.safetensors")):
            if path.is_file():
                state = path.stat()
                if _digest_then(path, state.st_mtime_ns, state.st_size) == digest:
                    return path
    searched = ", ".join(map(str, folders)) or "no folder, as it is not set"
    raise DataMissingError(
        f"the weights {digest} that the plan starts from are not there: put the file into a folder "
        f"that the environment variable {FOLDERS} names (searched: {searched})"
    )


def frozen_by(model: nn.Module, digest: str) -> list[str]:
    """Return the names of the frozen parameters that a file sets.

    Args:
        model: whose parameters are set as by :func:`apply`.
        digest: of the file.

    Raises:
        DataMissingError, PlanError: as :func:`apply`.
    """
    found = set(apply(model, digest))
    return [n for n, p in model.named_parameters() if n in found and not p.requires_grad]


def apply(model: nn.Module, digest: str, *, whole: bool = False) -> list[str]:
    """Set a model's parameters, trained or frozen, from a file; return the names of those set.

    Args:
        model: whose parameters are set.
        digest: of the file.
        whole: whether the file must have all trained parameters.

    Raises:
        DataMissingError: if the file is not there.
        PlanError: if it cannot be read, was changed, has none of the model's parameters, or lacks a
            required one.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load

    path = find(digest)
    try:
        raw = path.read_bytes()
        # The bytes that are used are those that were hashed, whatever the file was before.
        if f"sha256:{hashlib.sha256(raw).hexdigest()}" != digest:
            raise PlanError(f"{path}: it was changed, and is no longer {digest}")
        tensors = {plain_name(name): tensor for name, tensor in load(raw).items()}
    except (SafetensorError, OSError) as error:
        raise PlanError(f"{path}: cannot be read as safetensors: {error}") from error
    found = []
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            tensor = tensors.get(plain_name(name))
            if tensor is not None and tensor.shape == parameter.shape:
                parameter.copy_(tensor)
                found.append(name)
    if not found:
        raise PlanError(f"{path}: it has no parameter of this model, by name and shape")
    fresh = [name for name, p in model.named_parameters() if p.requires_grad and name not in found]
    if whole and fresh:
        raise PlanError(f"{path}: it has no '{fresh[0]}', and nothing would be trained: {_OTHER}")
    return found


@lru_cache(maxsize=256)
def _digest_then(path: Path, _changed: int, _size: int) -> str:
    """Return a file's digest when it had this time and size: enough to search for it."""
    return digest_of(path)
