"""Accept the coordinator's notice: an address, an authority, an order key.

An address is accepted from any holder of the coordinator's certificate: at the new address TLS
requires the same authority. Another authority is accepted only if the present one certified it, and
another order key only if the present one signed for it and the policy lets it ask.
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
        addresses: to which the site connects.
    """

    folder: Path
    addresses: Addresses

    def take(self, notice: pb.Notice) -> list[KeyHandover]:
        """Store the parts of a notice; return its handovers of order keys.

        Raises:
            InputError: if a part is not acceptable; the parts before it are stored.
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
