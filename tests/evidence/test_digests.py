"""The digests of the format page, computed from its words: nothing here is Privet's own hashing."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import struct
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import rfc8785

import privet
from privet.common.flat import digest_arrays
from privet.privacy.audit.bundle import write_bundle

Make = Callable[..., Any]
TYPES = {"F32": "<f4", "F64": "<f8", "I8": "|i1", "I32": "<i4"}
"""Names of safetensors, and those of the page."""
MODEL = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))

    def forward(self, numeric, missing, categorical):
        return self.layers(torch.cat([numeric, missing], 1))


def make(task):
    return Net()
"""
TASK = """
from privet.common.tasks.tabular import TabularTask


class Halved(TabularTask):
    def scores(self, model, batch):
        return super().scores(model, batch) / 2
"""


def sha256(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def of_json(value: Any) -> str:
    return sha256(rfc8785.dumps(value))


class Stored(NamedTuple):
    """One array of a file."""

    name: str
    type: str
    shape: tuple[int, ...]
    data: bytes


def stored(path: Path) -> list[Stored]:
    """Read a safetensors file by its own specification, in the order of its ``names``."""
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + length])
    found = []
    for name in json.loads(header["__metadata__"]["names"]):
        begin, end = header[name]["data_offsets"]
        data = raw[8 + length + begin : 8 + length + end]
        found.append(Stored(name, TYPES[header[name]["dtype"]], tuple(header[name]["shape"]), data))
    return found


def of_arrays(arrays: list[Stored]) -> str:
    stream = b""
    for array in arrays:
        shape = ",".join(str(dimension) for dimension in array.shape)
        label = b"\0".join(part.encode() for part in (array.name, array.type, shape))
        stream += struct.pack("<Q", len(label)) + label
        stream += struct.pack("<Q", len(array.data)) + array.data
    return sha256(stream)


def of_code(root: Path, own: Path, page: str) -> str:
    """Follow the page: manifest of the checkout, whose links are the wheel's folders."""
    sources = {}
    for folder in ("cli", "client", "common", "delivery", "privacy", "server", "simulations"):
        top = (root / "privet" / folder).resolve()
        for path in top.rglob("*"):
            if path.suffix in (".py", ".json"):
                name = f"privet/{folder}/{path.relative_to(top).as_posix()}"
                sources[name] = sha256(path.read_bytes())
    for path in (root / "privet").glob("*.py"):
        sources[f"privet/{path.name}"] = sha256(path.read_bytes())
    package = {
        path.relative_to(own).as_posix(): sha256(path.read_bytes())
        for path in (own / "digest_package").rglob("*.py")
    }
    model = {"digest_model.py": sha256((own / "digest_model.py").read_bytes())}
    listed = re.search(r"installed version of each of (.*?)\s+that is installed", page, re.S)
    assert listed is not None
    libraries = {}
    for name in re.findall(r"`([a-z0-9-]+)`", listed[1]):
        try:
            libraries[name] = version(name).split("+")[0]
        except PackageNotFoundError:
            continue
    assert len(libraries) > 15
    return of_json(
        {
            "privet": privet.__version__,
            "sources": of_json(sources),
            "modules": {"digest_model": of_json(model), "digest_package": of_json(package)},
            "libraries": libraries,
        }
    )


@pytest.fixture(scope="module")
def page(root: Path) -> str:
    return (root / "docs" / "reference" / "evidence-format.md").read_text(encoding="utf-8")


class Ran(NamedTuple):
    """A run with a model and a task of one's own, and what its bundle holds."""

    out: Path
    own: Path
    sites: dict[str, list[tuple[str, dict[str, Any]]]]
    journal: list[tuple[str, dict[str, Any]]]
    orders: list[dict[str, Any]]


