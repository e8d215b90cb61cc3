"""Evaluation against its peers: bootstrap of a mean (scipy), ROUGE (rouge-score), bootstrap of BLEU (sacrebleu), on the same made-up texts.

Run as a program with the name of a side it does that side's work once and prints its figures.
"""

from __future__ import annotations

import json
import random
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

HEADLINES = ("bootstrap_vs_scipy", "rouge_vs_rouge_score", "bleu_bootstrap_vs_sacrebleu")
PEERS = ("rouge-score==0.1.2", "sacrebleu==2.6.0", "scipy==1.17.1", "numpy==2.4.6")
ROWS, RESAMPLES, PAIRS, LINES = 10_000, 10_000, 600, 1_000


def texts(n: int) -> tuple[list[str], list[str]]:
    """References of 40 to 80 words with Zipf's frequencies, and answers that keep 7 words in 10."""
    draw = random.Random(7)
    known = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randint(2, 9))) for _ in range(5000)]
    weights = [1 / (rank + 2) for rank in range(len(known))]
    wanted, said = [], []
    for _ in range(n):
        words = draw.choices(known, weights, k=draw.randint(40, 80))
        wanted.append(" ".join(words) + ".")
        said.append(" ".join(w if draw.random() < 0.7 else draw.choice(known) for w in words) + ".")
    return wanted, said


def values(distinct: str) -> Any:
    """10,000 scores: right or wrong, or shares that are all different."""
    import numpy as np

    rng = np.random.default_rng(7)
    return (rng.random(ROWS) < 0.8).astype(float) if distinct == "binary" else rng.random(ROWS)


def rows(n: int) -> list[Any]:
    """Pairs of an example and an answer."""
    from tunesmith.core.types import Answer, Example, Message

    wanted, said = texts(n)
    return [
        (Example(id=str(i), messages=(Message(role="user", content="q"),), reference=w), Answer(text=s))
        for i, (w, s) in enumerate(zip(wanted, said, strict=True))
    ]


def bootstrap_ours(kind: str) -> Callable[[], object]:
    from tunesmith.core.stats import bootstrap_mean

    data = values(kind)
    return lambda: bootstrap_mean(data, resamples=RESAMPLES).estimate


def bootstrap_scipy(kind: str) -> Callable[[], object]:
    import numpy as np
    from scipy.stats import bootstrap

    data = values(kind)
    # A batch of all resamples at once would need 800 MB.
    return lambda: bootstrap((data,), np.mean, n_resamples=RESAMPLES, batch=500, method="percentile", rng=1).confidence_interval.low


def rouge_ours(_: str) -> Callable[[], object]:
    from tunesmith.evaluate.metrics import metric

    metrics, pairs = [metric(name) for name in ("rouge1", "rouge2", "rougeL")], rows(PAIRS)
    return lambda: sum(m(e, a).value or 0 for e, a in pairs for m in metrics) / PAIRS


def rouge_peer(_: str) -> Callable[[], object]:
    from rouge_score.rouge_scorer import RougeScorer

    kinds = ["rouge1", "rouge2", "rougeL"]
    scorer, (wanted, said) = RougeScorer(kinds), texts(PAIRS)
    return lambda: sum(score.fmeasure for w, s in zip(wanted, said, strict=True) for score in scorer.score(w, s).values()) / PAIRS


def bleu_ours(_: str) -> Callable[[], object]:
    import numpy as np

    from tunesmith.core.stats.bootstrap import resampled_sums
    from tunesmith.evaluate.metrics import metric

    m, pairs = metric("bleu"), rows(LINES)

    def work() -> float:
        pool = m.pool([m(e, a) for e, a in pairs])
        return float(np.mean(pool.value(resampled_sums(pool.rows, 1000))))

    return work


def bleu_peer(resamples: str) -> Callable[[], object]:
    from sacrebleu.metrics import BLEU

    wanted, said = texts(LINES)
    return lambda: BLEU().corpus_score(said, [wanted], n_bootstrap=int(resamples)).score


def bleu_resampling_ours(_: str) -> Callable[[], object]:
    import numpy as np

    from tunesmith.core.stats.bootstrap import resampled_sums
    from tunesmith.evaluate.metrics import metric

    m = metric("bleu")
    pool = m.pool([m(e, a) for e, a in rows(LINES)])
    return lambda: float(np.mean(pool.value(resampled_sums(pool.rows, 1000))))


def evaluate_ours(again: str) -> Callable[[], object]:
    """A whole evaluation of 1,000 rows by a model that answers at once: everything but generation; or the same from kept answers."""
    from tempfile import mkdtemp

    from tunesmith.core.types import Example, Message, Sampling
    from tunesmith.evaluate.metrics import metric
    from tunesmith.evaluate.run import evaluate
    from tunesmith.models.echo import EchoModel

    # The question is what is to be said, so that all prompts differ and the answers are as long as the others here.
    examples = [
        Example(id=example.id, messages=(Message(role="user", content=answer.text),), reference=example.reference)
        for example, answer in rows(LINES)
    ]
    metrics, place = [metric(name) for name in ("exact_match", "rougeL")], Path(mkdtemp())

    def work() -> float | None:
        return evaluate(EchoModel(), examples, metrics, sampling=Sampling(), out=place).values["rougeL"]

    if again:
        work()
    return work


