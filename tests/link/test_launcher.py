"""What stands first on a SuperNode's PATH, and what of Flower's it depends on."""

from __future__ import annotations

import logging
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, Message, RecordDict, UserConfig
from stock_kit import enrol

from privet.client.stock_flower import clientapp
from privet.client.stock_flower.daemon import ask
from privet.client.stock_flower.launcher import write_launcher
from privet.common.compat.flower import claim_identity, number_message
from privet.common.compat.flower_clientapp import OWN, QUIET, REFUSED, SUPERNODE
from privet.common.errors import InputError, RunError
from privet.common.flower.wire import decode_reply, unpack
from privet.common.order import Status
from privet.common.plan import Plan
from privet.privacy.accounting.noise_calibration import calibrated
from privet.server.membership.registry import MemberRegistry


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("a folder") / "launcher"
    write_launcher(made)
    return made


# what Flower starts


@pytest.mark.parametrize("name", REFUSED)
def test_programs_that_would_run_a_bundle_are_refused(folder: Path, name: str) -> None:
    done = subprocess.run(
        [folder / name, "--token", "x"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1 and done.stdout == ""
    assert (
        done.stderr
        == f"privet: {name} is not started at this site: it would run the coordinator's code\n"
    )


def test_the_folder_comes_first_on_the_path(folder: Path, tmp_path: Path) -> None:
    """What `flower-supernode` of the folder would hand on to SuperExec."""
    text = (folder / SUPERNODE).read_text().replace("exec ", "env #")
    (tmp_path / "try").write_text(text)
    done = subprocess.run(["/bin/sh", tmp_path / "try"], capture_output=True, text=True, check=True)
    found = dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)
    assert found["PATH"].split(":")[:2] == [str(folder), str(Path(sys.executable).parent)]
    assert QUIET.items() <= found.items()
    assert all(stat.S_IMODE((folder / name).stat().st_mode) == 0o755 for name in (OWN, SUPERNODE))


def test_a_folder_with_something_else_is_left_alone(folder: Path, tmp_path: Path) -> None:
    write_launcher(folder)
    (tmp_path / "mine").write_text("mine")
    for taken in (tmp_path, tmp_path / "mine"):
        with pytest.raises(InputError, match="not a folder of launchers"):
            write_launcher(taken)
    assert (tmp_path / "mine").read_text() == "mine"


# Flower's own program


def test_the_launcher_takes_the_arguments_of_superexec(folder: Path) -> None:
    done = subprocess.run(
        [folder / OWN, "--help"], capture_output=True, text=True, check=False, timeout=600
    )
    assert done.returncode == 0
    for option in ("--runtime-api-address", "--token", "--insecure", "--root-certificates",
                   "--parent-pid", "--allow-runtime-dependency-installation"):  # fmt: skip
        assert option in done.stdout


# which site


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({}, "names no policy"),
        ({"policy": ""}, "names no policy"),
        ({"policy": 3}, "names no policy"),
        ({"policy": "site.toml"}, "relative"),
        ({"policy": "/nowhere/site.toml"}, "is not there"),
        ({"policy": "/"}, "is not there"),
    ],
)
def test_a_supernode_that_names_no_policy_is_refused(config: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said) as error:
        clientapp.policy_of(config)
    assert "--node-config" in str(error.value)


def test_what_goes_wrong_stays_with_the_operator(caplog: pytest.LogCaptureFixture) -> None:
    claim_identity(1)
    message = Message(RecordDict(), 1, "query")
    number_message(message)
    where = {"policy": "/a secret place/site.toml"}
    context = Context(1, 1, UserConfig(where), RecordDict(), UserConfig())
    with caplog.at_level(logging.ERROR):
        reply = clientapp.answer(message, context)
    assert "/a secret place/site.toml" in str(vars(caplog.records[0])["why"])
    assert not reply.has_error() and decode_reply(reply.content) == ("", Status.FAILED, None)
    assert "secret" not in str(reply.content)


# the process that answers


@pytest.fixture
def supernode() -> Iterator[subprocess.Popen[bytes]]:
    """A process that stands for the SuperNode."""
    process = subprocess.Popen(["sleep", "600"])
    yield process
    process.kill()
    process.wait()


def pid_of(home: Path) -> int:
    done = subprocess.run(
        ["pgrep", "-f", f"privet.client.stock_flower.daemon {home}/"], capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    found = [int(number) for number in done.stdout.split()]
    return found[0] if found else 0


@pytest.fixture
def site_by_file(
    tmp_path: Path, plan_value: Callable[..., Any], frame_of: Callable[..., Any]
) -> Callable[[Path], Path]:
    def make(home: Path) -> Path:
        plan = calibrated(Plan.parse(plan_value(), where="test"))
        federation = MemberRegistry.found(tmp_path / "hub", "hub", "127.0.0.1:1", "127.0.0.1:2")
        return enrol(federation, plan, home, "North", frame_of(80, 0))

    return make


@pytest.mark.slow
def test_one_process_answers_for_a_site_and_ends_with_the_supernode(
    supernode: subprocess.Popen[bytes], tmp_path: Path, site_by_file: Callable[[Path], Path]
) -> None:
    policy = site_by_file(tmp_path / ("long" * 20))

    def asked() -> tuple[str, Status]:
        said = ask(policy, "query", b"{}", {}, supernode.pid)
        return decode_reply(unpack(*said))[:2]

    assert asked() == ("", Status.PRESENT), "no run was offered yet"
    first = pid_of(policy.parent)
    assert first and asked() == ("", Status.PRESENT) and pid_of(policy.parent) == first
    sock = policy.parent / "stock.sock"
    assert stat.S_IMODE(sock.stat().st_mode) & 0o077 == 0
    os.kill(first, signal.SIGKILL)
    assert asked() == ("", Status.PRESENT), "a killed one is replaced"
    assert pid_of(policy.parent) not in (0, first)
    supernode.kill()
    supernode.wait()
    end = time.monotonic() + 60
    while pid_of(policy.parent) or sock.exists():
        assert time.monotonic() < end
        time.sleep(0.1)


@pytest.mark.slow
def test_a_site_that_cannot_be_opened_is_told_once(
    supernode: subprocess.Popen[bytes], tmp_path: Path, capfd: pytest.CaptureFixture[str],
    site_by_file: Callable[[Path], Path],
) -> None:  # fmt: skip
    policy = site_by_file(tmp_path / "site")
    policy.write_text("nonsense")
    with pytest.raises(RunError, match="did not start"):
        ask(policy, "query", b"{}", {}, supernode.pid)
    said = capfd.readouterr().err
    assert "privet: " in said and "site.toml" in said and "Traceback" not in said
