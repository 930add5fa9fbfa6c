"""Enrol a site: its join file, its request, its certificate.

The coordinator sends the join file by a channel that both trust, such as encrypted mail. It holds
the authority that must have signed the coordinator's certificate, so that nobody else can answer;
and a token that works once.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import grpc
from cryptography import x509

from privet.client.link.addresses import Addresses
from privet.common.canonical import write_atomic
from privet.common.errors import InputError, RunError
from privet.common.files.format_version import newer_fault, number_of
from privet.common.files.private_files import FILE_MODE, make_private, private_folder
from privet.common.link import link_pb2 as pb
from privet.common.link import link_pb2_grpc as rpc
from privet.common.link.identity import (
    SERVER_NAME,
    belongs,
    fingerprint_of,
    read_certificate,
    request,
    require_tls_1_3,
    site_of,
)
from privet.common.link.notices import read_certificates, write_certificates
from privet.common.link.opening import OPTIONS, call_when_open
from privet.common.link.proxy import use_proxy_variables
from privet.privacy.evidence.signed_note import Key, key_name

FORMAT, REQUEST = "privet/join/v1", "privet/request/v1"
NEXT = "next-"
"""Prefix of the names of a key and a certificate that will replace those in use."""
_USED = "used-token"
"""Hash of the token of the join file with which the site enrolled last."""
_TEXTS = ("federation", "site", "address", "enrolment", "authority", "token", "expires")
_KEYS = ("orders", "witness")


@dataclass(frozen=True)
class Join:
    """A join file.

    Attributes:
        federation: name of the coordinator.
        site: the name that this site will have.
        address, enrolment: ``host:port`` of the link and of the enrolment server.
        authority: certificate (PEM) of the federation's authority.
        coordinator: fingerprints of the coordinator's keys: orders, witness.
        token: secret that works once.
        expires: end of the invitation.
    """

    federation: str
    site: str
    address: str
    enrolment: str
    authority: str
    coordinator: dict[str, str]
    token: str
    expires: str

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a join file.

        Raises:
            InputError: if it is no join file.
        """
        try:
            make_private(path)  # it holds a token, and has come with whatever mode
            value: Any = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise InputError(f"{path}: cannot be read: {error.strerror}") from None
        except ValueError:
            raise InputError(f"{path}: not a join file; ask the coordinator for one") from None
        if not isinstance(value, dict) or value.pop("format", None) != FORMAT:
            raise InputError(f"{path}: not a join file of format {FORMAT}")
        chief = value.get("coordinator")
        fine = (
            set(value) == {*_TEXTS, "coordinator"}
            and all(isinstance(value[name], str) for name in _TEXTS)
            and isinstance(chief, dict)
            and set(chief) == set(_KEYS)
            and all(isinstance(text, str) for text in chief.values())
        )
        if not fine:
            raise InputError(f"{path}: the join file lacks something; ask for it again")
        read_certificate(value["authority"].encode())
        return cls(**value)

    @classmethod
    def kept(cls, folder: Path) -> Self:
        """Read the join file that :func:`keep` stored, without its token.

        Raises:
            InputError: if the site is not enrolled.
        """
        try:
            value = json.loads((folder / "join.json").read_text(encoding="utf-8"))
            found = value.pop("format")
            if fault := newer_fault(folder / "join.json", number_of(found, "join") or 0, 1):
                raise InputError(fault)
            return cls(**value, token="")
        except FileNotFoundError:
            raise InputError(
                f"{folder}: the site is not enrolled; enrol it with `privet client init JOINFILE`"
            ) from None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{folder / 'join.json'}: cannot be read: {error}") from error


def enrol(join: Join, folder: Path, ledger: str, witness: str, *, timeout: float = 30.0) -> str:
    """Make a key, send the request, store the certificate; return its fingerprint.

    The key is on disk before the request is sent, so that a lost answer leaves no certificate
    without its key. The files are ``link.key``, ``link.pem``, ``authority.pem`` and ``join.json``
    (without the token). An existing pair stays until the new one is complete.

    Args:
        join: the join file.
        folder: the site's folder for the link.
        ledger: vkey of the site's ledger.
        witness: vkey of its witness.
        timeout: seconds to wait for the coordinator.

    Raises:
        InputError: if the coordinator refuses the invitation, or as :func:`trusted`.
        RunError: if it cannot be reached, or answers with a certificate for another request.
    """
    require_tls_1_3()
    use_proxy_variables()
    require_own(join, ledger)
    asked, key = request(join.site)
    write_atomic(_key_path(folder), key, mode=FILE_MODE)
    credentials = grpc.ssl_channel_credentials(write_certificates(trusted(join, folder)))
    options = [("grpc.ssl_target_name_override", SERVER_NAME), *OPTIONS]
    message = pb.Request(
        site=join.site, token=join.token, request=asked, ledger=ledger, witness=witness
    )
    with grpc.secure_channel(join.enrolment, credentials, options) as channel:
        try:
            answer = call_when_open(rpc.EnrolmentStub(channel).Enrol, message, timeout)
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.PERMISSION_DENIED:
                raise InputError(
                    f"{join.enrolment}: the coordinator refuses: the invitation was used or has "
                    "ended. Ask for a new join file"
                ) from None
            if error.code() is grpc.StatusCode.INTERNAL:
                raise RunError(
                    f"{join.enrolment}: the coordinator has a fault of its own, which its log "
                    "names; tell its operator. Your join file is still good"
                ) from None
            raise RunError(
                f"{join.enrolment}: nobody answers: the coordinator is not running, or has no "
                f"invitation open (was this one used?). Nothing is lost: ask, and run this again "
                f"({error.details()})"
            ) from None
    return keep(join, folder, answer.pem)


