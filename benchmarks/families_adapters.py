"""Eight adapters in one batch against eight runs of one alone, for every family of models that `families.py` tries, at toy size.

`python -m benchmarks.families_adapters` prints a line a family and writes their table into docs/performance.md; `--only qwen3,gpt_oss`
tries some. Each has eight random adapters on all of its linear layers and eight prompts that begin alike; the engine that serves answers
each prompt under its own adapter, all in one batch, and then each alone. Tokens must be the same, log-probabilities within rounding.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.families_variants import VARIANTS, VOCABULARY, Variant, configuration
from benchmarks.harness import ratio, table, write_section

ADAPTERS, NEW = 8, 8
BOUND = 1e-4  # relative, of a log-probability against at least 1 nat
_LIMIT_S = 120
_SHARED = 30  # tokens with which the prompts begin
Answer = tuple[list[int], list[float]]


def tried(variant: Variant, work: Path) -> tuple[str, str]:
    """(the route of the adapters, the verdict) of one family: equal, a difference, or why nothing was compared."""
    import numpy as np

    from benchmarks import families_reference as plain
    from benchmarks.families_trial import tokenizer
    from tunesmith.models.local import LocalModel

    os.environ["XDG_DATA_HOME"] = str(work / "user")  # no choice of another run
    base = work / "base"
    plain.create(configuration(variant), base)
    tokenizer(base)
    folders = random_adapters(base, work)
    model = LocalModel(base, name="base", dtype="float32", device="cpu")
    models = [model.with_adapter(folder, folder.name) for folder in folders]
    routes = ", ".join(sorted({each.route.route for each in models}))
    draw = np.random.default_rng(0)
    shared = draw.integers(4, VOCABULARY, _SHARED).tolist()
    prompts = [[*shared, *draw.integers(4, VOCABULARY, 2 + number).tolist()] for number in range(ADAPTERS)]
    together = answers(models, prompts)
    alone = [answers([own], [ids])[0] for own, ids in zip(models, prompts, strict=True)]
    if len({tuple(ids) for ids, _ in together}) < ADAPTERS // 2:
        return routes, "the adapters change too little to tell them apart"
    for number, (a, b) in enumerate(zip(together, alone, strict=True)):
        if a[0] != b[0]:
            place = next(i for i, (x, y) in enumerate(zip(a[0], b[0], strict=True)) if x != y)
            return routes, f"adapter {number + 1} differs at token {place + 1}"
    apart = max(abs(x - y) / max(1.0, abs(y)) for a, b in zip(together, alone, strict=True) for x, y in zip(a[1], b[1], strict=True))
    return routes, "equal" if apart <= BOUND else f"the same tokens, log-probabilities {apart:.0e} apart"


def random_adapters(base: Path, work: Path) -> list[Path]:
    """Eight adapters with random weights, on the layers that training reaches."""
    import peft
    import torch

    from tunesmith.models.load_causal import load_causal
    from tunesmith.train.targets import all_linear

    made = []
    for number in range(ADAPTERS):
        torch.manual_seed(number)
        model = load_causal(base, dtype=torch.float32)
        settings = peft.LoraConfig(r=4, lora_alpha=8, target_modules=all_linear(model), init_lora_weights=False)
        made.append(work / f"adapter-{number}")
        peft.get_peft_model(model, settings).save_pretrained(made[-1], save_embedding_layers=False)
    return made


def answers(models: Sequence[Any], prompts: Sequence[Sequence[int]]) -> list[Answer]:
    """Tokens and their log-probabilities of each prompt under its own model, in one batch."""
    from tunesmith.nets.sequences import DecodeRequest

    decoder, written = models[0].decoder(), dict[int, Answer]()
    for model, ids in zip(models, prompts, strict=True):
        request = DecodeRequest(ids=ids, max_tokens=NEW, adapter=model.adapter, top_logprobs=1, share=_SHARED)
        written[decoder.add(request)] = ([], [])
    while decoder.busy:
        for token in decoder.step():
            written[token.sequence][0].append(token.id)
            written[token.sequence][1].append(float((token.logprob or {})["logprob"]))
    return list(written.values())


def _child(name: str) -> tuple[str, str]:
    """Try one family in a fork of this process, so that nothing of one reaches another."""
    work = Path(tempfile.mkdtemp(prefix="families-"))
    kept = work / "outcome.json"
    pid = os.fork()
    if not pid:
        signal.alarm(_LIMIT_S)
        with Path(os.devnull).open("w") as quiet:
            os.dup2(quiet.fileno(), 1)
            os.dup2(quiet.fileno(), 2)
            try:
                outcome = tried(VARIANTS[name], work)
            except Exception as error:  # noqa: BLE001 - whatever transformers or peft raise of one family is its line
                outcome = ("–", f"{type(error).__name__}: {' '.join(str(error).split())[:160]}")
            kept.write_text(json.dumps(outcome), "utf-8")
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    route, verdict = json.loads(kept.read_text("utf-8")) if kept.is_file() else ("–", f"the process ended with {status}")
    shutil.rmtree(work, ignore_errors=True)
    return route, verdict


def main(arguments: Sequence[str] | None = None) -> int:
    """Try, print and write."""
    import peft
    import torch
    import transformers

    from benchmarks import families_trial
    from tunesmith.models import local
    from tunesmith.nets import decoder

    reader = argparse.ArgumentParser(description=__doc__)
    reader.add_argument("--only", default="", help="families, separated by commas")
    only = [name for name in reader.parse_args(arguments).only.split(",") if name]
    if unknown := sorted(set(only) - set(VARIANTS)):
        print(f"no variant {', '.join(unknown)}; there are: {', '.join(VARIANTS)}", file=sys.stderr)
        return 2
    assert all((peft, families_trial, local, decoder))  # imported for the forks
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    outcomes = {}
    for name in only or VARIANTS:
        outcomes[name] = _child(name)
        print(f"  {name}: {' | '.join(outcomes[name])}", flush=True)
    batched = {name: verdict for name, (route, verdict) in outcomes.items() if "batched" in route}
    line = ratio("families_mixed_equal", sum(verdict == "equal" for verdict in batched.values()) / max(1, len(batched)))
    if not only:
        again = "python -m benchmarks.families_adapters"
        write_section("families_adapters", "Eight adapters in one batch", _body(outcomes, line), again=again)
    return 0


def _body(outcomes: dict[str, tuple[str, str]], line: str) -> str:
    alike = Counter(route for route, verdict in outcomes.values() if verdict == "equal")
    equal = {route: [name for name, outcome in outcomes.items() if outcome == (route, "equal")] for route in alike}
    other = [(name, route, verdict.replace("|", "/")) for name, (route, verdict) in outcomes.items() if verdict != "equal"]
    about = (
        f"Families of `make families` at toy size in float32: {ADAPTERS} random adapters, each prompt under its own, in one batch and each "
        f"alone. Equal: the same tokens, log-probabilities within {BOUND:g}."
    )
    parts = [about, *(f"Equal, {route} ({count}): {', '.join(equal[route])}." for route, count in alike.most_common())]
    parts += [table(("family", "route", "otherwise"), other)] if other else []
    return "\n\n".join([*parts, f"`{line}`: of the batched ones."])


if __name__ == "__main__":
    sys.exit(main())
