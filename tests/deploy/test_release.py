"""A release: refused where it must be, complete, and checked by whoever has the public key alone."""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from types import ModuleType

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from privet.common import code
from privet.common.errors import PrivetError
from privet.privacy.evidence.keys import FileSigner
from privet.privacy.evidence.signed_note import Key, key_name

ALONE = ("unshare", "--map-root-user", "--net")
WHO = {"GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@example.org", "GIT_COMMITTER_NAME": "a",
       "GIT_COMMITTER_EMAIL": "a@example.org"}  # fmt: skip


class Clone:
    """A checkout of its own, with what this one has in it, committed once."""

    def __init__(self, root: Path, folder: Path) -> None:
        self.folder, self.key = folder, folder.parent / "release.pem"
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=root, capture_output=True, text=True, check=True,
        )  # fmt: skip
        for name in filter(None, listed.stdout.split("\0")):
            if (root / name).is_symlink() or (root / name).exists():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(root / name, folder / name, follow_symlinks=False)
        self.git("init", "--quiet", ".")
        self.commit()
        FileSigner.generate().save(self.key, None)

    def git(self, *words: str) -> None:
        subprocess.run(["git", *words], cwd=self.folder, check=True, env={**os.environ, **WHO})

    def commit(self) -> None:
        self.git("add", "--all")
        self.git("commit", "--quiet", "--message", "a change")

    def write(self, name: str, old: str, new: str) -> None:
        text = (self.folder / name).read_text(encoding="utf-8")
        assert old in text
        (self.folder / name).write_text(text.replace(old, new, 1), encoding="utf-8")

    def release(self, *words: str, alone: tuple[str, ...] = ()) -> tuple[int, str]:
        done = subprocess.run(
            [*alone, sys.executable, "deploy/release.py", *words], cwd=self.folder,
            capture_output=True, text=True, timeout=600, env={**os.environ, "PYTHONPATH": ""},
        )  # fmt: skip
        return done.returncode, done.stdout + done.stderr

    def make(self, out: str) -> tuple[int, str]:
        alone = () if subprocess.run([*ALONE, "true"], check=False).returncode else ALONE
        return self.release("--key", str(self.key), "--out", out, alone=alone)


@pytest.fixture(scope="module")
def release(root: Path) -> ModuleType:
    """``deploy/release.py``, as a module."""
    sys.path.insert(0, str(root / "deploy"))
    try:
        return importlib.import_module("release")
    finally:
        sys.path.remove(str(root / "deploy"))


