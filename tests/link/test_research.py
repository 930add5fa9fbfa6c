"""A researcher on a machine of his own: what he may do, and what nobody else may, over real TLS."""

from __future__ import annotations

import json
import re
import stat
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from link_kit import until

from privet.client.link import join as site_join
from privet.common.errors import InputError, PrivetError, RunError
from privet.common.link import link_pb2 as pb
from privet.common.link import link_pb2_grpc as rpc
from privet.common.link import research as end
from privet.common.link.identity import SERVER_NAME, request, researcher_uri
from privet.common.link.research import Researcher, connect
from privet.common.plan import Plan
from privet.privacy.accounting.noise_calibration import calibrated
from privet.privacy.evidence.keys import FileSigner
from privet.privacy.evidence.signed_note import COSIGN, SIGN, Key, key_name
from privet.server import queue
from privet.server.link.server import LinkServer
from privet.server.membership import enrolment
from privet.server.membership.credentials import credentials
from privet.server.membership.enrolment import EnrolmentServer
from privet.server.membership.registry import MemberRegistry
from privet.server.membership.researchers import Researchers
from privet.server.queue import Run
from privet.server.research import service
from privet.server.research.service import ResearchService
from privet.server.snapshot import save_model

Make = Callable[..., Any]
SITES = ("North", "East", "South")
pytestmark = pytest.mark.slow


class Hall:
    """A coordinator's two ports, its sites by certificate alone, and a researcher's folder."""

    def __init__(self, folder: Path, plan: Plan) -> None:
        self.folder, self.plan = folder, calibrated(plan)
        self.federation = MemberRegistry.found(folder / "hub", "hub", "127.0.0.1:1", "127.0.0.1:0")
        self.researchers = Researchers(self.federation)
        self.hub = LinkServer(
            "hub", self.federation.identify, folder / "spool",
            beside=lambda hub: ResearchService(
                self.federation, hub.present, hub.tally.refused, 10
            ).services,
        )  # fmt: skip
        port = self.hub.start("127.0.0.1:0", credentials(self.federation, mutual=True))
        self.federation.address = f"127.0.0.1:{port}"
        self.door = EnrolmentServer(self.federation, "127.0.0.1:0")
        self.door.__enter__()
        self.keys = {name: self._enrol_site(name) for name in SITES}

    def _enrol_site(self, name: str) -> tuple[bytes, bytes]:
        vkeys = []
        for kind, type_ in (("ledger", SIGN), ("witness", COSIGN)):
            public = FileSigner.generate().public
            vkeys.append(str(Key(key_name(kind, name, public), public, type_)))
        asked, key = request(name)
        token = self.federation.invite(name)["token"]
        return self.federation.enrol(name, token, asked, *vkeys), key

    def join(self, name: str = "Ada", /, **more: Any) -> Path:
        value = self.researchers.grant(name, again=True)
        until(lambda: self.door.is_open)
        path = self.folder / f"{name}.json"
        path.write_text(json.dumps({**value, "enrolment": self.door.address, **more}))
        return path

    def connect(self, name: str = "Ada") -> Researcher:
        return connect(self.join(name), self.folder / name)

    def stub(self, pair: tuple[bytes, bytes]) -> Any:
        authority = (self.federation.folder / "authority.pem").read_bytes()
        shown = grpc.ssl_channel_credentials(authority, pair[1], pair[0])
        options = [("grpc.ssl_target_name_override", SERVER_NAME)]
        return grpc.secure_channel(self.federation.address, shown, options)

    def submit(self, who: Researcher, run: str = "study", **more: Any) -> dict[str, Any]:
        return who.submit(json.dumps(self.plan.to_dict()).encode(), run, **more)

    def run(self, name: str = "study") -> Run:
        return Run(self.federation.folder / "runs" / name)

    def end(self, name: str = "study", size: int = 16) -> Run:
        """What a coordinator leaves of a run that is done."""
        run = self.run(name)
        run.roster(self.federation).save(run.folder)
        arrays = {"weight": np.arange(size, dtype=np.float32)}
        save_model(run.folder / "model" / "model.safetensors", arrays, {"plan": "x"})
        (run.folder / "figures").mkdir()
        (run.folder / "figures" / "round-1.json").write_text("{}")
        run.note(state="done")
        return run

    def close(self) -> None:
        self.door.__exit__()
        self.hub.stop()


