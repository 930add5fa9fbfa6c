"""The researchers of a federation: who may submit plans from another machine, by certificate.

A researcher enrols as a site does, by an invitation that works once. Records of researchers are
kept apart from those of sites, in ``researchers/NAME.json``. A name belongs to a researcher or to a
site, never to both.
"""

from __future__ import annotations

import secrets
import time
from dataclasses import asdict, dataclass, replace
from typing import Any

from privet.common.canonical import write_json
from privet.common.errors import InputError
from privet.common.files.private_files import private_folder
from privet.common.link.identity import (
    fingerprint_of,
    read_certificate,
    researcher_of,
    researcher_uri,
)
from privet.common.site_name import fold, spelled
from privet.server.membership.registry import (
    MEMBER_NAME,
    Invitation,
    MemberRegistry,
    hash_of,
    read_record,
)

FORMAT = "privet/researcher/v1"


@dataclass(frozen=True)
class ResearcherRecord(Invitation):
    """The record of a researcher.

    Attributes:
        name: of the researcher.
        token: SHA-256 of the open invitation, in hex, or "".
        expires: when the invitation ends, in seconds since 1970.
        certificates: fingerprints of the certificates that may call: only the newest.
        revoked: the coordinator refuses this researcher.
    """

    name: str
    token: str = ""
    expires: float = 0.0
    certificates: tuple[str, ...] = ()
    revoked: bool = False

    @property
    def is_invited(self) -> bool:
        """Whether the join file is valid now."""
        return not self.revoked and super().is_invited

    @property
    def state(self) -> str:
        """``revoked``, ``connected`` (has a certificate), ``invited`` or ``expired``."""
        if self.revoked:
            return "revoked"
        if self.certificates:
            return "connected"
        return "invited" if self.is_invited else "expired"


class Researchers:
    """The researchers of a federation.

    Args:
        federation: the opened folder.
    """

    def __init__(self, federation: MemberRegistry) -> None:
        self._federation = federation
        self._folder = federation.folder / "researchers"

    def all(self) -> dict[str, ResearcherRecord]:
        """Return the record of each researcher, by name.

        Raises:
            InputError: if a file cannot be read.
        """
        paths = sorted(self._folder.glob("*.json"))
        found = [read_record(path, ResearcherRecord) for path in paths]
        return {record.name: record for record in found}

    @property
    def invites(self) -> bool:
        """Whether an invitation is open."""
        return any(record.is_invited for record in self.all().values())

    def grant(self, name: str, hours: float = 72.0, *, again: bool = False) -> dict[str, Any]:
        """Return a join file for a researcher; it replaces an earlier invitation.

        Args:
            name: of the researcher; it must not be a site's.
            hours: validity of the file.
            again: for a researcher whose certificate has ended, or who has a new machine. The older
                certificate stays valid until the file is used.

        Raises:
            InputError: if the name is not allowed, is taken, or was revoked.
        """
        known, federation = self.all(), self._federation
        name = spelled(name, known)
        taken = {fold(site) for site in federation.members()} | {fold(federation.name)}
        if not MEMBER_NAME.fullmatch(name) or fold(name) in taken:
            raise InputError(f"'{name}' cannot name a researcher, or is the name of a site")
        token = secrets.token_urlsafe(32)
        expires = time.time() + hours * 3600
        with federation.alone():
            record = self.all().get(name, ResearcherRecord(name))
            if record.revoked or (record.certificates and not again):
                hint = "" if record.revoked else "; --again gives another certificate"
                raise InputError(f"researcher '{name}' is {record.state} already{hint}")
            self._store(replace(record, token=hash_of(token), expires=expires))
        return {
            "format": FORMAT,
            "federation": federation.name,
            "name": name,
            "address": federation.address,
            "enrolment": federation.enrolment,
            "authority": federation.authorities.bundle().decode(),
            "token": token,
            "expires": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(expires)),
        }

    def enrol(self, name: str, token: str, request: bytes) -> bytes:
        """Use up an invitation: sign the researcher's certificate.

        Args:
            name: in the invitation.
            token: the invitation's secret, from the join file.
            request: certificate request, as PEM.

        Returns:
            The certificate, as PEM. It replaces the former one.

        Raises:
            InputError: if there is no such invitation, or the request cannot be read.
        """
        record = self.all().get(name, ResearcherRecord(name))
        if not record.is_opened_by(token):
            raise InputError("there is no such invitation: it was used, it has ended, or never was")
        certificate = self._federation.admit_as(name, researcher_uri(name), request)
        prints = (fingerprint_of(read_certificate(certificate)),)
        # Signing takes a while, in which the researcher may have been revoked, or invited again.
        with self._federation.alone():
            now = self.all().get(name)
            if now is None or now.revoked or now.token != record.token:
                raise InputError(f"researcher '{name}' was revoked, or invited again, meanwhile")
            self._store(replace(now, certificates=prints, token="", expires=0.0))
        return certificate

    def identify(self, pem: bytes) -> str | None:
        """Return the researcher to whom a certificate belongs now, or None."""
        try:
            certificate = read_certificate(pem)
            name = researcher_of(certificate)
        except InputError:
            return None
        record, shown = self.all().get(name), fingerprint_of(certificate)
        if record is None or record.revoked or shown not in record.certificates:
            return None
        return name

    def revoke(self, name: str) -> bool:
        """Revoke a researcher; return whether there is one of this name."""
        with self._federation.alone():
            known = self.all()
            record = known.get(spelled(name, known))
            if record is not None:
                self._store(replace(record, revoked=True, token=""))
            return record is not None

    def _store(self, record: ResearcherRecord) -> None:
        private_folder(self._folder)
        write_json(self._folder / f"{record.name}.json", asdict(record))
