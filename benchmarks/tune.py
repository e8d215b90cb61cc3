"""Studies: tokens until the best of a grid is met, against other searches; and how often noise alone is recommended.

Every plan of a 4 × 4 × 3 grid is trained once by the product's own study and looked at on each rung; the searches then choose among those
plans, so that all of them see the same numbers and only their choices differ. Then studies are simulated in which all plans are equal.
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.harness import ROOT, peer_python, ratio, table, write_section

HEADLINES = ("tune_tokens_vs_grid", "tune_default_kept")
SEEDS = 5
SPACE = {
    "learning_rate": {"choices": [1e-3, 3e-3, 1e-2, 3e-2]},
    "batch_size": {"choices": [4, 8, 16, 32]},
    "adapter.r": {"choices": [2, 8, 32]},
}
RUNGS = (1 / 9, 1 / 3, 1.0)
YAML = """name: bench
sources: [{path: rows.jsonl}]
base: ./base
split: {validation: 0.25, test: 0.1, semantic: {action: "off"}}
train: {epochs: 3, learning_rate: 0.01, batch_size: 16, dtype: float32, threads: 1, warmup_ratio: 0.03, adapter: {r: 8}}
evaluate: {metrics: [exact_match], max_tokens: 4}
"""
Curve = list[tuple[int, float]]  # (tokens so far, value) at each rung


def main() -> None:
    kept, power = _simulated()
    curves, default = _curves()
    whole, reached = sum(curve[-1][0] for curve in curves.values()), dict[str, list[int]]()
    for label, search in _searches().items():
        reached[label] = [search(curves, default, seed) for seed in range(SEEDS)]
        print(f"  {label}: {', '.join(f'{tokens / whole:.3f}' for tokens in reached[label])}", flush=True)
    lines = _rank_correlations(curves)
    rows = [(label, *_shares(tokens, whole)) for label, tokens in reached.items()]
    said = [
        ratio("tune_tokens_vs_grid", float(median(reached["tunesmith tune"])) / whole),
        ratio("tune_default_kept", min(kept.values())),
    ]
    body = "\n\n".join(
        [
            f"Tokens trained until a whole training has the best value of the {len(curves)} plans of a 4 × 4 × 3 grid (learning rate, "
            f"batch size, rank; a two-layer random model, a toy task), as a share of the grid's {whole:,}; {SEEDS} seeds. A search that "
            "never meets it counts 1.",
            table(["search", "median", "least", "most"], rows),
            lines,
            f"200 simulated studies of 20 equal plans each, 200 validation rows: the default is recommended in {_said(kept)}. Where one "
            f"plan is better by 15 points, it is recommended in {_said(power)}.",
            "\n".join(said),
        ]
    )
    write_section("tune", "Searching for a plan", body)


def _said(shares: dict[str, float]) -> str:
    return ", ".join(f"{share:.1%} ({name})" for name, share in shares.items())


def _shares(found: list[int], whole: int) -> tuple[float, float, float]:
    shares = [min(1.0, tokens / whole) for tokens in found]
    return float(median(shares)), min(shares), max(shares)


# The grid


def _curves() -> tuple[dict[str, Curve], str]:
    """What each plan of the grid has at each rung (by its parameters as JSON), and which one is the default. Kept beside the peers."""
    from tunesmith.core.types import digest

    kept = ROOT / ".peers" / f"tune-grid-{digest(YAML, SPACE, RUNGS, _rows())[:12]}.json"
    if kept.is_file():
        found = json.loads(kept.read_text())
        return {key: [(tokens, value) for tokens, value in curve] for key, curve in found["curves"].items()}, found["default"]
    with tempfile.TemporaryDirectory() as folder:
        curves, default = _trained(Path(folder))
    kept.parent.mkdir(exist_ok=True)
    kept.write_text(json.dumps({"curves": curves, "default": default}))
    return curves, default


def _rows() -> list[dict[str, Any]]:
    """A toy task that takes some learning: say which of two words comes first in a sentence."""
    rng, rows = random.Random(0), []
    words = ["agreement", "bank", "entities", "sentence", "credit", "holdings", "amended", "signed", "ohio", "york", "june", "dated"]
    for _ in range(480):
        asked = " ".join(rng.sample(words, 6))
        answer = "yes" if "bank" in asked and "credit" in asked else "no" if "bank" in asked else "nobody"
        rows.append({"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]})
    return rows


def _trained(folder: Path) -> tuple[dict[str, Curve], str]:
    """Every plan trained whole by a study of the product, with a look on every rung."""
    from tunesmith.core.progress import Silent
    from tunesmith.flow.pipeline.run import opened
    from tunesmith.flow.project import load_project
    from tunesmith.flow.tuning.study import begin

    sys.path.insert(0, str(ROOT / "tests"))
    import tiny

    tiny.model(folder / "base", context=128)
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in _rows()))
    (folder / "tunesmith.yaml").write_text(YAML)
    words = ["--tune", json.dumps({"space": SPACE, "rungs": RUNGS, "eta": 2, "trials": 48, "sampler": "grid", "proxy": 0})]
    project = load_project(folder / "tunesmith.yaml", words)
    began = time.monotonic()
    with opened(project, folder, Silent()) as context:
        context.runner.run("tokens")
        study = begin(context, "")
        while (trial := study.search.next(48)) is not None:
            for rung in range(len(RUNGS)):
                trial = study.measured(trial, rung)
            print(f"  plan {trial.number + 1}/48: {trial.value:.3f}, {time.monotonic() - began:.0f} s", flush=True)
        trials = study.search.trials()
    return {_key(trial.params): [(look.tokens, look.value or 0.0) for look in trial.looks] for trial in trials}, _key(trials[0].params)


def _key(params: dict[str, Any]) -> str:
    return json.dumps(params, sort_keys=True)


def _rank_correlations(curves: dict[str, Curve]) -> str:
    from tunesmith.core.stats import spearman

    ends = [curve[-1][1] for curve in curves.values()]
    found = [(share, spearman([curve[i][1] for curve in curves.values()], ends)) for i, share in enumerate(RUNGS[:-1])]
    told = ", ".join(f"{value:.2f} after {share:.0%} of the steps" for share, value in found if value is not None)
    rates = {}
    for key, curve in curves.items():
        rates.setdefault(json.loads(key)["learning_rate"], []).append(curve[-1][1])
    best = ", ".join(f"{max(values):.2f} at {rate:g}" for rate, values in sorted(rates.items()))
    return f"Rank correlation of the metric with its value at the end: {told}. Best value by learning rate: {best}."


# The searches: each gives the tokens that were trained when a whole training first had the best value of the grid


def _searches() -> dict[str, Callable[[dict[str, Curve], str, int], int]]:
    return {
        "tunesmith tune": _ours,
        "Optuna 5, its own pruner (successive halving)": _optuna_pruned,
        "Optuna 5 (TPE)": _optuna,
        "syne-tune 0.16 (ASHA)": _syne_tune,
        "random": _random,
        "grid, in order": _in_order,
    }


def _best(curves: dict[str, Curve]) -> float:
    return max(curve[-1][1] for curve in curves.values())


def _ours(curves: dict[str, Curve], default: str, seed: int) -> int:
    """The study's own database, proposals and halving, over the measured curves."""
    from tunesmith.tune.halving import step
    from tunesmith.tune.search import Search, StudyFacts, defaults
    from tunesmith.tune.settings import Axis, Tune
    from tunesmith.tune.space import Varied
    from tunesmith.tune.trials import Rung, RungResult, find

    own = json.loads(default)
    space = tuple(Varied(key=key, axis=Axis(choices=tuple(axis["choices"])), default=own[key]) for key, axis in SPACE.items())
    rungs = tuple(Rung(share=share) for share in RUNGS)
    with tempfile.TemporaryDirectory() as folder:
        facts = StudyFacts(
            identity="", about={}, project="bench", method="sft", metric="exact_match", higher=True, space=space, rungs=rungs,
            sampler="tpe", seed=seed, parameters=1, rows=1,
        )  # fmt: skip
        search, tune, spent = Search.begin(f"sqlite:///{folder}/s.db", "s", facts), Tune(trials=len(curves)), 0
        search.add(defaults(space), "default")
        while (chosen := step(search.trials(), rungs, tune, higher=True, more=len(search.trials()) < len(curves))) is not None:
            trial = search.next(20) if chosen.number is None else find(search.trials(), chosen.number)
            assert trial is not None
            curve = curves[_key(trial.params)]
            tokens, value = curve[chosen.rung]
            spent += tokens - (curve[chosen.rung - 1][0] if chosen.rung else 0)
            top = chosen.rung == len(rungs) - 1
            search.look(trial.number, RungResult(rung=chosen.rung, value=value, tokens=tokens), "finished" if top else "paused")
            if top and value >= _best(curves):
                return spent
    return sum(curve[-1][0] for curve in curves.values())