def pair_of(who: Researcher) -> tuple[bytes, bytes]:
    return (who.folder / "link.pem").read_bytes(), (who.folder / "link.key").read_bytes()


@pytest.fixture
def hall(tmp_path: Path, plan_value: Make, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hall]:
    monkeypatch.setattr(enrolment, "_POLL_INTERVAL_S", 0.05)
    monkeypatch.setattr(enrolment, "_WRONG_REQUEST_DELAY_S", 0.0)
    monkeypatch.chdir(tmp_path)  # a folder's path may be a relative one
    made = Hall(Path(), Plan.parse(plan_value(metrics={"source": "gate"})))
    yield made
    made.close()


def test_a_researcher_submits_watches_cancels_and_fetches(
    hall: Hall, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    ada = hall.connect()
    assert stat.S_IMODE((ada.folder / "link.key").stat().st_mode) == 0o600
    assert hall.submit(ada) == {"run": "study", "plan": hall.plan.digest}
    assert hall.run().plan == hall.plan
    shown = ada.show()
    assert [one["site"] for one in shown["sites"]] == sorted(SITES)
    (run,) = shown["runs"]
    assert (run["run"], run["state"], run["by"]) == ("study", "queued", "Ada")
    with pytest.raises(InputError, match="submitted as study"):
        hall.submit(ada, "second")
    hall.submit(ada, "second", again=True)
    assert ada.cancel("second")["state"] == "cancelled"
    assert hall.run("second").status["fault"] == "cancelled by researcher 'Ada'"
    with pytest.raises(InputError, match="has not failed"):
        ada.resume("study")
    with pytest.raises(InputError, match="has not ended"):
        ada.fetch("study", tmp_path / "out")
    hall.end(size=700_000)
    # What was cut before goes on, and what is whole stays.
    (tmp_path / "out" / "model").mkdir(parents=True)
    whole = (hall.run().folder / "model" / "model.safetensors").read_bytes()
    (tmp_path / "out" / "model" / "model.safetensors.part").write_bytes(whole[:1_000_000])
    files = ada.fetch("study", tmp_path / "out")
    assert (tmp_path / "out" / "model" / "model.safetensors").read_bytes() == whole
    assert "coordinator/journal.db" in files and "figures/round-1.json" in files
    assert not any("pem" in path.name for path in (tmp_path / "out").rglob("*"))
    # Who did what stands in the log and in the run's status.
    told = [(r.message, r.__dict__.get("researcher")) for r in caplog.records]
    assert ("a run was submitted", "Ada") in told and ("a run was cancelled", "Ada") in told
    # His own runs, and nobody else's: not even whether they are there.
    bob = hall.connect("Bob")
    assert bob.show()["runs"] == []
    for ask in (bob.cancel, bob.resume, lambda run: bob.fetch(run, tmp_path / "bob")):
        with pytest.raises(InputError, match="no run of this name"):
            ask("study")
    assert hall.run().status["state"] == "done"


def test_a_site_is_no_researcher_and_a_researcher_is_no_site(hall: Hall) -> None:
    ada = hall.connect()
    with hall.stub(hall.keys["North"]) as channel:
        stub = rpc.ResearchStub(channel)
        for method, message in (
            ("Submit", pb.Proposal(plan=b"{}")), ("Show", pb.RunName()),
            ("Cancel", pb.RunName(run="x")), ("Resume", pb.RunName(run="x")),
            ("Files", pb.RunName(run="x")), ("Fetch", pb.File(run="x")),
        ):  # fmt: skip
            with pytest.raises(grpc.RpcError) as refused:
                list(getattr(stub, method)(message, timeout=60))
            assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED, method
    with hall.stub(pair_of(ada)) as channel:
        link = rpc.LinkStub(channel)
        calls = (
            lambda: list(
                link.Attend(iter([pb.FromSite(hello=pb.Hello(versions=[1]))]), timeout=60)
            ),
            lambda: list(link.Download(pb.Want(), timeout=60)),
            lambda: link.Status(pb.Want(), timeout=60),
            lambda: link.Upload(iter([pb.Piece()]), timeout=60),
            lambda: link.Renew(pb.Renewal(request=request("North")[0]), timeout=60),
        )
        for call in calls:
            with pytest.raises(grpc.RpcError) as refused:
                call()
            assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
    assert not hall.hub.present()
    # The role stands in the certificate itself, not only in the files of the coordinator.
    assert hall.federation.identify(pair_of(ada)[0]) is None
    assert hall.researchers.identify(hall.keys["North"][0]) is None
    pem = hall.federation.admit_as("Ada", "urn:privet:site:Ada", request("Ada")[0])
    record = hall.federation.folder / "researchers" / "Ada.json"
    value = json.loads(record.read_text())
    from privet.common.link.identity import fingerprint_of, read_certificate

    record.write_text(
        json.dumps({**value, "certificates": [fingerprint_of(read_certificate(pem))]})
    )
    assert hall.researchers.identify(pem) is None


def test_an_invitation_works_once_for_one_name_and_one_role(hall: Hall, tmp_path: Path) -> None:
    path = hall.join()
    connect(path, tmp_path / "first")
    hall.researchers.grant("Bob")  # keeps the port open
    until(lambda: hall.door.is_open)
    with pytest.raises(InputError, match="used or has ended"):
        connect(path, tmp_path / "second")
    with pytest.raises(InputError, match="used or has ended"):
        connect(hall.join("Eve", name="Bob"), tmp_path / "third")
    # A site's invitation is none here, and a researcher's is none there.
    site = hall.federation.invite("West")
    with pytest.raises(InputError, match="used or has ended"):
        connect(hall.join("Eve", name="West", token=site["token"]), tmp_path / "fourth")
    with pytest.raises(InputError, match="not a researcher's join file"):
        (tmp_path / "west.json").write_text(json.dumps(site))
        connect(tmp_path / "west.json", tmp_path / "fifth")
    with pytest.raises(InputError, match="not a join file of format"):
        site_join.Join.load(path)
    asked, token = request("Eve")[0], hall.researchers.grant("Eve")["token"]
    with pytest.raises(InputError, match="no such invitation"):
        hall.federation.enrol("Eve", token, asked, "", "")
    # Names are of one kind only, whatever their case.
    for name in ("North", "north ", "HUB", "../x", ""):
        with pytest.raises(InputError, match="cannot name a researcher"):
            hall.researchers.grant(name)
    with pytest.raises(InputError, match="name of a researcher"):
        hall.federation.invite("ADA")
    # A second certificate replaces the first.
    old = Researcher.load(tmp_path / "first")
    before = pair_of(old)[0]
    with pytest.raises(InputError, match="--again"):
        hall.researchers.grant("Ada")
    new = connect(hall.join(), tmp_path / "first")
    assert pair_of(new)[0] != before and hall.researchers.identify(before) is None
    assert new.show()["runs"] == []


def test_who_is_revoked_gets_no_further_byte(hall: Hall) -> None:
    ada = hall.connect()
    hall.submit(ada)
    hall.end(size=64 << 20 >> 2)
    with hall.stub(pair_of(ada)) as channel:
        stream = rpc.ResearchStub(channel).Fetch(
            pb.File(run="study", name="model/model.safetensors"), timeout=60
        )
        received = len(next(stream).data)
        assert hall.researchers.revoke("ada")
        with pytest.raises(grpc.RpcError) as ended:
            for chunk in stream:
                received += len(chunk.data)
    assert ended.value.code() is grpc.StatusCode.UNAUTHENTICATED
    assert received < 64 << 20
    with pytest.raises(InputError, match="does not know 'Ada' any more"):
        ada.show()
    with pytest.raises(InputError, match="revoked already"):
        hall.researchers.grant("Ada", again=True)


def test_what_is_too_much_or_no_name_is_refused(
    hall: Hall, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ada = hall.connect()
    hall.submit(ada)
    run = hall.end()
    secret = hall.federation.folder / "authority.key"
    assert (run.folder / "coordinator" / "journal.pem").exists() and secret.exists()
    with hall.stub(pair_of(ada)) as channel:
        stub = rpc.ResearchStub(channel)
        for run_name, name in (
            ("study", "coordinator/journal.pem"), ("study", "../../authority.key"),
            ("study", str(secret)), ("study", "figures/../plan.json"), ("../runs/study", "plan.json"),
            ("..", "authority.key"), ("", "plan.json"), ("study", "figures/round-2.json"),
        ):  # fmt: skip
            with pytest.raises(grpc.RpcError) as refused:
                list(stub.Fetch(pb.File(run=run_name, name=name), timeout=60))
            assert refused.value.code() is grpc.StatusCode.NOT_FOUND, (run_name, name)
    # A link in the place of a file leads nowhere.
    (run.folder / "figures" / "round-3.json").symlink_to(secret)
    assert "figures/round-3.json" not in ada.fetch("study", tmp_path / "out")
    monkeypatch.setattr(service, "MAX_PER_MINUTE", {})
    for plan, why in (
        (b"{}", "name"), (b"\xff", "codec|expecting"), (b"[" * 9_000, "recursion|nesting|depth|expecting"),
        (b" " * (service.CHUNK + 1), "at most"),
        (json.dumps({**hall.plan.to_dict(), "extra": 1}).encode(), "extra"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=re.compile(why, re.IGNORECASE)):
            ada.submit(plan, "other")
    for name in ("../x", "a/b", ".hidden", "x" * 200):
        with pytest.raises(InputError, match="cannot name a run"):
            hall.submit(ada, name, again=True)
    with pytest.raises(PrivetError):
        ada.submit(b"x" * (6 << 20), "other")
    assert [path.name for path in (hall.federation.folder / "runs").iterdir()] == ["study"]
    monkeypatch.setattr(service, "MAX_OPEN_RUNS", 0)
    with pytest.raises(InputError, match="cancel some first"):
        hall.submit(ada, "more", again=True)
    monkeypatch.setattr(service, "OTHERS_PER_MINUTE", 0)
    with pytest.raises(RunError, match="too many calls a minute"):
        ada.show()


def test_a_researcher_has_one_plan_priced_and_holds_no_thread_of_the_sites(
    hall: Hall, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pricing may take two minutes; what sites bring is kept by other threads meanwhile."""
    begun, go_on = threading.Event(), threading.Event()
    threads: list[str] = []

    def slow(text: bytes) -> Plan:
        threads.append(threading.current_thread().name)
        begun.set()
        assert go_on.wait(60)
        return hall.plan

    monkeypatch.setattr(service, "read_proposal", slow)
    ada, bob = hall.connect(), hall.connect("Bob")
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(hall.submit, ada, "first")
        try:
            assert begun.wait(60)
            with pytest.raises(InputError, match="another plan of yours is being priced"):
                hall.submit(ada, "second")
        finally:
            go_on.set()
        assert first.result()["run"] == "first"
    assert [name.startswith("research") for name in threads] == [True]
    # He is told of his own runs, and not of hers.
    with pytest.raises(InputError, match="was submitted before"):
        hall.submit(bob, "his")
    with pytest.raises(InputError, match="was submitted as first"):
        hall.submit(ada, "hers")


def test_a_file_that_is_not_what_was_announced_is_not_kept(
    hall: Hall, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ada = hall.connect()
    hall.submit(ada)
    hall.end()
    real = Researcher._ask

    def lying(self: Researcher, method: str, message: Any) -> dict[str, Any]:
        value = real(self, method, message)
        for file in value.get("files", ()):
            file["sha256"] = "0" * 64
        return value

    monkeypatch.setattr(end.Researcher, "_ask", lying)
    with pytest.raises(RunError, match="not what was announced"):
        ada.fetch("study", tmp_path / "out")
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]

    def outside(self: Researcher, method: str, message: Any) -> dict[str, Any]:
        return {"files": [{"name": "../../x", "size": 1, "sha256": ""}]}

    monkeypatch.setattr(end.Researcher, "_ask", outside)
    with pytest.raises(RunError, match="outside the folder"):
        ada.fetch("study", tmp_path / "out")
    assert researcher_uri("a b") == "urn:privet:researcher:a%20b" and queue.OPEN
