"""The researcher's end of the link: submit, watch, cancel and fetch runs, and nothing else.

::

    FOLDER/researcher.json   name, coordinator's name and address
    FOLDER/authority.pem     the authority that must have signed the coordinator's certificate
    FOLDER/link.key, .pem    the researcher's key, which never leaves this machine, and certificate
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import grpc

from privet.common.canonical import hash_of_file, write_atomic, write_json
from privet.common.errors import InputError, RunError
from privet.common.files.private_files import FILE_MODE, make_private, private_folder, read_private
from privet.common.link import link_pb2 as pb
from privet.common.link import link_pb2_grpc as rpc
from privet.common.link.identity import (
    SERVER_NAME,
    belongs,
    read_certificate,
    request,
    require_tls_1_3,
    researcher_of,
    researcher_uri,
)
from privet.common.link.opening import OPTIONS, call_when_open
from privet.common.link.proxy import use_proxy_variables
from privet.common.link.validity import of_handshake, out_of_time

FORMAT = "privet/researcher/v1"
FILE = "researcher.json"
_TEXTS = ("federation", "name", "address", "enrolment", "authority", "token", "expires")
_MAX_ANSWER = 64 << 20
"""Bytes of an answer that is JSON."""
_TIMEOUT_S = 180.0
"""Seconds that an answer may take: a plan is priced before it is queued."""
_OPTIONS = [
    ("grpc.ssl_target_name_override", SERVER_NAME),
    ("grpc.max_receive_message_length", 8 << 20),
    ("grpc.enable_retries", 0),
]
_WRONG = (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND)


def connect(path: Path, folder: Path, *, timeout: float = 30.0) -> Researcher:
    """Enrol a researcher by a join file: make a key, fetch the certificate.

    Args:
        path: the join file.
        folder: new or empty, or one whose certificate is to be replaced.
        timeout: seconds to wait for the coordinator.

    Raises:
        InputError: if it is no join file of a researcher, or the coordinator refuses it.
        RunError: if the coordinator cannot be reached, or answers with a certificate for another
            key.
    """
    join = _load(path)
    if folder.exists() and any(folder.iterdir()) and not (folder / FILE).exists():
        raise InputError(f"{folder} exists and is not a researcher's folder; name a new --dir")
    require_tls_1_3()
    use_proxy_variables()
    asked, key = request(join["name"], researcher_uri(join["name"]))
    message = pb.Newcomer(name=join["name"], token=join["token"], request=asked)
    credentials = grpc.ssl_channel_credentials(join["authority"].encode())
    # The key is on disk before the request leaves: an answer that is lost leaves none without it.
    write_atomic(private_folder(folder) / "new.key", key, mode=FILE_MODE)
    with grpc.secure_channel(join["enrolment"], credentials, _OPTIONS + OPTIONS) as channel:
        try:
            answer = call_when_open(rpc.IntroductionStub(channel).Connect, message, timeout)
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.PERMISSION_DENIED:
                raise InputError(
                    f"{join['enrolment']}: the coordinator refuses: the invitation was used or has "
                    "ended. Ask for a new join file"
                ) from None
            raise RunError(
                f"{join['enrolment']}: nobody answers: the coordinator is not running, or has no "
                f"invitation open (was this one used?) ({error.details()})"
            ) from None
    certificate = read_certificate(answer.pem)
    if researcher_of(certificate) != join["name"] or not belongs(certificate, key):
        raise RunError("the certificate that came is not for this researcher and this key")
    (folder / "new.key").replace(folder / "link.key")
    write_atomic(folder / "link.pem", answer.pem)
    write_atomic(folder / "authority.pem", join["authority"].encode())
    kept = {name: join[name] for name in ("federation", "name", "address")}
    write_json(folder / FILE, {"format": FORMAT, **kept})
    return Researcher.load(folder)


def _load(path: Path) -> dict[str, str]:
    try:
        make_private(path)  # it holds a token, and has come with whatever mode
        value: Any = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError:
        raise InputError(f"{path}: not a join file; ask the coordinator for one") from None
    if not isinstance(value, dict) or value.pop("format", None) != FORMAT:
        raise InputError(
            f"{path}: not a researcher's join file; `privet server grant` makes one at the "
            "coordinator, and a site's is for `privet client init`"
        )
    if set(value) != set(_TEXTS) or not all(isinstance(text, str) for text in value.values()):
        raise InputError(f"{path}: the join file lacks something; ask for it again")
    read_certificate(value["authority"].encode())
    return value


@dataclass(frozen=True)
class Researcher:
    """The opened folder of a researcher.

    Attributes:
        folder: of the researcher.
        federation: name of the coordinator.
        name: of the researcher.
        address: ``host:port`` of the link.
    """

    folder: Path
    federation: str
    name: str
    address: str

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Open a folder.

        Raises:
            InputError: if it is none.
        """
        try:
            value = json.loads((folder / FILE).read_text(encoding="utf-8"))
            if value.pop("format") != FORMAT:
                raise InputError(f"{folder}: not a researcher's folder of format {FORMAT}")
            return cls(folder, **{k: str(v) for k, v in value.items()})
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{folder / FILE}: cannot be read: {error}") from error

    def submit(self, plan: bytes, run: str, *, again: bool = False) -> dict[str, Any]:
        """Queue a plan; return the run's name and the plan's digest.

        Args:
            plan: as JSON, with its noise calibrated.
            run: name of the run; "" lets the coordinator choose one.
            again: submit a plan that was submitted before; it costs its budget again.

        Raises:
            InputError: as the coordinator answers.
            RunError: if it cannot be reached.
        """
        return self._ask("Submit", pb.Proposal(plan=plan, run=run, again=again))

    def show(self) -> dict[str, Any]:
        """Return the researcher's runs and the connected sites; raises as :meth:`submit`."""
        return self._ask("Show", pb.RunName())

    def cancel(self, run: str) -> dict[str, Any]:
        """Cancel a run permanently; raises as :meth:`submit`."""
        return self._ask("Cancel", pb.RunName(run=run))

    def resume(self, run: str) -> dict[str, Any]:
        """Queue a failed run again; raises as :meth:`submit`."""
        return self._ask("Resume", pb.RunName(run=run))

    def fetch(self, run: str, out: Path) -> list[str]:
        """Download the files of a run that has ended; a file that is already the same stays.

        Args:
            run: name of the run.
            out: folder that will hold the model and the input of `privet audit bundle`.

        Returns:
            The names of the files.

        Raises:
            InputError: as the coordinator answers.
            RunError: if it cannot be reached, or a file is not as it was announced.
        """
        files = self._ask("Files", pb.RunName(run=run))["files"]
        for file in files:
            name = str(file["name"])
            if Path(name).is_absolute() or ".." in Path(name).parts:
                raise RunError(f"the coordinator names a file outside the folder: {name!r}")
            self._bring(run, name, int(file["size"]), str(file["sha256"]), out / name)
        return [str(file["name"]) for file in files]

    def _bring(self, run: str, name: str, size: int, sha256: str, path: Path) -> None:
        if path.exists() and hash_of_file(path) == sha256:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{path.name}.part")
        part.touch()
        held = part.stat().st_size
        if held >= size:  # of another file, or not as it was announced: from the start
            held = 0
        with part.open("r+b") as stream:
            stream.truncate(held)
            stream.seek(held)
            for data in self._stream("Fetch", pb.File(run=run, name=name, offset=held)):
                held += len(data)
                if held > size:
                    break
                stream.write(data)
        if hash_of_file(part) != sha256:
            part.unlink()
            raise RunError(f"{name}: what came is not what was announced; fetch it again")
        part.replace(path)

    def _ask(self, method: str, message: Any) -> dict[str, Any]:
        parts: list[bytes] = []
        total = 0
        for data in self._stream(method, message):
            total += len(data)
            if total > _MAX_ANSWER:
                raise RunError("the coordinator's answer is too long")
            parts.append(data)
        try:
            value = json.loads(b"".join(parts))
        except ValueError:
            value = None
        if not isinstance(value, dict):
            raise RunError("the coordinator's answer cannot be read; is it of another version?")
        return value

    def _stream(self, method: str, message: Any) -> Iterator[bytes]:
        with self._stub() as stub:
            timeout = None if method == "Fetch" else _TIMEOUT_S
            try:
                for chunk in getattr(stub, method)(message, timeout=timeout):
                    yield chunk.data
            except grpc.RpcError as error:
                raise self._fault(error) from None

    @contextmanager
    def _stub(self) -> Iterator[rpc.ResearchStub]:
        require_tls_1_3()
        use_proxy_variables()
        try:
            credentials = grpc.ssl_channel_credentials(
                (self.folder / "authority.pem").read_bytes(),
                read_private(self.folder / "link.key"),
                (self.folder / "link.pem").read_bytes(),
            )
        except OSError as error:
            raise InputError(f"{error.filename}: cannot be read: {error.strerror}") from None
        with grpc.secure_channel(self.address, credentials, _OPTIONS) as channel:
            yield rpc.ResearchStub(channel)

    def _fault(self, error: grpc.RpcError) -> InputError | RunError:
        code, said = error.code(), error.details()
        if code in _WRONG:
            return InputError(str(said))
        if code is grpc.StatusCode.UNAUTHENTICATED:
            return InputError(
                f"{self.address}: the coordinator does not know '{self.name}' any more: revoked, "
                "or another certificate was given since. Ask its operator"
            )
        words = of_handshake(str(said)) or said
        remedy = "ask for another one: `privet server grant … --again`"
        own = read_certificate((self.folder / "link.pem").read_bytes())
        late = out_of_time(own, "this certificate", remedy)
        return RunError(f"{self.address}: {late or words}")
