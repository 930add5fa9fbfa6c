"""Make an offline install kit: wheels with hashes, an SBOM and an installer, in one tar file.

The wheels are those of constraints.txt, for the Python and the machine that this runs on; where
they come from is pip's own setting (``PIP_INDEX_URL``, ``PIP_FIND_LINKS``). Nothing is downloaded
before the whole list is known and checked. The same wheels and commit give the same bytes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import tomllib
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import sbom
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name, parse_wheel_filename
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
CUDA = re.compile(r"(nvidia|cuda|triton|pytorch-triton)(-|$)")
"""Names of packages that only a torch for CUDA brings."""
_MANYLINUX = {"manylinux1": (2, 5), "manylinux2010": (2, 12), "manylinux2014": (2, 17)}


class KitError(Exception):
    """A kit cannot be made; the message says why."""


@dataclass(frozen=True)
class Pin:
    """One wheel that pip chose: its name, its version, and the SHA-256 in hex."""

    name: str
    version: str
    sha256: str


def requirements(project: dict[str, object], extras: Iterable[str]) -> list[str]:
    """Return what ``project`` (of pyproject.toml) requires with ``extras``, its own name unfolded.

    Raises:
        KitError: if an extra is not there.
    """
    optional = project["optional-dependencies"]
    assert isinstance(optional, dict)
    assert isinstance(project["dependencies"], list)
    found, wanted, seen = list(project["dependencies"]), list(extras), set()
    while wanted:
        extra = wanted.pop()
        if extra in seen:
            continue
        seen.add(extra)
        if extra not in optional:
            raise KitError(f"there is no extra '{extra}'; there are {', '.join(sorted(optional))}")
        for text in optional[extra]:
            requirement = Requirement(text)
            if requirement.name == project["name"]:
                wanted.extend(requirement.extras)
            else:
                found.append(text)
    return sorted(set(found))


def pinned(text: str) -> dict[str, str]:
    """Return the versions of a constraints file by canonical name."""
    lines = (line.split("#")[0].strip() for line in text.splitlines())
    pairs = (line.split("==") for line in lines if line)
    return {canonicalize_name(name): version for name, version in pairs}


def check(pins: Iterable[Pin], constraints: dict[str, str], *, cuda: bool) -> None:
    """Check what pip chose, before anything is downloaded.

    Raises:
        KitError: if a package belongs to CUDA and ``cuda`` is false, or is not pinned.
    """
    for pin in pins:
        if not cuda and (CUDA.match(pin.name) or "+cu" in pin.version):
            raise KitError(
                f"{pin.name} {pin.version} belongs to a torch for CUDA, which takes gigabytes. "
                "Let pip find the CPU wheel of torch (PIP_FIND_LINKS, PIP_EXTRA_INDEX_URL), or "
                "say --cuda. Nothing was downloaded"
            )
        if cuda and CUDA.match(pin.name):
            continue
        version = constraints.get(pin.name)
        if version is None or Version(version).public != Version(pin.version).public:
            raise KitError(f"{pin.name} {pin.version} is not what constraints.txt pins ({version})")


def glibc(names: Iterable[str]) -> tuple[int, int]:
    """Return the oldest glibc on which all wheels with these file names run; (0, 0) for any."""
    needed = (0, 0)
    for name in names:
        served = [_glibc_of(tag.platform) for tag in parse_wheel_filename(name)[3]]
        needed = max(needed, min((one for one in served if one is not None), default=(0, 0)))
    return needed


def _glibc_of(tag: str) -> tuple[int, int] | None:
    if found := re.match(r"manylinux_(\d+)_(\d+)_", tag):
        return int(found[1]), int(found[2])
    return _MANYLINUX.get(tag.split("_")[0], (0, 0) if tag == "any" else None)


def resolve(wanted: list[str], constraints: Path) -> list[Pin]:
    """Ask pip which wheels it would install into an empty environment, without fetching them."""
    said = _pip(
        "install", "--quiet", "--dry-run", "--ignore-installed", "--only-binary", ":all:",
        "--report", "-", "-c", str(constraints), *wanted,
    )  # fmt: skip
    pins = []
    for item in json.loads(said)["install"]:
        about = item["metadata"]
        name = canonicalize_name(about["name"])
        digest = item["download_info"].get("archive_info", {}).get("hashes", {}).get("sha256")
        if digest is None:
            raise KitError(f"{name}: its index gives no SHA-256")
        pins.append(Pin(name, about["version"], digest))
    return sorted(pins, key=lambda pin: pin.name)


def build(into: Path, epoch: int, kind: str = "wheel") -> Path:
    """Build Privet's own wheel or source archive from the files that git tracks.

    Args:
        into: folder for it.
        epoch: seconds since 1970 that its files get as their time.
        kind: ``wheel`` or ``sdist``.

    Raises:
        KitError: if this is no git checkout, or the build fails.
    """
    with tempfile.TemporaryDirectory() as place:
        tree = Path(place) / "privet"
        for name in filter(None, run("git", "ls-files", "-z", cwd=ROOT).split("\0")):
            source, target = ROOT / name, tree / name
            if source.is_symlink() or source.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(source, target, follow_symlinks=False)
        run(
            sys.executable, "-m", "build", "--no-isolation", f"--{kind}",
            "--outdir", str(into.absolute()), str(tree), cwd=tree, SOURCE_DATE_EPOCH=str(epoch),
        )  # fmt: skip
    return next(into.glob("privet-*.whl" if kind == "wheel" else "privet-*.tar.gz"))


def lay_out(kit: Path, extras: list[str], epoch: int) -> None:
    """Write what goes with the wheels in ``kit/wheels``: list, SBOM, installer, sums."""
    wheels = sorted((kit / "wheels").iterdir())
    found = [sbom.read(path) for path in wheels]
    (kit / "requirements.txt").write_text(
        "".join(f"{w.name}=={w.version} --hash=sha256:{w.sha256}\n" for w in found)
    )
    version = next(wheel.version for wheel in found if wheel.name == "privet")
    (kit / "sbom.cdx.json").write_text(sbom.document(found, extras, epoch))
    facts = {
        "privet": version,
        "extras": extras,
        "python": f"{sys.version_info.major}.{sys.version_info.minor}",
        "platform": sysconfig.get_platform(),
        "glibc": list(glibc(path.name for path in wheels)),
        "without_licence": [wheel.name for wheel in found if wheel.licence is None],
    }
    (kit / "kit.json").write_text(json.dumps(facts, indent=2) + "\n")
    (kit / "code.json").write_text(json.dumps(code_of(wheels, found), indent=2) + "\n")
    for name in ("kit/install.sh", "kit/README.md"):
        shutil.copy(ROOT / "deploy" / name, kit)
    for name in ("systemd", "container", "helm"):
        # Links of the charts become files; what they lead to is not needed beside them.
        ignored = shutil.ignore_patterns("shared")
        shutil.copytree(ROOT / "deploy" / name, kit / name, ignore=ignored)
    shutil.copy(ROOT / "LICENSE", kit)
    paths = sorted(path for path in kit.rglob("*") if path.is_file())
    sums = "".join(f"{sha256(path)}  {path.relative_to(kit)}\n" for path in paths)
    (kit / "SHA256SUMS").write_text(sums)


def code_of(wheels: Iterable[Path], found: Iterable[sbom.Wheel]) -> dict[str, object]:
    """Return what ``privet --version --json`` prints of an install of these wheels.

    Args:
        wheels: the files, Privet's own among them.
        found: what they say of themselves.
    """
    sys.path.insert(0, str(ROOT))  # of this checkout, whatever is installed here
    from privet.common import code
    from privet.common.canonical import digest_json

    own = next(path for path in wheels if path.name.startswith("privet-"))
    with zipfile.ZipFile(own) as archive:
        names = [
            name
            for name in archive.namelist()
            if name.startswith("privet/") and name.endswith(code.SUFFIXES)
        ]
        sources = code.digest_files({name: archive.read(name) for name in names})
    versions = {wheel.name: wheel.version for wheel in found}
    libraries = {n: code.public_version(versions[n]) for n in code.LIBRARIES if n in versions}
    manifest = {
        "privet": versions["privet"],
        "sources": sources,
        "libraries": libraries,
        "modules": {},
    }
    return {"privet": versions["privet"], "code": digest_json(manifest), "manifest": manifest}


def pack(kit: Path, to: Path, epoch: int) -> None:
    """Write the folder as a tar file whose bytes depend on nothing but its content."""

    def plain(entry: tarfile.TarInfo) -> tarfile.TarInfo:
        entry.uid = entry.gid = 0
        entry.uname = entry.gname = "root"
        entry.mtime = epoch
        entry.mode = 0o755 if entry.isdir() or entry.name.endswith(".sh") else 0o644
        return entry

    with tarfile.open(to, "w", format=tarfile.PAX_FORMAT) as archive:
        for path in sorted(kit.rglob("*")):
            name = f"{kit.name}/{path.relative_to(kit)}"
            archive.add(path, name, recursive=False, filter=plain)


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file in hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def kit_name(version: str, extras: Iterable[str], *, cuda: bool) -> str:
    """Return a kit's name, which is also that of the folder in its tar file."""
    python = f"cp{sys.version_info.major}{sys.version_info.minor}"
    what = "-".join(sorted(extras)) or "auditor"
    words = ["privet-kit", version, what, python, sysconfig.get_platform()]
    return "-".join([*words, *(["cuda"] if cuda else [])])


