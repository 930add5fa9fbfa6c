"""What :mod:`privet.common.compat.flower_clientapp` relies on: how Flower's program takes a bundle."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from flwr.supercore.constant import TASK_TYPE_TO_COMMAND
from flwr.supercore.superexec.executor import subprocess_executor
from flwr.supernode.cli import flwr_clientapp
from flwr.supernode.runtime import run_clientapp

from privet.common.compat.flower_clientapp import (
    KNOWN,
    OWN,
    PROGRAM,
    REFUSED,
    installed_only,
    require_known,
)
from privet.common.errors import RunError


def test_every_program_that_superexec_may_start_is_there() -> None:
    assert {OWN, *REFUSED} == set(TASK_TYPE_TO_COMMAND.values())


def test_superexec_finds_programs_by_name_on_the_path() -> None:
    source = inspect.getsource(subprocess_executor)
    assert "TASK_TYPE_TO_COMMAND[spec.task_type]," in source
    assert source.count("subprocess.Popen(") == 2


def test_flowers_command_runs_the_program_that_is_changed() -> None:
    assert flwr_clientapp.__globals__["run_clientapp"] is run_clientapp.run_clientapp
    names = {
        "pull_task_input",
        "install_from_fab",
        "install_app_dependencies",
        "get_load_client_app_fn",
    }
    assert names <= set(run_clientapp.run_clientapp.__code__.co_names), "looked up in the module"


def test_the_version_that_is_pinned_is_the_one_that_was_read(root: Path) -> None:
    pinned = re.search(r"^flwr==(.+)$", (root / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned and pinned[1] in KNOWN
    require_known(pinned[1])
    with pytest.raises(RunError, match=r"Flower 1\.42\.0 is installed.*install flwr==1\.41\.0"):
        require_known("1.42.0")


def test_flowers_program_reaches_a_bundle_by_these_functions_only() -> None:
    """Fails when Flower changes what is replaced: then read it again."""
    assert run_clientapp.__name__ == PROGRAM
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
    installed_only(program, app)
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
        installed_only(program, print)
