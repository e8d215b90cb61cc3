"""Studies simulated without any training: how often noise alone is recommended, and how often a better plan, by the product's verdict."""

from __future__ import annotations

from typing import Any

import numpy as np


def simulated() -> tuple[dict[str, float], dict[str, float]]:
    """The share of simulated studies that recommend the default where all plans are equal, by what luck is made of; and the share that
    recommend the better plan where there is one."""
    luck = {"seeds": (0.3, 0.0), "rows": (0.0, 1.0), "both": (0.3, 1.0)}
    kept = {name: 1 - _share(200, shift, liked, 0.0) for name, (shift, liked) in luck.items()}
    power = {name: _share(50, *luck[name], 0.15) for name in luck}
    print(f"  default recommended {kept}; better plan recommended {power}", flush=True)
    return kept, power


def _share(studies: int, shift: float, liked: float, gain: float) -> float:
    return sum(recommends(seed, shift, liked, gain) for seed in range(studies)) / studies


def recommends(seed: int, shift: float, liked: float, gain: float, rows: int = 200, plans: int = 20, seeds: int = 3) -> bool:
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
