"""Identity of what is served: false alarms of simulated months, and how soon planted faults are found behind a real server.

`python -m benchmarks identity`: models that answer with noise are looked at as a server looks, and alarms are counted in months; a server
over SmolLM2-135M has faults planted while it runs. Prints `ratio identity_false_alarms_90d X`, `ratio identity_found X` and `ratio
identity_probes X`, and writes its tables into docs/performance.md.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from benchmarks.harness import ratio, table, write_section
from tunesmith.core.identity import ANSWERS, IdentityReference, Sample
from tunesmith.core.types import Message
from tunesmith.deploy.identity import AGAIN, DAYS, FIRST_LEVEL, PROBES, look, second_level

HEADLINES = ("identity_false_alarms_90d", "identity_found", "identity_probes")
EVERY_S = 120.0
_TOKENS = 6
_DEPLOYMENTS = 30  # references in a simulated stretch of days: one is lucky or not, and each serves for three days
Floats = Any


@dataclass(frozen=True)
class Noise:
    """How a model that nobody changed answers otherwise each time."""

    name: str
    draw: Callable[[np.random.Generator, tuple[int, ...]], Floats]
    tolerance: float = 0.0
    alone: bool = (
        False  # a request that comes alone is always answered alike, and so half of the reference was; half of the looks find others
    )


NOISES = (
    Noise("rounding of float32 (2e-5 nats)", lambda rng, shape: rng.normal(0, 2e-5, shape), tolerance=1e-3),
    Noise("rounding of bfloat16 (0.02 nats)", lambda rng, shape: rng.normal(0, 0.02, shape), tolerance=0.02),
    Noise(
        "the same, behind a server that is idle at every other look",
        lambda rng, shape: rng.normal(0, 0.02, shape),
        tolerance=0.02,
        alone=True,
    ),
    Noise("a hosted model with heavy tails (Student's t, 2 degrees)", lambda rng, shape: 0.1 * rng.standard_t(2, shape)),
    Noise(
        "two kinds of machines behind one address (0.5 nats apart, chosen a request)",
        lambda rng, shape: rng.normal(0, 0.01, shape) + 0.5 * rng.integers(0, 2, (*shape[:2], 1)),
    ),
)


def _samples(values: Floats) -> list[tuple[dict[str, float], ...]]:
    return [tuple({f"t{number}": float(value) for number, value in enumerate(sample)} for sample in probe) for probe in values]


def false_alarms(noise: Noise, seed: int, days: float = DAYS) -> tuple[int, int, int]:
    """(looks, surprising ones, alarms) in so many days at one variant."""
    rng, level = np.random.default_rng(seed), second_level(EVERY_S)
    looks, surprising, alarms = round(days * 86_400 / EVERY_S), 0, 0
    center = -1.0 - np.arange(_TOKENS)

    own = noise.draw(rng, (PROBES, 1, _TOKENS))

    def answers(times: int) -> list[tuple[Sample, ...]]:
        drawn = noise.draw(rng, (PROBES, times, _TOKENS))
        return list(_samples(center + (own if noise.alone and rng.random() < 0.5 else drawn) + 0 * drawn))

    reference = None
    for number in range(looks):
        if number % (looks // _DEPLOYMENTS) == 0:
            probes = tuple((Message(role="user", content="?"),) for _ in range(PROBES))
            drawn, own = noise.draw(rng, (PROBES, ANSWERS, _TOKENS)), noise.draw(rng, (PROBES, 1, _TOKENS))
            if noise.alone:
                drawn[:, ANSWERS // 2 :] = own
            samples = tuple(_samples(center + drawn))
            reference = IdentityReference(probes=probes, samples=samples, tolerance=noise.tolerance)
        assert reference is not None
        if look(reference, answers(1), 0, FIRST_LEVEL, seed=number).p <= FIRST_LEVEL:
            surprising += 1
            alarms += look(reference, answers(AGAIN), 1, level, seed=number).p <= level
    return looks, surprising, alarms


# --- planted faults ----------------------------------------------------------------------------------------------------------------------


class Place:
    """A folder with a base, adapters on it and copies of it in fewer bits, and servers over one store."""

    def __init__(self, folder: Path) -> None:
        from tunesmith.models.catalog import Catalog
        from tunesmith.models.resolve import Models
        from tunesmith.store.store import Store

        self.folder, catalog = folder, Catalog()
        self.base = catalog.model("smollm2-135m")
        self.store = Store.open(folder / ".tunesmith")
        self.models = Models(self.store, catalog, home=folder)
        for seed in (1, 2):
            adapter(self.base, folder / f"adapter-{seed}", seed)
        for bits in (8, 4):
            quantised(self.base, folder / f"bits-{bits}", bits)

    @contextmanager
    def server(self) -> Iterator[tuple[str, Any]]:
        from tunesmith.api.app import create_app, running
        from tunesmith.api.reload import Reload
        from tunesmith.deploy.router import Router

        router = Router()
        reload = Reload(router, self.models, {})
        reload.start()
        with running(create_app(router, store=self.store, models=self.models, reload=reload)) as url:
            yield url, router


def adapter(base: Path, folder: Path, seed: int, size: float = 0.02) -> None:
    """An adapter whose second matrices are small random numbers, as after some steps of training."""
    import peft
    import torch

    from tunesmith.models.load_causal import load_causal

    torch.manual_seed(seed)
    model = peft.get_peft_model(load_causal(base, dtype=torch.float32), peft.LoraConfig(r=8, target_modules="all-linear"))
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=size)
    model.save_pretrained(folder)


def quantised(base: Path, folder: Path, bits: int) -> None:
    """The base with its linear layers in GGUF's Q8_0 or Q4_0, written out as what these stand for."""
    import shutil

    import gguf
    import torch
    from safetensors.torch import load_file, save_file

    kind = gguf.GGMLQuantizationType.Q8_0 if bits == 8 else gguf.GGMLQuantizationType.Q4_0
    folder.mkdir()
    for file in base.iterdir():
        if file.suffix != ".safetensors" and file.is_file() and file.name != "digests.txt":
            shutil.copyfile(file, folder / file.name)
    for file in base.glob("*.safetensors"):
        tensors = load_file(str(file))
        for name, tensor in tensors.items():
            if tensor.ndim == 2 and "proj" in name:
                packed = gguf.quants.quantize(tensor.float().numpy(), kind)
                tensors[name] = torch.from_numpy(gguf.quants.dequantize(packed, kind)).to(tensor.dtype)
        save_file(tensors, str(folder / file.name), metadata={"format": "pt"})


