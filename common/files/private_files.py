"""Files and folders for their owner alone: keys, passphrases, and files with data about records.

Two rules, by the maker of the file:

- A file that people put in place (keys, passphrases, passwords) is refused if others can read it:
  they may know it by now, and only a person can decide what that means.
- A file that Privet itself makes (logs, snapshots, releases, join files) is made private again.

A file of another user, such as a credential that systemd or a container engine provides, is refused
if everybody can read it: its group may be the way by which this process may.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from privet.common.canonical import fsync_folder
from privet.common.errors import PrivateKeyError

FILE_MODE, FOLDER_MODE = 0o600, 0o700
_OTHERS = 0o077
_EVERYBODY = 0o007


def read_private(path: Path) -> bytes:
    """Return the content of a secret.

    Raises:
        PrivateKeyError: if others can read or write it, or it is not a file.
        OSError: if it cannot be read.
    """
    with path.open("rb") as stream:
        if fault := privacy_fault(path, os.fstat(stream.fileno())):
            raise PrivateKeyError(fault)
        return stream.read()


def privacy_fault(path: Path, found: os.stat_result) -> str | None:
    """Return why a file is not private, and what to do; None if it is.

    Args:
        path: of the file, for the message.
        found: its status from the system.
    """
    # A pipe, such as a shell's <(command), is as good as who can open it.
    if not stat.S_ISREG(found.st_mode) and not stat.S_ISFIFO(found.st_mode):
        return f"{path}: it is not a file"
    others, who, mend = _OTHERS, "others", f"chmod {FILE_MODE:o} {path}"
    if found.st_uid != os.geteuid():
        others, who = _EVERYBODY, "all users of this machine"
        mend = f"have its owner run chmod o-rwx {path}"
    mode = stat.S_IMODE(found.st_mode)
    if not mode & others:
        return None
    return (
        f"{path}: {who} can read it (mode {mode:04o}). Run: {mend}; where the file system keeps no "
        "modes, copy it to one that does. If somebody may have read it, replace it"
    )


def make_private(path: Path) -> None:
    """Remove others' access to a file of ours; another user's file is left as it is.

    Raises:
        OSError: if it is not there.
    """
    found = path.stat()
    if found.st_uid == os.geteuid() and stat.S_IMODE(found.st_mode) & _OTHERS:
        path.chmod(stat.S_IMODE(found.st_mode) & ~_OTHERS)


def private_folder(path: Path) -> Path:
    """Make a folder, and its missing parents, for their owner alone; return it.

    An existing folder is closed to others if it is ours; its parents stay as they are.

    Raises:
        OSError: if it cannot be made.
    """
    missing = [one for one in (path, *path.parents) if not one.exists()]
    for one in reversed(missing):
        one.mkdir(mode=FOLDER_MODE, exist_ok=True)
        fsync_folder(one.parent)
    make_private(path)
    return path