def _plain(curves: dict[str, Curve], order: list[str]) -> int:
    spent = 0
    for key in order:
        spent += curves[key][-1][0]
        if curves[key][-1][1] >= _best(curves):
            return spent
    return spent


def _random(curves: dict[str, Curve], default: str, seed: int) -> int:
    order = list(curves)
    random.Random(seed).shuffle(order)
    return _plain(curves, order)


def _in_order(curves: dict[str, Curve], default: str, seed: int) -> int:
    """Of a full grid all plans are trained before the best is known."""
    return sum(curve[-1][0] for curve in curves.values())


def _optuna(curves: dict[str, Curve], default: str, seed: int) -> int:
    return _by_optuna(curves, seed, pruned=False)


def _optuna_pruned(curves: dict[str, Curve], default: str, seed: int) -> int:
    return _by_optuna(curves, seed, pruned=True)


def _by_optuna(curves: dict[str, Curve], seed: int, *, pruned: bool) -> int:
    """Optuna as its documentation has it: TPE with its defaults, and its pruner for successive halving. A plan twice costs twice."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    pruner = optuna.pruners.SuccessiveHalvingPruner(reduction_factor=3) if pruned else optuna.pruners.NopPruner()
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed), pruner=pruner)
    spent, best, whole = 0, _best(curves), sum(curve[-1][0] for curve in curves.values())
    while spent < whole:
        trial = study.ask()
        params = {key: trial.suggest_categorical(key, axis["choices"]) for key, axis in SPACE.items()}
        before, ended = 0, False
        for rung, (tokens, value) in enumerate(curves[_key(params)]):
            spent, before = spent + tokens - before, tokens
            trial.report(value, 3**rung)
            if rung < len(RUNGS) - 1 and trial.should_prune():
                study.tell(trial, state=optuna.trial.TrialState.PRUNED)
                ended = True
                break
        if not ended:
            study.tell(trial, value)
            if value >= best:
                return spent
    return whole


_SYNE = """
import json, sys
from syne_tune.config_space import choice
from syne_tune.optimizer.baselines import ASHA
from syne_tune.backend.trial_status import Trial
import datetime
given = json.loads(sys.stdin.read())
curves, space = given["curves"], {key: choice(axis["choices"]) for key, axis in given["space"].items()}
best, whole = max(c[-1][1] for c in curves.values()), sum(c[-1][0] for c in curves.values())
found = []
for seed in range(given["seeds"]):
    made = ASHA(space, metric="value", time_attr="epoch", max_t=9, grace_period=1, reduction_factor=3, do_minimize=False, random_seed=seed)
    spent, number, reached = 0, 0, None
    while spent < whole and reached is None:
        suggestion = made.suggest()
        trial = Trial(number, suggestion.config, datetime.datetime.now())
        made.on_trial_add(trial)
        number += 1
        before = 0
        key = json.dumps({k: suggestion.config[k] for k in sorted(given["space"])}, sort_keys=True)
        for rung, (tokens, value) in enumerate(curves[key]):
            spent, before = spent + tokens - before, tokens
            result = {"epoch": 3**rung, "value": value}
            if rung == len(curves[key]) - 1:
                made.on_trial_complete(trial, result)
                reached = spent if value >= best else None
            elif made.on_trial_result(trial, result) != "CONTINUE":
                made.on_trial_remove(trial)
                break
    found.append(reached or whole)