def make(out: Path, extras: list[str], *, cuda: bool = False) -> Path:
    """Make a kit in ``out``, and return the path of its tar file.

    Raises:
        KitError: if pip finds no wheels, finds CUDA's, or finds what is not pinned.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    constraints = ROOT / "constraints.txt"
    pins = resolve(requirements(project, extras), constraints)
    check(pins, pinned(constraints.read_text()), cuda=cuda)
    epoch = int(run("git", "log", "-1", "--format=%ct", cwd=ROOT))
    name = kit_name(project["version"], extras, cuda=cuda)
    out = out.absolute()  # what builds the wheel works in another folder
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out) as place:
        kit = Path(place) / name
        (kit / "wheels").mkdir(parents=True)
        lines = "".join(f"{p.name}=={p.version} --hash=sha256:{p.sha256}\n" for p in pins)
        (Path(place) / "pins.txt").write_text(lines)
        _pip(
            "download", "--quiet", "--no-deps", "--require-hashes", "--only-binary", ":all:",
            "-r", str(Path(place) / "pins.txt"), "-d", str(kit / "wheels"),
        )  # fmt: skip
        build(kit / "wheels", epoch)
        lay_out(kit, sorted(extras), epoch)
        done = out / f"{name}.tar"
        pack(kit, done, epoch)
        shutil.copy(kit / "code.json", out / f"{name}.code.json")
    return done


def _pip(*words: str) -> str:
    return run(sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", *words)


def run(*words: str, cwd: Path | None = None, **environment: str) -> str:
    """Run a program and return what it printed.

    Raises:
        KitError: with what it said, if it failed.
    """
    done = subprocess.run(
        words, cwd=cwd, capture_output=True, text=True, check=False,
        env={**os.environ, **environment},
    )  # fmt: skip
    if done.returncode:
        said = done.stderr.strip() or done.stdout.strip()
        raise KitError(f"{Path(words[0]).name} failed:\n{said}")
    return done.stdout


def main() -> int:
    """Make the kit that the command line asks for."""
    parser = argparse.ArgumentParser(description="Make an offline install kit of Privet.")
    parser.add_argument(
        "--extra", action="append", default=[], metavar="NAME",
        help="an extra of pyproject.toml, such as train; again for more; none for an auditor",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, default=Path("dist"), metavar="DIR")
    parser.add_argument("--cuda", action="store_true", help="take a torch for CUDA")
    given = parser.parse_args()
    if platform.system() != "Linux":
        print("kit: kits are made on Linux, for Linux", file=sys.stderr)
        return 2
    try:
        done = make(given.out, given.extra, cuda=given.cuda)
    except KitError as error:
        print(f"kit: {error}", file=sys.stderr)
        return 1
    print(f"{sha256(done)}  {done}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
