"""Which model: a base, alone, under an adapter, or with all of its weights replaced; knows nothing about how it is loaded or served."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from tunesmith.core.errors import ConfigError, NotFound
from tunesmith.core.types import Record

ADAPTER_SETTINGS = "adapter_config.json"  # what peft writes beside an adapter's weights
ADAPTER_WEIGHTS = "adapter_model.safetensors"
ADAPTER_FOLDER, MODEL_FOLDER = "adapter", "model"  # what training leaves in a run's folder: an adapter, or whole weights
_MADE_HERE = ("stages", "jobs")  # the folders of a store in which training leaves them


class ModelRef(Record, frozen=True):
    """One model that can answer.

    `base` is a word for a base: a name of the catalogue, an id of the hub, or a folder (one that begins with `.` lies relative to the
    store's folder). `adapter` (low-rank matrices on the base) and `weights` (a whole model that was trained from it) are places: a relative
    one lies in the store's folder, so that moving or renaming a project changes nothing. `digest` is over all that decides an answer
    (weights, adapter, template, tokenizer, precision); empty where nobody has computed it yet. `made_by` is the run or the job that it
    came from: `run:DIGEST`, `job:ID`.
    """

    base: str
    adapter: str | None = None
    weights: str | None = None
    digest: str = ""
    made_by: str = ""

    def __post_init__(self) -> None:
        if self.adapter is not None and self.weights is not None:
            raise ConfigError(
                f"a model has an adapter ({self.adapter}) and whole weights ({self.weights})", allowed="one of them, or neither"
            )

    @property
    def trained(self) -> str | None:
        """The place of what was trained, adapter or whole weights; None for the base alone."""
        return self.adapter or self.weights

    @property
    def as_base(self) -> str:
        """The word for the whole weights that an adapter on this model stands on: its own, or its base's."""
        if self.weights is None:
            return self.base
        return self.weights if self.weights.startswith((".", "/")) else f"./{self.weights}"

    def same_as(self, other: ModelRef | None) -> bool:
        """Whether both are made of the same parts, whoever computed a digest of them."""
        return other is not None and (self.base, self.adapter, self.weights) == (other.base, other.adapter, other.weights)


def artifact_in(run: Path) -> Path:
    """The folder that training left in a run's folder. Raises NotFound when there is none."""
    folder = next((run / name for name in (ADAPTER_FOLDER, MODEL_FOLDER) if (run / name).is_dir()), None)
    if folder is None:
        raise NotFound("no trained model", where=str(run), allowed=f"{ADAPTER_FOLDER} or {MODEL_FOLDER}", remedy="train it again")
    return folder


def artifact_ref(base: str, folder: Path, store: Path, *, made_by: str = "") -> ModelRef:
    """The model that training left in `folder` (peft's format, or whole weights); its place is kept relative to the store's folder."""
    place = place_of(folder, store)
    return (
        ModelRef(base=base, adapter=place, made_by=made_by) if is_adapter(folder) else ModelRef(base=base, weights=place, made_by=made_by)
    )


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter in peft's format."""
    return (folder / ADAPTER_SETTINGS).is_file()


def adapter_base(folder: Path) -> str:
    """The base that an adapter in peft's format says it was trained on; empty where it does not say."""
    return str(adapter_settings(folder).get("base_model_name_or_path") or "")


def adapter_settings(folder: Path) -> dict[str, Any]:
    """What peft wrote beside an adapter's weights. Raises NotFound for a folder without it, or with one that is no JSON object."""
    try:
        settings = json.loads((folder / ADAPTER_SETTINGS).read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise NotFound(f"no adapter's settings: {error}", where=str(folder / ADAPTER_SETTINGS)) from error
    if not isinstance(settings, dict):
        raise NotFound("an adapter's settings are no JSON object", where=str(folder / ADAPTER_SETTINGS))
    return settings


def place_of(folder: Path, store: Path, home: Path | None = None) -> str:
    """How a folder is written down: relative to the store's folder where it lies in it, or where both lie in `home` (the project's folder);
    else as it is."""
    folder, store = folder.expanduser().resolve(), store.resolve()
    if folder.is_relative_to(store):
        return str(folder.relative_to(store))
    if home is not None and folder.is_relative_to(home.resolve()) and store.is_relative_to(home.resolve()):
        return os.path.relpath(folder, store)
    return str(folder)


def base_place(folder: Path, store: Path, home: Path | None = None) -> str:
    """How a base's folder is written down, so that it is taken for no name: it begins with `.` or `/`."""
    place = place_of(folder, store, home)
    return place if place.startswith((".", "/")) else f"./{place}"


def folder_at(place: str, store: Path) -> Path:
    """The folder that is written down as `place`. For a whole path (of an older record, perhaps of a project that was moved since) the
    store's own folder of the same stage or job comes first: its name comes from its content."""
    path = Path(place).expanduser()
    if not path.is_absolute():
        return Path(os.path.normpath(store / path))
    starts = [i for i, part in enumerate(path.parts) if part in _MADE_HERE]
    own = [store.joinpath(*path.parts[i:]) for i in reversed(starts)]
    return next((folder for folder in own if folder.is_dir()), path)
