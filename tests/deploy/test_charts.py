"""The Helm charts: linted, rendered, held against Kubernetes' own schemas, and what they refuse."""

from __future__ import annotations

import json
import re
import shlex
import tarfile
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from chart_kit import CHARTS, FIGURES, GIVEN, SITE, Helm, command_fault, find_helm, merged, one_of

pytestmark = pytest.mark.xdist_group("helm")
OWN = ("PodMonitor", "PrometheusRule")
"""Kinds of the Prometheus operator, which Kubernetes has no schema of."""
EVERYTHING: dict[str, Any] = {
    "metrics": FIGURES,
    "imagePullSecrets": [{"name": "pull"}],
    "extraEnv": [{"name": "HTTPS_PROXY", "value": "http://proxy.example:3128"}],
    "extraVolumes": [{"name": "more", "emptyDir": {}}],
    "extraVolumeMounts": [{"name": "more", "mountPath": "/more"}],
    "nodeSelector": {"disk": "ssd"},
    "tolerations": [{"key": "gpu", "operator": "Exists"}],
    "priorityClassName": "high",
    "podLabels": {"team": "data"},
    "podAnnotations": {"note": "yes"},
}
SITE_EVERYTHING = {
    "records": {"existingClaim": "records"},
    "database": {"existingSecret": "database"},
    "gpu": {"count": 1, "runtimeClassName": "nvidia"},
    "persistence": {"existingClaim": "folder"},
    "networkPolicy": {
        "database": {"cidrs": ["10.0.0.5/32"]},
        "proxy": {"cidrs": ["10.0.0.6/32", "2001:db8::/64"]},
        "extraEgress": [{"to": [{"podSelector": {}}]}],
    },
}
COORDINATOR_EVERYTHING = {
    "service": {"type": "LoadBalancer", "loadBalancerSourceRanges": ["198.51.100.0/24"]},
    "networkPolicy": {"linkCidrs": ["198.51.100.0/24"], "enrolmentCidrs": ["198.51.100.0/24"]},
    "persistence": {"storageClass": "fast", "accessMode": "ReadWriteOnce"},
}
CASES = [
    ("privet-site", SITE),
    ("privet-site", merged(SITE, {"maintenance": True})),
    ("privet-site", merged(merged(SITE, EVERYTHING), SITE_EVERYTHING)),
    ("privet-coordinator", GIVEN),
    ("privet-coordinator", merged(GIVEN, {"maintenance": True})),
    ("privet-coordinator", merged(merged(GIVEN, EVERYTHING), COORDINATOR_EVERYTHING)),
]


