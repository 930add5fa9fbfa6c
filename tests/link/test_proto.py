"""The generated code is what the generator makes of the .proto."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from privet.common.link import link_pb2 as pb
from privet.common.link import pieces

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


@pytest.mark.parametrize("size", [1, 127, 128, 16383, 16384, 1 << 20, (1 << 21) + 5])
def test_numbers_are_written_as_the_generated_code_writes_them(size: int) -> None:
    data = bytes(range(256)) * (size // 256) + bytes(size % 256)
    for kind, field in ((pb.Chunk, pieces.CHUNK), (pb.Piece, pieces.PIECE)):
        whole = kind(data=data).SerializeToString()
        assert pieces.head(field, size) + data == whole
        assert pieces.data_of(field, whole) == data
    first = pb.Piece(parcel="1", sha256=b"x" * 32, size=size, offset=3)
    joined = first.SerializeToString() + pieces.head(pieces.PIECE, size) + data
    first.data = data
    assert joined == first.SerializeToString()


def test_what_is_not_that_one_field_is_left_to_the_generated_code() -> None:
    other = pb.Piece(parcel="1", data=b"abc").SerializeToString()
    whole = pb.Chunk(data=b"abc").SerializeToString()
    for odd in (
        b"",
        other,
        whole[:-1],
        whole + b"x",
        whole + whole,
        b"\x0a",
        b"\x0a\xff\xff\xff\xff\xff",
    ):
        assert pieces.data_of(pieces.CHUNK, odd) is None