@pytest.fixture(scope="module")
def clone(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Clone:
    made = Clone(root, tmp_path_factory.mktemp("release") / "clone")
    text = (made.folder / "CHANGELOG.md").read_text(encoding="utf-8")
    if "## [0.1.0]" not in text:
        rc, said = made.make("dist")
        assert rc == 1 and "there is no section '## [0.1.0]" in said
        made.write(
            "CHANGELOG.md", "## [Unreleased]\n", "## [Unreleased]\n\n## [0.1.0] - 2026-12-01\n"
        )
        rc, said = made.make("dist")
        assert rc == 1 and "not as they were committed" in said
        made.commit()
    return made


@pytest.mark.slow
def test_a_release_is_complete_and_can_be_checked(
    clone: Clone, root: Path, release: ModuleType
) -> None:
    rc, said = clone.make("dist")
    assert rc == 0, said
    dist = clone.folder / "dist"
    stem = "privet-0.1.0"
    names = {f"{stem}-py3-none-any.whl", f"{stem}.tar.gz", f"{stem}.cdx.json", f"{stem}.note",
             f"{stem}.changes.md", f"{stem}.code.json", "SHA256SUMS"}  # fmt: skip
    assert {path.name for path in dist.iterdir()} == names
    vkey = re.findall(r"^signed by (\S+)$", said, re.MULTILINE)[0]

    rc, note = clone.release("--check", "dist", "--vkey", vkey)
    assert rc == 0, note
    head = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=clone.folder, capture_output=True, text=True
    )
    assert note.startswith(f"privet release 0.1.0\ncommit {head.stdout}code.auditor sha256:")

    # The ten lines of the page say the same.
    page = (root / "docs/how-to/release.md").read_text(encoding="utf-8")
    (lines,) = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    check = [sys.executable, "-c", lines, str(dist), vkey]
    done = subprocess.run(check, capture_output=True, text=True)
    assert done.stdout == note, done.stderr

    # The code of the note is that of the wheel, and of the source archive.
    codes = json.loads((dist / f"{stem}.code.json").read_text())
    assert f"code.site {codes['site']['code']}\n" in note
    here = code.sources(clone.folder / "privet")
    with zipfile.ZipFile(dist / f"{stem}-py3-none-any.whl") as wheel:
        assert {name: wheel.read(name) for name in here} == here
    with tarfile.open(dist / f"{stem}.tar.gz") as archive:
        members = {one.name.partition("/")[2]: one for one in archive if one.isfile()}
        assert all(archive.extractfile(members[name]).read() == here[name] for name in here)  # type: ignore[union-attr]
    assert codes["site"]["manifest"]["sources"] == code.digest_files(here)
    assert "torch" in codes["site"]["manifest"]["libraries"]
    assert "torch" not in codes["auditor"]["manifest"]["libraries"]

    bom = (dist / f"{stem}.cdx.json").read_text()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(bom) is None
    found = {one["name"]: one for one in json.loads(bom)["components"]}
    wheel_sum = hashlib.sha256((dist / f"{stem}-py3-none-any.whl").read_bytes()).hexdigest()
    assert found["privet"]["hashes"] == [{"alg": "SHA-256", "content": wheel_sum}]
    assert {"torch", "flwr", "cryptography"} <= set(found)
    assert not {"mypy", "mkdocs"} & set(found)

    # Whatever is changed is noticed, and another's signature is.
    for name in sorted(names):
        path, before = dist / name, (dist / name).read_bytes()
        path.write_bytes(before.replace(b"0", b"1", 1) if b"0" in before else before + b"\n")
        with pytest.raises((release.ReleaseError, PrivetError)):
            release.check(dist, vkey)
        path.write_bytes(before)
    other = FileSigner.generate().public
    stranger = str(Key(key_name("release", "privet", other), other))
    with pytest.raises(release.ReleaseError, match="is not signed by"):
        release.check(dist, stranger)
    assert subprocess.run([*check[:-1], stranger], capture_output=True).returncode != 0
    assert release.check(dist, vkey) == note

    # A version that has a tag is not released again.
    clone.git("tag", "v0.1.0")
    rc, said = clone.make("dist")
    assert rc == 1 and "the tag v0.1.0 exists" in said


def test_it_says_which_key_is_missing(clone: Clone) -> None:
    for words in ([], ["--key", ""]):
        rc, said = clone.release(*words)
        assert rc == 1 and "make release KEY=FILE" in said
        assert "Traceback" not in said


def test_a_source_archive_depends_on_content_alone(release: ModuleType, tmp_path: Path) -> None:
    made = []
    for number in (1, 2):
        tree = tmp_path / str(number) / "privet-0.1.0"
        tree.mkdir(parents=True)
        (tree / "a.py").write_text("1")
        os.utime(tree / "a.py", (number, number))
        archive = tmp_path / f"{number}.tar.gz"
        with tarfile.open(archive, "w:gz") as stream:
            stream.add(tree, "privet-0.1.0")
        made.append(archive.read_bytes())
        release.plain(archive, 1_700_000_000)
        made.append(archive.read_bytes())
    assert made[0] != made[2]  # the control
    assert made[1] == made[3]


def test_the_changelogs_section(release: ModuleType) -> None:
    text = (
        "# C\n\n## [Unreleased]\n\n- u\n\n## [1.0.0] - 2026-01-02\n\n- a\n\n## [0.9] - 2025-01-01\n"
    )
    assert release.section(text, "1.0.0") == "- a\n"
    for version in ("0.9", "1.0", "2.0.0", "1.0.00"):
        with pytest.raises(release.ReleaseError, match="there is no section"):
            release.section(text, version)
