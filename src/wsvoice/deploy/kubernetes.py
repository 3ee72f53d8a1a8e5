"""
The manifest with which Kubernetes runs a bot: one worker in each pod, and no call cut off by a deploy.

https://kubernetes.io/docs/concepts/workloads/pods/pod-lifecycle/#pod-termination
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from wsvoice.config import STREAM_SECRET
from wsvoice.deploy.command import (
    ACTIVE_CALLS,
    METRICS_PORT,
    PORT,
    USER_ID,
    Service,
    command,
    environment,
    without_variables,
    writable_folders,
)
from wsvoice.deploy.sizing import (
    SCALE_DOWN_AFTER_S,
    SCALE_DOWN_EVERY_S,
    TARGET_SHARE,
)
from wsvoice.deploy.yaml_text import comment, documents, dump

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Cluster:
    """
    Where in a cluster a bot runs.

    Attributes:
        secret: The Secret whose keys become environment variables.
        namespace: The namespace; ``None`` for the one that ``kubectl`` uses.
        autoscale: What adds and removes pods; with ``none`` there are always `min_pods`.
        min_pods, max_pods: How few and how many pods there may be.
        prometheus: Where KEDA finds Prometheus.
    """

    secret: str
    namespace: str | None = None
    autoscale: Literal["keda", "hpa", "none"] = "none"
    min_pods: int = 2
    max_pods: int = 10
    prometheus: str = ""


def manifest(service: Service, cluster: Cluster) -> str:
    """Return the manifest; `service` has an image."""
    texts = [
        _introduction(service, cluster) + dump(_deployment(service, cluster), _deployment_notes(service, cluster)),
        dump(_service(service, cluster)),
        dump(
            _disruption_budget(service, cluster),
            {
                "maxUnavailable": "A node that is emptied has its pods end one after the other, each with its calls.",
                "unhealthyPodEvictionPolicy": "A pod that drains, or never got ready, does not hold up a node.",
            },
        ),
        dump(_ingress(service, cluster), _ingress_notes(service)),
    ]
    if cluster.autoscale == "hpa":
        scaler = dump(_pod_autoscaler(service, cluster), _scaling_notes(service, "averageValue"))
        texts.append(comment(_HPA_NOTE) + scaler)
    elif cluster.autoscale == "keda":
        texts.append(dump(_scaled_object(service, cluster), _scaling_notes(service, "threshold")))
    return documents(texts)


def adapter_values() -> str:
    """
    Return the Helm values that have prometheus-adapter tell the autoscaler of each pod's calls.

    https://github.com/kubernetes-sigs/prometheus-adapter/blob/master/docs/config.md
    """
    rule = {
        "seriesQuery": f'{ACTIVE_CALLS}{{namespace!="",pod!=""}}',
        "resources": {"overrides": {"namespace": {"resource": "namespace"}, "pod": {"resource": "pod"}}},
        "name": {"matches": f"^{ACTIVE_CALLS}$", "as": ACTIVE_CALLS},
        "metricsQuery": "sum(<<.Series>>{<<.LabelMatchers>>}) by (<<.GroupBy>>)",
    }
    head = "Values for the Helm chart prometheus-community/prometheus-adapter,\nas in `helm upgrade -f`:"
    return comment(head) + dump({"rules": {"custom": [rule]}})


_HPA_NOTE = (
    "It asks the custom metrics API, for which prometheus-adapter needs a rule for wsvoice_active_calls:\n"
    "`wsvoice deploy k8s --autoscale hpa -o FOLDER` writes it to prometheus-adapter-values.yaml."
)


def _introduction(service: Service, cluster: Cluster) -> str:
    where = f" --namespace {cluster.namespace}" if cluster.namespace else ""
    named = [*dict.fromkeys((*service.variables, STREAM_SECRET))]
    secret = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": _metadata(cluster.secret, cluster),
        "type": "Opaque",
        "stringData": dict.fromkeys(named, "…"),
    }
    return comment(
        f"Made by `wsvoice deploy k8s`. Apply it with `kubectl apply -f FILE`, once there is the Secret\n"
        f"{cluster.secret}, whose keys become environment variables:\n"
        f"  kubectl create secret generic {cluster.secret}{where} --from-env-file=.env\n"
        "kubectl takes all that is behind NAME= for the value: no quotes, and no comments behind it.\n"
        f"{STREAM_SECRET} has to be among them, for a call's webhook and its stream come to different pods:\n"
        "  openssl rand -hex 32\n"
        f"As a manifest, which is not for version control:\n\n{dump(secret)}"
    )


def _metadata(name: str, cluster: Cluster, labels: Json | None = None, annotations: Json | None = None) -> Json:
    metadata: Json = {"name": name}
    if cluster.namespace:
        metadata["namespace"] = cluster.namespace
    if labels:
        metadata["labels"] = labels
    if annotations:
        metadata["annotations"] = annotations
    return metadata


def _labels(service: Service) -> Json:
    # https://kubernetes.io/docs/concepts/overview/working-with-objects/common-labels/
    return {"app.kubernetes.io/name": service.name}


def _deployment(service: Service, cluster: Cluster) -> Json:
    labels = _labels(service)
    # Where an autoscaler owns the number, applying the manifest again must not set it back.
    replicas = {"replicas": cluster.min_pods} if cluster.autoscale == "none" else {}
    annotations = {
        "cluster-autoscaler.kubernetes.io/safe-to-evict": "false",
        "karpenter.sh/do-not-disrupt": "true",
        "prometheus.io/scrape": "true",
        "prometheus.io/port": str(METRICS_PORT),
        "prometheus.io/path": "/metrics",
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": _metadata(service.name, cluster, labels),
        "spec": {
            **replicas,
            "revisionHistoryLimit": 5,
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels, "annotations": annotations}, "spec": _pod(service, cluster)},
        },
    }


def _deployment_notes(service: Service, cluster: Cluster) -> dict[str, str]:
    notes = {
        "maxSurge": "A new pod is ready before an old one is asked to end.",
        "terminationGracePeriodSeconds": service.sizing.why_grace,
        "cluster-autoscaler.kubernetes.io/safe-to-evict": "Nodes with calls are not taken away to save money.",
        "enableServiceLinks": "A Service called wsvoice would set WSVOICE_PORT in every pod, which is a setting.",
        "startupProbe": "A bot may load models for up to two minutes.",
        "readinessProbe": "Fails once the pod drains, and not when it is full: what is not ready is ended first.",
        "livenessProbe": "A minute without an answer: a restart cuts off every call of the pod.",
        "resources": "One worker uses one processor. No limit for it: a call that has to wait for its turn stutters.",
    }
    if cluster.autoscale == "none":
        notes["replicas"] = "Nothing changes this number but you; see --autoscale."
    notes["volumes"] = "What was counted of the day (--max-minutes-per-day) is lost with the pod."
    if service.records:
        notes["volumes"] += "\nSo are recordings: put a persistentVolumeClaim in place of their emptyDir."
    return notes


def _pod(service: Service, cluster: Cluster) -> Json:
    folders = writable_folders(service)
    return {
        "terminationGracePeriodSeconds": service.sizing.grace_s,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER_ID,
            "runAsGroup": USER_ID,
            "fsGroup": USER_ID,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "topologySpreadConstraints": [
            {
                "maxSkew": 1,
                "topologyKey": key,
                "whenUnsatisfiable": "ScheduleAnyway",
                "labelSelector": {"matchLabels": _labels(service)},
            }
            for key in ("kubernetes.io/hostname", "topology.kubernetes.io/zone")
        ],
        "containers": [_container(service, cluster)],
        "volumes": [{"name": name, "emptyDir": {}} for name in folders],
    }


def _container(service: Service, cluster: Cluster) -> Json:
    return {
        "name": "bot",
        "image": service.image,
        # https://kubernetes.io/docs/tasks/inject-data-application/define-command-argument-container/
        "command": [without_variables(each) for each in command(service)],
        "env": [{"name": name, "value": value} for name, value in environment().items()],
        "envFrom": [{"secretRef": {"name": cluster.secret}}],
        "ports": [{"name": "http", "containerPort": PORT}, {"name": "metrics", "containerPort": METRICS_PORT}],
        "startupProbe": {**_probe("/healthz"), "periodSeconds": 2, "failureThreshold": 60},
        "readinessProbe": {**_probe("/readyz"), "periodSeconds": 5, "timeoutSeconds": 3, "failureThreshold": 3},
        "livenessProbe": {**_probe("/healthz"), "periodSeconds": 10, "timeoutSeconds": 5, "failureThreshold": 6},
        "resources": {"requests": {"cpu": "1", "memory": "2Gi"}, "limits": {"memory": "4Gi"}},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [{"name": name, "mountPath": path} for name, path in writable_folders(service).items()],
    }


def _probe(path: str) -> Json:
    return {"httpGet": {"path": path, "port": "http"}}


def _service(service: Service, cluster: Cluster) -> Json:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": _metadata(service.name, cluster, _labels(service)),
        "spec": {
            "type": "ClusterIP",
            "selector": _labels(service),
            # The metrics' port is not among them: it is for Prometheus, which asks each pod.
            "ports": [{"name": "http", "port": 80, "targetPort": "http"}],
        },
    }


def _disruption_budget(service: Service, cluster: Cluster) -> Json:
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": _metadata(service.name, cluster, _labels(service)),
        "spec": {
            "maxUnavailable": 1,
            # https://kubernetes.io/docs/tasks/run-application/configure-pdb/#unhealthy-pod-eviction-policy
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
            "selector": {"matchLabels": _labels(service)},
        },
    }


_NGINX = "nginx.ingress.kubernetes.io"


def _ingress(service: Service, cluster: Cluster) -> Json:
    # https://kubernetes.github.io/ingress-nginx/user-guide/nginx-configuration/annotations/
    seconds = str(service.sizing.grace_s)
    annotations = {
        f"{_NGINX}/proxy-read-timeout": seconds,
        f"{_NGINX}/proxy-send-timeout": seconds,
        f"{_NGINX}/proxy-next-upstream": "error timeout http_503",
        f"{_NGINX}/proxy-next-upstream-tries": "3",
    }
    backend = {"service": {"name": service.name, "port": {"name": "http"}}}
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "Ingress",
        "metadata": _metadata(service.name, cluster, _labels(service), annotations),
        "spec": {
            "ingressClassName": "nginx",
            "tls": [{"hosts": [service.host], "secretName": f"{service.name}-tls"}],
            "rules": [
                {
                    "host": service.host,
                    "http": {"paths": [{"path": "/", "pathType": "Prefix", "backend": backend}]},
                }
            ],
        },
    }


def _ingress_notes(service: Service) -> dict[str, str]:
    return {
        f"{_NGINX}/proxy-read-timeout": "A WebSocket that is silent for this long is cut off; the default is 60 s.",
        f"{_NGINX}/proxy-next-upstream": (
            "A pod that is full refuses a stream with 503, and another one is asked.\n"
            "In the controller's ConfigMap, worker-shutdown-timeout has to be that long too: whenever an Ingress\n"
            "changes, calls are cut off that long after it, and by default it is 240s."
        ),
        "tls": (
            f"The certificate for the host. cert-manager makes the Secret {service.name}-tls by itself with the\n"
            "annotation cert-manager.io/cluster-issuer."
        ),
    }


def _scaling_notes(service: Service, key: str) -> dict[str, str]:
    share = round(TARGET_SHARE * 100)
    return {
        key: f"Calls for each pod: {share} % of the {service.sizing.calls} that it takes, as a new one takes time.",
        "scaleDown": "One pod at a time, and slowly: each first finishes its calls.",
    }


def _behaviour() -> Json:
    """Return how fast pods are added and removed; the autoscaler of KEDA takes the same."""
    return {
        "scaleUp": {
            "stabilizationWindowSeconds": 0,
            "selectPolicy": "Max",
            "policies": [
                {"type": "Percent", "value": 100, "periodSeconds": 30},
                {"type": "Pods", "value": 2, "periodSeconds": 30},
            ],
        },
        "scaleDown": {
            "stabilizationWindowSeconds": SCALE_DOWN_AFTER_S,
            "policies": [{"type": "Pods", "value": 1, "periodSeconds": SCALE_DOWN_EVERY_S}],
        },
    }


def _pod_autoscaler(service: Service, cluster: Cluster) -> Json:
    # https://kubernetes.io/docs/tasks/run-application/horizontal-pod-autoscale-walkthrough/
    target = {"type": "AverageValue", "averageValue": str(service.sizing.target_calls)}
    return {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": _metadata(service.name, cluster, _labels(service)),
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": service.name},
            "minReplicas": cluster.min_pods,
            "maxReplicas": cluster.max_pods,
            "metrics": [{"type": "Pods", "pods": {"metric": {"name": ACTIVE_CALLS}, "target": target}}],
            "behavior": _behaviour(),
        },
    }


def _scaled_object(service: Service, cluster: Cluster) -> Json:
    # https://keda.sh/docs/latest/reference/scaledobject-spec/, https://keda.sh/docs/latest/scalers/prometheus/
    namespace = f'namespace="{cluster.namespace}",' if cluster.namespace else ""
    # A pod is called as its Deployment is, its ReplicaSet, and five characters.
    trigger = {
        "type": "prometheus",
        "metricType": "AverageValue",
        "metadata": {
            "serverAddress": cluster.prometheus,
            "query": f'sum({ACTIVE_CALLS}{{{namespace}pod=~"{service.name}-[a-z0-9]+-[a-z0-9]+"}})',
            "threshold": str(service.sizing.target_calls),
        },
    }
    return {
        "apiVersion": "keda.sh/v1alpha1",
        "kind": "ScaledObject",
        "metadata": _metadata(service.name, cluster, _labels(service)),
        "spec": {
            "scaleTargetRef": {"name": service.name},
            "pollingInterval": 15,
            "minReplicaCount": cluster.min_pods,
            "maxReplicaCount": cluster.max_pods,
            "triggers": [trigger],
            "advanced": {"horizontalPodAutoscalerConfig": {"behavior": _behaviour()}},
        },
    }
