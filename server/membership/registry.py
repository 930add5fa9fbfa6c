"""A federation's folder at the coordinator: its authority, its keys, its members.

::

    FOLDER/
      federation.json          name and addresses
      authority.pem, .key      the certificate authority (authority_files.py); the key is
      server.pem, .key         encrypted if there is a passphrase
      members/NAME.json        a site's record: certificate, keys, or an open invitation
      coordinator/             orders.pem (order_key_files.py), witness.pem, witness.json
      copies/                  encrypted copies of the sites' ledgers, for the sites alone
      runs/RUN/coordinator/    journal.db, journal.pem: each run has a journal and a key for it

Files are replaced as a whole, so a running coordinator reads the changes that a command makes in
another process. An invitation is a random token for one name, valid for a limited time and stored
as a hash. The first site that presents it uses it up.
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import json
import re
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Self, TypeVar

from privet.common.canonical import write_atomic, write_json
from privet.common.errors import InputError, reason_of
from privet.common.files.private_files import FILE_MODE, private_folder, read_private
from privet.common.link.identity import belongs, fingerprint_of, is_due, read_certificate
from privet.common.link.validity import is_signed_by
from privet.common.site_name import fold, spelled, trimmed
from privet.privacy.evidence.copies.copy_store import CopyStore
from privet.privacy.evidence.keys import FileSigner, load_or_make
from privet.privacy.evidence.roster import CoordinatorKeys, Member, Roster
from privet.privacy.evidence.signed_note import COSIGN, SIGN, Key, key_name
from privet.privacy.evidence.witness import Witness, newest_seen
from privet.server.evidence.collector import EvidenceCollector
from privet.server.evidence.copying import CopyKeeper
from privet.server.evidence.journal import FILE as JOURNAL
from privet.server.evidence.journal import Journal
from privet.server.evidence.journal_copies import JournalSharer
from privet.server.evidence.witness_sets import SitesByLot, quorum_of
from privet.server.membership.authority_files import AuthorityFiles
from privet.server.membership.certificates import Authority
from privet.server.membership.folder_format import FORMATS
from privet.server.membership.order_key_files import order_signer

JOIN = "privet/join/v1"
REQUEST = "privet/request/v1"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._-]{0,63}", re.ASCII)
MEMBER_NAME = _NAME
"""A valid name of a site, a coordinator or a researcher."""
FILE = "federation.json"


_R = TypeVar("_R")


class Invitation:
    """What a record says of an invitation: in hex, the SHA-256 of its token, and when it ends."""

    token: str
    expires: float

    @property
    def is_invited(self) -> bool:
        """Whether a join file of the invitation is valid now."""
        return bool(self.token) and time.time() < self.expires

    def is_opened_by(self, token: str) -> bool:
        """Return whether a token is that of the invitation, and may be used now."""
        # Always compared, so that timing does not tell an unknown name from a wrong token.
        known = self.token if self.is_invited else "0" * 64
        return hmac.compare_digest(hash_of(token), known)


def hash_of(token: str) -> str:
    """Return the SHA-256 of an invitation's token, in hex: all that a record keeps of it."""
    return hashlib.sha256(token.encode()).hexdigest()


@dataclass(frozen=True)
class SiteRecord(Invitation):
    """The record of a site.

    Attributes:
        name: of the site.
        token: SHA-256 of the open invitation, in hex, or "".
        expires: when the invitation ends, in seconds since 1970.
        certificates: fingerprints of the certificates that may call.
        ledger, witness: the site's first keys (vkeys), or "".
        revoked: the coordinator refuses the site until it is invited again and presents the same
            keys.
        offered: fingerprint of the newest authority in the join file of the open invitation.
        authority: fingerprint of the authority that signed the newest certificate; "" where that
            was not noted.
    """

    name: str
    token: str = ""
    expires: float = 0.0
    certificates: tuple[str, ...] = ()
    ledger: str = ""
    witness: str = ""
    revoked: bool = False
    offered: str = ""
    authority: str = ""

    @property
    def state(self) -> str:
        """``revoked``, ``enrolled``, ``invited`` or ``expired``."""
        if self.revoked:
            return "revoked"
        if self.certificates:
            return "enrolled"
        return "invited" if self.is_invited else "expired"


