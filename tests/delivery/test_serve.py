"""The service of a site: predictions, errors in words, feedback that stays."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from families_kit import counting
from process_kit import LOOKS_IN

from privet.client.data.records import read_records
from privet.client.data.tables import read_table
from privet.common.errors import DataError, InputError
from privet.delivery.http_service import (
    Feedback,
    NotKept,
    _page,
    _predict,
    feedback_columns,
    open_feedback,
)
from privet.delivery.trained import load
from privet.privacy.policy import DataSet

Runs = Callable[[str], Path]


class Service:
    """``privet model serve`` in a process of its own."""

    def __init__(self, run: Path, *more: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port = probe.getsockname()[1]
        command = [sys.executable, "-m", "privet", "model", "serve", str(run)]
        command = [sys.executable, "-c", "from privet.cli import main; main()", *command[3:]]
        self.process = subprocess.Popen(
            [*command, "--port", str(self.port), *more], stderr=subprocess.PIPE, text=True
        )
        for _ in range(600):
            try:
                self.get("/health")
            except (urllib.error.URLError, ConnectionError):
                assert self.process.poll() is None, (
                    self.process.stderr and self.process.stderr.read()
                )
                time.sleep(0.1)
            else:
                return
        raise AssertionError("the service did not come up")

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=30) as answer:
            return json.loads(answer.read())

    def post(self, path: str, value: Any) -> tuple[int, Any]:
        asked = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}", json.dumps(value).encode(),
            {"Content-Type": "application/json"},
        )  # fmt: skip
        try:
            with urllib.request.urlopen(asked, timeout=60) as answer:
                return answer.status, json.loads(answer.read())
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.loads(error.read())

    def close(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(20)
        if self.process.stderr:
            self.process.stderr.close()


@pytest.fixture(scope="module")
def service(run_of: Runs, tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = tmp_path_factory.mktemp("site") / "feedback.csv"
    made = Service(run_of("dense"), "--feedback", str(path))
    yield made, path
    made.close()


def test_one_record_and_many(service: Any, run_of: Runs) -> None:
    made, _ = service
    frame = counting(1, 5, 9)[["x1", "x2"]]
    rows = json.loads(frame.to_json(orient="records"))
    status, one = made.post("/predict", rows[0])
    assert status == 200 and len(one["predictions"]) == 1
    status, many = made.post("/predict", {"records": rows})
    trained = load(run_of("dense"))
    scores = trained.scores(trained.encode(frame))
    assert status == 200
    for answer, row in zip(many["predictions"], scores, strict=True):
        assert answer["label"] == str(row.argmax())
        assert answer["probabilities"] == pytest.approx({"0": row[0], "1": row[1]}, abs=1e-6)
    assert one["predictions"][0]["label"] == many["predictions"][0]["label"]


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("vit", {"label", "probability", "probabilities"}),
        ("text-encoder", {"label", "probability", "probabilities"}),
        ("decoder", {"perplexity"}),
        ("gaps", {"perplexity"}),
        ("encoder-decoder", {"text"}),
    ],
)
def test_every_kind_of_model_answers(run_of: Runs, name: str, keys: set[str]) -> None:
    trained = load(run_of(name))
    wanted = {*trained.plan.task.columns} - {trained.plan.task.answer_column}
    answers = _predict(trained, counting(1, 3, 9)[sorted(wanted)])
    assert [set(answer) for answer in answers] == [keys] * 3
    for answer in answers:
        assert answer.get("perplexity", 2.0) > 1 and isinstance(answer.get("text", ""), str)
        assert sum(answer.get("probabilities", {"": 1.0}).values()) == pytest.approx(1.0, abs=1e-5)


def test_it_describes_itself(service: Any, run_of: Runs) -> None:
    made, _ = service
    assert made.get("/health")["plan"] == load(run_of("dense")).plan.digest
    assert {"/predict", "/feedback", "/health"} <= set(made.get("/openapi.json")["paths"])


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("/predict", {"x1": 1.0}, "'x2' is missing"),
        ("/predict", {"x1": "high", "x2": 0}, "is not a number"),
        ("/predict", {"records": []}, "between 1 and 1000"),
        ("/predict", [], "send one record"),
        ("/predict", {"records": "x1"}, "send one record"),
        ("/feedback", {"x1": 1, "low": 1}, "'x2' is missing; say null where it is not known"),
        ("/feedback", {"x1": 1, "x2": 0}, "'low' is missing"),
        ("/feedback", {"x1": 1, "x2": 0, "low": None}, "'low' is missing"),
        ("/feedback", {"x1": 1, "x2": 0, "low": ["1"]}, "'low' is no text and no number"),
        ("/feedback", {"x1": 1, "x_2": 0, "low": 1}, "'x_2' is no column of this model"),
        ("/feedback", {"x1": "a\ud800", "x2": 0, "low": 1}, "no text"),
        ("/feedback", {"x1": 1, "x2": 0, "low": "perhaps"}, "declared are"),
    ],
)
def test_what_is_wrong_is_said(service: Any, path: str, value: Any, said: str) -> None:
    made, kept = service
    before = kept.read_bytes() if kept.exists() else b""
    status, answer = made.post(path, value)
    assert status == 422 and said in json.dumps(answer)
    assert (kept.read_bytes() if kept.exists() else b"") == before
    assert made.get("/health")["status"] == "ok"


def test_feedback_becomes_a_data_set_of_the_site(service: Any, run_of: Runs) -> None:
    made, path = service
    rows = json.loads(counting(1, 30, 9)[["x1", "x2", "low"]].to_json(orient="records"))
    before = len(pd.read_csv(path)) if path.exists() else 0
    assert made.post("/feedback", rows[0]) == (201, {"kept": 1})
    assert made.post("/feedback", {"records": rows[1:]}) == (201, {"kept": 29})
    data = DataSet(population="patients", nominal_size=30, path=str(path))
    found = read_records(path, data, load(run_of("dense")).plan)
    assert len(found.train) + len(found.held_out) == before + 30


@LOOKS_IN
def test_it_listens_on_this_machine_alone(service: Any) -> None:
    import psutil

    made, _ = service
    listening = [
        one.laddr.ip
        for one in psutil.Process(made.process.pid).net_connections(kind="inet")
        if one.status == psutil.CONN_LISTEN
    ]
    assert listening == ["127.0.0.1"]


def test_a_port_that_is_taken_is_said(service: Any, run_of: Runs) -> None:
    command = [sys.executable, "-c", "from privet.cli import main; main()", "model", "serve"]
    words = [*command, str(run_of("dense")), "--port", str(service[0].port)]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 2 and "cannot listen there: Address already in use" in done.stderr
    assert "http://" not in done.stderr and "ERROR" not in done.stderr


def test_another_address_must_be_wanted(run_of: Runs) -> None:
    command = [sys.executable, "-c", "from privet.cli import main; main()", "model", "serve"]
    done = subprocess.run(
        [*command, str(run_of("dense")), "--host", "0.0.0.0"], capture_output=True, text=True
    )
    assert done.returncode == 2 and "there is no authentication" in done.stderr


# what a page in somebody's browser may send


def asked(made: Any, body: bytes = b"{}", path: str = "/feedback", **headers: str) -> int:
    """Return the status of a question with these headers."""
    import http.client

    connection = http.client.HTTPConnection("127.0.0.1", made.port, timeout=60)
    try:
        known = {"Content-Type": "application/json", "Host": f"127.0.0.1:{made.port}"}
        given = {**known, **{name.replace("_", "-"): value for name, value in headers.items()}}
        connection.request("POST", path, body, given)
        return connection.getresponse().status
    finally:
        connection.close()


def test_another_name_or_another_page_is_turned_away(service: Any) -> None:
    made, kept = service
    row = json.dumps({"x1": 1, "x2": 0, "low": 1}).encode()
    before = kept.read_bytes() if kept.exists() else b""
    assert asked(made, row, Host="evil.example:80", Origin="http://evil.example:80") == 421
    assert asked(made, row, Host="evil.example") == 421
    assert asked(made, row, Origin="http://evil.example") == 403
    assert asked(made, row, Origin="null") == 403
    assert asked(made, row, Content_Type="text/plain") == 415
    assert (kept.read_bytes() if kept.exists() else b"") == before
    assert asked(made, row, Host="localhost", Origin="http://localhost") == 201
    assert asked(made, row, Origin=f"http://127.0.0.1:{made.port}") == 201


def test_what_is_too_long_is_not_read(service: Any) -> None:
    made, _ = service
    assert asked(made, b'{"x1": "' + b"a" * (4 << 20) + b'"}', "/predict") == 413
    assert made.get("/health")["status"] == "ok"


def test_its_page_takes_nothing_from_others(service: Any) -> None:
    made, _ = service
    with urllib.request.urlopen(f"http://127.0.0.1:{made.port}/docs", timeout=60) as answer:
        page, policy = answer.read().decode(), answer.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "<script" not in page and "src=" not in page and "http" not in page.replace("HTTP", "")
    assert "POST /predict" in page and "x1" in page


def test_a_title_is_text(run_of: Runs) -> None:
    import dataclasses

    trained = load(run_of("dense"))
    plan = trained.plan.changed(title="</title><script>alert(1)</script>")
    assert "<script>" not in _page(dataclasses.replace(trained, plan=plan), None)


# the file


def test_a_truth_value_can_be_trained_on(run_of: Runs, tmp_path: Path) -> None:
    trained = load(run_of("dense"))
    kept = open_feedback(tmp_path / "f.csv", trained, None)
    kept.add([{"x1": True, "x2": 0.5, "low": True}, {"x1": 1.5, "x2": None, "low": "0"}])
    data = DataSet(population="patients", nominal_size=2, path=str(kept.path))
    found = read_records(kept.path, data, trained.plan)
    assert len(trained.task.encode(found.train)["label"]) == len(found.train)
    for wrong in ({"x1": "high", "x2": 0, "low": 1}, {"x1": 1, "x2": 0, "low": "perhaps"}):
        before = kept.path.read_bytes()
        with pytest.raises(DataError):
            kept.add([{"x1": 1, "x2": 1, "low": 1}, wrong])
        assert kept.path.read_bytes() == before


def test_a_last_line_by_hand_stays_a_line(tmp_path: Path) -> None:
    (tmp_path / "f.csv").write_text("x,y\nby hand,1")
    kept = Feedback(tmp_path / "f.csv", ("x", "y"), ("y",))
    kept.add([{"x": 'a, "b"\nc', "y": 2}])
    assert pd.read_csv(kept.path)["x"].tolist() == ["by hand", 'a, "b"\nc']


@pytest.mark.parametrize("person", [True, 1.5, float("nan"), [], {"a": 1}, "", "  "])
def test_a_person_is_a_text_or_a_whole_number(tmp_path: Path, person: object) -> None:
    kept = Feedback(tmp_path / "f.csv", ("x", "person"), ("person",))
    with pytest.raises(DataError, match="person"):
        kept.add([{"x": 1, "person": person}])
    kept.add([{"x": 1, "person": " p1 "}, {"x": 1, "person": "p1"}, {"x": 1, "person": 7}])
    assert pd.read_csv(kept.path)["person"].tolist() == ["p1", "p1", "7"]


def test_a_full_disk_leaves_no_half_of_a_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = Feedback(tmp_path / "f.csv", ("x", "y"), ("y",))
    kept.add([{"x": 1, "y": 2}])
    whole = kept.path.read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(NotKept, match="No space"):
        kept.add([{"x": 3, "y": 4}])
    assert kept.path.read_bytes() == whole


def test_a_missing_feature_is_an_empty_cell(tmp_path: Path) -> None:
    kept = Feedback(tmp_path / "f.csv", ("x", "y"), ("y",))
    kept.add([{"x": None, "y": 2}, {"x": "", "y": 3}])
    assert kept.path.stat().st_mode & 0o777 == 0o600
    found = read_table(kept.path).frame
    assert found["x"].isna().all() and found["y"].tolist() == ["2", "3"]


@pytest.mark.parametrize("text", ["PID|1\rOBX|2\rOBX|3", "a\r\nb\nc", '"', "007", " \t"])
def test_one_record_is_one_row_and_a_text_as_it_came(tmp_path: Path, text: str) -> None:
    kept = Feedback(tmp_path / "f.csv", ("text", "y"), ("y",))
    kept.add([{"text": text, "y": 1}])
    kept.add([{"text": text, "y": 1}])
    read = read_table(kept.path, multiline=True).frame
    assert read["text"].tolist() == [text] * 2


def test_records_that_lack_a_column_are_not_kept(tmp_path: Path) -> None:
    kept = Feedback(tmp_path / "f.csv", ("x", "person"), ("person",))
    with pytest.raises(DataError, match="record 1: 'person' is missing"):
        kept.add([{"x": 1, "person": "a"}, {"x": 1}])
    assert not kept.path.exists()


def test_a_file_of_other_columns_is_refused(tmp_path: Path) -> None:
    (tmp_path / "f.csv").write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match="its columns are a, b"):
        Feedback(tmp_path / "f.csv", ("x", "y"), ("y",))


def test_a_person_is_asked_for_where_the_unit_is_one(run_of: Runs) -> None:
    trained = load(run_of("dense"))
    assert feedback_columns(trained, None) == ("x1", "x2", "low")
    plan = trained.plan.changed(privacy={"unit": "person", "max_records": 2})
    import dataclasses

    other = dataclasses.replace(trained, plan=plan)
    assert feedback_columns(other, None) == ("x1", "x2", "low", "person")
