"""The last check of a data set decides whether a small site starts; no answer does."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from privet.cli import app
from privet.client.operator.check_record import CheckRecord, outcome, require_checked, stamp_of
from privet.client.operator.decisions import make_site
from privet.common.errors import PolicyError, RefusedError
from privet.privacy.policy import Policy

Make = Callable[..., Any]


@pytest.fixture
def site(tmp_path: Path, write_toml: Make) -> Make:
    """Write the policy of a site with a file; returns it as it is read."""
    make_site(tmp_path / "north", "North", None)
    home = tmp_path / "north"
    (home / "a.csv").write_text("x,y\n1,0\n")

    def write(**data: Any) -> Policy:
        named = {"population": "patients", "nominal_size": 60, "path": "a.csv", **data}
        value = {
            "site": "North",
            "populations": {"patients": {"unit": "record", "epsilon": 3.0, "delta": 1e-5}},
            "data": {"records": named},
        }
        return Policy.load(write_toml(home / "site.toml", value))

    return write


def check(policy: Policy, *, ok: bool = True, units_ok: bool = True) -> None:
    """What `privet client check` writes."""
    path = policy.path_of(policy.data["records"])
    assert path is not None
    record = CheckRecord.of(policy, "records", stamp_of(path), ok=ok, units_ok=units_ok)
    record.write(policy.folder, "records")


def test_what_is_written_is_read(site: Make) -> None:
    policy = site()
    check(policy)
    path = policy.folder / "checks" / "records.json"
    assert set(json.loads(path.read_text())) == {
        "when", "file", "stamp", "ok", "units_ok", "policy",
    }  # fmt: skip
    found = CheckRecord.read(policy.folder, "records")
    assert found is not None
    assert found.fault(policy, "records") is None
    assert path.parent.stat().st_mode & 0o077 == 0
    for damaged in ("", "[]", '{"when": 1}', '{"stamp": [1]}'):
        path.write_text(damaged)
        assert CheckRecord.read(policy.folder, "records") is None


def test_without_min_units_a_site_starts_unchecked(site: Make) -> None:
    policy = site()
    require_checked(policy, policy.folder)
    assert "was not run" in outcome(policy, "records", policy.folder)
    check(policy, ok=False, units_ok=False)
    require_checked(policy, policy.folder)


def test_with_min_units_a_check_must_stand(site: Make) -> None:
    policy = site(min_units=50)
    home = policy.folder

    def refused(why: str) -> None:
        with pytest.raises(RefusedError, match=why):
            require_checked(policy, home)

    refused("was not run")
    check(policy, ok=False)
    refused("cannot be used")
    check(policy, units_ok=False)
    refused("fewer units than min_units")
    check(policy)
    require_checked(policy, home)
    assert "and passed" in outcome(policy, "records", home)


@pytest.mark.parametrize("change", ["size", "time", "file", "gone", "policy"])
def test_a_check_of_other_records_does_not_stand(site: Make, change: str) -> None:
    policy = site(min_units=50)
    check(policy)
    path = policy.folder / "a.csv"
    state = path.stat()
    if change == "size":
        path.write_text(path.read_text() + "2,1\n")
        os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    elif change == "time":
        os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns + 1))
    elif change == "file":
        other = path.with_suffix(".new")
        other.write_text(path.read_text())
        os.utime(other, ns=(state.st_atime_ns, state.st_mtime_ns))
        other.replace(path)
    elif change == "gone":
        path.unlink()
    else:
        policy = site(min_units=51)
    with pytest.raises(RefusedError, match="changed since"):
        require_checked(policy, policy.folder)


def test_min_units_is_not_published(site: Make) -> None:
    plain, small = site(), site(min_units=50)
    assert "min_units" not in json.dumps(small.public())
    assert small.digest == plain.digest
    with pytest.raises(PolicyError, match="min_units"):
        site(min_units=0)


def test_the_client_does_not_start_and_says_why(site: Make, monkeypatch: Any) -> None:
    policy = site(min_units=50)
    monkeypatch.setenv("PRIVET_PASSPHRASE", "")
    found = CliRunner().invoke(app, ["client", "start", "--policy", str(policy.folder)])
    assert isinstance(found.exception, RefusedError)
    assert found.exception.exit_code == 3
    assert "run `privet client check`" in str(found.exception)


def test_an_approval_says_how_the_check_stands(site: Make) -> None:
    policy = site()
    command = [
        "client",
        "approve",
        "ab" * 32,
        "--ahead",
        "--policy",
        str(policy.folder),
        "--as",
        "Ann",
    ]
    assert "`privet client check` was not run" in CliRunner().invoke(app, command).output
    check(policy)
    assert "and passed" in CliRunner().invoke(app, command).output
