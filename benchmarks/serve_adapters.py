"""Many adapters behind one server: how long a first token takes of one that is in memory, of another one after it, of one that is not.

`python -m benchmarks.serve_adapters --registered 1000` registers that many aliases, each with an adapter folder of its own (rank 8 on every
projection of SmolLM2-135M; their weights are hard links to a few files, so that a disk holds them), starts the real server over them and
asks it over HTTP. What is cold is not in the server's memory; its files may be in the page cache of the machine. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.serve import MODEL, adapters

ASKED = 21  # requests of each kind
_WORDS = ("river", "letter", "garden", "winter", "copper", "bridge", "market", "window", "doctor", "island")


def registered(folder: Path, count: int, held: int) -> Any:
    """A project's models with that many aliases in its store, each with an adapter of its own, of which so many are held in memory; every
    file was loaded once before, as one is when it is deployed."""
    from tunesmith.core.deployment import Variant
    from tunesmith.core.model_ref import ModelRef
    from tunesmith.core.seal import seal
    from tunesmith.models.catalog import Catalog
    from tunesmith.models.resolve import Models
    from tunesmith.models.weights import Weights
    from tunesmith.store.deployments import Deployments
    from tunesmith.store.store import Store

    store = Store.open(folder / ".tunesmith")
    models = Models(store, Catalog(), home=folder)
    base, known = str(models.ref(MODEL).base), []
    for path in adapters():
        seal(path)  # as a deployed one is: what is read is looked at first
        known.append((path, models.load(ModelRef(base=base, adapter=str(path)), path.name).digest))
    deployments = Deployments(store)
    for number in range(count):
        source, digest = known[number % len(known)]
        own = folder / "adapters" / f"{number:04}"
        own.mkdir(parents=True)
        for file in source.iterdir():
            os.link(file, own / file.name) if file.suffix == ".safetensors" else (own / file.name).write_bytes(file.read_bytes())
        deployments.put(f"tuned-{number}", [Variant(name="tuned", model=ModelRef(base=base, adapter=str(own), digest=digest))])
    return Models(store, Catalog(), home=folder, weights=Weights(max_adapters=held))


@contextmanager
def serving(models: Any) -> Iterator[tuple[str, float]]:
    """The server over what is registered: its address, and how many seconds it took to start."""
    from tunesmith.api.app import create_app, running
    from tunesmith.api.reload import Reload
    from tunesmith.deploy.router import Router

    started, router = time.perf_counter(), Router()
    reload = Reload(router, models, {})
    for line in reload.start():
        raise RuntimeError(line)
    with running(create_app(router, store=models.store, models=models, reload=reload)) as url:
        yield url, time.perf_counter() - started


class Asker:
    """A client that counts how long first tokens take, in milliseconds."""

    def __init__(self, url: str) -> None:
        import httpx

        self._client, self._url, self._number = httpx.Client(timeout=120), url, 0

    def first_token(self, alias: str) -> float:
        """One request of one token; no two have the same words."""
        self._number += 1
        words = " ".join(_WORDS[self._number // 10**place % 10] for place in range(4))
        body = {"model": alias, "messages": [{"role": "user", "content": f"Say more of {words}."}], "max_tokens": 1, "temperature": 0}
        started = time.perf_counter()
        answer = self._client.post(f"{self._url}/chat/completions", json=body)
        took = (time.perf_counter() - started) * 1000
        if answer.status_code != 200:
            raise RuntimeError(f"{alias}: {answer.status_code} {answer.text}")
        return took


def measured(count: int, held: int, asked: int) -> dict[str, Any]:
    """The medians."""
    with TemporaryDirectory() as place:
        models = registered(Path(place), count, held)
        with serving(models) as (url, start_s):
            ask = Asker(url)
            warm = [f"tuned-{count - 1}", f"tuned-{count - 2}"]  # the newest are in memory
            for _ in range(3):
                _ = [ask.first_token(alias) for alias in warm]
            same = [ask.first_token(warm[0]) for _ in range(asked)]
            switched = [ask.first_token(warm[number % 2]) for number in range(asked)]
            cold = [ask.first_token(f"tuned-{number}") for number in range(min(asked, count - held))]
    figures = {"same_ms": median(same), "switched_ms": median(switched), "cold_ms": median(cold), "cold_most_ms": max(cold)}
    more = {"switch_ms": max(0.0, median(switched) - median(same)), "cold_more_ms": max(0.0, median(cold) - median(same))}
    return figures | more | {"registered": count, "held": held, "start_s": start_s}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    reader = argparse.ArgumentParser(description=__doc__)
    reader.add_argument("--registered", type=int, default=1000)
    reader.add_argument("--held", type=int, default=64, help="serve.max_adapters")
    reader.add_argument("--asked", type=int, default=ASKED)
    asked = reader.parse_args(arguments)
    print(json.dumps(measured(asked.registered, asked.held, asked.asked)), flush=True)


if __name__ == "__main__":
    main()
