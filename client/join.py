"""A site comes in: its join file, its request, its certificate.

The join file came from the coordinator by a way that both trust, such as encrypted mail. It
holds the authority that the coordinator's certificate must be of, so nobody else can answer;
and a token that works once.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import grpc

from privet.common.canonical import write_atomic
from privet.common.errors import InputError, RunError
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
from privet.privacy.signed_note import Key, key_name

FORMAT, REQUEST = "privet/join/v1", "privet/request/v1"
_TEXTS = ("federation", "site", "address", "enrolment", "authority", "token", "expires")
_KEYS = ("orders", "witness")


@dataclass(frozen=True)
class Join:
    """A join file.

    Attributes:
        federation: name of the coordinator.
        site: the name that this site will have.
        address, enrolment: ``host:port`` of the link and of the enrolment.
        authority: certificate (PEM) of the federation's authority.
        coordinator: fingerprints of the coordinator's keys: orders, witness.
        token: works once.
        expires: until when.
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
            InputError: if it is none.
        """
        try:
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
        """Read what :func:`keep` kept, without a token.

        Raises:
            InputError: if the site is not enrolled.
        """
        try:
            value = json.loads((folder / "join.json").read_text(encoding="utf-8"))
            value.pop("format")
            return cls(**value, token="")
        except FileNotFoundError:
            raise InputError(
                f"{folder}: the site is not enrolled; come in with `privet client init JOINFILE`"
            ) from None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{folder / 'join.json'}: cannot be read: {error}") from error


def enrol(join: Join, folder: Path, ledger: str, witness: str, *, timeout: float = 30.0) -> str:
    """Make a key, send the request, keep the certificate; return its fingerprint.

    The key is on disk before the request leaves, so that an answer that is lost on its way
    leaves no certificate without its key. What is written: ``link.key``, ``link.pem``,
    ``authority.pem``, ``join.json`` (without the token).

    Args:
        join: the join file.
        folder: the site's folder for the link.
        ledger: vkey of the site's ledger.
        witness: vkey of its witness.
        timeout: seconds to wait for the coordinator.

    Raises:
        InputError: if the coordinator refuses the invitation.
        RunError: if it cannot be reached, or answers with another certificate than asked.
    """
    require_tls_1_3()
    _require_own(join, ledger)
    asked, key = request(join.site)
    write_atomic(folder / "link.key", key, mode=0o600)
    credentials = grpc.ssl_channel_credentials(join.authority.encode())
    options = [("grpc.ssl_target_name_override", SERVER_NAME)]
    message = pb.Request(
        site=join.site, token=join.token, request=asked, ledger=ledger, witness=witness
    )
    with grpc.secure_channel(join.enrolment, credentials, options) as channel:
        try:
            answer = rpc.EnrolmentStub(channel).Enrol(message, timeout=timeout)
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


def _require_own(join: Join, ledger: str) -> None:
    key = Key.parse(ledger)
    if key.name != key_name("ledger", join.site, key.public):
        raise InputError(
            f"the join file is for '{join.site}', and this folder's keys are of another site: make "
            "a folder of its own with --dir"
        )


def keep(join: Join, folder: Path, pem: bytes) -> str:
    """Keep a certificate that the coordinator gave, however it came; return its fingerprint.

    Raises:
        RunError: if it is for another site, or not of this site's key.
    """
    certificate = read_certificate(pem)
    own = (folder / "link.key").read_bytes()
    if site_of(certificate) != join.site or not belongs(certificate, own):
        raise RunError("the certificate that came is not for this site and its key")
    write_atomic(folder / "link.pem", pem)
    _keep_join(join, folder)
    return fingerprint_of(certificate)


def request_by_file(join: Join, folder: Path, ledger: str, witness: str) -> dict[str, str]:
    """Return what a site asks the coordinator, to be carried as a file; keep the rest.

    It holds the token of the join file, so it travels by a way that others cannot read. What is
    written: ``link.key``, ``authority.pem``, ``join.json`` (without the token).
    """
    asked, key = request(join.site)
    write_atomic(folder / "link.key", key, mode=0o600)
    _keep_join(join, folder)
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
