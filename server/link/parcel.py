"""What a coordinator asks of a site, and what came of it."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass, field

from privet.common.flat import Arrays
from privet.common.link import link_pb2 as pb
from privet.server.link.spool import Upload


@dataclass(frozen=True)
class LinkReply:
    """What a site answered to a parcel."""

    records: bytes
    arrays: Arrays


class LateReply(Exception):
    """What was withdrawn was answered after all."""


@dataclass
class PendingRequest:
    """One that is open: posted, and neither answered nor withdrawn."""

    site: str
    message: pb.ToSite
    arrays: Arrays
    most: int
    answer: Future[LinkReply] = field(default_factory=Future)
    upload: Upload | None = None
    announced: bool = False
    """Its site has asked how much of the answer's numbers is here, and will bring the rest."""