def command_ours(_: str) -> Callable[[], object]:
    """`tunesmith eval` of 1,000 rows that are answered already, as a person runs it: the whole process from start to end."""
    from tempfile import mkdtemp

    place, (wanted, said) = Path(mkdtemp()), texts(LINES)
    turns = [[{"role": "user", "content": s}, {"role": "assistant", "content": w}] for w, s in zip(wanted, said, strict=True)]
    (place / "rows.jsonl").write_text("".join(json.dumps({"messages": one}) + "\n" for one in turns))
    command = [sys.executable, "-m", "tunesmith", "eval", "echo", "--data", "rows.jsonl", "--metrics", "exact_match,rougeL", "--json"]

    def work() -> float:
        done = subprocess.run(command, cwd=place, capture_output=True, text=True, check=True)
        return float(json.loads(done.stdout)["evaluations"][0]["values"]["rougeL"])

    work()
    return work


def cpu_s() -> float:
    """CPU time of this process and of the ones that it ran to their end."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


SIDES: dict[str, tuple[Callable[[str], Callable[[], object]], str, int, tuple[str, ...]]] = {
    "bootstrap ours": (bootstrap_ours, "binary", 50, ("tunesmith", "numpy")),
    "bootstrap scipy": (bootstrap_scipy, "binary", 1, ("scipy", "numpy")),
    "bootstrap ours, shares": (bootstrap_ours, "shares", 1, ("tunesmith", "numpy")),
    "bootstrap scipy, shares": (bootstrap_scipy, "shares", 1, ("scipy", "numpy")),
    "rouge ours": (rouge_ours, "", 1, ("tunesmith", "rapidfuzz")),
    "rouge rouge-score": (rouge_peer, "", 1, ("rouge-score",)),
    "bleu ours, with counting": (bleu_ours, "", 1, ("tunesmith", "numpy")),
    "bleu sacrebleu, with counting, 5,000 resamples": (bleu_peer, "5000", 1, ("sacrebleu", "numpy")),
    "bleu sacrebleu, counting alone": (bleu_peer, "1", 1, ("sacrebleu", "numpy")),
    "bleu ours, resampling alone": (bleu_resampling_ours, "", 5, ("tunesmith", "numpy")),
    "ours: evaluation of 1,000 rows without generation": (evaluate_ours, "", 1, ("tunesmith", "rapidfuzz")),
    "ours: the same again, from kept answers": (evaluate_ours, "again", 1, ("tunesmith", "rapidfuzz")),
    "ours: the whole command `tunesmith eval` again, from kept answers": (command_ours, "", 1, ("tunesmith", "rapidfuzz")),
}


def side(name: str) -> None:
    """Do one side's work, after one untimed run of a small part of it where it is short, and print the figures."""
    make, kind, times, packages = SIDES[name]
    work = make(kind)
    if times > 1:
        work()
    cpu, wall = cpu_s(), time.perf_counter()
    for _ in range(times):
        value = work()
    cpu, wall = cpu_s() - cpu, time.perf_counter() - wall
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    versions = {package: version(package) for package in packages}
    print(json.dumps({"work": times, "cpu_s": cpu, "wall_s": wall, "peak_mb": peak, "versions": versions, "value": str(value)}))


def main() -> None:
    """All sides in turn, three rounds; the headlines compare CPU time of equal work."""
    from benchmarks.harness import Side, alternate, peer_python, ratio, table, write_section

    peer = peer_python("eval", PEERS)
    one = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    sides = [Side(name, [sys.executable if "ours" in name else peer, __file__, name], one) for name in SIDES]
    results = alternate(sides)
    ms = {name: 1000 / result.per_cpu_s for name, result in results.items()}
    # Counts are kept with the scores, so a bootstrap starts from them; sacrebleu's is what its resampling adds to its counting, of
    # five times as many resamples, because the difference of two near numbers is mostly noise.
    lines = [
        ratio("bootstrap_vs_scipy", ms["bootstrap scipy"] / ms["bootstrap ours"]),
        ratio("rouge_vs_rouge_score", ms["rouge rouge-score"] / ms["rouge ours"]),
        ratio(
            "bleu_bootstrap_vs_sacrebleu",
            (ms["bleu sacrebleu, with counting, 5,000 resamples"] - ms["bleu sacrebleu, counting alone"])
            / 5
            / ms["bleu ours, resampling alone"],
        ),
    ]
    header = ("side", "ms of CPU", "peak MB", "result", "versions")
    body = [
        (
            name,
            ms[name],
            result.median("peak_mb"),
            result.rounds[0]["value"][:9],
            ", ".join(map(" ".join, result.rounds[0]["versions"].items())),
        )
        for name, result in results.items()
    ]
    about = (
        f"Bootstrap: {RESAMPLES:,} resamples of the mean of {ROWS:,} rows, right or wrong (the headline) or all different (shares). "
        f"ROUGE-1, -2 and -L of {PAIRS} pairs of about 60 words. BLEU: 1,000 resamples of {LINES:,} lines of about 60 words; the headline "
        "compares resampling alone, since counts are kept with the scores. The evaluation asks, keeps and rates (exact match and ROUGE-L) "
        "1,000 rows; its cost is what comes on top of generation.\n\n"
    )
    write_section("eval", "Evaluation", about + table(header, body) + "\n\n" + "\n".join(f"`{line}`" for line in lines))


if __name__ == "__main__":
    side(sys.argv[1])
