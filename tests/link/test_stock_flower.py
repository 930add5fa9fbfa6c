"""``flwr run .`` on a SuperLink with TLS and SuperNodes with node keys, sites with the launcher."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from stock_kit import PROGRAMS, StockFlower, enrol

from privet.client.stock_flower.launcher import write_launcher
from privet.common.plan import Plan
from privet.privacy.accounting.noise_calibration import calibrated
from privet.privacy.audit.bundle import write_bundle
from privet.privacy.audit.report.claims import standing
from privet.privacy.audit.verify import verify
from privet.server.membership.registry import MemberRegistry
from privet.server.queue import submit
from privet.server.snapshot import map_model

SITES = ("North", "East")
SECRET = "eight or more"
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("hostile")]

HOSTILE = """
import os
from pathlib import Path

MARK = Path({mark!r})
MARK.parent.mkdir(exist_ok=True)
(MARK / "placeholder").parent.mkdir(exist_ok=True)
(MARK / str(os.getpid())).write_text(os.environ.get("WHO", "coordinator"))

from flwr.app import ConfigRecord, Message, MessageType, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

app = ClientApp()


@app.query()
def query(message, context):
    return Message(RecordDict(), reply_to=message)


server = ServerApp()


@server.main()
def main(grid, context):
    import time

    while len(nodes := list(grid.get_node_ids())) < 2:
        time.sleep(0.2)
    messages = [Message(RecordDict(), node, MessageType.QUERY) for node in nodes]
    replies = list(grid.send_and_receive(messages, timeout=60))
    Path({answers!r}).write_text(str(len(replies)))
"""


@pytest.fixture(scope="module")
def plan(plan_value: Callable[..., Any]) -> Plan:
    value = plan_value(training={"rounds": 2}, metrics={"source": "off"}, strategy={"timeout": 300})
    value["sites"] = [site for site in value["sites"] if site["name"] in SITES]
    return calibrated(Plan.parse(value, where="test"))


@pytest.fixture
def flower(tmp_path: Path) -> Iterator[StockFlower]:
    started = StockFlower(tmp_path / "flower", PRIVET_PASSPHRASE=SECRET)
    yield started
    started.close()


@pytest.mark.long
def test_a_run_over_stock_flower(
    flower: StockFlower, plan: Plan, tmp_path: Path, root: Path, frame_of: Callable[..., Any]
) -> None:
    federation = MemberRegistry.found(tmp_path / "hub", "hub", "127.0.0.1:1", "127.0.0.1:2", SECRET)
    for number, name in enumerate(SITES):
        home = tmp_path / name
        enrol(federation, plan, home, name, frame_of(80, number), SECRET)
        write_launcher(home / "launcher")
        flower.node(
            name, home / "launcher" / "flower-supernode", home=tmp_path / f"{name}-flower",
            config=f'policy="{home / "site.toml"}"',
        )  # fmt: skip
    run = submit(federation, plan, "first")
    started = time.monotonic()
    run.note(state="waiting")
    number = flower.run(root, f'hub="{tmp_path / "hub"}" run="first" wait=300')
    ended = flower.ended(number, lambda: run.status["state"] in ("done", "failed", "queued"))
    assert ended == "finished:completed", f"{run.status}\n{flower.logs()}"
    print(f"a run of two rounds: {time.monotonic() - started:.1f} s")
    status = run.status
    assert (status["state"], status["round"]) == ("done", 2)
    assert map_model(run.folder / "model" / "model.safetensors")[0]
    # Nothing of the bundle was unpacked at a site.
    for name in SITES:
        assert not list((tmp_path / f"{name}-flower").rglob("*.py"))
    assert list((tmp_path / "flower" / "home").rglob("flower.py")), "it was, at the SuperLink"
    bundle = tmp_path / "first.bundle"
    write_bundle([run.folder, *(tmp_path / name / "ledger" for name in SITES)], bundle)
    found = verify(bundle, run.folder / "roster-fingerprints.json", brief=True)
    assert found.ok and found.roster == "pinned", found.faults
    assert {site.site: site.population for site in found.sites} == dict.fromkeys(SITES, "patients")
    top = standing(found)
    assert (top.setting, top.claim.word) == ("site", "conditional")


def test_the_app_of_the_page_reaches_the_federation(
    flower: StockFlower, tmp_path: Path, root: Path
) -> None:
    """Its two files are enough, and a run that was not submitted is refused in plain words."""
    MemberRegistry.found(tmp_path / "hub", "hub", "127.0.0.1:1", "127.0.0.1:2", SECRET)
    app = app_of_the_page(root, tmp_path / "app")
    number = flower.run(app, f'hub="{tmp_path / "hub"}" run="first" wait=5')
    assert flower.ended(number, lambda: True) == "finished:failed"
    said = " ".join(flower.said(number).split())
    assert "no run 'first' was submitted; do that with `privet server submit`" in said


def app_of_the_page(root: Path, folder: Path) -> Path:
    """Write the two files that the documentation shows."""
    text = (root / "docs" / "how-to" / "flower.md").read_text()
    config = re.search(r"```toml\n(\[project\]\n.*?)```", text, re.DOTALL)
    code = re.search(r"```python\n(.*?)```", text, re.DOTALL)
    assert config and code
    folder.mkdir()
    (folder / "pyproject.toml").write_text(config[1])
    (folder / "study.py").write_text(code[1])
    return folder


def hostile(folder: Path, **said: str) -> Path:
    """Write an app whose import leaves a mark."""
    folder.mkdir()
    (folder / "hostile.py").write_text(HOSTILE.format(**said))
    (folder / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["hatchling"]\nbuild-backend = "hatchling.build"\n'
        '[project]\nname = "hostile"\nversion = "1.0.0"\ndescription = ""\n'
        'license = "Apache-2.0"\ndependencies = []\n'
        '[tool.flwr.app]\npublisher = "nobody"\nfab-include = ["*.py"]\n'
        '[tool.flwr.app.components]\nserverapp = "hostile:server"\nclientapp = "hostile:app"\n'
        "[tool.flwr.app.config]\n"
    )
    return folder


def test_a_hostile_bundle_is_not_executed(
    flower: StockFlower, plan: Plan, tmp_path: Path, frame_of: Callable[..., Any]
) -> None:
    """Two nodes are sent the same bundle: without the launcher it runs, with it it does not."""
    mark, answers = tmp_path / "mark", tmp_path / "answers"
    federation = MemberRegistry.found(tmp_path / "hub", "hub", "127.0.0.1:1", "127.0.0.1:2", SECRET)
    home = tmp_path / "North"
    enrol(federation, plan, home, "North", frame_of(80, 0), SECRET)
    write_launcher(home / "launcher")
    config = f'policy="{home / "site.toml"}"'
    programs = {
        "with": home / "launcher" / "flower-supernode",
        "without": PROGRAMS / "flower-supernode",
    }
    for who, program in programs.items():
        flower.node(who, program, home=tmp_path / f"{who}-flower", config=config, WHO=who)
    app = hostile(tmp_path / "hostile", mark=str(mark), answers=str(answers))
    status = flower.ended(flower.run(app), answers.exists)
    assert status == "finished:completed", flower.logs()
    assert answers.read_text() == "2", "both nodes answered"
    ran = {path.read_text() for path in mark.iterdir()}
    assert ran == {"coordinator", "without"}
    assert not list((tmp_path / "with-flower").rglob("*.py"))
    assert list((tmp_path / "without-flower").rglob("hostile.py"))
