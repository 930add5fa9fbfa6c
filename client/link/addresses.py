"""The addresses to which a site connects: the newest first, then those that worked before."""

from __future__ import annotations

import ipaddress
import json
from dataclasses import dataclass
from pathlib import Path

from privet.common.canonical import write_json
from privet.common.errors import InputError
from privet.common.files.private_files import FILE_MODE
from privet.common.link.address import read_address

_FILE = "addresses.json"
_MAX_LENGTH = 300


@dataclass(frozen=True)
class Addresses:
    """The addresses of a site's coordinator, in the site's folder for the link.

    They are read again at each connection, so a command in another process takes effect at once.

    Args:
        folder: the folder for the link.
        joined: the address in the join file, which stays the last one.
    """

    folder: Path
    joined: str

    def all(self) -> list[str]:
        """Return the addresses in the order in which they are tried."""
        newest, worked = self._kept()
        return list(dict.fromkeys(one for one in (newest, worked, self.joined) if one))

    def take(self, address: str) -> bool:
        """Put an address first; return whether that changed the order.

        Raises:
            InputError: if it is no address.
        """
        _require_address(address)
        newest, worked = self._kept()
        if (newest or self.joined) == address:
            return False
        self._write(address, worked)
        return True

    def take_told(self, address: str) -> bool:
        """Put an address of the coordinator's notice first; return whether that changed the order.

        The coordinator thereby chooses where the site connects. So it may not name this machine or
        its neighbours on the network, unless the site already connects to this machine (a trial).

        Raises:
            InputError: if it is no address, or one of this machine.
        """
        _require_address(address)
        if _is_local(address) and not all(_is_local(one) for one in self.all()):
            raise InputError(
                f"the coordinator says that it is at {address[:80]}, which is this machine: not "
                "taken. Its operator corrects that with `privet server set-address`"
            )
        return self.take(address)

    def note_worked(self, address: str) -> None:
        """Remember an address at which the coordinator answered."""
        newest, worked = self._kept()
        if worked != address and (newest or address != self.joined):
            self._write(newest or self.joined, address)

    def _kept(self) -> tuple[str, str]:
        try:
            value = json.loads((self.folder / _FILE).read_text(encoding="utf-8"))
            return str(value["newest"]), str(value["worked"])
        except (OSError, ValueError, KeyError, TypeError):
            return "", ""

    def _write(self, newest: str, worked: str) -> None:
        value = {"newest": newest, "worked": worked}
        write_json(self.folder / _FILE, value, mode=FILE_MODE)


def _require_address(address: str) -> None:
    if len(address) > _MAX_LENGTH or not address.isascii() or not address.isprintable():
        raise InputError(f"'{address[:80]!r}' is not host:port")
    _, port = read_address(address)
    if address != address.strip() or port == 0:
        raise InputError(f"'{address[:80]}' is not host:port")


def _is_local(address: str) -> bool:
    host = read_address(address)[0].rstrip(".").lower()
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        found = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host.replace(".", "").isdigit() or host.startswith("0x")  # IPv4, written oddly
    mapped = getattr(found, "ipv4_mapped", None) or found
    return (
        mapped.is_loopback or mapped.is_unspecified or mapped.is_link_local or mapped.is_multicast
    )
