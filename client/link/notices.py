"""Takes in what the coordinator tells of itself: an address, an authority, an order key.

The address is taken on the word of who shows the coordinator's certificate: at the new one TLS asks
for the same authority. Another authority is taken only where the present one certified it, another
order key only where the present one signed for it and the policy lets it ask.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path

from privet.client.link.addresses import Addresses
from privet.client.link.order_keys import HANDOVERS, read_json
from privet.common.canonical import write_atomic, write_json
from privet.common.errors import InputError
from privet.common.files.private_files import FILE_MODE
from privet.common.link import link_pb2 as pb
from privet.common.link.notices import followed, read_certificates, write_certificates
from privet.privacy.evidence.order_keys import MAX_HANDOVERS, KeyHandover

_LOG = logging.getLogger("privet.notices")


@dataclass(frozen=True)
class Notices:
    """The notices of one site.

    Args:
        folder: the site's folder for the link.
        addresses: where it dials.
    """

    folder: Path
    addresses: Addresses

    def take(self, notice: pb.Notice) -> list[KeyHandover]:
        """Keep what a notice says; return the handovers of order keys that it shows.

        Raises:
            InputError: if a part of it cannot be taken; the parts before it are kept.
            OSError: if it cannot be written.
        """
        if notice.authorities:
            self._take_authorities(notice.authorities, notice.cross)
        if notice.address and self.addresses.take_told(notice.address):
            _LOG.info("the coordinator will be found elsewhere", extra={"address": notice.address})
        return self._take_handovers(list(notice.order_keys))

    def _take_authorities(self, told: bytes, cross: bytes) -> None:
        path = self.folder / "authority.pem"
        held = read_certificates(path.read_bytes())
        now = followed(held, read_certificates(told), cross)
        if now == held:
            return
        write_atomic(path, write_certificates(now))
        if len(now) > len(held):
            _LOG.info("the federation has a new authority, certified by the present one")
        else:
            _LOG.info("the federation's former authority is trusted no more")

    def _take_handovers(self, told: list[bytes]) -> list[KeyHandover]:
        if len(told) > MAX_HANDOVERS:
            raise InputError("more order keys than one coordinator has")
        try:
            found = [KeyHandover.from_json(json.loads(one)) for one in told]
        except (ValueError, RecursionError):
            raise InputError("a handover of an order key is not JSON") from None
        value = [one.to_json() for one in found]
        if found and value != read_json(self.folder / HANDOVERS):
            write_json(self.folder / HANDOVERS, value, mode=FILE_MODE)
        return found
