"""A federation's folder at the coordinator: its authority, its keys, its members.

::

    FOLDER/
      federation.json          name and addresses
      authority.pem, .key      the certificate authority; the key is encrypted if there is a
      server.pem, .key         passphrase
      members/NAME.json        what is known of a site: certificate, keys, or an open invitation
      coordinator/             orders.pem, witness.pem, witness.json
      runs/RUN/coordinator/    journal.db, journal.pem: each run has a journal and a key for it

A file is replaced as a whole, so a coordinator that runs reads what a command in another
process changed. An invitation is a random token, kept as a hash, for one name and for a while;
it is used up by the first that comes with it.
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import json
import re
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Self

from privet.common.canonical import write_atomic, write_json
from privet.common.errors import InputError, reason_of
from privet.common.link.identity import belongs, fingerprint_of, is_due, read_certificate
from privet.privacy.keys import load_or_make
from privet.privacy.roster import Coordinator, Member, Roster
from privet.privacy.signed_note import COSIGN, SIGN, Key, key_name
from privet.privacy.witness import Witness
from privet.server.certificates import Authority
from privet.server.journal import Journal
from privet.server.recorder import Recorder

FORMAT, JOIN = "privet/federation/v1", "privet/join/v1"
REQUEST = "privet/request/v1"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._-]{0,63}", re.ASCII)
_FILE = "federation.json"


@dataclass(frozen=True)
class SiteRecord:
    """What is known of a site.

    Attributes:
        name: of the site.
        token: SHA-256 of the open invitation, in hex, or "".
        expires: when it ends, in seconds since 1970.
        certificates: fingerprints of the certificates that may call.
        ledger, witness: the site's first keys (vkeys), or "".
        revoked: nothing of the site is let in any more.
    """

    name: str
    token: str = ""
    expires: float = 0.0
    certificates: tuple[str, ...] = ()
    ledger: str = ""
    witness: str = ""
    revoked: bool = False

    @property
    def is_invited(self) -> bool:
        """Whether a join file of this site is good now."""
        return bool(self.token) and not self.revoked and time.time() < self.expires

    @property
    def state(self) -> str:
        """``revoked``, ``enrolled``, ``invited`` or ``expired``."""
        if self.revoked:
            return "revoked"
        if self.certificates:
            return "enrolled"
        return "invited" if self.is_invited else "expired"


@dataclass
class Federation:
    """One federation's folder, opened.

    Example::

        federation = Federation.found(Path("federation"), "readmission", "hub.example.org:7443")
        join = federation.invite("Hospital 1")
    """

    folder: Path
    name: str
    address: str
    enrolment: str
    passphrase: str | None = field(default=None, repr=False)

    @classmethod
    def found(
        cls,
        folder: Path,
        name: str,
        address: str,
        enrolment: str,
        passphrase: str | None = None,
        authority: Authority | None = None,
    ) -> Self:
        """Make the folder: authority, server certificate, keys.

        Args:
            folder: new or empty.
            name: of the coordinator.
            address: ``host:port`` of the link.
            enrolment: ``host:port`` where sites come in.
            passphrase: of the keys; None leaves them unencrypted.
            authority: the organisation's; None makes one.

        Raises:
            InputError: if the folder is not empty, or the name cannot be one.
        """
        if not _NAME.fullmatch(name):
            raise InputError(
                f"'{name}' cannot name a coordinator: it begins with a letter or digit and has at "
                "most 64 letters, digits, spaces, dots, underscores and hyphens"
            )
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise InputError(f"{folder} exists and is not an empty folder")
        made = cls(folder, name, address, enrolment, passphrase)
        authority = authority or Authority.found(name)
        secret = passphrase.encode() if passphrase else None
        certificate, key = authority.serve(name)
        write_atomic(folder / "authority.pem", authority.pem())
        write_atomic(folder / "authority.key", authority.key_pem(secret), mode=0o600)
        write_atomic(folder / "server.pem", certificate)
        write_atomic(folder / "server.key", key, mode=0o600)
        made.order_key()
        made.witness()
        value = {"format": FORMAT, "name": name, "address": address, "enrolment": enrolment}
        write_json(folder / _FILE, value)
        return made

    @classmethod
    def load(cls, folder: Path, passphrase: str | None = None) -> Self:
        """Open a federation's folder.

        Raises:
            InputError: if it is none.
        """
        try:
            value = json.loads((folder / _FILE).read_text(encoding="utf-8"))
            if value.pop("format") != FORMAT:
                raise InputError(f"{folder}: not a federation of format {FORMAT}")
            return cls(folder, **{k: str(v) for k, v in value.items()}, passphrase=passphrase)
        except FileNotFoundError:
            raise InputError(
                f"{folder}: there is no federation here; make one with `privet server init`"
            ) from None
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise InputError(f"{folder / _FILE}: cannot be read: {error}") from error

    # members

    def members(self) -> dict[str, SiteRecord]:
        """Return what is known of every site, by name."""
        paths = sorted((self.folder / "members").glob("*.json"))
        found = [_read(path, _version(path)) for path in paths]
        return {record.name: record for record in found}

    def invite(self, site: str, hours: float = 72.0, *, again: bool = False) -> dict[str, Any]:
        """Return a join file for ``site``; a new one replaces an earlier invitation.

        Args:
            site: its name.
            hours: how long the file is good.
            again: for a site that is enrolled and whose certificate has ended. It keeps its
                keys of ledger and witness, or is not let in.

        Raises:
            InputError: if the name cannot be one, is taken, or was revoked; or with ``again``,
                if the site is not enrolled.
        """
        if not _NAME.fullmatch(site) or site.casefold() == self.name.casefold():
            raise InputError(f"'{site}' cannot name a site")
        known = self.members()
        for name, record in known.items():
            if name.casefold() != site.casefold():
                continue
            if name != site or record.revoked or (record.certificates and not again):
                raise InputError(f"site '{name}' is {record.state} already")
        if again:
            self._enrolled(site)
        token = secrets.token_urlsafe(32)
        hashed = hashlib.sha256(token.encode()).hexdigest()
        invited = known.get(site) if again else None
        expires = time.time() + hours * 3600
        with self._changing():
            now = self.members().get(site)
            if now is not None and now.revoked:
                raise InputError(f"site '{site}' is revoked already")
            self._store(replace(invited or SiteRecord(site), token=hashed, expires=expires))
        return {
            "format": JOIN,
            "federation": self.name,
            "site": site,
            "address": self.address,
            "enrolment": self.enrolment,
            "authority": (self.folder / "authority.pem").read_text(),
            "coordinator": {
                "orders": self.order_key().fingerprint,
                "witness": self.witness().key.fingerprint,
            },
            "token": token,
            "expires": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + hours * 3600)),
        }

    @property
    def invites(self) -> bool:
        """Whether an invitation is open."""
        return any(record.is_invited for record in self.members().values())

    def enrol(self, site: str, token: str, request: bytes, ledger: str, witness: str) -> bytes:
        """Use an invitation up: keep the site's keys, return its certificate.

        Raises:
            InputError: if there is no such invitation, or a key is not what it must be. The
                message is the same whatever is wrong with the invitation.
        """
        record = self.members().get(site)
        hashed = hashlib.sha256(token.encode()).hexdigest()
        known = record.token if record is not None and record.is_invited else "0" * 64
        if not hmac.compare_digest(hashed, known) or record is None:
            raise InputError("there is no such invitation: it was used, it has ended, or never was")
        for text, kind, type_ in ((ledger, "ledger", SIGN), (witness, "witness", COSIGN)):
            key = Key.parse(text, type_=type_)
            if key.name != key_name(kind, site, key.public):
                raise InputError(f"the {kind} key of '{site}' must be called as the format says")
        if record.certificates and (ledger, witness) != (record.ledger, record.witness):
            raise InputError(f"'{site}' is enrolled with other keys of ledger or witness")
        return self._certify(replace(record, ledger=ledger, witness=witness), request)

    def admit(self, path: Path) -> tuple[str, bytes]:
        """Enrol a site by the request that it sent as a file; return its name and certificate.

        Raises:
            InputError: if the file is no request; or as :meth:`enrol`.
        """
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
            if value.pop("format") != REQUEST:
                raise InputError(f"{path}: not a request of format {REQUEST}")
            names = ("site", "token", "request", "ledger", "witness")
            site, token, request, ledger, witness = (str(value[name]) for name in names)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{path}: not a site's request: {reason_of(error)}") from None
        return site, self.enrol(site, token, request.encode(), ledger, witness)

    def renew(self, site: str, request: bytes) -> bytes:
        """Return a further certificate for an enrolled site; the older one stays until it ends.

        Raises:
            InputError: if the site is not enrolled.
        """
        return self._certify(self._enrolled(site), request)

    def revoke(self, site: str) -> None:
        """Let nothing of a site in any more.

        Raises:
            InputError: if the site is not known.
        """
        with self._changing():
            record = self.members().get(site)
            if record is None:
                raise InputError(f"site '{site}' is not known; known: {', '.join(self.members())}")
            self._store(replace(record, revoked=True, token=""))

    def identify(self, pem: bytes) -> str | None:
        """Return the enrolled site that a certificate stands for, or None."""
        try:
            found = fingerprint_of(read_certificate(pem))
        except InputError:
            return None
        for record in self.members().values():
            if record.state == "enrolled" and found in record.certificates:
                return record.name
        return None

    def _certify(self, record: SiteRecord, request: bytes) -> bytes:
        """Return a certificate, and let it in beside the newest that was; no invitation is left."""
        certificate = self._authority().admit(request, record.name)
        with self._changing():
            # Signing takes a while, in which the site may have been revoked.
            known = self.members().get(record.name)
            if known is None or known.revoked or known.token != record.token:
                raise InputError(f"site '{record.name}' was revoked, or invited anew, meanwhile")
            prints = (*known.certificates[-1:], fingerprint_of(read_certificate(certificate)))
            self._store(replace(record, certificates=prints, token="", expires=0.0))
        return certificate

    def serving_pair(self) -> tuple[bytes, bytes]:
        """Return the key and the certificate that the coordinator shows, made anew when due.

        Raises:
            InputError: if they are due and the authority's key does not open.
        """
        paths = self.folder / "server.key", self.folder / "server.pem"
        key, certificate = (path.read_bytes() for path in paths)
        shown = read_certificate(certificate)
        if is_due(shown) or not belongs(shown, key):
            certificate, key = self._authority().serve(self.name)
            write_atomic(paths[0], key, mode=0o600)
            write_atomic(paths[1], certificate)
        return key, certificate

    def _enrolled(self, site: str) -> SiteRecord:
        record = self.members().get(site)
        if record is None or record.state != "enrolled":
            raise InputError(f"site '{site}' is not enrolled")
        return record

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """Let no other process change a member between reading and writing it."""
        with (self.folder / "members.lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _store(self, record: SiteRecord) -> None:
        write_json(self.folder / "members" / f"{record.name}.json", asdict(record))

    # the coordinator's own

    @property
    def _office(self) -> Path:
        return self.folder / "coordinator"

    def _authority(self) -> Authority:
        return Authority.load(
            (self.folder / "authority.pem").read_bytes(),
            (self.folder / "authority.key").read_bytes(),
            self.passphrase.encode() if self.passphrase else None,
        )

    def require_keys(self) -> None:
        """Open the keys once, so that a wrong passphrase is found before anybody comes.

        Raises:
            KeyFault: if one cannot be opened.
        """
        self._authority()
        self.order_key()
        self.witness()

    def witness(self) -> Witness:
        """Return the coordinator's witness."""
        signer = load_or_make(self._office / "witness.pem", self.passphrase)
        return Witness(self._office / "witness.json", signer, self.name)

    def order_key(self) -> Key:
        """Return the key that signs orders."""
        public = load_or_make(self._office / "orders.pem", self.passphrase).public
        return Key(key_name("orders", self.name, public), public)

    def journal(self, run: Path) -> Journal:
        """Return the journal of a run, by its folder."""
        return Journal(
            run / "coordinator",
            self.name,
            load_or_make(run / "coordinator" / "journal.pem", self.passphrase),
            load_or_make(self._office / "orders.pem", self.passphrase),
            self.witness().key,
            setting="site",
        )

    def roster(self, sites: list[str], run: Path) -> Roster:
        """Return the roster of a run: more than half of a log's other witnesses count.

        Raises:
            InputError: if a site is not enrolled.
        """
        records = self.require_enrolled(sites)
        members = tuple(
            Member(r.name, Key.parse(r.ledger, type_=SIGN), Key.parse(r.witness, type_=COSIGN))
            for r in records
        )
        journal = self.journal(run)
        chief = Coordinator(self.name, journal.log.first_key, journal.order_key, self.witness().key)
        journal.log.store.close()
        return Roster(chief, members, len(members) // 2 + 1)

    def require_enrolled(self, sites: list[str]) -> list[SiteRecord]:
        """Return what is known of ``sites``.

        Raises:
            InputError: if one is not enrolled.
        """
        return [self._enrolled(site) for site in sites]

    def recorder(self, roster: Roster, run: Path) -> Recorder:
        """Return the coordinator's recorder of a run."""
        return Recorder(self.journal(run), self.witness(), roster)


def _version(path: Path) -> tuple[int, int, int]:
    """Return what changes when a file is replaced, also twice within one tick of the clock."""
    state = path.stat()
    return state.st_ino, state.st_mtime_ns, state.st_size


@lru_cache(maxsize=4096)
def _read(path: Path, version: tuple[int, int, int]) -> SiteRecord:
    del version
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        return SiteRecord(**{**value, "certificates": tuple(value["certificates"])})
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from error