def faults(place: Place) -> list[list[Any]]:
    """Each planted fault: whether a look through the server found it, after how many probes and seconds, and how far answers lay apart."""
    from tunesmith.api.identity import through
    from tunesmith.flow.deploying import deploy
    from tunesmith.flow.identity_status import identities, look_through
    from tunesmith.models.base import loaded

    system = "You label the parties, dates and sums of the sentence, one a line, and nothing else."
    deployed = {
        "tuned": deploy("tuned", f"{place.base}+{place.folder / 'adapter-1'}", place.models, place.store, system=system),
        "other": deploy("other", f"{place.base}+{place.folder / 'adapter-2'}", place.models, place.store, system=system),
        "eight": deploy("eight", str(place.folder / "bits-8"), place.models, place.store, system=system),
    }
    rows: list[list[Any]] = []
    with place.server() as (url, router):

        def seen(fault: str, alias: str, planted: bool) -> None:
            started = time.perf_counter()
            look_through(alias, through(url, "none"), url, place.store)
            took = time.perf_counter() - started
            (each,) = identities(alias, place.store)[1]
            newest = each.looks[0]
            assert newest.moment == "asked", newest
            rows.append([fault, "yes" if each.differs else "no", newest.probes, took, newest.p, newest.distance, each.differs == planted])
            print(f"  {fault}: {newest.text()}, {took:.1f} s", flush=True)

        for alias in deployed:
            seen(f"none ({alias})", alias, planted=False)
        first, second = loaded(router.find("tuned")), loaded(router.find("other"))
        router.deploy(deployed["tuned"], {"tuned": second})
        seen("another adapter under the name", "tuned", planted=True)
        router.deploy(deployed["tuned"], {"tuned": first})
        four = place.models.load(place.models.ref(str(place.folder / "bits-4")), "eight")
        eight = router.find("eight")
        router.deploy(deployed["eight"], {"base": four})
        seen("4 bits in place of 8", "eight", planted=True)
        router.deploy(deployed["eight"], {"base": eight})
        for layer in first.engine.fast.model.modules():
            if hasattr(layer, "changes") and second.adapter in layer.changes:
                layer.changes[first.adapter] = layer.changes[second.adapter]
        router.deploy(deployed["other"], {"tuned": first})
        seen("the prefix of the adapter before under one reloaded by the same name", "other", planted=True)
    return rows


def main() -> None:
    """Simulate, plant, print and write."""
    simulated = [(noise, *false_alarms(noise, seed)) for seed, noise in enumerate(NOISES)]
    for noise, looks, surprising, alarms in simulated:
        print(f"  {noise.name}: {alarms} alarms, {surprising} surprising looks of {looks}", flush=True)
    with TemporaryDirectory() as folder:
        planted = faults(Place(Path(folder)))
    right = [row for row in planted if row[-1]]
    lines = [
        ratio("identity_false_alarms_90d", sum(alarms for *_, alarms in simulated) / len(simulated)),
        ratio("identity_found", len(right) / len(planted)),
        ratio("identity_probes", max(row[2] for row in planted)),
    ]
    write_section("identity", "Identity of what is served", _body(simulated, planted, lines))


def _body(simulated: Sequence[tuple[Noise, int, int, int]], planted: Sequence[Sequence[Any]], lines: Sequence[str]) -> str:
    alarms = table(
        ("a model that nobody changed", "looks in 90 days", "surprising ones", "false alarms"),
        [(noise.name, looks, surprising, count) for noise, looks, surprising, count in simulated],
    )
    found = table(("fault", "found", "probes", "seconds", "p", "apart on average, nats"), [row[:-1] for row in planted])
    return (
        f"One variant, looked at every {EVERY_S:.0f} s with {PROBES} probes of one token; a new deployment every three days.\n\n{alarms}"
        f"\n\nSmolLM2-135M behind the server's port; each line is one look after the fault was planted. A server looks every "
        f"{EVERY_S:.0f} s.\n\n{found}\n\n" + "\n".join(f"`{line}`" for line in lines)
    )


if __name__ == "__main__":
    print(json.dumps([false_alarms(noise, 0, days=1.0) for noise in NOISES]))
