"""``privet audit`` on the command line: what it refuses, what it says, and in which words."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from privet.common.plan import Plan
from privet.privacy.audit.bundle import write_bundle

Make = Callable[..., dict[str, Any]]


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str


Run = Callable[..., Ended]


@pytest.fixture
def privet(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Run:
    """Run the command in this process, in an empty folder, as its entry point does."""
    monkeypatch.chdir(tmp_path)

    def run(*words: object) -> Ended:
        from privet.cli import main

        monkeypatch.setattr(sys, "argv", ["privet", *map(str, words)])
        code = 0
        try:
            main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        captured = capsys.readouterr()
        return Ended(code, captured.out, captured.err)

    return run


def refused(ended: Ended, *said: str) -> None:
    assert ended.code == 2, ended
    assert ended.out == ""
    for part in said:
        assert part in ended.err
    assert "Traceback" not in ended.err and "Errno" not in ended.err and "codec" not in ended.err


@pytest.fixture(scope="module")
def runs(
    files: Path, plan_value: Make, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """A run folder with privacy, and one of the same plan without noise."""
    from privet.simulations.planning import without_privacy
    from privet.simulations.run import Setting, run_plan

    folder = tmp_path_factory.mktemp("audit")
    plan = Plan.parse(plan_value())
    run_plan(plan, Setting(base=files), folder / "run")
    run_plan(without_privacy(plan), Setting(base=files), folder / "plain")
    return {"run": folder / "run", "plain": folder / "plain"}


@pytest.fixture(scope="module")
def bundles(runs: dict[str, Path]) -> dict[str, Path]:
    return {
        name: write_bundle([path], path.parent / f"{name}.bundle").path
        for name, path in runs.items()
    }


@pytest.fixture
def lacking(runs: dict[str, Path], tmp_path: Path) -> Path:
    """The run folder without one ledger."""
    shutil.copytree(runs["run"], tmp_path / "lacking")
    for path in (tmp_path / "lacking" / "sites" / "East").glob("ledger.db*"):
        path.unlink()
    return tmp_path / "lacking"


def test_the_group_helps_with_an_example(privet: Run) -> None:
    ended = privet("audit", "--help")
    assert "Example" in ended.out and "privet audit verify lending.bundle" in ended.out


# the code


def test_the_code_is_the_sites_word_until_it_is_pinned(
    privet: Run, bundles: dict[str, Path]
) -> None:
    told = json.loads(privet("--version", "--json").out)["code"]
    ended = privet("audit", "verify", bundles["run"])
    assert ended.code == 0
    assert f"The code is not pinned; the sites' word is {told} (1 run)" in ended.out
    value = json.loads(privet("audit", "verify", bundles["run"], "--json").out)
    ((run, digests),) = value["code"]["runs"].items()
    assert (value["code"]["pinned"], digests, run[:4]) == (False, [told], "tiny")


def test_a_run_of_other_code_than_was_pinned_is_a_fault(
    privet: Run, bundles: dict[str, Path]
) -> None:
    told = json.loads(privet("--version", "--json").out)["code"]
    other = "sha256:" + "0" * 64
    for given in ([told], [told.upper().replace("SHA", "sha")], [other, told]):
        words = [word for digest in given for word in ("--code", digest)]
        ended = privet("audit", "verify", bundles["run"], *words)
        assert ended.code == 0, ended.out
        assert "The code is pinned: 1 of 1 run name" in ended.out
        value = json.loads(privet("audit", "verify", bundles["run"], *words, "--json").out)
        assert value["ok"] and value["code"]["pinned"]
    ended = privet("audit", "verify", bundles["run"], "--code", other)
    assert ended.code == 4
    assert ended.out.startswith("3 faults.") and "0 of 1 run" in ended.out
    value = json.loads(privet("audit", "verify", bundles["run"], "--code", other, "--json").out)
    assert [(fault["site"], fault["rule"]) for fault in value["faults"]] == [
        ("North", "code"), ("East", "code"), ("South", "code"),
    ]  # fmt: skip
    assert all(told in fault["message"] for fault in value["faults"])


@pytest.mark.parametrize("text", ["", "latest", "sha256:12", "0" * 64])
def test_what_is_no_digest_pins_nothing(privet: Run, bundles: dict[str, Path], text: str) -> None:
    refused(privet("audit", "verify", bundles["run"], "--code", text), f"'{text}' is no digest")


# bundle


def test_a_bundle_that_lacks_a_ledger_is_refused(
    privet: Run, lacking: Path, tmp_path: Path
) -> None:
    refused(
        privet("audit", "bundle", lacking, "--out", "b"),
        "the ledger of East is not in the sources", "will not verify", "--partial",
    )  # fmt: skip
    assert not (tmp_path / "b").exists()


def test_a_partial_bundle_says_that_it_will_not_verify(privet: Run, lacking: Path) -> None:
    ended = privet("audit", "bundle", lacking, "--partial", "--out", "b")
    assert ended.code == 0, ended.err
    assert "This bundle will not verify." in ended.out
    checked = privet("audit", "verify", "b", "--json")
    assert checked.code == 4
    messages = [fault["message"] for fault in json.loads(checked.out)["faults"]]
    assert messages == ["the ledger of East is not in this bundle"]
    assert privet("audit", "verify", "b").out.startswith("1 fault.")


def test_one_site_alone(privet: Run, runs: dict[str, Path]) -> None:
    source = runs["run"] / "sites" / "South"
    refused(
        privet("audit", "bundle", source, "--out", "b"),
        "the ledgers of North and East are not in the sources",
    )
    ended = privet("audit", "bundle", source, "--partial", "--json", "--out", "b")
    value = json.loads(ended.out)
    assert (value["sites"], value["whole"]) == (1, False)
    said = privet("audit", "bundle", source, "--partial", "--out", "c").out
    assert said.startswith("c: 1 site, ")
    assert len(json.loads(privet("audit", "verify", "b", "--json").out)["faults"]) == 2


def test_a_file_that_may_not_be_written_is_named(
    privet: Run, runs: dict[str, Path], bundles: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The target is named, not the file beside it that would have become it."""

    def mkstemp(dir: Path, prefix: str) -> tuple[int, str]:
        raise PermissionError(13, "Permission denied", f"{dir}/{prefix}zps5p6yt")

    monkeypatch.setattr(tempfile, "mkstemp", mkstemp)
    ended = privet("audit", "bundle", runs["run"], "--out", "b")
    refused(ended, "privet: b: cannot be written: Permission denied")
    ended = privet("audit", "report", bundles["run"], "--out", "r")
    assert (ended.code, ended.err) == (1, "privet: r/report.html: Permission denied\n")


