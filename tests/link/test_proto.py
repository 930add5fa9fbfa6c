"""The generated code is what the generator makes of the .proto."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PROTO = "privet/common/link/link.proto"


def test_the_generated_code_is_that_of_the_proto(root: Path, tmp_path: Path) -> None:
    pytest.importorskip("grpc_tools")
    command = [sys.executable, "-W", "ignore", "-m", "grpc_tools.protoc", f"-I{root}"]
    command += [f"--{kind}_out={tmp_path}" for kind in ("python", "grpc_python", "pyi")]
    subprocess.run([*command, str(root / PROTO)], check=True, capture_output=True)
    for name in ("link_pb2.py", "link_pb2.pyi", "link_pb2_grpc.py"):
        made = (tmp_path / PROTO).parent / name
        assert made.read_text() == (root / "common" / "link" / name).read_text(), (
            f"{name} is stale: make proto"
        )
