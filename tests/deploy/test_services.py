"""Unit files, Containerfile and compose file: what they start exists, and what they promise."""

from __future__ import annotations

import itertools
import json
import re
import shlex
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from chart_kit import command_fault

UNITS = ("privet-server", "privet-client")
STATE = "/var/lib/privet"


def unit(root: Path, name: str) -> dict[str, list[str]]:
    """Return the settings of ``[Service]``; a setting may stand there more than once."""
    found: dict[str, list[str]] = {}
    section = ""
    for line in (root / "deploy" / "systemd" / f"{name}.service").read_text().splitlines():
        if line.startswith("["):
            section = line
        elif section == "[Service]" and line and not line.startswith("#"):
            key, _, value = line.partition("=")
            found.setdefault(key, []).append(value)
    return found


def containerfile(root: Path) -> list[tuple[str, str]]:
    """Return the instructions, continued lines joined."""
    text = (root / "deploy" / "container" / "Containerfile").read_text()
    lines = re.sub(r"\\\n", " ", re.sub(r"^#.*\n", "", text, flags=re.MULTILINE)).splitlines()
    return [(one.split()[0], one.split(maxsplit=1)[1]) for one in lines if one.strip()]


def compose(root: Path) -> Any:
    return yaml.safe_load((root / "deploy" / "container" / "compose.yaml").read_text())


# systemd


@pytest.mark.parametrize("name", UNITS)
def test_a_unit_starts_a_command_that_exists(root: Path, name: str) -> None:
    program, *words = shlex.split(unit(root, name)["ExecStart"][0])
    assert program == "/opt/privet/bin/privet"
    assert command_fault(words) is None
    assert words[-1].startswith(STATE)


@pytest.mark.parametrize(
    "words", [["server", "begin", "hub"], ["client", "start", "--polcy", "x"], ["server", "start"]]
)
def test_a_command_that_is_not_there_is_noticed(words: list[str]) -> None:
    assert command_fault(words)


@pytest.mark.parametrize("name", UNITS)
def test_a_unit_keeps_its_process_in(root: Path, name: str) -> None:
    service = unit(root, name)
    for key, value in {
        "User": "privet", "NoNewPrivileges": "yes", "ProtectSystem": "strict",
        "ProtectHome": "yes", "PrivateTmp": "yes", "PrivateDevices": "yes",
        "CapabilityBoundingSet": "", "StateDirectory": "privet", "KillSignal": "SIGTERM",
        "RestrictAddressFamilies": "AF_INET AF_INET6 AF_UNIX", "Restart": "on-failure",
        "LimitCORE": "0",
    }.items():  # fmt: skip
        assert service[key] == [value]
    # The trainer's process confines itself further.
    assert service["SystemCallFilter"][0].split()[:2] == ["@system-service", "seccomp"]
    assert service["SystemCallFilter"][1:] == ["~@privileged"]
    # The passphrase is a credential, in no variable and on no command line.
    assert service["LoadCredentialEncrypted"] == ["passphrase:/etc/privet/passphrase.cred"]
    where = f"PRIVET_PASSPHRASE_FILE=/run/credentials/{name}.service/passphrase"
    assert where in service["Environment"]
    assert "PRIVET_PASSPHRASE=" not in str(service)


SYSTEMD = pytest.mark.skipif(
    not shutil.which("systemd-analyze"), reason="systemd-analyze is not here"
)


def analyzed(*words: str | Path) -> str:
    """Return all that systemd-analyze says."""
    done = subprocess.run(["systemd-analyze", *words], capture_output=True, text=True, check=False)
    said = done.stderr + done.stdout
    if "connect" in said or "unknown option" in said.lower():
        pytest.skip(f"systemd-analyze does not do this here: {said.strip().splitlines()[0]}")
    return said


def laid_out(root: Path, to: Path, name: str, *drop_ins: str) -> Path:
    """Copy a unit with its drop-ins; what it starts is not installed here."""
    folder = root / "deploy" / "systemd"
    text = (folder / f"{name}.service").read_text().replace("/opt/privet/bin/privet", "/bin/true")
    unit_file = to / f"{name}.service"
    unit_file.write_text(text)
    for one in drop_ins:
        (to / f"{name}.service.d").mkdir(exist_ok=True)
        shutil.copy(folder / one, to / f"{name}.service.d")
    return unit_file


@SYSTEMD
@pytest.mark.parametrize(
    ("name", "drop_ins"),
    [("privet-server", ()), ("privet-client", ()), ("privet-client", ("cuda.conf",))],
)
def test_systemd_takes_the_unit(
    root: Path, tmp_path: Path, name: str, drop_ins: tuple[str, ...]
) -> None:
    unit_file = laid_out(root, tmp_path, name, *drop_ins)
    assert name not in analyzed("verify", "--recursive-errors=no", unit_file)
    # The control, in what was added last.
    last = tmp_path / f"{name}.service.d" / drop_ins[-1] if drop_ins else unit_file
    last.write_text(last.read_text().replace("[Service]\n", "[Service]\nNonsense=1\n"))
    assert "Nonsense" in analyzed("verify", "--recursive-errors=no", unit_file)


