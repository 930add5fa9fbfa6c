"""Where data is found: ``--data DIR`` or the environment variable ``PRIVET_DATA``."""

from __future__ import annotations

import importlib
import os
import tomllib
from pathlib import Path
from typing import Any

from privet.common.errors import DataMissingError, InputError, PlanError, PrivetError, reason_of

DATA_VARIABLE = "PRIVET_DATA"


def data_folder(named: Path | None) -> Path | None:
    """Return the folder given with ``--data``, or that of ``PRIVET_DATA``, or None."""
    value = os.environ.get(DATA_VARIABLE)
    return named or (Path(value) if value else None)


def cache_folder() -> Path | None:
    """Return the user's cache folder, or None if there is none.

    It is ``$XDG_CACHE_HOME/privet``, or ``~/.cache/privet``. A relative ``XDG_CACHE_HOME`` does not
    count, as the XDG Base Directory Specification says.
    """
    named = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if named.is_absolute():
        return named / "privet"
    try:
        return Path.home() / ".cache" / "privet"
    except RuntimeError:  # a user without an entry, as in containers
        return None


def find_data(relative: str, data_dir: Path | None, *, source: str) -> Path:
    """Return the path of ``relative`` below the data folder.

    Args:
        relative: file or folder below the data folder.
        data_dir: the folder given with ``--data``; None means ``PRIVET_DATA``.
        source: where the data can be had, for the message.

    Raises:
        DataMissingError: if no folder was named or the file is not in it.
    """
    root = data_folder(data_dir)
    advice = f"Get it from {source}, and name its folder with --data DIR or {DATA_VARIABLE}."
    if root is None:
        raise DataMissingError(
            f"this scenario needs '{relative}' and no data folder is named. {advice}"
        )
    path = root / relative
    if not path.exists():
        raise DataMissingError(f"'{relative}' is not in {root}. {advice}")
    return path


def load_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file.

    Raises:
        PlanError: if it cannot be read or is not TOML; the message names the line.
    """
    try:
        # Not as text, in which a lone CR would be a line end: TOML has no such.
        return tomllib.loads(path.read_bytes().decode("utf-8"))
    except FileNotFoundError:
        raise PlanError(f"{path}: there is no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise PlanError(f"{path}: cannot be read: {reason_of(error)}") from error
    except tomllib.TOMLDecodeError as error:
        raise PlanError(f"{path}: not valid TOML: {error}") from error


def dump_toml(value: dict[str, Any]) -> str:
    """Return JSON values as TOML, which has no null: what is None is left out."""
    import tomli_w

    return tomli_w.dumps(_without_none(value))


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    return [_without_none(item) for item in value] if isinstance(value, list) else value


def import_object(reference: str) -> Any:
    """Import ``"module:object"``.

    Raises:
        InputError: if the reference is malformed or cannot be imported.
    """
    module_name, _, attribute = reference.partition(":")
    if not module_name or not attribute:
        raise InputError(f"'{reference}' is not a reference of the form 'module:object'")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise InputError(
            f"cannot import '{module_name}' for '{reference}': {error}. "
            "Is it installed, or is its folder on PYTHONPATH?"
        ) from error
    except Exception as error:
        raise InputError(
            f"importing '{module_name}' for '{reference}' failed: {error!r}"
        ) from error
    if not hasattr(module, attribute):
        raise InputError(f"module '{module_name}' has no '{attribute}' (from '{reference}')")
    return getattr(module, attribute)


def make(reference: str, kind: type, /, *arguments: Any, **options: Any) -> Any:
    """Import a factory ``"module:object"`` and return what it makes.

    Raises:
        InputError: if it cannot be imported, fails, or makes something else than a ``kind``.
    """
    factory = import_object(reference)
    try:
        made = factory(*arguments, **options)
    except PrivetError:
        raise
    except Exception as error:
        raise InputError(f"'{reference}' failed: {error!r}") from error
    if not isinstance(made, kind):
        raise InputError(f"'{reference}' made a {type(made).__name__}; a {kind.__name__} is needed")
    return made
