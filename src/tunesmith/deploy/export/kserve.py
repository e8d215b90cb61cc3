"""The image's folder with KServe's manifest for it: one replica on one GPU, ready when vLLM says so, drained before it goes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from tunesmith.core.atomic import write_atomic
from tunesmith.deploy.export.docker import write_docker
from tunesmith.deploy.export.kubernetes import deployment, label
from tunesmith.deploy.export.model_files import ModelFiles


def write_kserve(files: ModelFiles, folder: Path) -> None:
    """Fill the folder. Raises UsageError as `write_merged`."""
    write_docker(files, folder)
    write_atomic(folder / "kserve.yaml", yaml.safe_dump(inference_service(label(files.name)), sort_keys=False))


def inference_service(name: str) -> dict[str, Any]:
    """An InferenceService over the image of the folder, in plain deployments: vLLM's own API answers, no proxy before it."""
    pod = dict(deployment(name)["spec"]["template"]["spec"])
    (container,) = pod.pop("containers")
    (port,) = container["ports"]
    probes = {key: {**value, "httpGet": {**value["httpGet"], "port": "http1"}} for key, value in container.items() if key.endswith("Probe")}
    served = {**container, **probes, "name": "kserve-container", "ports": [{**port, "name": "http1", "protocol": "TCP"}]}
    return {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {"name": name, "annotations": {"serving.kserve.io/deploymentMode": "RawDeployment"}},
        "spec": {"predictor": {"minReplicas": 1, "maxReplicas": 1, **pod, "containers": [served]}},
    }