def trusted(join: Join, folder: Path) -> list[x509.Certificate]:
    """Return the authorities that must have signed the certificate of a join file's coordinator.

    An enrolled site uses the authorities that it has: a forged join file may name the federation's
    authority beside another one, and would lead the site away from its coordinator.

    Args:
        join: the join file.
        folder: the site's folder for the link.

    Raises:
        InputError: if the join file names no authority that the site trusts, or one cannot be read.
    """
    told = read_certificates(join.authority.encode())
    path = folder / "authority.pem"
    if not path.exists() or not (folder / "join.json").exists():
        return told
    held = read_certificates(path.read_bytes())
    if not (found := [one for one in told if one in held]):
        raise InputError(
            "the join file names another authority than this site trusts. If the coordinator's "
            "operator confirms by another way, such as the phone, that the federation has a new "
            f"one, move {path} away and run this again"
        )
    return found


def require_own(join: Join, ledger: str) -> None:
    """Check that a join file is for the site of a ledger.

    Args:
        join: the join file.
        ledger: the ledger's vkey.

    Raises:
        InputError: if it is for another site.
    """
    key = Key.parse(ledger)
    if key.name != key_name("ledger", join.site, key.public):
        raise InputError(
            f"the join file is for '{join.site}', and this folder's keys are of another site: make "
            "a folder of its own with --dir"
        )


def keep(join: Join, folder: Path, pem: bytes) -> str:
    """Store a certificate from the coordinator, by link or file; return its fingerprint.

    Args:
        join: the join file to which it belongs.
        folder: the site's folder for the link, with the key.
        pem: the certificate.

    Raises:
        RunError: if it is for another site, or for another key.
    """
    certificate = read_certificate(pem)
    paths = [folder / name for name in (NEXT + "link.key", "link.key")]
    own = next((p for p in paths if p.exists() and belongs(certificate, p.read_bytes())), None)
    if site_of(certificate) != join.site or own is None:
        raise RunError("the certificate that came is not for this site and its key")
    _keep_join(join, folder)
    write_atomic(folder / own.name.replace("link.key", "link.pem"), pem)
    finish_pair(folder)
    write_atomic(folder / _USED, _hashed(join).encode(), mode=FILE_MODE)
    Addresses(folder, join.address).take(join.address)  # the newest join file wins
    return fingerprint_of(certificate)


def was_used(join: Join, folder: Path) -> bool:
    """Whether the site enrolled with exactly this join file, and with no other since.

    Args:
        join: the join file.
        folder: the site's folder for the link.

    Raises:
        InputError: if the mark of the last one cannot be read.
    """
    path = folder / _USED
    if path.exists():
        return path.read_text(encoding="utf-8") == _hashed(join)
    return replace(join, token="") == Join.kept(folder)  # by an earlier version of Privet


def _hashed(join: Join) -> str:
    return hashlib.sha256(join.token.encode()).hexdigest()


def finish_pair(folder: Path) -> None:
    """Replace the old key and certificate by the new ones, if both new files are there."""
    if (folder / (NEXT + "link.pem")).exists():
        for name in ("link.key", "link.pem"):
            path = folder / (NEXT + name)
            if path.exists():
                path.replace(folder / name)


def _key_path(folder: Path) -> Path:
    """Return the path of a new key until its certificate comes."""
    if (folder / "link.pem").exists():
        return private_folder(folder) / f"{NEXT}link.key"
    return private_folder(folder) / "link.key"


def request_by_file(join: Join, folder: Path, ledger: str, witness: str) -> dict[str, str]:
    """Make a key, and return the enrolment request that travels to the coordinator as a file.

    The request holds the token of the join file, so it must travel by a channel that others cannot
    read. The files are ``link.key``, ``authority.pem`` and ``join.json`` (without the token).

    Args:
        join: the join file.
        folder: the site's folder for the link; its files are written.
        ledger: vkey of the site's ledger.
        witness: vkey of its witness.

    Returns:
        The request as JSON values.
    """
    asked, key = request(join.site)
    write_atomic(_key_path(folder), key, mode=FILE_MODE)
    if not (folder / "link.pem").exists():
        _keep_join(join, folder)  # stock Flower needs no certificate
    return {
        "format": REQUEST,
        "site": join.site,
        "token": join.token,
        "request": asked.decode(),
        "ledger": ledger,
        "witness": witness,
    }


def _keep_join(join: Join, folder: Path) -> None:
    write_atomic(folder / "authority.pem", join.authority.encode())
    kept = {"format": FORMAT, **{k: v for k, v in vars(join).items() if k != "token"}}
    write_atomic(folder / "join.json", (json.dumps(kept, indent=2) + "\n").encode())