print(json.dumps(found))
"""
_syne_found: list[int] = []


def _syne_tune(curves: dict[str, Curve], default: str, seed: int) -> int:
    """ASHA with its defaults (stopping), in an environment of its own; where it cannot run it counts as the whole grid, which is said."""
    import subprocess

    if not _syne_found:
        given = json.dumps({"curves": curves, "space": SPACE, "seeds": SEEDS})
        try:
            done = subprocess.run(
                [peer_python("syne-tune-0.16", ["syne-tune==0.16.0"]), "-c", _SYNE],
                input=given,
                capture_output=True,
                text=True,
                timeout=600,
            )
            _syne_found.extend(json.loads(done.stdout.splitlines()[-1]))
        except (subprocess.SubprocessError, IndexError, ValueError) as error:
            print(f"  syne-tune did not run: {error}", flush=True)
            _syne_found.extend([sum(curve[-1][0] for curve in curves.values())] * SEEDS)
    return _syne_found[seed]


# Noise alone


def _simulated() -> tuple[dict[str, float], dict[str, float]]:
    """The share of simulated studies that recommend the default where all plans are equal, by what luck is made of; and the share that
    recommend the better plan where there is one."""
    luck = {"seeds": (0.3, 0.0), "rows": (0.0, 1.0), "both": (0.3, 1.0)}
    kept = {name: 1 - _share(200, shift, liked, 0.0) for name, (shift, liked) in luck.items()}
    power = {name: _share(50, *luck[name], 0.15) for name in luck}
    print(f"  default recommended {kept}; better plan recommended {power}", flush=True)
    return kept, power


def _share(studies: int, shift: float, liked: float, gain: float) -> float:
    return sum(_recommends(seed, shift, liked, gain) for seed in range(studies)) / studies


def _recommends(seed: int, shift: float, liked: float, gain: float, rows: int = 200, plans: int = 20, seeds: int = 3) -> bool:
    """One study: right and wrong answers to `rows` rows, each of a difficulty of its own. A training shifts all of them together by `shift`
    standard deviations (in logits), a plan likes some rows by `liked`; the last plan is better by `gain`. The verdict is the product's."""
    from tunesmith.evaluate.metrics import metric
    from tunesmith.flow.tuning.bench import paired
    from tunesmith.tune import verdict
    from tunesmith.tune.trials import RungResult, Trial

    rng = np.random.default_rng(seed)
    hard, taste = rng.normal(0.4, 1.2, rows), rng.normal(0.0, 1.0, (plans + 1, rows)) * liked

    def answers(plan: int) -> Any:
        chance = 1 / (1 + np.exp(-(hard + taste[plan] + rng.normal() * shift)))
        return (rng.random(rows) < np.clip(chance + gain * (plan == plans), 0, 1)).astype(float)

    looks = [RungResult(rung=0, value=float(answers(plan).mean())) for plan in range(plans + 1)]
    trials = [Trial(number=plan, params={}, state="finished", looks=(look,)) for plan, look in enumerate(looks)]
    best = [trial.number for trial in verdict.finalists(trials, 2, higher=True)]
    if not best:
        return False
    rule = metric("exact_match")
    runs = {number: [_evaluation(answers(number)) for _ in range(seeds)] for number in (0, *best)}
    means = {number: float(np.mean([run.values["exact_match"] for run in runs[number]])) for number in best}
    chosen = verdict.winner(means, higher=True)
    assert chosen is not None
    compared = paired(rule, {}, (runs[0], runs[chosen]), ("default", "trial"), verdict.level(plans)).metrics[0]
    assert compared.difference is not None
    values = [[run.values["exact_match"] for run in runs[number]] for number in (0, chosen)]
    difference = verdict.with_seeds(compared.difference, *values)
    made = verdict.decide(chosen, difference, metric="exact_match", higher=True, tried=plans, seeds=seeds)
    return made.recommended == "trial"


def _evaluation(right: Any) -> Any:
    from tunesmith.core.types import Answer, Sampling, Score
    from tunesmith.evaluate.run import Evaluation, Row

    scores = [Score(example_id=str(i), metric="exact_match", value=float(value)) for i, value in enumerate(right)]
    rows = tuple(Row(example_id=score.example_id, key=score.example_id, answer=Answer(text=""), scores=(score,)) for score in scores)
    return Evaluation(
        model="simulated", model_digest="", variant="", dataset_digest="", sampling=Sampling(), metrics=("exact_match",), rows=rows,
        values={"exact_match": float(np.mean(right))}, missing={}, asked=0, failed=0, prompt_tokens=0, completion_tokens=0, seconds=0.0,
    )  # fmt: skip


if __name__ == "__main__":
    main()
