"""Which targets there are, and the one way to write any of them: whole or not at all, with a card and the digest of every file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tunesmith.core.atomic import atomic_folder, write_atomic
from tunesmith.core.errors import StoreError, UsageError, nearest
from tunesmith.core.seal import seal
from tunesmith.deploy.export.adapter import write_adapter
from tunesmith.deploy.export.card import CardFacts, card
from tunesmith.deploy.export.docker import write_docker
from tunesmith.deploy.export.gguf import write_gguf
from tunesmith.deploy.export.kserve import write_kserve
from tunesmith.deploy.export.kubernetes import write_kubernetes
from tunesmith.deploy.export.merged import write_merged
from tunesmith.deploy.export.model_files import ModelFiles
from tunesmith.deploy.export.ollama import write_ollama
from tunesmith.deploy.export.ray_serve import write_ray_serve
from tunesmith.deploy.export.vllm import write_vllm

Writer = Callable[[ModelFiles, Path], None]


@dataclass(frozen=True, slots=True)
class ExportTarget:
    """What fills the folder, the library that model hubs are told, and how it is loaded (with `{name}` and `{base}`)."""

    write: Writer
    library: str
    use: str


TARGETS: dict[str, ExportTarget] = {
    "adapter": ExportTarget(
        write_adapter,
        "peft",
        "`peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained('{base}'), FOLDER)`, or vLLM with `--lora-modules`.",
    ),
    "merged": ExportTarget(write_merged, "transformers", "`transformers.AutoModelForCausalLM.from_pretrained(FOLDER)`, vLLM, SGLang, TGI."),
    "gguf": ExportTarget(write_gguf("f16"), "gguf", "llama.cpp: `llama-server -m model.gguf --jinja --alias {name}`."),
    "gguf-q8_0": ExportTarget(write_gguf("q8_0"), "gguf", "llama.cpp: `llama-server -m model.gguf --jinja --alias {name}`."),
    "gguf-q4_K_M": ExportTarget(write_gguf("q4_K_M"), "gguf", "llama.cpp: `llama-server -m model.gguf --jinja --alias {name}`."),
    "ollama": ExportTarget(write_ollama, "gguf", "`ollama create {name} -f Modelfile`, in this folder."),
    "vllm": ExportTarget(write_vllm, "transformers", "`./serve.sh`, with any other option of vLLM behind it."),
    "docker": ExportTarget(write_docker, "transformers", "`docker build -t NAME .`, then `docker run --gpus all -p 8000:8000 NAME`."),
    "kubernetes": ExportTarget(
        write_kubernetes,
        "transformers",
        "`docker build`, push the image and name it in `kubernetes.yaml`, then `kubectl apply -f kubernetes.yaml`.",
    ),
    "kserve": ExportTarget(
        write_kserve,
        "transformers",
        "`docker build`, push the image and name it in `kserve.yaml`, then `kubectl apply -f kserve.yaml`.",
    ),
    "ray-serve": ExportTarget(
        write_ray_serve,
        "transformers",
        "`./serve.sh` on one machine; on a cluster put `model` at `/model` of every node, then `serve deploy serve.yaml`.",
    ),
}


def known(word: str) -> ExportTarget:
    """The target of that name. Raises UsageError with those that there are."""
    if word not in TARGETS:
        raise UsageError(f"unknown target '{word}'", where="--to", allowed=", ".join(TARGETS), remedy=nearest(word, TARGETS))
    return TARGETS[word]


def free(out: Path) -> Path:
    """The folder, once nothing is there. Raises UsageError when something is: an export never replaces anything."""
    if out.exists() or out.is_symlink():
        raise UsageError(f"'{out}' is already there", where="--out", allowed="a folder that is not there yet", remedy="another name")
    return out


def export(target: str, files: ModelFiles, facts: CardFacts, out: Path) -> list[str]:
    """Write the model to `out`; returns the files, by their path below it.

    Raises UsageError for an unknown target, for a folder that is there, and for what the target cannot hold; StoreError for a disk that is
    full.
    """
    chosen = known(target)
    try:
        with atomic_folder(free(out)) as work:
            chosen.write(files, work)
            write_atomic(work / "README.md", card(facts, chosen.library, chosen.use.format(name=files.name, base=files.base_name)))
            seal(work)
            written = [path.relative_to(work).as_posix() for path in sorted(work.rglob("*")) if path.is_file()]
            free(out)
    except OSError as error:
        raise StoreError(f"the export cannot be written: {error}", where=str(out), remedy="free space, or another folder") from error
    return written