@dataclass
class MemberRegistry:
    """The opened folder of one federation: its members, keys and certificates.

    Example::

        federation = MemberRegistry.found(
            Path("federation"), "readmission", "fed.example.org:7443", "fed.example.org:7444"
        )
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
        """Create the folder with authority, server certificate and keys.

        Args:
            folder: new or empty.
            name: of the coordinator.
            address: ``host:port`` of the link.
            enrolment: ``host:port`` of the enrolment server.
            passphrase: of the keys; None leaves them unencrypted.
            authority: the organisation's own authority; None makes a new one.

        Raises:
            InputError: if the folder is not empty, or the name is not allowed.
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
        secret = made.authorities.secret
        certificate, key = authority.serve(name)
        private_folder(folder)
        write_atomic(folder / "authority.pem", authority.pem())
        write_atomic(folder / "authority.key", authority.key_pem(secret), mode=FILE_MODE)
        write_atomic(folder / "server.pem", certificate)
        write_atomic(folder / "server.key", key, mode=FILE_MODE)
        made.order_key()
        made.witness()
        made._write()
        return made

    @classmethod
    def load(cls, folder: Path, passphrase: str | None = None) -> Self:
        """Open a federation's folder.

        Args:
            folder: that :meth:`found` made.
            passphrase: of the keys; it is not checked before a key is used. None for unencrypted
                keys.

        Raises:
            InputError: if the folder holds no federation, a later version wrote it, or its file is
                damaged.
        """
        try:
            value = json.loads((folder / FILE).read_text(encoding="utf-8"))
            FORMATS.take_marks(value, folder / FILE)
            return cls(folder, **{k: str(v) for k, v in value.items()}, passphrase=passphrase)
        except FileNotFoundError:
            raise InputError(
                f"{folder}: there is no federation here; make one with `privet server init`"
            ) from None
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise InputError(f"{folder / FILE}: cannot be read: {error}") from error

    def set_address(self, address: str, enrolment: str = "") -> None:
        """Change the address to which sites connect, and that of the enrolment server if it is
        given.

        Certificates do not name an address, so nothing else changes. Sites learn the new address
        from the coordinator's notice.

        Args:
            address: ``host:port`` of the link.
            enrolment: ``host:port`` of the enrolment server; "" leaves it as it is.
        """
        self.address, self.enrolment = address, enrolment or self.enrolment
        self._write()

    def _write(self) -> None:
        own = {"name": self.name, "address": self.address, "enrolment": self.enrolment}
        write_json(self.folder / FILE, {**FORMATS.marks, **own})

    def bring_up_to_date(self) -> None:
        """Write the folder's mark in this version's format; only the coordinator does this.

        Raises:
            InputError: if a later version has written it meanwhile.
        """
        FORMATS.bring_up(self.folder / FILE)

    # members

    def members(self) -> dict[str, SiteRecord]:
        """Return the record of every site, by name."""
        paths = sorted((self.folder / "members").glob("*.json"))
        found = [_read(path, _version(path)) for path in paths]
        return {record.name: record for record in found}

    def invite(self, site: str, hours: float = 72.0, *, again: bool = False) -> dict[str, Any]:
        """Return a join file for ``site``; it replaces an earlier invitation.

        Args:
            site: its name; blanks around it are dropped, and names that differ only in case are the
                same.
            hours: validity of the file.
            again: for a site that is enrolled or was revoked. It must present its keys of ledger
                and witness. A revoked site stays out until then, and its former certificates stay
                invalid.

        Raises:
            InputError: if the name is not allowed, is taken, or was revoked; or with ``again``, if
                the site is neither enrolled nor revoked.
        """
        known = self.members()
        site = spelled(site, known)
        if not _NAME.fullmatch(site) or fold(site) == fold(self.name):
            raise InputError(f"'{site}' cannot name a site")
        if fold(site) in {fold(path.stem) for path in (self.folder / "researchers").glob("*.json")}:
            raise InputError(f"'{site}' is the name of a researcher; a site needs another one")
        record = known.get(site)
        if not again:
            _require_new(record)
        elif record is None or not record.ledger:
            self._enrolled(site)
        token = secrets.token_urlsafe(32)
        hashed = hash_of(token)
        expires = time.time() + hours * 3600
        authorities = self.authorities
        with self._changing():
            now = self.members().get(site)
            invited = SiteRecord(site)
            if not again:
                _require_new(now)
            elif now is not None:
                invited = now
            if invited.revoked:
                invited = replace(invited, certificates=())
            offered = authorities.newest
            self._store(replace(invited, token=hashed, expires=expires, offered=offered))
        return {
            "format": JOIN,
            "federation": self.name,
            "site": site,
            "address": self.address,
            "enrolment": self.enrolment,
            "authority": authorities.bundle().decode(),
            "coordinator": {
                "orders": self.order_key().fingerprint,
                "witness": self.witness().key.fingerprint,
            },
            "token": token,
            "expires": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + hours * 3600)),
        }

    def withdraw(self, site: str) -> None:
        """End the invitation of a site; if the site is not enrolled, its name is free again.

        Raises:
            InputError: if there is no invitation.
        """
        with self._changing():
            known = self.members()
            record = known.get(spelled(site, known))
            if record is None or not record.token:
                raise InputError(
                    f"site '{trimmed(site)}' has no invitation that could be withdrawn"
                )
            if record.ledger:
                self._store(replace(record, token="", expires=0.0))
            else:
                (self.folder / "members" / f"{record.name}.json").unlink()

    @property
    def invites(self) -> bool:
        """Whether an invitation is open."""
        return any(record.is_invited for record in self.members().values())

    def enrol(self, site: str, token: str, request: bytes, ledger: str, witness: str) -> bytes:
        """Use up an invitation: store the site's keys and sign its certificate.

        Args:
            site: name in the invitation.
            token: the invitation's secret, from the join file.
            request: certificate request, as PEM.
            ledger: vkey of the site's ledger.
            witness: vkey of the site's witness.

        Returns:
            The site's certificate, as PEM.

        Raises:
            InputError: if there is no such invitation, a key does not have the required name and
                type, or the site is known with other keys. The message is the same whatever is
                wrong with the invitation.
        """
        record = self.members().get(site, SiteRecord(site))
        if not record.is_opened_by(token):
            raise InputError("there is no such invitation: it was used, it has ended, or never was")
        for text, kind, type_ in ((ledger, "ledger", SIGN), (witness, "witness", COSIGN)):
            key = Key.parse(text, type_=type_)
            if key.name != key_name(kind, site, key.public):
                raise InputError(f"the {kind} key of '{site}' must be called as the format says")
        if record.ledger and (ledger, witness) != (record.ledger, record.witness):
            raise InputError(f"'{site}' is known with other keys of ledger or witness")
        come = replace(record, ledger=ledger, witness=witness, revoked=False)
        return self._certify(come, request, record.certificates[-1:], record.offered, comes_in=True)

    def admit(self, path: Path) -> tuple[str, bytes]:
        """Enrol a site by the request file that it sent; return its name and certificate.

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

    def renew(self, site: str, request: bytes, shown: bytes = b"", authority: str = "") -> bytes:
        """Return a further certificate for an enrolled site; the certificate in use stays valid
        until it ends.

        Args:
            site: its name.
            request: for the new certificate, as PEM.
            shown: the certificate that the site presented, as PEM. It stays valid, whatever became
                of certificates that were issued since. Default the newest.
            authority: fingerprint of the newest authority that the site trusts; "" is the former
                one, in an overlap.

        Raises:
            InputError: if the site is not enrolled.
        """
        record = self._enrolled(site)
        kept = record.certificates[-1:]
        if shown and (used := fingerprint_of(read_certificate(shown))) in record.certificates:
            kept = (used,)
        return self._certify(record, request, kept, authority, comes_in=False)

    def revoke(self, site: str) -> None:
        """Revoke a site: the coordinator refuses it from now on.

        Raises:
            InputError: if the site is not known.
        """
        with self._changing():
            known = self.members()
            record = known.get(spelled(site, known))
            if record is None:
                raise InputError(f"site '{site}' is not known; known: {', '.join(known)}")
            self._store(replace(record, revoked=True, token=""))

    def left_behind(self) -> list[str]:
        """Return the sites that could not connect any more without the former authority."""
        newest = self.authorities.newest
        return [
            record.name
            for record in self.members().values()
            if (record.state == "enrolled" and record.authority != newest)
            or (record.is_invited and record.offered != newest)
        ]

    def identify(self, pem: bytes) -> str | None:
        """Return the enrolled site to which a certificate belongs, or None."""
        try:
            found = fingerprint_of(read_certificate(pem))
        except InputError:
            return None
        for record in self.members().values():
            if record.state == "enrolled" and found in record.certificates:
                return record.name
        return None

    def _certify(
        self,
        record: SiteRecord,
        request: bytes,
        kept: tuple[str, ...],
        knows: str,
        *,
        comes_in: bool,
    ) -> bytes:
        """Return a new certificate, and note it as valid beside those ``kept``.

        The newest authority signs it for a site that ``knows`` this authority, the former one for
        another. A site that enrols uses its invitation up; one that renews does not.
        """
        files = self.authorities
        newest = files.newest
        former = files.in_overlap and knows != newest
        certificate = files.load(former=former).admit(request, record.name)
        with self._changing():
            # Signing takes a while, in which the site may have been revoked, or invited again.
            known = self.members().get(record.name)
            ended = comes_in and known is not None and known.token != record.token
            if known is None or ended or (known.revoked and not comes_in):
                raise InputError(f"site '{record.name}' was revoked, or invited again, meanwhile")
            prints = (*kept, fingerprint_of(read_certificate(certificate)))
            if comes_in:  # with the keys that it brought, and its invitation is used up
                known = replace(record, token="", expires=0.0, offered="")
            authority = "" if former else newest
            self._store(replace(known, certificates=prints, authority=authority))
        return certificate

    def serving_pair(self) -> tuple[bytes, bytes]:
        """Return the key and the certificate of the coordinator's ports; renew them when due.

        Raises:
            InputError: if they are due and the authority's key cannot be decrypted.
            PrivateKeyError: if others can read a key.
        """
        paths = self.folder / "server.key", self.folder / "server.pem"
        key, certificate = read_private(paths[0]), paths[1].read_bytes()
        shown = read_certificate(certificate)
        issuer = read_certificate(self.authorities.issuer())
        if is_due(shown) or not belongs(shown, key) or not is_signed_by(shown, issuer):
            certificate, key = self.authorities.load(former=True).serve(self.name)
            write_atomic(paths[0], key, mode=FILE_MODE)
            write_atomic(paths[1], certificate)
        return key, certificate

    def _enrolled(self, site: str) -> SiteRecord:
        known = self.members()
        record = known.get(site)
        if record is None and (other := spelled(site, known)) in known:
            raise InputError(f"site '{site}' is known as '{other}': spell it so")
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
    def keys(self) -> Path:
        """Folder of the coordinator's keys."""
        return self.folder / "coordinator"

    @property
    def authorities(self) -> AuthorityFiles:
        """The authority, and in an overlap the one before it."""
        return AuthorityFiles(self.folder, self.passphrase)

    def admit_as(self, name: str, uri: str, request: bytes) -> bytes:
        """Sign a certificate request.

        Args:
            name: for people to read.
            uri: of the certificate's subject.
            request: as PEM.

        Raises:
            InputError: if the request cannot be read, or the authority's key cannot be decrypted.
        """
        return self.authorities.load().admit(request, name, uri=uri)

    def alone(self) -> AbstractContextManager[None]:
        """Hold the lock under which the members are changed, against other processes."""
        return self._changing()

    def require_keys(self) -> None:
        """Decrypt the keys once, so that a wrong passphrase is found before a site connects.

        Raises:
            PrivateKeyError: if one cannot be decrypted.
        """
        self.authorities.load()
        self.order_key()
        self.witness()

    def witness(self) -> Witness:
        """Return the coordinator's witness."""
        signer = load_or_make(self.keys / "witness.pem", self.passphrase)
        return Witness(self.keys / "witness.json", signer, self.name)

    def newest_head(self, site: str) -> str:
        """Return the newest head of a member's log that the coordinator's witness cosigned, or "".

        Raises:
            InputError: if there is no such member, or it has no keys yet.
            LedgerError: if the witness's record cannot be read.
        """
        seen = newest_seen(self.keys / "witness.json", Key.parse(self._enrolled(site).ledger).name)
        return "" if seen is None else seen.note

    def order_key(self) -> Key:
        """Return the key that signs orders."""
        public = load_or_make(self.keys / "orders.pem", self.passphrase).public
        return Key(key_name("orders", self.name, public), public)

    def order_signers(self) -> list[FileSigner]:
        """Return the private key that signs orders, and the former ones.

        Raises:
            PrivateKeyError: if one cannot be decrypted.
        """
        paths = [self.keys / "orders.pem", *sorted(self.keys.glob("orders-until-*.pem"))]
        return [load_or_make(path, self.passphrase) for path in paths]

    def journal(self, run: Path) -> Journal:
        """Return the journal of a run, by its folder; it continues under the order key with which
        it began.

        Raises:
            PrivateKeyError: if that key is no longer here.
        """
        return Journal(
            run / "coordinator",
            self.name,
            load_or_make(run / "coordinator" / "journal.pem", self.passphrase),
            order_signer(self.keys, run / "coordinator" / JOURNAL, self.passphrase),
            self.witness().key,
            setting="site",
        )

    def roster(self, sites: list[str], run: Path, witnesses: int | None = None) -> Roster:
        """Return the roster of a run; its quorum is more than half of the sites that cosign a log.

        Args:
            sites: names of the members that take part.
            run: the run's folder; its journal is created if there is none.
            witnesses: how many sites cosign each log, by lot; None: all but its own.

        Raises:
            InputError: if a site is not enrolled.
            PrivateKeyError: if a key cannot be decrypted, or the run's order key is no longer here.
        """
        records = self.require_enrolled(sites)
        members = tuple(
            Member(r.name, Key.parse(r.ledger, type_=SIGN), Key.parse(r.witness, type_=COSIGN))
            for r in records
        )
        journal = self.journal(run)
        chief = CoordinatorKeys(
            self.name, journal.log.first_key, journal.order_key, self.witness().key
        )
        journal.log.store.close()
        return Roster(chief, members, quorum_of(len(members), witnesses))

    def require_enrolled(self, sites: list[str]) -> list[SiteRecord]:
        """Return the records of ``sites``.

        Raises:
            InputError: if one is not enrolled.
        """
        return [self._enrolled(site) for site in sites]

    def collector(
        self, roster: Roster, run: Path, witnesses: int | None = None
    ) -> EvidenceCollector:
        """Return the evidence collector of a run, with its journal opened.

        Args:
            roster: of the run.
            run: the run's folder.
            witnesses: as in :meth:`roster`.

        Raises:
            InputError: if the run's plan cannot be read.
            PrivateKeyError: if a key cannot be decrypted, or the run's order key is no longer here.
        """
        copies, journal = CopyKeeper(self.copies(), roster), self.journal(run)
        sharer = JournalSharer.of(journal, run, roster)
        some = None if witnesses is None else SitesByLot(roster, witnesses)
        return EvidenceCollector(journal, self.witness(), roster, copies, sharer, witnesses=some)

    def copies(self) -> CopyStore:
        """Return the store of the sites' copied ledgers, which only the sites can read."""
        return CopyStore(self.folder / "copies")


def _require_new(record: SiteRecord | None) -> None:
    if record is not None and (record.revoked or record.ledger):
        raise InputError(
            f"site '{record.name}' is {record.state} already; with --again it is invited once more "
            "and comes with the ledger that it has"
        )


def _version(path: Path) -> tuple[int, int, int]:
    """Return a value that changes when a file is replaced, even within a tick of the clock."""
    state = path.stat()
    return state.st_ino, state.st_mtime_ns, state.st_size


@lru_cache(maxsize=4096)
def _read(path: Path, version: tuple[int, int, int]) -> SiteRecord:
    del version
    return read_record(path, SiteRecord)


def read_record(path: Path, kind: Callable[..., _R]) -> _R:
    """Read the record of a site or a researcher.

    Raises:
        InputError: if it cannot be read.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        return kind(**{**value, "certificates": tuple(value["certificates"])})
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from error