@pytest.fixture(scope="module")
def helm(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Helm:
    place = tmp_path_factory.mktemp("helm")
    return Helm(find_helm(place), root / "deploy" / "helm", place)


# the charts as files


@pytest.mark.parametrize("chart", CHARTS)
def test_a_chart_has_the_version_of_the_package(root: Path, chart: str) -> None:
    version = tomllib.loads((root / "pyproject.toml").read_text())["project"]["version"]
    facts = yaml.safe_load((root / "deploy" / "helm" / chart / "Chart.yaml").read_text())
    assert (facts["name"], facts["version"], facts["appVersion"]) == (chart, version, version)


def keys(value: Any, prefix: str = "") -> set[str]:
    """Return the dotted names of a schema's properties, or of values."""
    found = set()
    for name, one in value.items():
        found.add(prefix + name)
        if isinstance(one, dict):
            found |= keys(one, f"{prefix}{name}.")
    return found


def schema_keys(schema: dict[str, Any], prefix: str = "") -> set[str]:
    found = set()
    for name, one in schema.get("properties", {}).items():
        found |= {prefix + name} | schema_keys(one, f"{prefix}{name}.")
    return found


@pytest.mark.parametrize("chart", CHARTS)
def test_every_value_is_in_the_schema_and_the_other_way_round(root: Path, chart: str) -> None:
    folder = root / "deploy" / "helm" / chart
    known = schema_keys(json.loads((folder / "values.schema.json").read_text()))
    values = keys(yaml.safe_load((folder / "values.yaml").read_text()))
    free = {name for name in values if name.startswith("resources.")}
    assert values - free == known


def test_both_charts_mean_the_same_by_a_name(root: Path) -> None:
    one, other = (
        json.loads((root / "deploy" / "helm" / chart / "values.schema.json").read_text())
        for chart in CHARTS
    )
    both = (one["properties"].keys() & other["properties"].keys()) - {"networkPolicy"}
    assert len(both) > 15
    assert [n for n in both if one["properties"][n] != other["properties"][n]] == []
    assert one["definitions"] == other["definitions"]


# helm


@pytest.mark.parametrize(("chart", "values"), CASES)
def test_helm_lints_and_kubernetes_knows_every_field(
    helm: Helm, chart: str, values: dict[str, Any]
) -> None:
    kubernetes = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is absent")
    code, out, said = helm.run("lint", "--strict", chart, values=values)
    assert code == 0, out + said
    manifests = [one for one in helm.render(chart, values) if one["kind"] not in OWN]
    oldest = re.findall(r"[\d.]+", (helm.charts / chart / "Chart.yaml").read_text())
    for version in ("1.29", "1.37"):
        for manifest in manifests:
            kubernetes.validate(manifest, version, strict=True)
    assert "1.29.0" in oldest
    # The control.
    spec = one_of(manifests, "StatefulSet")["spec"]["template"]["spec"]
    spec["containers"][0]["readOnlyRoot"] = True
    with pytest.raises(kubernetes.ValidationError, match="readOnlyRoot"):
        kubernetes.validate(one_of(manifests, "StatefulSet"), "1.37", strict=True)


@pytest.mark.parametrize("chart", CHARTS)
def test_lint_finds_what_is_wrong(helm: Helm, chart: str) -> None:
    """The control: it looks at the values, and at what is rendered."""
    code, out, said = helm.run("lint", "--strict", chart, values={**CHARTS[chart], "replicas": 2})
    assert code != 0 and "replicas" in out + said


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"replicas": 2}, ["replicas", "must be one of"]),
        ({"replicaCount": 2}, ["replicaCount", "not allowed"]),
        ({"passphrase": {"existingSecret": ""}}, ["existingSecret", "kubectl create secret"]),
        ({"image": {"repository": ""}}, ["image.repository", "your own registry"]),
        ({"image": {"digest": "latest"}}, ["image.digest"]),
        ({"persistence": {"accessMode": "ReadWriteMany"}}, ["persistence.accessMode"]),
        ({"extraEnv": [{"name": "PRIVET_PASSPHRASE", "value": "x"}]}, ["extraEnv.0.name"]),
        ({"extraEnv": [{"name": "PRIVET_OFFICER_PASSPHRASE"}]}, ["extraEnv.0.name"]),
        ({"extraEnv": [{"name": "PRIVET_PIN"}]}, ["extraEnv.0.name"]),
        ({"metrics": {"proxy": {"enabled": True}}}, ["metrics.proxy", "needs metrics.enabled"]),
        (
            {"metrics": {"enabled": True, "proxy": {"enabled": True, "image": "nginx"}}},
            ["existingSecret", "anybody in the cluster"],
        ),
        (
            {"metrics": {"enabled": True, "podMonitor": {"enabled": True}}},
            ["podMonitor", "needs metrics.proxy.enabled"],
        ),
        (
            {"metrics": {**FIGURES, "podMonitor": {"enabled": True}}},
            ["tlsConfig", "asks Prometheus for a certificate"],
        ),
        # The proxy shares processes with Privet: of its user, it could read the passphrase.
        (
            {"metrics": merged(FIGURES, {"proxy": {"runAsUser": 10001}})},
            ["metrics.proxy.runAsUser", "another user"],
        ),
        ({"metrics": merged(FIGURES, {"port": 9443})}, ["metrics.port"]),
        # A policy without peers lets everybody in.
        ({"metrics": merged(FIGURES, {"proxy": {"from": None}})}, ["metrics.proxy", "from"]),
        ({"networkPolicy": {"enabled": None}}, ["networkPolicy", "enabled"]),
        ({"podLabels": {"app.kubernetes.io/name": "x"}}, ["app.kubernetes.io"]),
        (
            {"extraVolumeMounts": [{"name": "more", "mountPath": "/var/lib/privet/site"}]},
            ["extraVolumeMounts.0.mountPath"],
        ),
    ],
)
@pytest.mark.parametrize("chart", CHARTS)
def test_what_must_not_be_is_refused_with_words(
    helm: Helm, chart: str, values: dict[str, Any], words: list[str]
) -> None:
    said = helm.refusal(chart, merged(CHARTS[chart], values))
    assert [word for word in words if word not in said] == []


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"coordinator": {"cidrs": []}}, "networkPolicy.coordinator.cidrs is empty"),
        ({"coordinator": {"cidrs": ["hub.example.org"]}}, "networkPolicy.coordinator.cidrs.0"),
        ({"coordinator": {"ports": None}}, "networkPolicy.coordinator"),
        ({"extraEgress": [{}]}, "networkPolicy.extraEgress.0"),
        ({"extraEgress": [{"to": []}]}, "networkPolicy.extraEgress.0.to"),
    ],
)
def test_a_site_that_reaches_nobody_or_everybody_is_refused(
    helm: Helm, values: dict[str, Any], words: str
) -> None:
    assert words in helm.refusal("privet-site", merged(SITE, {"networkPolicy": values}))


@pytest.mark.parametrize("chart", CHARTS)
def test_a_packed_chart_holds_the_rules_themselves(
    helm: Helm, root: Path, tmp_path: Path, chart: str
) -> None:
    code, _, said = helm.run("package", chart, "--destination", str(tmp_path))
    assert code == 0, said
    with tarfile.open(next(tmp_path.glob("*.tgz"))) as archive:
        assert not [one for one in archive if one.issym() or one.islnk()]
        rules = archive.extractfile(f"{chart}/files/privet.rules.yml")
        assert rules
        assert rules.read() == (root / "deploy" / "privet.rules.yml").read_bytes()


