"""The end of a study: the finalists and the default trained again under fresh seeds, and whether one is better. Searches nothing."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from math import isfinite
from pathlib import Path

import msgspec

from tunesmith.core.atomic import write_atomic
from tunesmith.core.seal import checked, seal
from tunesmith.core.stats import clipped
from tunesmith.evaluate.run import Evaluation, load_evaluation
from tunesmith.flow.tuning.bench import Trained
from tunesmith.flow.tuning.study import Study, held
from tunesmith.tune import verdict
from tunesmith.tune.trials import DEFAULT, Repeat, Trial, find, ranked
from tunesmith.tune.verdict import StudyVerdict

_KEPT = "verdict.json"


def judged(study: Study) -> StudyVerdict | None:
    """The verdict on what the search found so far, with whatever repetitions it still needs; None while another process is at it.

    Raises Stopped when the study is asked to stop.
    """
    with held(study.folder, "finals.lock", wait=False) as lock:
        if lock is None:
            return None
        found = _verdict(study)
        write_atomic(study.folder / _KEPT, msgspec.json.format(msgspec.json.encode(found)))
        return found


def read_verdict(study_folder: Path) -> StudyVerdict | None:
    """The last verdict of a study; None before the first."""
    path = study_folder / _KEPT
    return msgspec.json.decode(path.read_bytes(), type=StudyVerdict) if path.is_file() else None


def _verdict(study: Study) -> StudyVerdict:
    trials = study.search.trials()
    tried = sum(trial.value is not None and trial.number != DEFAULT for trial in trials)
    best = verdict.finalists(trials, study.tune.finalists, higher=study.higher)
    if not best:
        named = next((trial.number for trial in ranked(trials, higher=study.higher) if trial.number != DEFAULT), None)
        return verdict.unbeaten(named, tried)
    seeds = _seeds(study, len(best))
    if seeds < 2 and len(best) > 1:
        best = best[:1]
        seeds = _seeds(study, 1)
    if seeds < 2:
        return verdict.unrepeated(best[0].number, tried)
    runs: dict[int, list[Repeat]] = {number: [] for number in (DEFAULT, *(trial.number for trial in best))}
    wanted = [(find(trials, number), seed) for seed in range(1, seeds + 1) for number in runs]
    for trial, seed, spent in _trained(study, wanted):
        runs[trial.number].append(_repeat(study, trial, seed, spent))
    return _weighed(study, runs, tried, seeds)


def _seeds(study: Study, count: int) -> int:
    """How many fresh seeds of the default and of so many finalists the budget leaves; those that are there already cost nothing."""
    (tokens, seconds), (one, one_s), wanted = study.spent(), study.whole(), study.tune.seeds
    done = len(study.repeats())
    for limit, used, each in ((study.tune.tokens, tokens, one), (study.tune.seconds, seconds, one_s)):
        if limit is not None and each:
            wanted = min(wanted, int((max(0.0, limit - used) / each + done) // (count + 1)))
    return wanted


def _folder(study: Study, trial: Trial, seed: int) -> Path:
    return study.folder / "finals" / f"{trial.number}-{seed}"


def _training(study: Study, trial: Trial, seed: int) -> Callable[[], Trained]:
    """The trial trained whole under another seed; found where that was done."""
    plan = study.plan(trial)
    plan = msgspec.structs.replace(plan, seed=plan.seed + seed)
    work, label = _folder(study, trial, seed) / "train", f"trial {trial.number}, seed {seed}"
    return partial(study.bench.train, plan, work, 1.0, label=label, stop=study.over)


def _trained(study: Study, wanted: Sequence[tuple[Trial, int]]) -> Iterator[tuple[Trial, int, float]]:
    """Each repetition once it is trained, with the seconds that it took; several are trained side by side."""
    most = study.width.most
    for start in range(0, len(wanted), most):
        some, began = wanted[start : start + most], time.monotonic()
        new = [_training(study, trial, seed) for trial, seed in some if not (_folder(study, trial, seed) / "repeat.json").is_file()]
        failed = [result for result in study.bench.together(new) if isinstance(result, Exception)]
        if failed:
            raise failed[0]
        spent = (time.monotonic() - began) / max(1, len(new))
        yield from ((trial, seed, spent) for trial, seed in some)


def _repeat(study: Study, trial: Trial, seed: int, spent: float) -> Repeat:
    """The trial, trained under another seed in `spent` seconds, asked the same questions; found where that was done."""
    bench, folder = study.bench, _folder(study, trial, seed)
    path, label = folder / "repeat.json", f"trial {trial.number}, seed {seed}"
    if path.is_file():
        return msgspec.json.decode(checked(path).read_bytes(), type=Repeat)
    began, trained = time.monotonic(), _training(study, trial, seed)()
    evaluation = bench.ask(trained.weights, folder / "answers", label)
    value = evaluation.values[bench.metric.name]
    repeat = Repeat(
        trial=trial.number,
        seed=seed,
        value=value,
        tokens=trained.tokens,
        seconds=spent + time.monotonic() - began,
        place=str((folder / "answers").relative_to(study.context.store.layout.tuning)),
    )
    write_atomic(path, msgspec.json.encode(repeat))
    seal(folder, only=("repeat.json",))
    study.context.progress.say(f"{label}: {bench.metric.name} {'none' if value is None else format(value, '.4g')}")
    return repeat


def _weighed(study: Study, runs: dict[int, list[Repeat]], tried: int, seeds: int) -> StudyVerdict:
    higher = study.bench.metric.better == "higher"
    evaluations = {number: _loaded(study, repeats) for number, repeats in runs.items()}
    values = {number: [each.value for each in repeats if each.value is not None] for number, repeats in runs.items()}
    means = {number: sum(seen) / len(seen) for number, seen in values.items() if seen and number != DEFAULT}
    best = verdict.winner(means, higher=higher)
    if best is None:
        return verdict.unbeaten(None, tried)
    name = study.bench.metric.name
    compared = study.bench.compared(evaluations[DEFAULT], evaluations[best], ("the default", f"trial {best}"), verdict.level(tried))
    over_rows = compared.metrics[0].difference
    difference = None if over_rows is None else verdict.with_seeds(over_rows, values[DEFAULT], values[best])
    span = study.bench.metric.high - study.bench.metric.low
    if difference is not None and isfinite(span):
        difference = clipped(difference, span)
    return verdict.decide(best, difference, metric=name, higher=higher, tried=tried, seeds=seeds)


def _loaded(study: Study, repeats: Sequence[Repeat]) -> list[Evaluation]:
    return [load_evaluation(study.context.store.layout.tuning / each.place) for each in repeats]
