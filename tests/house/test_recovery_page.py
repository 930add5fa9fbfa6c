"""The commands by which docs/how-to/keys.md brings a ledger back, typed as they stand."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from copy_kit import fetch

from privet.client.operator.decisions import make_site
from privet.common.link.identity import request
from privet.privacy.evidence.copies.copy_store import CopyStore
from privet.privacy.evidence.keys import FileSigner
from privet.privacy.evidence.ledger import Ledger
from privet.privacy.evidence.signed_note import COSIGN, SIGN, Key, key_name
from privet.privacy.evidence.witness import Witness
from privet.server.membership.registry import MemberRegistry

PLAIN = {"PRIVET_PASSPHRASE": "", "PRIVET_PASSPHRASE_FILE": ""}


def commands(page: Path) -> list[str]:
    """The commands of the section, in order."""
    section = page.read_text(encoding="utf-8").partition("## A copy that others keep")[2]
    section = section.partition("\n## ")[0]
    blocks = re.findall(r"^```sh\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


def typed(command: str, folder: Path) -> tuple[int, str]:
    words = shlex.split(command)
    assert words[0] == "privet"
    program = "from privet.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", program, *words[1:]],
        cwd=folder, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


def signer(home: Path, name: str) -> FileSigner:
    return FileSigner.load(home / "ledger" / f"{name}.pem", None)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A coordinator and two sites that took part in its runs, in the folders of the page."""
    for name in PLAIN:
        monkeypatch.delenv(name, raising=False)
    hub = MemberRegistry.found(tmp_path / "hub", "study", "127.0.0.1:7443", "127.0.0.1:7444")
    for site in ("North", "East"):
        home = tmp_path / site.lower()
        make_site(home, site, None, coordinators=[hub.order_key().fingerprint])
        keys = []
        for kind, type_ in (("ledger", SIGN), ("witness", COSIGN)):
            public = signer(home, kind).public
            keys.append(str(Key(key_name(kind, site, public), public, type_)))
        token = hub.invite(site)["token"]
        hub.enrol(site, token, request(site)[0], *keys)
    roster = hub.roster(["North", "East"], hub.folder / "runs" / "first")
    north = Ledger(tmp_path / "north" / "ledger", signer(tmp_path / "north", "ledger"), "North")
    shutil.copy(tmp_path / "north" / "ledger" / "witness.pem", tmp_path)
    fetch(north, north.log.store.path.parent, hub.copies())
    fetch(north, north.log.store.path.parent, CopyStore(tmp_path / "east" / "copies"))
    east = Ledger(tmp_path / "east" / "ledger", signer(tmp_path / "east", "ledger"), "East")
    east.keep("roster", "newest", roster.to_dict())
    shown = {north.log.origin: north.log.evidence()}
    for place, owner, own in (("hub/coordinator", "study", hub.witness().signer),
                              ("east/ledger", "East", signer(tmp_path / "east", "witness"))):  # fmt: skip
        Witness(tmp_path / place / "witness.json", own, owner).cosign(shown, roster.logs)
    for ledger in (north, east):
        ledger.log.store.close()
    shutil.move(tmp_path / "north" / "offline", tmp_path / "safe")
    shutil.rmtree(tmp_path / "north")
    return tmp_path


def test_the_page_brings_a_ledger_back(root: Path, folder: Path) -> None:
    listed = commands(root / "docs" / "how-to" / "keys.md")
    assert [command.split()[1:3] for command in listed] == [
        ["server", "copy"], ["client", "copy"], ["client", "recover"],
        ["server", "enroll"], ["client", "init"],
    ]  # fmt: skip
    for command in listed[:4]:
        code, said = typed(command, folder)
        assert code == 0, f"{command}\n{said}"
    found = Ledger.read(folder / "north" / "ledger", "North")
    assert len(found.log) == 2
    # The last one needs a coordinator that listens; it finds the site as it was.
    code, said = typed(listed[4], folder)
    assert code == 1
    assert "nobody answers" in said
    # A second time there is nothing to recover.
    code, said = typed(listed[2] + " --json", folder)
    assert code == 2
    assert "there is nothing to recover" in said


@pytest.mark.long
def test_recover_says_what_it_did_as_json(root: Path, folder: Path) -> None:
    listed = commands(root / "docs" / "how-to" / "keys.md")
    for command in listed[:2]:
        code, said = typed(command + " --json", folder)
        value = json.loads(said)
        assert (code, value["entries"], value["witnessed"], value["orders"]) == (0, 1, 1, 0)
    code, said = typed(listed[2] + " --json", folder)
    value = json.loads(said)
    assert set(value) == {
        "site", "entries", "ledger", "counted", "spent", "witness", "policy_written", "aside",
    }  # fmt: skip
    assert (value["site"], value["entries"], value["witness"]) == ("North", 1, True)
    # The wrong key, and a file that is none: nothing is written.
    shutil.rmtree(folder / "north")
    code, said = typed(listed[2].replace("safe/recovery.pem", "witness.pem"), folder)
    assert code == 2
    assert "name the fingerprint" in said
    first = json.loads((folder / "safe" / "fingerprints.json").read_text())["ledger"]
    code, said = typed(
        listed[2].replace("safe/recovery.pem", "witness.pem") + f" --ledger {first}", folder
    )
    assert code == 2
    assert "is not encrypted to the recovery key" in said
    code, said = typed(listed[2].replace("north.hub.copy", "safe/recovery.pem"), folder)
    assert code == 2
    assert "not a whole copy of a ledger" in said
    assert not (folder / "north").exists()
