"""Checkpoints that survive a kill at any moment: whole or absent, hashed, safetensors and JSON only. Knows nothing about the loop.

A checkpoint holds the trainable weights (an adapter in peft's own format, or a whole model in `model/`, so that either can answer), the
optimiser's moments and a few numbers. Randomness needs no saving: data order and dropout are functions of seed, epoch and step.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors import SafetensorError

from tunesmith.core.atomic import atomic_folder, unfinished
from tunesmith.core.digests import file_digest
from tunesmith.core.errors import StoreError
from tunesmith.core.model_ref import MODEL_FOLDER
from tunesmith.core.seal import seal
from tunesmith.core.types import Record
from tunesmith.train.adapters import Trainable, load_base

ADAPTER, MOMENTS, STATE = "adapter_model.safetensors", "optimizer.safetensors", "state.json"
EARLIER_WHOLE = "weights.safetensors"  # of a run that an earlier version began: every weight under its name, without what loads them
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja", "generation_config.json")


class TrainingState(Record, frozen=True):
    """Where a run stands. `identity` names plan + data + base; `files` maps each file to its BLAKE2b; losses in nats per trained token.
    The best evaluation is the one with the best metric where the run has one, else with the lowest loss.

    `stale` counts evaluations since the best one; `recent` are the last losses.
    `planned` is false for a checkpoint that was only written because the run was paused.
    """

    step: int
    identity: str
    files: dict[str, str] = {}
    valid_loss: float | None = None
    best_step: int | None = None
    best_loss: float | None = None
    valid_metric: float | None = None
    best_metric: float | None = None
    seconds: float = 0.0
    tokens: int = 0
    epoch_loss: float = 0.0
    epoch_weight: float = 0.0
    stale: int = 0
    recent: tuple[float, ...] = ()
    planned: bool = True


def folder_of(out: Path, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return out / "checkpoints" / f"checkpoint-{step}"


def save(out: Path, base: Path, trainable: Trainable, optimizer: torch.optim.Optimizer, state: TrainingState) -> Path:
    """Write one checkpoint, whole or not at all. Raises StoreError (a full disk); what was there before stays."""
    from safetensors.torch import save_file

    final = folder_of(out, state.step)
    try:
        with atomic_folder(final) as work:
            if trainable.lora:
                save_adapter(trainable, work)
            else:
                save_whole(trainable, base, work / MODEL_FOLDER)
                seal(work / MODEL_FOLDER)  # it may be served from where it lies
            moments = {
                f"{name}.{key}": value.contiguous()
                for name, p in trainable.parameters().items()
                for key, value in optimizer.state[p].items()
                if isinstance(value, torch.Tensor)
            }
            save_file(moments, work / MOMENTS)
            files = {path.relative_to(work).as_posix(): file_digest(path) for path in sorted(work.rglob("*")) if path.is_file()}
            (work / STATE).write_bytes(msgspec.json.encode(msgspec.structs.replace(state, files=files)))
            seal(work)
    except (OSError, SafetensorError) as error:  # safetensors says in its own way that the disk is full
        shutil.rmtree(unfinished(final), ignore_errors=True)
        raise StoreError(f"no checkpoint at step {state.step}: {error}", where=str(final), remedy="free space on the disk") from error
    return final


def save_adapter(trainable: Trainable, folder: Path) -> None:
    """The adapter as peft writes it."""
    trainable.model.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)  # peft's empty card; the run writes its own


def save_whole(trainable: Trainable, base: Path, folder: Path) -> None:
    """Every weight as transformers writes it, with the base's tokenizer and template: a model that answers."""
    trainable.causal.save_pretrained(folder)
    copy_tokenizer(base, folder)


def copy_tokenizer(base: Path, folder: Path) -> None:
    """The base's tokenizer and template, beside weights that were trained with them."""
    for name in TOKENIZER_FILES:
        if (base / name).exists():
            shutil.copyfile(base / name, folder / name)


def load_weights(trainable: Trainable, folder: Path) -> None:
    """Put a checkpoint's weights into the model, in place."""
    from safetensors.torch import load_file

    if trainable.lora:
        from peft import set_peft_model_state_dict

        set_peft_model_state_dict(trainable.model, load_file(folder / ADAPTER))
        return
    earlier = folder / EARLIER_WHOLE
    # The names in a file need not be those in memory (fused experts), so what reads it back is what wrote it.
    stored = load_file(earlier) if earlier.is_file() else dict(load_base(folder / MODEL_FOLDER, torch.float32).named_parameters())
    with torch.no_grad():
        for name, p in trainable.parameters().items():
            p.copy_(stored[name])


def load(folder: Path, trainable: Trainable, optimizer: torch.optim.Optimizer) -> None:
    """Restore weights and moments, in place."""
    from safetensors.torch import load_file

    load_weights(trainable, folder)
    moments = load_file(folder / MOMENTS)
    for name, p in trainable.parameters().items():
        state: dict[str, Any] = {key: moments[f"{name}.{key}"] for key in ("step", "exp_avg", "exp_avg_sq") if f"{name}.{key}" in moments}
        optimizer.state[p] = {key: value if key == "step" else value.to(p.device) for key, value in state.items()}


def sound(folder: Path) -> TrainingState | None:
    """The state of a checkpoint whose every file is there and unchanged, else None."""
    try:
        state = msgspec.json.decode((folder / STATE).read_bytes(), type=TrainingState)
        return state if all(file_digest(folder / name) == digest for name, digest in state.files.items()) else None
    except (OSError, msgspec.DecodeError):
        return None


def checkpoints(out: Path) -> list[Path]:
    """Checkpoint folders, the newest step first."""
    folders = [p for p in (out / "checkpoints").glob("checkpoint-*") if p.name.rpartition("-")[2].isdigit()]
    return sorted(folders, key=lambda p: -int(p.name.rpartition("-")[2]))


def newest(out: Path, identity: str) -> tuple[Path, TrainingState] | None:
    """The newest sound checkpoint of this run; broken ones are passed over."""
    for folder in checkpoints(out):
        state = sound(folder)
        if state is not None and state.identity == identity:
            return folder, state
    return None


def prune(out: Path, *, keep: int, best: int | None, epoch_steps: int) -> None:
    """Remove old checkpoints: the newest of all, the newest `keep` planned ones, the best, and those that end an epoch stay."""
    planned = 0
    for place, folder in enumerate(checkpoints(out)):
        step, regular = int(folder.name.rpartition("-")[2]), _planned(folder)
        planned += regular
        if place and not (regular and planned <= keep) and step != best and step % epoch_steps:
            shutil.rmtree(folder)


def _planned(folder: Path) -> bool:
    try:
        return msgspec.json.decode((folder / STATE).read_bytes(), type=TrainingState).planned
    except (OSError, msgspec.DecodeError):
        return False


def discard_after(out: Path, step: int) -> None:
    """Remove the checkpoints of all later steps, the newest first, so that a kill in between leaves a usable folder."""
    for folder in checkpoints(out):
        if int(folder.name.rpartition("-")[2]) > step:
            shutil.rmtree(folder)