def test_what_cannot_be_written_names_the_target(
    privet: Run, runs: dict[str, Path], bundles: dict[str, Path]
) -> None:
    refused(
        privet("audit", "bundle", runs["run"], "--out", "/proc/b"), "privet: /proc/b: cannot be"
    )
    ended = privet("audit", "report", bundles["run"], "--out", "/proc/r")
    assert ended.code == 1
    assert ended.err.startswith("privet: /proc/r")
    assert ".report.html." not in ended.err


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "it is a folder, not a file"),
        (b"\xff\xfe", "it is not a text file"),
        (b"{", "not JSON"),
    ],
)
def test_a_roster_beside_the_logs_that_cannot_be_read(
    privet: Run, runs: dict[str, Path], tmp_path: Path, content: bytes | None, said: str
) -> None:
    shutil.copytree(runs["run"], tmp_path / "run")
    place = tmp_path / "run" / "roster.json"
    place.unlink()
    place.mkdir() if content is None else place.write_bytes(content)
    refused(privet("audit", "bundle", "run", "--out", "b"), "roster.json", said)
    (tmp_path / "run" / "plan.json").write_bytes(b"\xff")


# what is no bundle, and no roster


@pytest.mark.parametrize("content", [b"", b'{"name": "plan"}\n', b"\x89PNG\r\n\x1a\n", b"\n\n"])
def test_what_is_no_bundle_is_wrong_use(privet: Run, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "file").write_bytes(content)
    refused(privet("audit", "verify", "file"), "file is not a bundle")
    refused(privet("audit", "report", "file", "--out", "report"), "file is not a bundle")
    assert not (tmp_path / "report").exists()


def test_a_folder_is_no_bundle(privet: Run, runs: dict[str, Path]) -> None:
    refused(privet("audit", "verify", runs["run"]), "it is a folder, not a file")


