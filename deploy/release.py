"""Make a release: what a user gets, and what he checks it by. Nothing is published.

    python deploy/release.py --key release.pem
    python deploy/release.py --check dist --vkey VKEY

A release is a wheel, a source archive, a bill of materials, the changelog's section, the digests
of the code, ``SHA256SUMS`` over these, and a signed note (c2sp.org/signed-note) of the sums' digest
and of the code's. No connection is opened: the wheel is built by what is installed here.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import re
import shutil
import sys
import tarfile
import tempfile
import tomllib
from pathlib import Path

import kit
import sbom
from packaging.version import Version

ROOT = kit.ROOT
sys.path.insert(0, str(ROOT))  # this checkout's, whatever is installed here

from privet.common.errors import PrivetError  # noqa: E402
from privet.privacy.evidence.keys import FileSigner, passphrase_from_environment  # noqa: E402
from privet.privacy.evidence.signed_note import Key, SignatureLine, key_name, parse_note  # noqa: E402

NOT_SHIPPED = ("dev", "docs")
"""Extras of those who work on Privet."""
SITE = ["train"]


class ReleaseError(Exception):
    """A release cannot be made, or is not what it says; the message says why."""


def section(changelog: str, version: str) -> str:
    """Return what the changelog says of a version, without the section's heading.

    Raises:
        ReleaseError: if there is no such section, or nothing in it.
    """
    pattern = rf"^## \[{re.escape(version)}\] - \d{{4}}-\d\d-\d\d\n(.*?)(?=^## |\Z)"
    found = re.search(pattern, changelog, re.MULTILINE | re.DOTALL)
    if found is None or not found[1].strip():
        raise ReleaseError(
            f"CHANGELOG.md: there is no section '## [{version}] - YYYY-MM-DD' that says anything; "
            "move what is under [Unreleased] there, and commit it"
        )
    return found[1].strip() + "\n"


def require_new(version: str) -> str:
    """Return the commit that is released, if it may be.

    Args:
        version: of pyproject.toml.

    Raises:
        ReleaseError: if files differ from the commit, the version has a tag, or the package or
            CITATION.cff says another version.
    """
    if changed := kit.run("git", "status", "--porcelain", cwd=ROOT).strip():
        raise ReleaseError(f"these files are not as they were committed:\n{changed}")
    tag = f"v{version}"
    if kit.run("git", "tag", "--list", tag, cwd=ROOT).strip():
        raise ReleaseError(f"the tag {tag} exists: raise the version in pyproject.toml")
    for name, line in (
        ("privet/__init__.py", rf'^__version__ = "{re.escape(version)}"$'),
        ("CITATION.cff", rf"^version: {re.escape(version)}$"),
    ):
        if not re.search(line, (ROOT / name).read_text(encoding="utf-8"), re.MULTILINE):
            raise ReleaseError(f"{name} does not say version {version}, as pyproject.toml does")
    return kit.run("git", "rev-parse", "HEAD", cwd=ROOT).strip()


def require_pinned(found: list[sbom.Wheel]) -> None:
    """Refuse an environment that is not that of constraints.txt.

    Raises:
        ReleaseError: naming the first package that differs.
    """
    pins = kit.pinned((ROOT / "constraints.txt").read_text(encoding="utf-8"))
    for one in found:
        pin = pins.get(one.name)
        if one.name != "privet" and (
            pin is None or Version(pin).public != Version(one.version).public
        ):
            raise ReleaseError(
                f"{one.name} {one.version} is installed, constraints.txt says {pin}: make install"
            )


def note_text(version: str, commit: str, codes: dict[str, str], sums: bytes) -> str:
    """Return what is signed, a line for each fact.

    Args:
        version: that is released.
        commit: in hex.
        codes: digest of the code at an auditor and at a site.
        sums: the content of SHA256SUMS.
    """
    lines = [f"privet release {version}", f"commit {commit}"]
    lines += [f"code.{who} {digest}" for who, digest in sorted(codes.items())]
    return "\n".join([*lines, f"sums sha256:{hashlib.sha256(sums).hexdigest()}"]) + "\n"


def make(out: Path, key: Path) -> tuple[str, list[Path]]:
    """Make the release of this commit in ``out``.

    Args:
        out: a folder; files of another release in it stay.
        key: an Ed25519 key in a PEM file, which only its owner can read.

    Returns:
        The public key, as a vkey, and the files.

    Raises:
        ReleaseError, kit.KitError, PrivetError: if nothing can be released, as they say.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    version = project["version"]
    changes = section((ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), version)
    commit = require_new(version)
    signer = FileSigner.load(key, passphrase_from_environment())
    public = Key(key_name("release", "privet", signer.public), signer.public)
    epoch = int(kit.run("git", "log", "-1", "--format=%ct", cwd=ROOT))
    extras = sorted(set(project["optional-dependencies"]) - set(NOT_SHIPPED))
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out) as place:
        folder = Path(place).absolute()
        wheel = kit.build(folder, epoch)
        plain(kit.build(folder, epoch, "sdist"), epoch)
        own = sbom.read(wheel)
        needed = sbom.installed(own, extras)
        require_pinned(needed)
        stem = f"privet-{version}"
        (folder / f"{stem}.cdx.json").write_text(
            sbom.document(needed, extras, epoch, "release", "")
        )
        (folder / f"{stem}.changes.md").write_text(changes, encoding="utf-8")
        codes = {
            "auditor": kit.code_of([wheel], sbom.installed(own, [])),
            "site": kit.code_of([wheel], sbom.installed(own, SITE)),
        }
        (folder / f"{stem}.code.json").write_text(json.dumps(codes, indent=2) + "\n")
        names = sorted(path.name for path in folder.iterdir())
        sums = "".join(f"{kit.sha256(folder / name)}  {name}\n" for name in names).encode()
        (folder / "SHA256SUMS").write_bytes(sums)
        digests = {who: str(code["code"]) for who, code in codes.items()}
        text = note_text(version, commit, digests, sums)
        line = SignatureLine(public.name, public.id, signer.sign(text.encode()))
        (folder / f"{stem}.note").write_text(f"{text}\n{line}", encoding="utf-8")
        names += ["SHA256SUMS", f"{stem}.note"]
        for name in names:
            shutil.move(folder / name, out / name)
    return str(public), [out / name for name in names]