@pytest.fixture(scope="module", params=[None, "int8", "top-k"])
def ran(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, files: Path,
    plan_value: Make,
) -> Ran:  # fmt: skip
    own = tmp_path_factory.mktemp("own")
    (own / "digest_package").mkdir()
    (own / "digest_model.py").write_text(MODEL)
    (own / "digest_package" / "__init__.py").write_text("")
    (own / "digest_package" / "tasks.py").write_text(TASK)
    value = plan_value(
        model={"kind": "digest_model:make"}, metrics={"source": "gate"},
        compression=request.param and {"kind": request.param},
    )  # fmt: skip
    value["task"]["kind"] = "digest_package.tasks:Halved"
    out = tmp_path_factory.mktemp("run") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(own))
        privet.simulate(privet.Plan.parse(value), out=out, base=files, data=files)
    write_bundle([out], out / "bundle")
    logs: dict[str, list[tuple[str, dict[str, Any]]]] = {}
    orders, name = [], ""
    for line in (out / "bundle").read_bytes().splitlines():
        read = json.loads(line)
        if read.get("kind") == "log":
            name = read["name"]
        elif read.get("kind") == "order":
            orders.append(read["order"])
        elif "payload" in read:
            statement = json.loads(base64.b64decode(read["payload"]))
            kind = statement["predicateType"].rpartition(":")[2]
            logs.setdefault(name, []).append((kind, statement["predicate"]))
    journal = next(name for name, log in logs.items() if log[-1][0] == "run-closed")
    return Ran(out, own, {n: logs[n] for n in logs if n != journal}, logs[journal], orders)


def test_the_example_of_the_page(page: str) -> None:
    spelled = re.search(
        r"is the (\d+) bytes\s+`([0-9a-f ]+)` \(hex[^`]*`(sha256:[0-9a-f]{64})`", page
    )
    assert spelled is not None
    count, content, named = int(spelled[1]), bytes.fromhex(spelled[2].replace(" ", "")), spelled[3]
    assert (len(content), sha256(content)) == (count, named)
    array = np.array([1, -2], dtype="<f4")
    assert of_arrays([Stored("head.bias", "<f4", (2,), array.tobytes())]) == named
    assert digest_arrays({"head.bias": array}) == named
    assert digest_arrays({"head.bias": array[:1]}) != named


@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 3, 4)])
def test_arrays_of_any_shape(shape: tuple[int, ...]) -> None:
    array = np.random.default_rng(0).normal(size=shape).astype("<f4")
    part = Stored("größe", "<f4", shape, array.tobytes())
    assert digest_arrays({"größe": array}) == of_arrays([part])
    # Row by row, whatever lies where in memory.
    if shape:
        assert digest_arrays({"größe": np.asfortranarray(array)}) == of_arrays([part])
    assert digest_arrays({"größe": array, "x": array}) != of_arrays([part])


def test_code(ran: Ran, page: str, root: Path) -> None:
    expected = of_code(root, ran.own, page)
    named = {p["code"] for log in ran.sites.values() for kind, p in log if kind == "reserved"}
    assert named == {expected}
    (ran.own / "digest_package" / "more.py").write_text("")
    try:
        assert of_code(root, ran.own, page) != expected
    finally:
        (ran.own / "digest_package" / "more.py").unlink()


def test_release(ran: Ran) -> None:
    """What a site keeps of its releases has the digests of its ledger."""
    purposes = set()
    for name, log in ran.sites.items():
        reserved = {p["sequence"]: p for kind, p in log if kind == "reserved"}
        for kind, released in log:
            if kind not in ("released", "metric-released"):
                continue
            of = reserved[released["reservation"]]
            slot = f"{of['run']}-{of['purpose']}-{of['round']}-{of['attempt']}.safetensors"
            arrays = stored(ran.out / "sites" / name / "outbox" / slot)
            assert of_arrays(arrays) == released["digest"]
            changed = arrays[0]._replace(data=bytes(len(arrays[0].data)))
            assert of_arrays([changed, *arrays[1:]]) != released["digest"]
            purposes.add(of["purpose"])
            if of["purpose"] == "evaluate":
                assert [array.name for array in arrays] == ["histogram"]
                continue
            order = next(o for o in ran.orders if of_json(o) == of["order"])
            names = [a.name for a in arrays if not a.name.endswith(("|scales", "|places"))]
            assert names == order["parameters"]
    assert purposes == {"train", "evaluate"}


def test_model(ran: Ran) -> None:
    arrays = stored(ran.out / "model" / "model.safetensors")
    kind, closed = ran.journal[-1]
    assert (kind, closed["model"]) == ("run-closed", of_arrays(arrays))
    assert {array.type for array in arrays} == {"<f4"}
    assert [array.name for array in arrays] == ran.orders[0]["parameters"]
    assert of_arrays(arrays[::-1]) != closed["model"]