@SYSTEMD
@pytest.mark.parametrize("name", UNITS)
def test_systemd_finds_little_exposed(root: Path, tmp_path: Path, name: str) -> None:
    def exposure() -> float:
        said = analyzed("security", "--offline=true", "--no-pager", unit_file)
        return float(re.findall(r"exposure level for .*: ([0-9.]+)", said)[-1])

    unit_file = laid_out(root, tmp_path, name)
    assert exposure() <= 1.5
    text = unit_file.read_text()
    unit_file.write_text(text.replace("NoNewPrivileges=yes\n", "").replace("User=privet\n", ""))
    assert exposure() > 1.5


# containers


def test_an_image_runs_as_nobody_of_note(root: Path) -> None:
    steps = containerfile(root)
    assert [value for name, value in steps if name == "USER"] == ["10001:10001"]
    assert "ADD" not in dict(steps)
    # After USER nothing is copied or run, so nothing in the image is its user's to change.
    after = [name for name, _ in steps[[name for name, _ in steps].index("USER") :]]
    assert set(after) <= {
        "USER", "STOPSIGNAL", "ENTRYPOINT", "FROM", "EXPOSE", "HEALTHCHECK", "CMD",
    }  # fmt: skip
    assert ("ENTRYPOINT", '["privet"]') in steps


def test_an_image_starts_a_command_that_exists(root: Path) -> None:
    commands = [json.loads(value) for name, value in containerfile(root) if name == "CMD"]
    assert len(commands) == 2
    assert [command_fault(words) for words in commands] == [None, None]


def checks_health(root: Path) -> list[str]:
    """Return the health check of the coordinator's image."""
    found = [value for name, value in containerfile(root) if name == "HEALTHCHECK"]
    assert found[0] == "NONE" and len(found) == 2
    words: list[str] = json.loads(found[1][found[1].index("[") :])
    return words


def test_a_coordinators_health_is_checked_in_images_of_any_format(root: Path) -> None:
    """OCI images have no health check; what makes the container, or the image, must say so."""
    own = compose(root)["services"]["hub"]["healthcheck"]
    assert own["test"] == ["CMD", *checks_health(root)]
    _, value = [one for one in containerfile(root) if one[0] == "HEALTHCHECK"][1]
    given = dict(re.findall(r"--([\w-]+)=(\S+)", value))
    named = {name.replace("_", "-"): str(value) for name, value in own.items() if name != "test"}
    assert named == given
    text = (root / "docs" / "how-to" / "install.md").read_text()
    text += (root / "deploy" / "container" / "Containerfile").read_text()
    builds = re.findall(r"^.*podman build.*$", text, re.MULTILINE)
    assert len(builds) == 4 and all("--format docker" in line for line in builds)


def test_a_health_check_knows_who_listens(root: Path) -> None:
    program, *words = checks_health(root)
    assert program == "python" and "7443" in words[-1]
    with socket.create_server(("127.0.0.1", 0)) as listener:
        words[-1] = words[-1].replace("7443", str(listener.getsockname()[1]))
        assert subprocess.run([sys.executable, *words], check=False).returncode == 0
    done = subprocess.run([sys.executable, *words], check=False, capture_output=True)
    assert done.returncode == 1 and b"refused" in done.stderr


def test_an_image_takes_its_packages_from_the_kit_alone(root: Path) -> None:
    runs = [value for name, value in containerfile(root) if name == "RUN"]
    assert '["sh", "/kit/install.sh", "/opt/privet"]' in runs
    assert not [run for run in runs if re.search(r"\b(pip|apt|apt-get|curl|wget)\b", run)]


def test_every_service_is_hardened(root: Path) -> None:
    services = compose(root)["services"]
    assert set(services) == {"hub", "north", "east"}
    for name, service in services.items():
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert service["user"] == "10001:10001"
        assert service["secrets"] == [{"source": name, "target": "passphrase"}]
        assert service["environment"] == {"PRIVET_PASSPHRASE_FILE": "/run/secrets/passphrase"}
        assert "privileged" not in service and "ports" not in service
        writable = [volume for volume in service["volumes"] if not volume.endswith(":ro")]
        assert writable == [f"./state/{name}:{STATE}"]


def test_a_site_reaches_the_coordinator_and_nothing_else(root: Path) -> None:
    value = compose(root)
    assert all(network["internal"] is True for network in value["networks"].values())
    joined = {name: set(service["networks"]) for name, service in value["services"].items()}
    sites = joined.keys() - {"hub"}
    for site in sites:
        assert joined[site] & joined["hub"]
    for one, other in itertools.combinations(sites, 2):
        assert not joined[one] & joined[other]


def test_the_gpu_file_changes_services_that_exist(root: Path) -> None:
    more = yaml.safe_load((root / "deploy" / "container" / "compose.cuda.yaml").read_text())
    assert set(more["services"]) == set(compose(root)["services"]) - {"hub"}
