"""The folder that stands first on a SuperNode's PATH.

Flower's SuperExec starts a program by its name for each task, and at a SuperNode a task is of
any kind that the coordinator says: not only ``flwr-clientapp`` runs the code of a bundle.
So the folder holds all of these names: Privet's own program for a ``ClientApp``, and a refusal for
the others. ``flower-supernode`` in it starts Flower's with this folder first on the PATH.
"""

from __future__ import annotations

import shlex
import shutil
import sys
from pathlib import Path

from privet.common.canonical import write_atomic
from privet.common.compat.flower_clientapp import OWN, QUIET, REFUSED, SUPERNODE
from privet.common.errors import InputError


def write_launcher(folder: Path) -> Path:
    """Write the programs into ``folder``, over those of an earlier time; return the SuperNode's.

    Raises:
        InputError: if something else is in the folder, or Flower is not installed beside Privet.
    """
    names = {OWN, *REFUSED, SUPERNODE}
    strange = {path.name for path in folder.glob("*")} - names
    if folder.exists() and (strange or not folder.is_dir()):
        raise InputError(f"{folder} exists and is not a folder of launchers; name another one")
    programs = Path(sys.executable).parent
    supernode = shutil.which(SUPERNODE, path=str(programs))
    if supernode is None:
        raise InputError(
            f"{programs}: there is no {SUPERNODE}; install Privet with the extra [train]"
        )
    place = folder.absolute()
    texts = {
        OWN: f'exec {shlex.quote(sys.executable)} -I -m privet.client.stock_flower.clientapp "$@"'
    }
    for name in REFUSED:
        said = f"privet: {name} is not started at this site: it would run the coordinator's code"
        texts[name] = f"echo {shlex.quote(said)} >&2\nexit 1"
    path = f"{place}:{programs}"
    variables = "\n".join(f"export {name}={value}" for name, value in QUIET.items())
    texts[SUPERNODE] = (
        f'PATH={shlex.quote(path)}:"$PATH"\nexport PATH\n{variables}\n'
        f'exec {shlex.quote(supernode)} "$@"'
    )
    for name, text in texts.items():
        lines = f"#!/bin/sh\n# Written by `privet client launcher`.\n{text}\n"
        write_atomic(folder / name, lines.encode(), mode=0o755)
    return place / SUPERNODE
