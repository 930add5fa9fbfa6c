"""A request to a site, and the site's reply."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass, field

from privet.common.flat import Arrays
from privet.common.link import link_pb2 as pb
from privet.server.link.spool import Upload


@dataclass(frozen=True)
class LinkReply:
    """A site's answer to a request."""

    records: bytes
    arrays: Arrays


class LateReply(Exception):
    """A site answered a request after it was withdrawn."""


@dataclass
class PendingRequest:
    """An open request: sent, and neither answered nor withdrawn."""

    site: str
    message: pb.ToSite
    arrays: Arrays
    most: int
    answer: Future[LinkReply] = field(default_factory=Future)
    upload: Upload | None = None
    announced: bool = False
    """Its site has asked how much of the answer's numbers is here, and will bring the rest."""
