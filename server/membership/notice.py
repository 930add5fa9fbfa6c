"""The coordinator's notice to its sites: its address, authority and order key."""

from __future__ import annotations

import json

from privet.common.canonical import canonical_json
from privet.common.errors import InputError, reason_of
from privet.common.link import link_pb2 as pb
from privet.server.membership.order_key_files import handovers
from privet.server.membership.registry import FILE, MemberRegistry


def notice_of(federation: MemberRegistry) -> pb.Notice:
    """Return the notice, made from the folder's files as they are now: commands may change them at
    any time.

    Raises:
        InputError: if a file cannot be read.
    """
    path = federation.folder / FILE
    try:
        address = str(json.loads(path.read_text(encoding="utf-8"))["address"])
        authorities = federation.authorities
        return pb.Notice(
            address=address,
            authorities=authorities.bundle(),
            cross=authorities.cross(),
            order_keys=[canonical_json(one) for one in handovers(federation.keys)],
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: cannot be read: {reason_of(error)}") from error
