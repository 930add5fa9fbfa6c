"""What stands first on a SuperNode's PATH, and what of Flower's it depends on."""

from __future__ import annotations

import ast
import inspect
import logging
import os
import re
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from flwr.app import Context, Message, RecordDict, UserConfig
from flwr.supercore.constant import TASK_TYPE_TO_COMMAND
from flwr.supernode.runtime import run_clientapp
from stock_kit import enrol

from privet.client.stock_flower import clientapp
from privet.client.stock_flower.daemon import ask
from privet.client.stock_flower.launcher import OWN, REFUSED, SUPERNODE, write_launcher
from privet.common.compat.flower import claim_identity, number_message
from privet.common.errors import InputError, RunError
from privet.common.flower.wire import decode_reply, unpack
from privet.common.order import Status
from privet.common.plan import Plan
from privet.privacy.accounting.plan_events import calibrated
from privet.server.membership.registry import MemberRegistry


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("a folder") / "launcher"
    write_launcher(made)
    return made


# what Flower starts


def test_every_program_that_superexec_may_start_is_there() -> None:
    assert {OWN, *REFUSED} == set(TASK_TYPE_TO_COMMAND.values())


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
    assert clientapp.QUIET.items() <= found.items()
    assert all(stat.S_IMODE((folder / name).stat().st_mode) == 0o755 for name in (OWN, SUPERNODE))


def test_a_folder_with_something_else_is_left_alone(folder: Path, tmp_path: Path) -> None:
    write_launcher(folder)
    (tmp_path / "mine").write_text("mine")
    for taken in (tmp_path, tmp_path / "mine"):
        with pytest.raises(InputError, match="not a folder of launchers"):
            write_launcher(taken)
    assert (tmp_path / "mine").read_text() == "mine"


# Flower's own program


def test_the_version_that_is_pinned_is_the_one_that_was_read(root: Path) -> None:
    pinned = re.search(r"^flwr==(.+)$", (root / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned and pinned[1] in clientapp.KNOWN
    clientapp.require_known(pinned[1])
    with pytest.raises(RunError, match=r"Flower 1\.42\.0 is installed.*install flwr==1\.41\.0"):
        clientapp.require_known("1.42.0")


def test_flowers_program_reaches_a_bundle_by_these_functions_only() -> None:
    """Fails when Flower changes what is replaced: then read it again."""
    assert run_clientapp.__name__ == clientapp.PROGRAM
    tree = ast.parse(inspect.getsource(run_clientapp.run_clientapp))
    uses = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert {use for use in uses if use.startswith("fab.")} == {"fab.content", "fab.hash_str"}
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    taking = {
        ast.unparse(call.func)
        for call in calls
        for part in [*call.args, *(word.value for word in call.keywords)]
        if re.search(r"\bfab\b|\bapp_path\b", ast.unparse(part))
    }
    assert taking == {
        "install_from_fab", "get_project_dir", "install_app_dependencies", "load_client_app_fn",
        "str",
    }  # fmt: skip
    loads = [ast.unparse(call.func) for call in calls if "load" in ast.unparse(call.func)]
    assert sorted(loads) == ["get_load_client_app_fn", "load_client_app_fn"]


def test_the_program_gets_the_installed_app_and_no_bundle() -> None:
    def app(message: Any, context: Any) -> Any:
        raise AssertionError

    def touched(*what: object, **how: object) -> None:
        raise AssertionError("the bundle was touched")

    fab = SimpleNamespace(hash_str="0" * 64, content=b"hostile", verifications={"a": "b"})
    program = ModuleType("program")
    program.pull_task_input = lambda client: ("message", "context", "run", fab)  # type: ignore[attr-defined]
    for name in ("install_from_fab", "install_app_dependencies", "get_load_client_app_fn"):
        setattr(program, name, touched)
    clientapp.installed_only(program, app)
    pulled = program.pull_task_input(None)  # type: ignore[attr-defined]
    assert pulled[:3] == ("message", "context", "run") and pulled[3].content == b""
    assert program.install_from_fab(b"", skip_prompt=True) is None  # type: ignore[attr-defined]
    assert program.install_app_dependencies("x", run_id=1) is None  # type: ignore[attr-defined]
    load = program.get_load_client_app_fn(default_app_ref="", app_path=None, multi_app=True)  # type: ignore[attr-defined]
    assert load("nobody/app", "1.0.0", "hash") is app


@pytest.mark.parametrize(
    "name",
    ["pull_task_input", "install_from_fab", "install_app_dependencies", "get_load_client_app_fn"],
)
def test_a_function_that_is_gone_is_noticed(name: str) -> None:
    program = ModuleType("program")
    for other in vars(run_clientapp):
        setattr(program, other, getattr(run_clientapp, other))
    delattr(program, name)
    with pytest.raises(RunError, match=f"has no '{name}'"):
        clientapp.installed_only(program, clientapp.answer)


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
