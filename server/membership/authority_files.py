"""The files of a federation's certificate authority, also while one authority follows another.

::

    authority.pem, .key            signs the certificates of sites that know it
    former-authority.pem, .key     the one before it, while it is still valid (an overlap)
    authority-cross.pem            the newest authority's key, certified by the one before it
    next-authority.pem, .key       made, and not in force yet

In an overlap the coordinator presents a certificate of the former authority, which all sites know,
and accepts certificates of both. A site learns the new authority over the link, by the cross
certificate, and renews its own certificate. When all sites have done so, the former authority is
dropped, and with it everything that its key could sign.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from privet.common.canonical import write_atomic
from privet.common.errors import InputError
from privet.common.files.private_files import FILE_MODE, read_private
from privet.common.link.identity import fingerprint_of, read_certificate
from privet.server.membership.certificates import Authority

_NEXT, _FORMER = "next-", "former-"
_PEM, _KEY, _CROSS = "authority.pem", "authority.key", "authority-cross.pem"


@dataclass(frozen=True)
class AuthorityFiles:
    """The files of a federation's authorities.

    Args:
        folder: the federation's.
        passphrase: of the keys; None for keys that are not encrypted.
    """

    folder: Path
    passphrase: str | None = None

    @property
    def in_overlap(self) -> bool:
        """Whether a former authority is still valid."""
        return (self.folder / (_FORMER + _PEM)).exists()

    @property
    def newest(self) -> str:
        """Fingerprint of the newest authority's certificate."""
        return fingerprint_of(read_certificate((self.folder / _PEM).read_bytes()))

    def bundle(self) -> bytes:
        """Return the certificates of the authorities that are valid, the newest first."""
        names = [_PEM]
        if self.in_overlap:
            names.append(_FORMER + _PEM)
        return b"".join((self.folder / name).read_bytes().strip() + b"\n" for name in names)

    def cross(self) -> bytes:
        """Return the newest authority's key as the former one certified it, or b"" without a former
        one.
        """
        path = self.folder / _CROSS
        # Without an overlap a change that broke off has left it: its authority is not in force.
        return path.read_bytes() if self.in_overlap and path.exists() else b""

    def load(self, *, former: bool = False) -> Authority:
        """Open the newest authority, or in an overlap the one before it.

        Raises:
            InputError: if its key cannot be decrypted.
            PrivateKeyError: if others can read it.
        """
        if self.is_moving:
            raise InputError(
                f"{self.folder}: a change of the authority broke off; run `privet server "
                "rotate-key --key authority` again"
            )
        before = self._older if former else ""
        return Authority.load(
            (self.folder / (before + _PEM)).read_bytes(),
            read_private(self.folder / (before + _KEY)),
            self.secret,
        )

    def issuer(self) -> bytes:
        """Return the certificate of the authority that signs the coordinator's."""
        return (self.folder / (self._older + _PEM)).read_bytes()

    def change(self, name: str, given: Authority | None = None) -> None:
        """Bring another authority into force beside the present one.

        The process may be killed at any step: the next call continues with the files that are
        there.

        Args:
            name: of the federation.
            given: the organisation's own authority; None makes a new one.

        Raises:
            InputError: if an overlap has not ended, or TLS cannot tell ``given`` from the present
                one.
        """
        if self.in_overlap and not self.is_moving:
            raise InputError("an authority follows another one already, and not all sites know it")
        if not self.is_moving:
            present = self.load()
            coming = self._coming(name, given, present)
            write_atomic(self.folder / _CROSS, present.cross(coming))
            for one in (_KEY, _PEM):  # once both are there, the newer ones may replace them
                self._copy(one)
        for one in (_KEY, _PEM):
            path = self.folder / (_NEXT + one)
            if path.exists():
                path.replace(self.folder / one)

    def drop_former(self) -> bool:
        """End the trust in the former authority; return whether there was one."""
        was = self.in_overlap
        for name in (_FORMER + _PEM, _FORMER + _KEY, _CROSS):
            (self.folder / name).unlink(missing_ok=True)
        return was

    def _coming(self, name: str, given: Authority | None, present: Authority) -> Authority:
        path = self.folder / (_NEXT + _PEM)
        if given is None and path.exists() and (self.folder / (_NEXT + _KEY)).exists():
            return Authority.load(
                path.read_bytes(), read_private(self.folder / (_NEXT + _KEY)), self.secret
            )
        coming = given or Authority.found(name, distinct=True)
        if coming.certificate.subject == present.certificate.subject:
            raise InputError(
                "the new authority has the name of the present one; certificates could not be "
                "told apart. Give it another subject"
            )
        write_atomic(self.folder / (_NEXT + _KEY), coming.key_pem(self.secret), mode=FILE_MODE)
        write_atomic(path, coming.pem())
        return coming

    def _copy(self, name: str) -> None:
        data = (self.folder / name).read_bytes()
        mode = FILE_MODE if name == _KEY else 0o644
        write_atomic(self.folder / (_FORMER + name), data, mode=mode)

    @property
    def is_moving(self) -> bool:
        """Whether a change was interrupted after the former authority was put aside."""
        return self.in_overlap and (self.folder / (_NEXT + _PEM)).exists()

    @property
    def _older(self) -> str:
        """The prefix of the files of the authority that all sites know."""
        return _FORMER if self.in_overlap else ""

    @property
    def secret(self) -> bytes | None:
        """The passphrase as bytes; None for keys that are not encrypted."""
        return self.passphrase.encode() if self.passphrase else None
