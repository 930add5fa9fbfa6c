"""What the charts' pods run and may do; the parts that can be run are run."""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import signal
import socket
import ssl
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from chart_kit import CHARTS, FIGURES, GIVEN, SITE, Helm, command_fault, find_helm, merged, one_of

from privet.common.files.private_files import privacy_fault
from privet.common.output.metrics import Endpoint, registry

pytestmark = pytest.mark.xdist_group("helm")
ALL = {"metrics": FIGURES}


@pytest.fixture(scope="module")
def helm(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Helm:
    place = tmp_path_factory.mktemp("helm")
    return Helm(find_helm(place), root / "deploy" / "helm", place)


def pod(manifests: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what the StatefulSet says of its pod."""
    spec: dict[str, Any] = one_of(manifests, "StatefulSet")["spec"]["template"]["spec"]
    return spec


def unrestricted(spec: dict[str, Any]) -> list[str]:
    """Return what Kubernetes' Pod Security Standard `restricted` refuses in a pod.

    https://kubernetes.io/docs/concepts/security/pod-security-standards/
    """
    whole = spec.get("securityContext", {})
    kinds = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim",
             "projected", "secret"}  # fmt: skip
    found = [key for key in ("hostNetwork", "hostPID", "hostIPC") if spec.get(key)]
    found += [v["name"] for v in spec["volumes"] if not (v.keys() - {"name"}) <= kinds]
    if whole.get("runAsNonRoot") is not True:
        found.append("runAsNonRoot")
    if whole.get("seccompProfile", {}).get("type") not in ("RuntimeDefault", "Localhost"):
        found.append("seccompProfile")
    for one in spec["containers"]:
        own = one.get("securityContext", {})
        if own.get("allowPrivilegeEscalation") is not False or own.get("privileged"):
            found.append("privileges")
        if own.get("capabilities") != {"drop": ["ALL"]}:
            found.append("capabilities")
        if 0 in (own.get("runAsUser"), whole.get("runAsUser")):
            found.append("runAsUser")
        found += ["hostPort" for port in one.get("ports", []) if "hostPort" in port]
    return found


@pytest.mark.parametrize("chart", CHARTS)
def test_a_pod_is_restricted(helm: Helm, root: Path, chart: str) -> None:
    spec = pod(helm.render(chart, {**CHARTS[chart], **ALL}))
    assert unrestricted(spec) == []
    assert spec["automountServiceAccountToken"] is False
    for one in spec["containers"]:
        assert one["securityContext"]["readOnlyRootFilesystem"] is True
    # The user is the image's, and another than that of what passes figures on.
    text = (root / "deploy" / "container" / "Containerfile").read_text()
    (user,) = re.findall(r"^USER (\d+):", text, re.MULTILINE)
    assert spec["securityContext"]["runAsUser"] == int(user)
    assert spec["containers"][1]["securityContext"]["runAsUser"] != int(user)
    # Anything else would open private keys to the group.
    assert spec["securityContext"]["fsGroupChangePolicy"] == "OnRootMismatch"


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"hostNetwork": True}, "hostNetwork"),
        ({"securityContext": {"runAsNonRoot": True}}, "seccompProfile"),
        ({"volumes": [{"name": "disk", "hostPath": {"path": "/"}}]}, "disk"),
    ],
)
def test_a_pod_that_is_not_restricted_is_noticed(
    helm: Helm, change: dict[str, Any], found: str
) -> None:
    assert unrestricted({**pod(helm.render("privet-site", SITE)), **change}) == [found]


@pytest.mark.parametrize("chart", CHARTS)
def test_there_is_never_a_second_process(helm: Helm, chart: str) -> None:
    """A Deployment, or storage for many, would let two pods have one folder."""
    manifests = helm.render(chart, CHARTS[chart])
    assert not [one for one in manifests if one["kind"] in ("Deployment", "ReplicaSet", "Job")]
    spec = one_of(manifests, "StatefulSet")["spec"]
    assert spec["replicas"] == 1
    (claim,) = spec["volumeClaimTemplates"]
    assert claim["spec"]["accessModes"] == ["ReadWriteOncePod"]
    kept = spec["persistentVolumeClaimRetentionPolicy"]
    assert kept == {"whenDeleted": "Retain", "whenScaled": "Retain"}
    assert one_of(helm.render(chart, {**CHARTS[chart], "replicas": 0}), "StatefulSet")["spec"][
        "replicas"
    ] == 0  # fmt: skip


@pytest.mark.parametrize("metrics", [{}, ALL])
@pytest.mark.parametrize("chart", CHARTS)
def test_a_pod_starts_what_the_image_starts(
    helm: Helm, root: Path, chart: str, metrics: dict[str, Any]
) -> None:
    words = pod(helm.render(chart, {**CHARTS[chart], **metrics}))["containers"][0]["args"]
    assert command_fault(words) is None
    text = (root / "deploy" / "container" / "Containerfile").read_text()
    images = [json.loads(value) for value in re.findall(r"^CMD (\[.*\])$", text, re.MULTILINE)]
    assert [own for own in images if words[: len(own)] == own]
    assert ("--metrics" in words) is bool(metrics)


@pytest.mark.parametrize("chart", CHARTS)
def test_a_pod_is_given_the_time_that_compose_gives(helm: Helm, root: Path, chart: str) -> None:
    compose = yaml.safe_load((root / "deploy" / "container" / "compose.yaml").read_text())
    # A site sends what it has paid for before it ends: an hour, as a round may take by default.
    service, words, seconds = (
        ("north", "1h", 3600) if chart == "privet-site" else ("hub", "2m", 120)
    )
    assert compose["services"][service]["stop_grace_period"] == words
    assert pod(helm.render(chart, CHARTS[chart]))["terminationGracePeriodSeconds"] == seconds


def test_a_site_is_called_by_nobody_and_calls_who_is_named(helm: Helm) -> None:
    manifests = helm.render("privet-site", SITE)
    assert {one["kind"] for one in manifests} == {"NetworkPolicy", "StatefulSet"}
    assert not [one for one in pod(manifests)["containers"] if "ports" in one]
    policy = one_of(manifests, "NetworkPolicy")["spec"]
    assert policy["policyTypes"] == ["Ingress", "Egress"] and policy["ingress"] == []
    names, hub = policy["egress"]
    assert {port["port"] for port in names["ports"]} == {53}
    assert hub["to"] == [{"ipBlock": {"cidr": "203.0.113.7/32"}}]
    assert [port["port"] for port in hub["ports"]] == [7443, 7444]
    # With figures, their port and no other.
    policy = one_of(helm.render("privet-site", {**SITE, **ALL}), "NetworkPolicy")["spec"]
    ((port,),) = [one["ports"] for one in policy["ingress"]]
    assert port["port"] == 9443 and policy["ingress"][0]["from"]


def test_a_coordinator_is_called_at_its_ports_and_calls_nobody(helm: Helm) -> None:
    manifests = helm.render("privet-coordinator", GIVEN)
    (container,) = pod(manifests)["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    words = container["args"]
    assert words[words.index("--listen") + 1] == f"[::]:{ports['link']}"
    assert words[words.index("--listen-enrolment") + 1] == f"[::]:{ports['enrolment']}"
    service = one_of(manifests, "Service")["spec"]
    assert {port["targetPort"] for port in service["ports"]} == ports.keys()
    assert (
        service["selector"].items()
        <= one_of(manifests, "StatefulSet")["spec"]["template"]["metadata"]["labels"].items()
    )
    policy = one_of(manifests, "NetworkPolicy")["spec"]
    assert policy["egress"] == []
    assert {one["ports"][0]["port"] for one in policy["ingress"]} == set(ports.values())
    closed = helm.render("privet-coordinator", {**GIVEN, "service": {"enrolment": False}})
    assert [one["ports"][0]["port"] for one in one_of(closed, "NetworkPolicy")["spec"]["ingress"]
            ] == [ports["link"]]  # fmt: skip


def test_a_coordinator_is_probed_as_its_image_is(helm: Helm, root: Path) -> None:
    (container,) = pod(helm.render("privet-coordinator", GIVEN))["containers"]
    text = (root / "deploy" / "container" / "Containerfile").read_text()
    (port,) = set(re.findall(r"create_connection\(\('127\.0\.0\.1', (\d+)\)", text))
    named = {one["name"]: one["containerPort"] for one in container["ports"]}
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert named[container[probe]["tcpSocket"]["port"]] == int(port)


def test_a_site_that_is_not_connected_is_not_restarted(helm: Helm) -> None:
    for values in (SITE, {**SITE, **ALL}):
        own = pod(helm.render("privet-site", values))["containers"][0]
        assert "livenessProbe" not in own and "startupProbe" not in own


def test_a_site_is_ready_when_it_is_connected(helm: Helm) -> None:
    """Run against the figures themselves."""
    own = pod(helm.render("privet-site", {**SITE, **ALL}))["containers"][0]
    program, *words = own["readinessProbe"]["exec"]["command"]
    port = own["args"][own["args"].index("--metrics") + 1]
    assert program == "python" and port in words[-1]
    connected = False

    def probed(at: int) -> int:
        code = words[-1].replace(port, str(at))
        environment = {**os.environ, "http_proxy": "http://127.0.0.1:1"}
        return subprocess.run(
            [sys.executable, *words[:-1], code], capture_output=True, check=False, env=environment
        ).returncode

    with Endpoint(registry("client"), ("127.0.0.1", 0), lambda: connected) as figures:
        assert probed(figures.port) != 0
        connected = True
        assert probed(figures.port) == 0
    assert probed(figures.port) != 0


@pytest.mark.parametrize("chart", CHARTS)
def test_in_maintenance_a_pod_waits_and_ends_when_told(helm: Helm, chart: str) -> None:
    own = pod(helm.render(chart, merged(CHARTS[chart], {"maintenance": True})))["containers"][0]
    assert "args" not in own and not [name for name in own if name.endswith("Probe")]
    assert own["command"][0] == "python"
    process = subprocess.Popen([sys.executable, *own["command"][1:]])
    try:
        status = Path(f"/proc/{process.pid}/status")
        until = time.monotonic() + 30
        caught = 1 << (signal.SIGTERM - 1)
        while not int(re.findall(r"SigCgt:\s*(\w+)", status.read_text())[0], 16) & caught:
            assert time.monotonic() < until and process.poll() is None
            time.sleep(0.05)
        assert process.poll() is None
        process.terminate()
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("chart", CHARTS)
def test_privet_takes_the_passphrase_as_it_is_mounted(helm: Helm, chart: str) -> None:
    spec = pod(helm.render(chart, CHARTS[chart]))
    own = spec["containers"][0]
    (named,) = [one["value"] for one in own["env"] if one["name"] == "PRIVET_PASSPHRASE_FILE"]
    (mount,) = [one for one in own["volumeMounts"] if one["name"] == "passphrase"]
    (volume,) = [one["secret"] for one in spec["volumes"] if one["name"] == "passphrase"]
    assert named == f"{mount['mountPath']}/{volume['items'][0]['path']}"

    def fault(mode: int) -> str | None:
        """Kubernetes gives such a file to root, and to the pod's group."""
        somebody = os.geteuid() + 1
        facts = (stat.S_IFREG | mode, 0, 0, 1, somebody, spec["securityContext"]["fsGroup"])
        return privacy_fault(Path(named), os.stat_result((*facts, 0, 0, 0, 0)))

    assert volume["defaultMode"] & 0o040 and fault(volume["defaultMode"]) is None
    assert "all users" in (fault(0o444) or "")


def test_a_gpu_is_asked_for_and_limits_stay(helm: Helm) -> None:
    values = merged(SITE, {"gpu": {"count": 2}})
    resources = pod(helm.render("privet-site", values))["containers"][0]["resources"]
    assert resources["limits"] == {"memory": "8Gi", "nvidia.com/gpu": 2}
    plain = pod(helm.render("privet-site", SITE))["containers"][0]["resources"]
    assert plain["limits"] == {"memory": "8Gi"}


# what passes figures on

NGINX = os.environ.get("NGINX") or shutil.which("nginx")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def certificates(folder: Path) -> None:
    """Write an authority, and certificates of the proxy and of who asks it."""

    def openssl(*words: str) -> None:
        subprocess.run(["openssl", *words], cwd=folder, check=True, capture_output=True)

    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    for name in ("ca", "stranger"):
        openssl("req", "-x509", *curve, "-keyout", f"{name}.key", "-out", f"{name}.crt",
                "-subj", f"/CN={name}", "-days", "2")  # fmt: skip
    for name in ("tls", "asks"):
        openssl("req", *curve, "-keyout", f"{name}.key", "-out", f"{name}.csr",
                "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost")  # fmt: skip
        openssl("x509", "-req", "-in", f"{name}.csr", "-CA", "ca.crt", "-CAkey", "ca.key",
                "-CAcreateserial", "-copy_extensions", "copy", "-days", "2",
                "-out", f"{name}.crt")  # fmt: skip


@pytest.mark.parametrize("chart", CHARTS)
def test_the_proxy_asks_for_a_certificate(helm: Helm, chart: str) -> None:
    """What it then does is tried below, where nginx is."""
    manifests = helm.render(chart, {**CHARTS[chart], **ALL})
    text = one_of(manifests, "ConfigMap")["data"]["nginx.conf"]
    words = pod(manifests)["containers"][0]["args"]
    assert "ssl_verify_client on;" in text
    port = words[words.index("--metrics") + 1]
    assert re.findall(r"proxy_pass (\S+);", text) == [f"http://127.0.0.1:{port}"]


@pytest.fixture
def proxy(helm: Helm, tmp_path: Path) -> Iterator[int]:
    """The port of nginx with the chart's configuration, and figures behind it."""
    if NGINX is None or shutil.which("openssl") is None:
        pytest.skip("nginx is not installed (package nginx-light); NGINX may name the program")
    certificates(tmp_path)
    manifests = helm.render("privet-site", {**SITE, **ALL})
    text = one_of(manifests, "ConfigMap")["data"]["nginx.conf"]
    shown = free_port()
    with Endpoint(registry("client"), ("127.0.0.1", 0), lambda: True) as figures:
        for old, new in (
            ("9443", f"127.0.0.1:{shown}"),
            ("127.0.0.1:9465", f"127.0.0.1:{figures.port}"),
            ("/tmp", str(tmp_path)),
            ("/run/secrets/metrics", str(tmp_path)),
        ):
            assert old in text
            text = text.replace(old, new)
        (tmp_path / "nginx.conf").write_text(text)
        own = pod(manifests)["containers"][1]["command"]
        assert own[0] == "nginx"
        there = {"/etc/privet-metrics/nginx.conf": str(tmp_path / "nginx.conf")}
        words = [NGINX, *(there.get(word, word) for word in own[1:])]
        process = subprocess.Popen(words, stderr=subprocess.DEVNULL)
        try:
            until = time.monotonic() + 30
            while process.poll() is None and time.monotonic() < until:
                try:
                    socket.create_connection(("127.0.0.1", shown), 1).close()
                    break
                except OSError:
                    time.sleep(0.05)
            assert process.poll() is None
            yield shown
        finally:
            process.terminate()
            process.wait(30)


def asked(port: int, folder: Path, name: str, path: str) -> tuple[int, bytes]:
    context = ssl.create_default_context(cafile=str(folder / "ca.crt"))
    if name:
        context.load_cert_chain(folder / f"{name}.crt", folder / f"{name}.key")
    link = http.client.HTTPSConnection("localhost", port, context=context, timeout=10)
    try:
        link.request("GET", path)
        answer = link.getresponse()
        return answer.status, answer.read()
    finally:
        link.close()


def test_figures_are_for_who_shows_a_certificate(proxy: int, tmp_path: Path) -> None:
    code, text = asked(proxy, tmp_path, "asks", "/metrics")
    assert code == 200 and b"privet_info" in text
    assert asked(proxy, tmp_path, "asks", "/-/ready")[0] == 404
    for name in ("", "stranger"):
        code, text = asked(proxy, tmp_path, name, "/metrics")
        assert code == 400 and b"privet_info" not in text