def plain(sdist: Path, epoch: int) -> None:
    """Pack a source archive again, so that its bytes depend on nothing but its content."""
    with tempfile.TemporaryDirectory() as place:
        with tarfile.open(sdist) as archive:
            archive.extractall(place, filter="data")
        (tree,) = Path(place).iterdir()
        kit.pack(tree, Path(place) / "plain.tar", epoch)
        content = (Path(place) / "plain.tar").read_bytes()
    with sdist.open("wb") as stream, gzip.GzipFile("", "wb", 9, stream, mtime=epoch) as packed:
        packed.write(content)


def check(folder: Path, vkey: str) -> str:
    """Check a release that was handed over; return what its note says.

    Args:
        folder: with the files.
        vkey: the releaser's public key, from somewhere else.

    Raises:
        ReleaseError: naming what is missing, is not signed, or differs.
        PrivetError: if the note or the key cannot be read.
    """
    notes = sorted(folder.glob("privet-*.note"))
    if len(notes) != 1:
        raise ReleaseError(f"{folder}: {len(notes)} files are called privet-VERSION.note, not one")
    key = Key.parse(vkey)
    body, lines = parse_note(notes[0].read_text(encoding="utf-8"))
    if not any(line.is_by(key) and key.verifies(line.signature, body.encode()) for line in lines):
        raise ReleaseError(f"{notes[0].name} is not signed by {key.name}")
    sums = (folder / "SHA256SUMS").read_bytes()
    if f"sums sha256:{hashlib.sha256(sums).hexdigest()}" not in body.splitlines():
        raise ReleaseError("SHA256SUMS is not the one that was signed")
    for entry in sums.decode().splitlines():
        digest, name = entry.split("  ", 1)
        path = folder / name
        if not path.is_file() or kit.sha256(path) != digest:
            raise ReleaseError(f"{name} is missing, or is not what was released")
    return body


def main() -> int:
    """Make or check what the command line asks for."""
    parser = argparse.ArgumentParser(description="Make a release of Privet, or check one.")
    parser.add_argument("--key", type=Path, metavar="FILE", help="the releaser's Ed25519 key (PEM)")
    parser.add_argument("--out", type=Path, default=Path("dist"), metavar="DIR")
    parser.add_argument("--check", type=Path, metavar="DIR", help="check the release in DIR")
    parser.add_argument("--vkey", help="with --check: the releaser's public key")
    given = parser.parse_args()
    try:
        if given.check is not None:
            if not given.vkey:
                raise ReleaseError("--check needs --vkey: the releaser's public key")
            print(check(given.check, given.vkey), end="")
            return 0
        if given.key in (None, Path()):
            raise ReleaseError("name the key that signs: make release KEY=FILE (--key FILE)")
        public, paths = make(given.out, given.key)
    except (ReleaseError, kit.KitError, PrivetError, ValueError, OSError) as error:
        print(f"release: {error}", file=sys.stderr)
        return 1
    for path in paths:
        print(path)
    print(f"signed by {public}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
