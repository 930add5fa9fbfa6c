"""constraints.hashes.txt says what constraints.txt says, with hashes; only torch is left out."""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

BY_HAND = {"coverage", "pytest-cov", "types-setuptools"}
"""Pinned for who wants them; nothing requires them."""


@pytest.fixture
def hashed(root: Path) -> dict[str, tuple[str, list[str]]]:
    text = (root / "constraints.hashes.txt").read_text(encoding="utf-8")
    found = {}
    for block in re.split(r"\n(?=[A-Za-z0-9])", text):
        if match := re.match(r"([\w.-]+)==([^ ;]+)", block):
            found[canonicalize_name(match[1])] = match[2], re.findall(r"--hash=(\S+)", block)
    return found


def test_versions_are_those_of_the_constraints(
    root: Path, hashed: dict[str, tuple[str, list[str]]]
) -> None:
    lines = (root / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = {canonicalize_name(line.partition("==")[0]): line.partition("==")[2]
            for line in lines if "==" in line}  # fmt: skip
    assert {name: version for name, (version, _) in hashed.items()} == {
        name: version for name, version in pins.items() if name not in {"torch", *BY_HAND}
    }, "make hashes"
    for name, (_, hashes) in hashed.items():
        assert hashes and all(re.fullmatch(r"sha256:[0-9a-f]{64}", one) for one in hashes), name


def test_what_the_project_names_is_there(
    root: Path, hashed: dict[str, tuple[str, list[str]]]
) -> None:
    sys.path.insert(0, str(root / "deploy"))
    try:
        import kit
    finally:
        sys.path.remove(str(root / "deploy"))
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    named = {canonicalize_name(Requirement(text).name)
             for text in kit.requirements(project, project["optional-dependencies"])}  # fmt: skip
    assert named - set(hashed) == {"torch"}


def test_the_file_names_no_registry(root: Path) -> None:
    text = (root / "constraints.hashes.txt").read_text(encoding="utf-8")
    assert "://" not in text and "--index" not in text and "--find-links" not in text
