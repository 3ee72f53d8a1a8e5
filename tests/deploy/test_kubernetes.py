"""The manifest: what Kubernetes would say to it, and whether its numbers fit together."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace
from typing import Any

import kubernetes_validate
import pytest
import yaml

from tests.cli.invoke import COMMANDS
from wsvoice.config.values import parse_duration
from wsvoice.deploy.command import Service, command
from wsvoice.deploy.kubernetes import Cluster, adapter_values, manifest
from wsvoice.deploy.sizing import Sizing

SERVICE = Service("bot.py", "my-bot", "bot.example.com", "twilio", "registry.example.com/bot:1.0")
CLUSTER = Cluster("my-bot-secrets")
GRID = [
    (replace(SERVICE, transport=transport, records=records, sizing=sizing), replace(CLUSTER, **cluster))
    for (transport, sizing), records, cluster in itertools.product(
        (("twilio", Sizing()), ("websocket", Sizing(1, 1)), (None, Sizing(500, 86400)), ("telnyx", Sizing(7, 90.5))),
        (False, True),
        (
            {"autoscale": "none"},
            {"autoscale": "hpa", "namespace": "voice", "min_pods": 1, "max_pods": 1},
            {"autoscale": "keda", "namespace": "1e3", "secret": "on", "prometheus": "http://p:9090"},
        ),
    )
]


def objects(service: Service = SERVICE, cluster: Cluster = CLUSTER) -> dict[str, dict[str, Any]]:
    """Return the objects of a manifest by their kinds, which must differ."""
    found = list(yaml.safe_load_all(manifest(service, cluster)))
    by_kind = {each["kind"]: each for each in found}
    assert len(by_kind) == len(found)
    return by_kind


def validate(document: dict[str, Any]) -> None:
    kubernetes_validate.validate(document, "1.30", strict=True)


def pod(service: Service = SERVICE, cluster: Cluster = CLUSTER) -> dict[str, Any]:
    return objects(service, cluster)["Deployment"]["spec"]["template"]["spec"]


def options(service: Service) -> dict[str, str]:
    return dict(each.removeprefix("--").split("=", 1) for each in command(service) if each.startswith("--"))


@pytest.mark.parametrize(("service", "cluster"), GRID)
def test_kubernetes_takes_every_object(service: Service, cluster: Cluster) -> None:
    found = objects(service, cluster)
    scalers = {"none": set(), "hpa": {"HorizontalPodAutoscaler"}, "keda": {"ScaledObject"}}[cluster.autoscale]
    assert found.keys() == {"Deployment", "Service", "PodDisruptionBudget", "Ingress"} | scalers
    for kind, each in found.items():
        if kind != "ScaledObject":
            validate(each)
        assert each["metadata"].get("namespace") == cluster.namespace
        assert each["metadata"]["name"] == service.name


def test_the_check_would_notice_a_misspelt_key() -> None:
    found = objects()["Deployment"]
    found["spec"]["template"]["spec"]["terminationGracePeriodSecond"] = 1
    with pytest.raises(kubernetes_validate.ValidationError, match="terminationGracePeriodSecond"):
        validate(found)


def test_the_secret_that_is_shown_is_one() -> None:
    text = manifest(replace(SERVICE, variables=("TWILIO_AUTH_TOKEN", "OPENAI_API_KEY")), CLUSTER)
    comments = "\n".join(line.removeprefix("# ").removeprefix("#") for line in text.splitlines() if line[:1] == "#")
    secret = yaml.safe_load(comments[comments.index("apiVersion") :])
    validate(secret)
    assert secret["metadata"]["name"] == pod()["containers"][0]["envFrom"][0]["secretRef"]["name"]
    assert list(secret["stringData"]) == ["TWILIO_AUTH_TOKEN", "OPENAI_API_KEY", "WSVOICE_STREAM_SECRET"]
    assert set(secret["stringData"].values()) == {"…"}


class TestNumbers:
    @pytest.mark.parametrize("longest_s", [1, 45.5, 600, 3600, 86400])
    def test_a_pod_may_end_after_its_longest_call(self, longest_s: float) -> None:
        service = replace(SERVICE, sizing=Sizing(20, longest_s))
        given = {name: parse_duration(value, name) for name, value in options(service).items() if "time" in name}
        linger_s = parse_duration(options(service)["drain-linger"], "drain-linger")
        assert given["max-call-time"] == pytest.approx(longest_s)
        # A call whose webhook was answered last begins 15 s later, and its bot may go on for 30 s after it.
        assert given["drain-timeout"] >= longest_s + 15 + 30
        assert pod(service)["terminationGracePeriodSeconds"] >= given["drain-timeout"] + linger_s + 10
        nginx = objects(service)["Ingress"]["metadata"]["annotations"]
        for name in ("read", "send"):
            assert int(nginx[f"nginx.ingress.kubernetes.io/proxy-{name}-timeout"]) >= longest_s

    def test_the_server_lingers_until_readiness_was_looked_at(self) -> None:
        probe = pod()["containers"][0]["readinessProbe"]
        assert parse_duration(options(SERVICE)["drain-linger"], "drain-linger") >= probe["periodSeconds"]

    @pytest.mark.parametrize(("calls", "target"), [(1, 1), (2, 1), (5, 3), (20, 12), (50, 30)])
    def test_the_autoscaler_aims_at_three_fifths_of_the_cap(self, calls: int, target: int) -> None:
        service = replace(SERVICE, sizing=Sizing(calls))
        assert options(service)["max-calls"] == str(calls)
        hpa = objects(service, replace(CLUSTER, autoscale="hpa"))["HorizontalPodAutoscaler"]
        assert hpa["spec"]["metrics"][0]["pods"]["target"] == {"type": "AverageValue", "averageValue": str(target)}
        keda = objects(service, replace(CLUSTER, autoscale="keda"))["ScaledObject"]
        assert keda["spec"]["triggers"][0]["metadata"]["threshold"] == str(target)

    def test_pods_are_taken_away_slowly(self) -> None:
        hpa = objects(cluster=replace(CLUSTER, autoscale="hpa"))["HorizontalPodAutoscaler"]["spec"]["behavior"]
        keda = objects(cluster=replace(CLUSTER, autoscale="keda"))["ScaledObject"]["spec"]["advanced"]
        assert keda["horizontalPodAutoscalerConfig"]["behavior"] == hpa
        # Kubernetes takes an hour at most.
        assert 300 < hpa["scaleDown"]["stabilizationWindowSeconds"] <= 3600
        assert hpa["scaleDown"]["policies"] == [{"type": "Pods", "value": 1, "periodSeconds": 300}]

    def test_an_autoscaler_owns_the_number_of_pods(self) -> None:
        assert objects()["Deployment"]["spec"]["replicas"] == 2
        for autoscale in ("hpa", "keda"):
            assert "replicas" not in objects(cluster=replace(CLUSTER, autoscale=autoscale))["Deployment"]["spec"]


class TestPod:
    def test_a_new_one_is_there_before_an_old_one_ends(self) -> None:
        strategy = objects()["Deployment"]["spec"]["strategy"]["rollingUpdate"]
        assert strategy == {"maxSurge": 1, "maxUnavailable": 0}
        budget = objects()["PodDisruptionBudget"]["spec"]
        assert (budget["maxUnavailable"], budget["unhealthyPodEvictionPolicy"]) == (1, "AlwaysAllow")

    def test_nothing_takes_its_node_away(self) -> None:
        annotations = objects()["Deployment"]["spec"]["template"]["metadata"]["annotations"]
        assert annotations["cluster-autoscaler.kubernetes.io/safe-to-evict"] == "false"
        assert annotations["karpenter.sh/do-not-disrupt"] == "true"

    @pytest.mark.parametrize("records", [False, True])
    def test_it_can_write_where_it_has_to_and_nowhere_else(self, records: bool) -> None:
        service = replace(SERVICE, records=records)
        spec = pod(service)
        (container,) = spec["containers"]
        assert container["securityContext"]["readOnlyRootFilesystem"]
        assert spec["securityContext"]["runAsNonRoot"]
        mounts = {each["mountPath"]: each["name"] for each in container["volumeMounts"]}
        environ = {each["name"]: each["value"] for each in container["env"]}
        assert {environ["WSVOICE_STATE_DIR"], environ["HOME"], "/tmp"} <= mounts.keys()
        assert options(service).get("record", "-") in (mounts if records else ("-",))
        assert {each["name"] for each in spec["volumes"]} == set(mounts.values())
        assert "preStop" not in str(spec)

    def test_a_service_of_any_name_sets_no_setting(self) -> None:
        assert pod()["enableServiceLinks"] is False

    def test_all_that_selects_selects_its_pods(self) -> None:
        found = objects(cluster=replace(CLUSTER, autoscale="hpa"))
        labels = found["Deployment"]["spec"]["template"]["metadata"]["labels"]
        assert found["Deployment"]["spec"]["selector"]["matchLabels"] == labels
        assert found["Service"]["spec"]["selector"] == labels
        assert found["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == labels
        assert all(each["labelSelector"]["matchLabels"] == labels for each in pod()["topologySpreadConstraints"])
        assert (
            found["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]["name"]
            == found["Deployment"]["metadata"]["name"]
        )

    def test_only_prometheus_reaches_its_metrics(self) -> None:
        found = objects()
        ports = {each["name"]: each["containerPort"] for each in pod()["containers"][0]["ports"]}
        annotations = found["Deployment"]["spec"]["template"]["metadata"]["annotations"]
        assert options(SERVICE)["metrics-port"] == annotations["prometheus.io/port"] == str(ports["metrics"])
        assert options(SERVICE)["port"] == str(ports["http"])
        assert [each["targetPort"] for each in found["Service"]["spec"]["ports"]] == ["http"]


@pytest.mark.parametrize("bot", ["my bots/$(HOME) $X.py:bot", "on", "1e3", '"', "- a: b # c", "ü.py", "-x.py"])
def test_a_bots_name_stays_what_it_is(bot: str) -> None:
    (container,) = pod(replace(SERVICE, bot=bot))["containers"]
    # As the kubelet expands it: https://pkg.go.dev/k8s.io/kubernetes/third_party/forked/golang/expansion
    expanded = [
        re.sub(r"\$(\$|\(HOME\))", lambda found: "$" if found[1] == "$" else "/tmp", each)
        for each in container["command"]
    ]
    assert expanded[-1] == bot
    assert not expanded[-2].startswith("-") or expanded[-2] == "--" or not bot.startswith("-")


def test_prometheus_adapter_is_told_of_the_metric_that_is_asked_for() -> None:
    (rule,) = yaml.safe_load(adapter_values())["rules"]["custom"]
    asked = objects(cluster=replace(CLUSTER, autoscale="hpa"))["HorizontalPodAutoscaler"]["spec"]["metrics"][0]
    assert rule["name"]["as"] == asked["pods"]["metric"]["name"] == "wsvoice_active_calls"
    assert re.match(rule["name"]["matches"], rule["seriesQuery"].partition("{")[0])


@pytest.mark.parametrize("namespace", [None, "voice"])
def test_kedas_query_is_about_this_bots_pods(namespace: str | None) -> None:
    spec = objects(cluster=replace(CLUSTER, autoscale="keda", namespace=namespace))["ScaledObject"]["spec"]
    query = spec["triggers"][0]["metadata"]["query"]
    where = 'namespace="voice",' if namespace else ""
    found = re.fullmatch(rf'sum\(wsvoice_active_calls\{{{where}pod=~"(.+)"\}}\)', query)
    assert found
    # Prometheus matches whole values: https://prometheus.io/docs/prometheus/latest/querying/basics/
    pods = {name: bool(re.fullmatch(found[1], name)) for name in ("my-bot-6b7d9c-x2x4z", "my-bot-eu-6b7d9c-x2x4z")}
    assert pods == {"my-bot-6b7d9c-x2x4z": True, "my-bot-eu-6b7d9c-x2x4z": False}


def test_run_has_every_option_of_the_command() -> None:
    known = {name for each in COMMANDS.commands["run"].params for name in each.opts}
    given = {each.partition("=")[0] for service, _ in GRID for each in command(service) if each.startswith("--")}
    assert given <= known