@pytest.mark.parametrize("maintenance", [True, False])
@pytest.mark.parametrize("chart", CHARTS)
def test_the_notes_type_commands_that_exist(helm: Helm, chart: str, maintenance: bool) -> None:
    values = merged(CHARTS[chart], {"maintenance": maintenance})
    code, out, said = helm.run("install", "one", chart, "--dry-run=client", values=values)
    if "cluster unreachable" in said:
        pytest.skip("Helm 3 shows notes only where a cluster is")
    assert code == 0, said
    notes = out.split("NOTES:")[1]
    typed = re.findall(r"^ +kubectl exec -n default .* -- privet (.*)$", notes, re.MULTILINE)
    assert len(typed) == {True: 1, False: 3}[maintenance]
    assert [command_fault(shlex.split(line)) for line in typed] == [None] * len(typed)
    pods = set(re.findall(rf"\bone-{chart}-\d\b", notes))
    assert pods == {f"one-{chart}-0"}
    assert f"maintenance={'false' if maintenance else 'true'}" in notes


def test_what_the_page_types_is_rendered(helm: Helm, root: Path) -> None:
    page = (root / "docs" / "how-to" / "install.md").read_text()
    (own,) = re.findall(r"^```yaml\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    typed = re.findall(r"^    helm (?:install|upgrade) (.*)$", page, re.MULTILINE)
    assert len(typed) == 4
    for line in typed:
        name, chart, *words = shlex.split(line)
        values = words.index("--values")
        given = {"north.yaml": yaml.safe_load(own), "hub.yaml": GIVEN}[words[values + 1]]
        del words[values : values + 2]
        code, out, said = helm.run("template", name, Path(chart).name, *words, values=given)
        assert code == 0, said
        assert helm.charts / Path(chart).name == root / chart
        assert ("signal.pause" in out) is ("maintenance=true" in words)
    for pod, command in re.findall(
        r"kubectl .* exec -it (\S+) -- privet (.*)$", page, re.MULTILINE
    ):
        assert pod == "north-privet-site-0"
        assert command_fault(shlex.split(command)) is None


def test_a_cluster_may_choose_the_users(helm: Helm) -> None:
    words = ("runAs.user", "runAs.group", "metrics.proxy.runAsUser")
    chosen = ",".join(f"{word}=null" for word in words)
    code, out, said = helm.run(
        "template", "one", "privet-site", "--set", chosen, values={**SITE, "metrics": FIGURES}
    )
    assert code == 0, said
    assert "runAsNonRoot: true" in out
    assert not re.findall(r"runAsUser|runAsGroup|fsGroup:", out)
    # They may be of one user then, whose processes the proxy must not see.
    assert "shareProcessNamespace: false" in out
    assert pod_of(helm.render("privet-site", SITE))["shareProcessNamespace"] is True
    figures = {**SITE, "metrics": FIGURES}
    assert pod_of(helm.render("privet-site", figures))["shareProcessNamespace"] is True


def pod_of(manifests: list[dict[str, Any]]) -> dict[str, Any]:
    spec: dict[str, Any] = one_of(manifests, "StatefulSet")["spec"]["template"]["spec"]
    return spec


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"listenHost": "::"}, "listenHost"),
        ({"listenHost": "localhost"}, "listenHost"),
        ({"service": {"enrolmentPort": 7443}}, "service.enrolmentPort is service.linkPort"),
    ],
)
def test_a_coordinator_that_nobody_reaches_is_refused(
    helm: Helm, values: dict[str, Any], words: str
) -> None:
    assert words in helm.refusal("privet-coordinator", merged(GIVEN, values))


@pytest.mark.parametrize("chart", CHARTS)
def test_alerts_and_figures_meet(helm: Helm, root: Path, chart: str) -> None:
    manifests = helm.render(chart, {**CHARTS[chart], "metrics": FIGURES})
    rules = yaml.safe_load((root / "deploy" / "privet.rules.yml").read_text())
    assert one_of(manifests, "PrometheusRule")["spec"] == rules
    (away,) = [one for one in rules["groups"][0]["rules"] if one["alert"] == "PrivetAway"]
    (pattern,) = re.findall(r'job=~"(.*?)"', away["expr"])
    (endpoint,) = one_of(manifests, "PodMonitor")["spec"]["podMetricsEndpoints"]
    assert re.fullmatch(pattern, endpoint["relabelings"][0]["replacement"])
    assert endpoint["scheme"] == "https" and endpoint["tlsConfig"]
    # Its selector and port are those of the pod.
    template = one_of(manifests, "StatefulSet")["spec"]["template"]
    wanted = one_of(manifests, "PodMonitor")["spec"]["selector"]["matchLabels"]
    assert wanted.items() <= template["metadata"]["labels"].items()
    ports = {p["name"] for c in template["spec"]["containers"] for p in c.get("ports", [])}
    assert endpoint["port"] in ports
