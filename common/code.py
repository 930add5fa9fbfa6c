"""Which code computes at a site, as one digest: the field ``code`` of a reservation.

The digest is over a manifest, in canonical JSON::

    {"privet": "0.1.0",
     "sources": DIGEST,                       Privet's own files
     "modules": {"my_model": DIGEST},         what the plan names: tasks and models of one's own
     "libraries": {"torch": "2.13.0", …}}     installed versions of what computes

A digest of files is that of the canonical JSON of an object: each file's path, with the digest of
its bytes. ``docs/reference/evidence-format.md`` defines all of it, so that others can recompute it.

Nothing that a plan names is imported for this: the plan may not be approved yet. Python's finders
are asked for the top-level name, which runs none of its code, and the rest is read as files.
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import os
from collections.abc import Iterable, Iterator, Mapping
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import privet
from privet.common.canonical import digest, digest_json
from privet.common.errors import InputError, reason_of

if TYPE_CHECKING:
    from privet.common.plan import Plan

LIBRARIES = (
    "cryptography", "dp-accounting", "flwr", "grpcio", "numpy", "opacus", "pandas", "peft",
    "phonenumbers", "protobuf", "pyarrow", "pydantic", "pynacl", "rfc8785", "sacrebleu",
    "safetensors", "scikit-learn", "scipy", "securesystemslib", "tokenizers", "torch",
    "transformers",
)  # fmt: skip
"""What touches records, gradients, noise, accounting or the wire, of the core and ``[train]``.

What only some sites have (drivers of databases, hardware tokens) is left out: one run has one
digest at all its sites.
"""
ROOMS = ("cli", "client", "common", "delivery", "privacy", "server", "simulations")
"""Folders of the package, wherever they lie (a Flower bundle has most of them beside it)."""
SUFFIXES = (".py", ".json")
"""Endings of Privet's own files that compute; the tokenizer's vocabulary is JSON."""


def manifest(plan: Plan | None = None) -> dict[str, Any]:
    """Return what computes at a site that runs a plan.

    Args:
        plan: whose modules are covered; None for a plan that names none.

    Raises:
        InputError: if a module that the plan names is not there, or cannot be read.
    """
    modules = {name: module_digest(name) for name in named_modules(plan)} if plan else {}
    return {**_installed(), "modules": modules}


def code_digest(plan: Plan | None = None) -> str:
    """Return the digest of :func:`manifest`.

    Raises:
        InputError: as :func:`manifest`.
    """
    return digest_json(manifest(plan))


@functools.cache
def _installed() -> dict[str, Any]:
    """Return what no plan changes, as it stood when this process first asked."""
    return {
        "privet": privet.__version__,
        "sources": digest_files(sources(Path(privet.__file__).parent)),
        "libraries": installed_versions(),
    }


def sources(package: Path) -> dict[str, bytes]:
    """Return Privet's own source files, by path below the folder that holds the package.

    Args:
        package: the folder ``privet``, of a checkout, of an installed wheel or of a bundle.

    Raises:
        InputError: if a file cannot be read.
    """
    found = {f"privet/{path.name}": path for path in package.glob("*.py")}
    for room in ROOMS:
        folder = package / room
        if not folder.exists():
            folder = package.resolve().parent / room
        for name, path in _files(folder, SUFFIXES):
            found[f"privet/{room}/{name}"] = path
    return {name: _read(path) for name, path in found.items()}


def installed_versions(names: Iterable[str] = LIBRARIES) -> dict[str, str]:
    """Return the installed versions of libraries; those that are absent are left out."""
    found = {}
    for name in names:
        try:
            found[name] = public_version(importlib.metadata.version(name))
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def public_version(version: str) -> str:
    """Return a version without its local segment: ``2.13.0+cpu`` and ``2.13.0+cu126`` are one."""
    return version.partition("+")[0]


def named_modules(plan: Plan) -> tuple[str, ...]:
    """Return the top-level names of the modules of a plan that run at a site.

    A strategy of one's own is none of them: it runs at the coordinator, on what was released.
    """
    references = (kind for kind in (plan.task.kind, plan.model.kind) if ":" in kind)
    return tuple(sorted({kind.partition(":")[0].partition(".")[0] for kind in references}))


def module_digest(name: str) -> str:
    """Return the digest over the ``.py`` files of a top-level module or package.

    Args:
        name: without dots.

    Raises:
        InputError: if there is no such module, or no source of it.
    """
    spec = _find(name)
    files: dict[str, Path] = {}
    for folder in spec.submodule_search_locations or ():  # several, of a namespace package
        for path, place in _files(Path(folder), (".py",)):
            files.setdefault(f"{name}/{path}", place)
    if spec.submodule_search_locations is None and (spec.origin or "").endswith(".py"):
        files[f"{name}.py"] = Path(str(spec.origin))
    if not files:
        raise InputError(
            f"the plan names the module '{name}', of which there is no Python source: the digest "
            "of the code is taken over .py files"
        )
    return _digest_paths({path: _digest_of(place) for path, place in files.items()})


def digest_files(files: Mapping[str, bytes]) -> str:
    """Return the digest of files: of the canonical JSON of each path with its bytes' digest.

    Raises:
        InputError: if a name is not text.
    """
    return _digest_paths({name: digest(content) for name, content in files.items()})


def _digest_paths(digests: dict[str, str]) -> str:
    try:
        return digest_json(digests)
    except UnicodeEncodeError as error:
        raise InputError(f"a source file has a name that is not text: {error.object!a}") from None


def _find(name: str) -> ModuleSpec:
    if not name.isidentifier():
        raise InputError(f"the plan names the module '{name}', which is no name of a module")
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError) as error:
        raise InputError(f"the module '{name}' of the plan cannot be found: {error}") from error
    if spec is None:
        raise InputError(
            f"the plan names the module '{name}', which is not there. Is it installed, or is its "
            "folder on PYTHONPATH?"
        )
    return spec


def _files(folder: Path, suffixes: tuple[str, ...]) -> Iterator[tuple[str, Path]]:
    """Yield files below a folder with their relative paths; links are followed, once each."""
    seen = set()
    for place, folders, names in os.walk(folder, followlinks=True):
        here = Path(place)
        if (real := here.resolve()) in seen:
            folders.clear()
            continue
        seen.add(real)
        folders.sort()
        for name in names:
            if name.endswith(suffixes):
                yield (here / name).relative_to(folder).as_posix(), here / name


def _digest_of(path: Path) -> str:
    """Return the digest of a file's bytes, cached until its inode, time or size changes."""
    try:
        state = path.stat()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {reason_of(error)}") from error
    return _digest_then(path, state.st_ino, state.st_mtime_ns, state.st_size)


@functools.lru_cache(maxsize=1 << 15)
def _digest_then(path: Path, *state: int) -> str:
    return digest(_read(path))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {reason_of(error)}") from error
