"""Which model: a base, alone, under an adapter, or with all of its weights replaced; knows nothing about how it is loaded or served."""

from __future__ import annotations

from pathlib import Path

from tunesmith.core.errors import ConfigError
from tunesmith.core.types import Record

ADAPTER_SETTINGS = "adapter_config.json"  # what peft writes beside an adapter's weights


class ModelRef(Record, frozen=True):
    """One model that can answer.

    `base` is a word for a base: a name of the catalogue, an id of the hub, or a folder. `adapter` (low-rank matrices on the base) and
    `weights` (a whole model that was trained from it) are places: a relative one lies in the store's folder, so that moving or renaming a
    project changes nothing. `digest` is over all that decides an answer (weights, adapter, template, tokenizer, quantisation); empty
    where nobody has computed it yet. `made_by` is the run or the job that it came from: `run:DIGEST`, `job:ID`.
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


def artifact_ref(base: str, folder: Path, store: Path, *, made_by: str = "") -> ModelRef:
    """The model that training left in `folder` (peft's format, or whole weights); its place is kept relative to the store's folder."""
    place = str(folder.relative_to(store)) if folder.is_relative_to(store) else str(folder)
    if (folder / ADAPTER_SETTINGS).is_file():
        return ModelRef(base=base, adapter=place, made_by=made_by)
    return ModelRef(base=base, weights=place, made_by=made_by)
