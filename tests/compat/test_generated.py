"""The link's generated code: what it wants of gRPC and protobuf is not their public API."""

from __future__ import annotations

import re
from importlib.metadata import version
from pathlib import Path

import grpc
from grpc._utilities import first_version_is_lower

from privet.common.link import link_pb2 as pb
from privet.common.link import link_pb2_grpc


def test_the_installed_grpc_is_new_enough_for_what_was_generated() -> None:
    made_for = link_pb2_grpc.GRPC_GENERATED_VERSION
    assert not first_version_is_lower(grpc.__version__, made_for)
    assert first_version_is_lower("1.0.0", made_for)


def test_pyproject_allows_no_older_one_than_it_was_generated_for(root: Path) -> None:
    text = (root / "pyproject.toml").read_text(encoding="utf-8")
    least = re.search(r'"grpcio>=([0-9.]+)', text)
    assert least
    assert not first_version_is_lower(f"{least[1]}.0", link_pb2_grpc.GRPC_GENERATED_VERSION)


def test_a_message_is_what_it_was_after_its_way(root: Path) -> None:
    made = pb.Chunk(data=b"abc")
    assert pb.Chunk.FromString(made.SerializeToString()) == made
    text = (root / "common" / "link" / "link_pb2.py").read_text(encoding="utf-8")
    made_by = re.search(r"Protobuf Python Version: ([0-9]+)", text)
    assert made_by and int(version("protobuf").split(".")[0]) == int(made_by[1])
