"""The image's folder with the manifests that run it: one replica on one GPU behind a service, ready when vLLM says so, drained."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from tunesmith.core.atomic import write_atomic
from tunesmith.deploy.export.docker import PORT, write_docker
from tunesmith.deploy.export.model_files import ModelFiles

_LONGEST = 50  # characters of a name; Kubernetes takes 63, and puts some of its own behind
_DRAIN_S = 15  # until every balancer knows that the pod is going


def write_kubernetes(files: ModelFiles, folder: Path) -> None:
    """Fill the folder. Raises UsageError as `write_merged`."""
    write_docker(files, folder)
    manifests = [deployment(label(files.name)), service(label(files.name))]
    write_atomic(folder / "kubernetes.yaml", yaml.safe_dump_all(manifests, sort_keys=False))


def label(name: str) -> str:
    """The name as Kubernetes takes it: small letters, digits and hyphens, a letter first."""
    word = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:_LONGEST].strip("-")
    return word if word[:1].isalpha() else f"model-{word}".strip("-")


def deployment(name: str) -> dict[str, Any]:
    """The pod's template; the image is the one that `docker build -t NAME .` makes."""
    probe = {"httpGet": {"path": "/health", "port": "http"}, "periodSeconds": 5}
    container = {
        "name": "vllm",
        "image": f"{name}:latest",
        "imagePullPolicy": "IfNotPresent",
        "ports": [{"name": "http", "containerPort": PORT}],
        "resources": {"limits": {"nvidia.com/gpu": "1"}},
        "startupProbe": {**probe, "failureThreshold": 240},
        "readinessProbe": probe,
        "livenessProbe": {**probe, "failureThreshold": 6},
        "lifecycle": {"preStop": {"exec": {"command": ["sleep", str(_DRAIN_S)]}}},
        "securityContext": {"allowPrivilegeEscalation": False},
        "volumeMounts": [{"name": "shm", "mountPath": "/dev/shm"}],
    }
    pod = {
        "automountServiceAccountToken": False,
        "terminationGracePeriodSeconds": 120,
        "containers": [container],
        "volumes": [{"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "2Gi"}}],
    }
    labels = {"app.kubernetes.io/name": name}
    spec = {"replicas": 1, "selector": {"matchLabels": labels}, "template": {"metadata": {"labels": labels}, "spec": pod}}
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name, "labels": labels}, "spec": spec}


def service(name: str) -> dict[str, Any]:
    """The address inside of the cluster."""
    labels = {"app.kubernetes.io/name": name}
    spec = {"selector": labels, "ports": [{"name": "http", "port": 80, "targetPort": "http"}]}
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "labels": labels}, "spec": spec}