def test_what_is_no_roster_is_wrong_use(
    privet: Run, bundles: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "r.json").write_text('{"name": "tiny"}')
    words = (bundles["run"], "--roster", "r.json")
    refused(privet("audit", "verify", *words), "r.json is not a roster")
    refused(privet("audit", "report", *words, "--out", "report"), "r.json is not a roster")
    assert not (tmp_path / "report").exists()


# verify


def test_verify_says_what_the_report_puts_on_top(privet: Run, bundles: dict[str, Path]) -> None:
    value = json.loads(privet("audit", "verify", bundles["run"], "--json").out)
    assert {"ok", "roster", "faults", "sites", "notes"} <= value.keys()
    assert (value["setting"], value["claim"]) == ("simulation", "conditional")
    assert "H11" in value["conditional_on"] and value["why"] == ""
    assert value["sites"][0]["in_words"].startswith("ε ")
    shown = privet("audit", "verify", bundles["run"]).out
    assert "This was a simulation" in shown
    assert f"Claim: conditional on {len(value['conditional_on'])} points" in shown
    assert "H11 composition" in shown
    # The report says the same.
    privet("audit", "report", bundles["run"], "--out", "report")
    report = json.loads(Path("report/report.json").read_text())
    assert report["claim"] == value["claim"]
    assert report["conditional_on"] == value["conditional_on"]


def test_verify_says_that_nothing_is_private(privet: Run, bundles: dict[str, Path]) -> None:
    value = json.loads(privet("audit", "verify", bundles["plain"], "--json").out)
    assert (value["ok"], value["claim"], value["why"]) == (True, "none", "trained without noise")
    assert {site["in_words"] for site in value["sites"]} == {"ε ∞, no cap"}
    assert value["sites"][0]["epsilon"] is None
    shown = privet("audit", "verify", bundles["plain"]).out
    assert "∞" in shown and "no cap" in shown
    assert "Claim: none (trained without noise)" in shown


# report


def test_the_report_of_a_run_without_noise(privet: Run, bundles: dict[str, Path]) -> None:
    assert privet("audit", "report", bundles["plain"], "--out", "report").code == 0
    text = Path("report/report.html").read_text()
    assert "Why: trained without noise" in text
    assert "<dt>What is protected</dt><dd>nobody</dd>" in text
    assert "from a seed" not in text and "was paid for first" not in text
    assert "in the clear, not charged" in text


def test_an_interval_without_its_package_is_refused_first(
    privet: Run, bundles: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec

    def none(name: str, package: str | None = None) -> Any:
        return None if name == "prv_accountant" else find(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", none)
    words = ("audit", "report", bundles["run"], "--out", "report", "--interval")
    refused(privet(*words), "prv-accountant", "not installed")
    assert not (tmp_path / "report").exists()


def test_a_report_folder_in_use_is_refused_before_verifying(
    privet: Run, bundles: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("mine")
    refused(privet("audit", "report", bundles["run"], "--out", "file"), "file is a file")


# simulate


def test_simulate_ends_with_what_comes_next(
    privet: Run, files: Path, plan_value: Make, write_toml: Callable[..., Path], tmp_path: Path
) -> None:
    plan = plan_value(training={"rounds": 1, "steps": 1, "sample_rate": 1.0})
    for site in plan["sites"]:
        site["path"] = str(files / site["path"])
    write_toml(tmp_path / "tiny.toml", plan)
    ended = privet("simulate", "tiny.toml", "--out", "one")
    last = ended.out.splitlines()[-1]
    assert last == f"Next: privet audit bundle {tmp_path / 'one'} --out one.bundle"
    assert privet(*last.removeprefix("Next: privet ").split()).code == 0
    ended = privet("simulate", "tiny.toml", "--out", "two", "--ledgers", "kept", "--cap", "60")
    last = ended.out.splitlines()[-1]
    assert last == f"Next: privet audit bundle {tmp_path / 'two'} kept --out two.bundle"
    assert privet(*last.removeprefix("Next: privet ").split()).code == 0


def test_a_run_that_kept_no_evidence_says_why_there_is_none(privet: Run, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "result.json").write_text('{"evidence": "off"}')
    done = privet("audit", "bundle", tmp_path / "run", "--out", tmp_path / "b")
    assert done.code == 2
    assert "--evidence off" in done.err
    (tmp_path / "run" / "result.json").write_text("[" * 100_000)
    done = privet("audit", "bundle", tmp_path / "run", "--out", tmp_path / "b")
    assert done.code == 2
    assert "--evidence off" not in done.err
