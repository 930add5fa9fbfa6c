"""Deprive this process of what a trainer must not have: sockets, the site's keys, and writing.

The means are the Linux kernel's. They are open to any user, permanent, and children inherit them:

- seccomp: ``socket``, and calls that could replace it, fail with EACCES
  (``seccomp(2)``, filter in classic BPF).
- Landlock (``landlock(7)``): closed folders can be neither read nor written, and only the named
  folders can be written: otherwise this process could change the site's policy, or the code that
  its endpoint will run. A rule can only allow, so everything beside the path to a closed folder
  may be read, as it is at the time of the call. Landlock also keeps this process out of the
  memory and environment of its parent, and from ending it.
- Capabilities, if root runs this: only that of reading others' files is kept.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

_NO_NEW_PRIVS = 38
_CAPABILITIES_3, _DAC_OVERRIDE = 0x20080522, 1 << 1
_SET_MODE_FILTER, _TSYNC = 1, 1
_ALLOW, _EACCES = 0x7FFF0000, 0x00050000 | 13
_LOAD, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06


@dataclass(frozen=True)
class _Machine:
    """Numbers of system calls, from the kernel's tables (``unistd.h``)."""

    audit: int
    seccomp: int
    socket: int
    ptrace: int
    process_vm_readv: int
    process_vm_writev: int


_MACHINES = {
    "x86_64": _Machine(0xC000003E, 317, 41, 101, 310, 311),
    "aarch64": _Machine(0xC00000B7, 277, 198, 117, 270, 271),
}
# The same on every machine.
_IO_URING_SETUP, _PIDFD_GETFD = 425, 438
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_PATH_BENEATH, _VERSION_ONLY = 1, 1
_WRITE_FILE, _READ_FILE, _READ_DIR, _TRUNCATE = 1 << 1, 1 << 2, 1 << 3, 1 << 14
# Removing, making and renaming.
_CHANGE = sum(1 << bit for bit in range(4, 13))
_SIGNALS = 1 << 1


@dataclass(frozen=True)
class Confined:
    """The restrictions in force in this process.

    Attributes:
        network: whether no socket can be made.
        files: whether closed folders cannot be opened, and only named folders can be written.
    """

    network: bool
    files: bool


def confine(closed: Iterable[Path], writable: Iterable[Path]) -> Confined:
    """Give up sockets and files; return the restrictions that the kernel could apply.

    Call it before other threads are started: they would not be restricted.

    Args:
        closed: folders and files that can no longer be opened.
        writable: folders in which files may be written, beside the devices.
    """
    if sys.platform != "linux" or platform.machine() not in _MACHINES:
        return Confined(False, False)
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_NO_NEW_PRIVS, 1, 0, 0, 0)
    header = struct.pack("Ii", _CAPABILITIES_3, 0)
    libc.capset(header, struct.pack("6I", _DAC_OVERRIDE, _DAC_OVERRIDE, 0, 0, 0, 0))
    files = _close_files(
        libc, [path.resolve() for path in closed], [path.resolve() for path in writable]
    )
    return Confined(_close_network(libc, _MACHINES[platform.machine()]), files)


def _close_network(libc: ctypes.CDLL, machine: _Machine) -> bool:
    denied = [
        machine.socket, machine.ptrace, machine.process_vm_readv, machine.process_vm_writev,
        _IO_URING_SETUP, _PIDFD_GETFD,
    ]  # fmt: skip
    # struct seccomp_data: number at 0, machine at 4. From here, jumps are counted to the end.
    lines = [(_LOAD, 0, 0, 4), (_EQUAL, 0, len(denied) + 3, machine.audit), (_LOAD, 0, 0, 0)]
    # Numbers from 2^30 on are x86's second table.
    lines.append((_AT_LEAST, len(denied) + 1, 0, 1 << 30))
    lines += [(_EQUAL, len(denied) - place, 0, call) for place, call in enumerate(denied)]
    lines += [(_RETURN, 0, 0, _ALLOW), (_RETURN, 0, 0, _EACCES)]
    code = b"".join(struct.pack("HBBI", *line) for line in lines)
    buffer = ctypes.create_string_buffer(code, len(code))
    program = struct.pack("HxxxxxxP", len(lines), ctypes.addressof(buffer))
    done: int = libc.syscall(machine.seccomp, _SET_MODE_FILTER, _TSYNC, program)
    return done == 0


def _close_files(libc: ctypes.CDLL, closed: list[Path], writable: list[Path]) -> bool:
    version = libc.syscall(_CREATE_RULESET, None, 0, _VERSION_ONLY)
    if version < 1:
        return False
    read = _READ_FILE | _READ_DIR
    everything = read | _WRITE_FILE | _CHANGE
    if version >= 3:
        everything |= _TRUNCATE
    # struct landlock_ruleset_attr: files, network (from version 4), scopes (from version 6).
    sizes = ((6, 24), (4, 16), (1, 8))
    size = next(size for since, size in sizes if version >= since)
    asked = struct.pack("QQQ", everything, 0, _SIGNALS)
    rules = libc.syscall(_CREATE_RULESET, asked, size, 0)
    if rules < 0:
        return False
    try:
        for path in _beside(closed):
            _allow(libc, rules, path, read)
        for path in (*writable, Path("/dev")):
            _allow(libc, rules, path, everything)
        return int(libc.syscall(_RESTRICT_SELF, rules, 0)) == 0
    finally:
        os.close(rules)


def _beside(closed: list[Path]) -> Iterable[Path]:
    """Return the highest paths that lead to nothing closed."""
    todo = [Path("/")]
    while todo:
        path = todo.pop()
        if path in closed:
            continue
        if not any(path in place.parents for place in closed):
            yield path
            continue
        try:
            todo.extend(path.iterdir())
        except OSError:
            continue


def _allow(libc: ctypes.CDLL, rules: int, path: Path, rights: int) -> None:
    try:
        # A link is a name: what it leads to has a rule of its own.
        place = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return
    try:
        if not path.is_dir() or path.is_symlink():
            rights &= _READ_FILE | _WRITE_FILE | _TRUNCATE
        libc.syscall(_ADD_RULE, rules, _PATH_BENEATH, struct.pack("<Qi", rights, place), 0)
    finally:
        os.close(place)
