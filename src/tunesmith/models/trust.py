"""Which bases may run code that lies beside their weights: those a person named in `trust_remote_code`. Knows nothing about loading.

A base is asked for by name in many places (training, evaluation, serving, a teacher, a judge); what is allowed holds for the process.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tunesmith.core.errors import UsageError

# Keys of config.json that make a loader run code of the model's folder, and those that make it fetch or choose other code.
_CODE = ("auto_map", "custom_code", "trust_remote_code")
_OTHER = ("_attn_implementation", "attn_implementation")
# Ways to store weights that are read into ordinary ones, by transformers alone.
DEQUANTISED = ("mxfp4", "fp8")

_allowed: set[str] = set()
_names: dict[Path, set[str]] = {}


def allow(names: Iterable[str]) -> None:
    """These bases, by the name that `base:` gives them (or their folder), may run their own code; all others no longer may."""
    _allowed.clear()
    _allowed.update(names)


def allowed() -> list[str]:
    """The bases that may run their own code, by name and, where it is known, by folder: what another process is to be told."""
    return sorted(_allowed | {str(folder) for folder, names in _names.items() if names & _allowed})


def asked_as(name: str, folder: Path) -> Path:
    """Remember a name by which a folder was asked for, beside its others; returns the folder."""
    _names.setdefault(folder.resolve(), set()).add(name)
    return folder


def trusted(folder: Path) -> bool:
    """Whether the folder's own code may run: it was allowed by a name that it was asked for by, or as a folder, however written."""
    place = folder.resolve()
    return bool(_allowed & _names.get(place, set())) or any(Path(name).expanduser().resolve() == place for name in _allowed)


def refuse_code(config: dict[str, Any], where: Path) -> None:
    """Raises UsageError when the config.json at `where` makes a loader run or fetch code that was not allowed."""
    _refuse_stored(config, where)
    if needs_no_code(config):
        return
    folder = where.parent
    name = min(_names.get(folder.resolve(), {str(folder)}), key=len)
    for key in () if trusted(folder) else _CODE:
        if config.get(key):
            remedy = f"read {folder}/*.py and, where you trust them, write trust_remote_code: [{name}] into tunesmith.yaml"
            raise UsageError(f"the model's configuration sets '{key}'", where=str(where), remedy=remedy)
    elsewhere = [class_name for class_name in _classes(config, where) if "--" in class_name]
    if elsewhere:
        raise UsageError(
            f"the model's code is fetched from elsewhere: {elsewhere[0]}",
            where=str(where),
            allowed="files of the model's own folder",
            remedy="put the files beside the weights, and name them in auto_map without the repository",
        )


def _refuse_stored(config: dict[str, Any], where: Path) -> None:
    """Raises UsageError for a configuration that names kernels, or weights in a form that is not read into ordinary ones."""
    for key in _OTHER:
        if config.get(key):
            remedy = "use a model that runs without code of its own"
            raise UsageError(f"the model's configuration sets '{key}'", where=str(where), remedy=remedy)
    stored = config.get("quantization_config")
    method = stored.get("quant_method") if isinstance(stored, Mapping) else stored
    if stored and method not in DEQUANTISED:
        raise UsageError(
            f"the model's configuration sets 'quantization_config': its weights are stored as {method}",
            where=str(where),
            allowed=f"ordinary weights, or {' and '.join(DEQUANTISED)}, which are dequantised when they are loaded",
            remedy="use the model's ordinary weights; adapter: {quantise: nf4} packs them into 4 bits",
        )


def needs_no_code(config: dict[str, Any]) -> bool:
    """Whether the code that a configuration names is older than transformers' own classes of the same names, which are used instead."""
    named = config.get("auto_map")
    if not isinstance(named, Mapping) or not named or any(config.get(key) for key in _CODE if key != "auto_map"):
        return False
    import transformers
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    classes = [str(value).rsplit(".", 1)[-1] for key, value in named.items() if not key.startswith("AutoTokenizer")]
    return config.get("model_type") in CONFIG_MAPPING_NAMES and all(hasattr(transformers, name) for name in classes)


def _classes(config: dict[str, Any], where: Path) -> list[str]:
    """What auto_map names: `module.Class`, or `repository--module.Class`. Raises UsageError when it is no mapping."""
    mapping = config.get("auto_map") or {}
    if not isinstance(mapping, Mapping):
        raise UsageError(f"auto_map is {mapping!r}", where=str(where), allowed="a mapping from a loader's class to module.Class")
    return [str(name) for value in mapping.values() for name in (value if isinstance(value, list | tuple) else (value,)) if name]
