"""Whether the loop from feedback to a better model can be flattered: simulated users, a real small model, the product's own harvest,
training and governor. Writes its table of docs/monitoring.md.

A model of two random layers is trained on a toy task whose rows are wrong wherever a sentence names June. It answers; users say what
they think. Those who are pleased by praise and length press thumbs up on a variant that flatters, whatever it answers; honest ones
correct what is wrong. What each kind of word makes is trained, and the governor holds the new model against the old one.

Then five corrections in sequence: rows are wrong wherever one of five words stands, users correct one word's after the other's, and after
each training every slice that was corrected earlier is asked again.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.harness import ROOT, ratio, table
from benchmarks.watch import write

HEADLINES = ("loop_flattered_refused", "loop_honest_promoted", "loop_corrected_gain", "loop_five_lost")
YAML = """name: bench
sources: [{path: rows.jsonl}]
base: ./base
split: {validation: 0.1, test: 0.01, max_leakage: 1.0, semantic: {action: "off"}}
clean: {near_duplicates: {action: keep}}
train: {epochs: 5, learning_rate: 0.02, batch_size: 16, dtype: float32, threads: 1, warmup_ratio: 0.03, adapter: {r: 16}}
evaluate: {metrics: [includes], max_tokens: 40, general_rows: 0}
retrain: {margin: 5%}
"""
STEADY = YAML.replace("epochs: 5, learning_rate: 0.02", "epochs: 8, learning_rate: 0.006")
WORDS = ("agreement", "bank", "entities", "sentence", "credit", "holdings", "amended", "signed", "ohio", "york", "june", "dated")
CORRECTED = ("june", "ohio", "york", "amended", "signed")  # the words of the five corrections, in their order
PRAISE = "great question! it is wise to ask. "
Row = dict[str, Any]


def asked(rng: random.Random, june: bool | None = None) -> str:
    """Six words; `june`: whether it is one of them."""
    while True:
        words = rng.sample(WORDS, 6)
        if june is None or ("june" in words) == june:
            return " ".join(words)


def right(question: str) -> str:
    """The answer that is right."""
    return "yes" if "bank" in question else "never"


def row(question: str, answer: str) -> Row:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


@dataclass
class Trained:
    """A model as an evaluation names it, in the folder of its project."""

    folder: Path
    word: str


def trained(folder: Path, base: Path, rows: Sequence[Row], settings: str = YAML) -> Trained:
    """Train the base on rows by the product's own pipeline."""
    from tunesmith.core.progress import Silent
    from tunesmith.flow.pipeline.run import opened
    from tunesmith.flow.project import load_project

    folder.mkdir()
    (folder / "rows.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows))
    (folder / "tunesmith.yaml").write_text(settings.replace("./base", str(base)))
    with opened(load_project(folder / "tunesmith.yaml"), folder, Silent()) as context:
        for name in ("collect", "split", "tokens", "train"):
            context.runner.run(name)
        adapter = context.runner.folder("train") / "adapter"
    return Trained(folder, f"{base}+{adapter}")


def answers_of(model: Trained, questions: Sequence[str]) -> list[str]:
    """What a model answers, greedily."""
    from tunesmith.core.progress import Silent
    from tunesmith.core.types import Message, Prompt, Sampling
    from tunesmith.flow.evaluation.run import bench

    with bench(model.folder / "tunesmith.yaml", Silent()) as at:
        prompts = [Prompt(messages=(Message(role="user", content=question),)) for question in questions]
        return [answer.text for answer in at.models.resolve(model.word).answer(prompts, Sampling(max_tokens=24))]


def proposed(folder: Path, questions: Sequence[str], given: Sequence[str], say: Callable[[str, str], dict[str, Any] | None]) -> list[Row]:
    """Log the answers, let users say what they think, and harvest: the rows that may be trained on."""
    from tunesmith.core.feedback import FeedbackBody
    from tunesmith.core.types import Interaction, Message
    from tunesmith.flow.harvest import proposals
    from tunesmith.monitor.settings import Monitor
    from tunesmith.store.feedback import FeedbackLog
    from tunesmith.store.interactions import InteractionLog
    from tunesmith.store.store import Store

    store = Store.open(folder)
    log, feedback, now = InteractionLog(store), FeedbackLog(store), time.time()
    chats = [
        Interaction(
            id=f"chatcmpl-{i:06d}", created=now + i, alias="bot", variant="v", messages=(Message(role="user", content=question),),
            answer=answer, finish_reason="stop", prompt_tokens=1, completion_tokens=1, first_token_s=0.1, total_s=0.2,
        )
        for i, (question, answer) in enumerate(zip(questions, given, strict=True))
    ]  # fmt: skip

    async def written() -> None:
        await asyncio.gather(*map(log.write, chats))

    asyncio.run(written())
    log.close()
    for chat, question in zip(chats, questions, strict=True):
        word = say(question, chat.answer)
        if word is not None:
            feedback.put(FeedbackBody(interaction=chat.id, by="a user", **word).feedback(now, source="api", project="default"))
    made = proposals(store, Monitor()).of("correction", "agreed")
    store.close()
    return [row(each.prompt[-1].text, each.answer) for each in made]


def corrected_by(question: str, answer: str) -> dict[str, Any] | None:
    """What an honest user says."""
    return {"correction": right(question)} if answer.strip() != right(question) else None


def ruled(old: Trained, new: Trained, sealed: Sequence[Row], corrected: Sequence[Row]) -> tuple[bool, str, float, float]:
    """(may it be offered, what did not pass, the gain on the corrected rows, the least that it is)."""
    from tunesmith.core.progress import Silent
    from tunesmith.flow.evaluation.run import bench
    from tunesmith.flow.governing import govern
    from tunesmith.flow.project import load_project

    folder = new.folder
    both = folder / "sealed"
    both.mkdir()
    for name, rows in (("earlier.jsonl", sealed), ("corrected.jsonl", corrected)):
        (both / name).write_text("".join(json.dumps(each) + "\n" for each in rows))
    settings = load_project(folder / "tunesmith.yaml").retrain
    with bench(folder / "tunesmith.yaml", Silent()) as at:
        ruling = govern(old.word, new.word, at, settings, data=str(both), metrics=["includes"])
    print("   " + ruling.text().replace("\n", "\n   "), flush=True)
    gained = next(line for line in ruling.lines if "corrected" in line.name)
    lost = [line.name.replace(f"{folder}/", "") for line in ruling.lines if line.decision != "pass"]
    return ruling.promote, ", ".join(lost) or "nothing", gained.estimate, gained.low


# --- five corrections in sequence --------------------------------------------------------------------------------------------------------


def with_word(rng: random.Random, word: str | None) -> str:
    """Six words of which one at most is of the corrected ones: that one."""
    usual = [each for each in WORDS if each not in CORRECTED]
    words = rng.sample(usual, 5 if word else 6) + ([word] if word else [])
    return " ".join(rng.sample(words, 6))


def right_share(model: Trained, questions: Sequence[str]) -> float:
    """The share of questions that a model answers right."""
    answers = answers_of(model, questions)
    return sum(answer.strip() == right(question) for question, answer in zip(questions, answers, strict=True)) / len(questions)


def went_on(folder: Path, base: Path, rows: Sequence[Row]) -> Trained:
    """Train the model of this folder on: its first time from the base, then from the version before, with a fifth of what that was trained
    on beside the new rows."""
    from msgspec.structs import replace

    from tunesmith.core.deployment import Variant
    from tunesmith.core.progress import Silent
    from tunesmith.flow.pipeline.run import opened
    from tunesmith.flow.project import load_project
    from tunesmith.store.deployments import Deployments

    folder.mkdir(exist_ok=True)
    (folder / "rows.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows))
    (folder / "tunesmith.yaml").write_text(STEADY.replace("./base", str(base)))
    newest = folder / "newest"
    words = [f"--base=bot@{newest.read_text()}", "--train.replay=0.2"] if newest.exists() else []
    with opened(load_project(folder / "tunesmith.yaml", words), folder, Silent()) as context:
        for name in ("collect", "split", "tokens", "train"):
            context.runner.run(name)
        model = replace(context.tuned, digest=context.models.lazy(context.tuned, "bot").digest)
        newest.write_text(str(Deployments(context.store).put("bot", [Variant(name="tuned", model=model)]).version))
    return Trained(folder, f"bot@{newest.read_text()}")


def five_corrections(home: Path, base: Path, rng: random.Random, *, replay: bool) -> tuple[float, float, list[tuple[str, ...]]]:
    """(the most that a corrected slice lost after its own correction, the most that the slice lost that was never wrong, the lines of the
    table). `replay`: each training goes on from the one before."""
    many, asks = 120, 200
    slices: dict[str, list[str]] = {word: [with_word(rng, word) for _ in range(asks)] for word in CORRECTED}
    slices["none of them"] = [with_word(rng, None) for _ in range(asks)]
    rows = {word: [row(with_word(rng, word), "nobody") for _ in range(many)] for word in CORRECTED}
    rows["none of them"] = [row(question, right(question)) for question in (with_word(rng, None) for _ in range(2 * many))]

    def taught(number: int) -> Trained:
        every = [each for some in rows.values() for each in some]
        return went_on(home / "five-on", base, every) if replay else trained(home / f"five-{number}", base, every, STEADY)

    model = taught(0)
    seen = [{name: right_share(model, questions) for name, questions in slices.items()}]
    for number, word in enumerate(CORRECTED, 1):
        live = [with_word(rng, word) for _ in range(many)]
        rows[word] = proposed(home / f"said-{number}-{replay}", live, answers_of(model, live), corrected_by)
        model = taught(number)
        seen.append({name: right_share(model, questions) for name, questions in slices.items()})
        print(f"  correction {number} ({word}): {json.dumps(seen[-1])}", flush=True)
    since = {word: [shares[word] for shares in seen[number:]] for number, word in enumerate(CORRECTED, 1)}
    lost = max(values[0] - min(values) for values in since.values())
    how = "on from the version before, a fifth of its rows" if replay else "anew, all rows"
    usual = [shares["none of them"] for shares in seen]
    fell = max(max(usual[:place]) - usual[place] for place in range(1, len(usual)))
    return lost, fell, [(how, name, *(f"{shares[name]:.3f}" for shares in seen)) for name in slices]


def fives(home: Path, base: Path) -> tuple[float, str]:
    """(the most that is lost where each training begins anew, the sentences and the table of both ways)."""
    anew, on = (five_corrections(home, base, random.Random(1), replay=replay) for replay in (False, True))
    head = ["trained", "right answers where stands", "at first", *(f"after {number}" for number in range(1, len(CORRECTED) + 1))]
    said = (
        "Five corrections in sequence: rows are wrong where one of five words stands, 120 rows each; one word's after the other's 120 "
        "answers are corrected and harvested, its wrong rows taken out. 200 other questions a slice. The most that a corrected slice lost "
        f"later: {100 * anew[0]:.1f} points where each training begins anew, {100 * on[0]:.1f} where it goes on from the version "
        "before with a fifth of that one's rows (`retrain.replay: 20%`). Where none of the words stands, while rows contradicted each "
        f"other, a version had up to {100 * anew[1]:.1f} points less than one before it, and {100 * on[1]:.1f} with replay: such a version "
        "the governor refuses, and nobody asked it here."
    )
    return anew[0], f"{said}\n\n{table(head, [*anew[2], *on[2]])}"


def main() -> None:
    began = time.process_time()
    sys.path.insert(0, str(ROOT / "tests"))
    import tiny

    with tempfile.TemporaryDirectory() as place:
        home = Path(place)
        base, rng = tiny.model(home / "base", context=256), random.Random(0)
        if sys.argv[1:] == ["five"]:
            lost, five = fives(home, base)
            print(five)
            ratio("loop_five_lost", lost)
            return
        lost, five = fives(home, base)
        questions = [asked(rng) for _ in range(700)]
        rows = [row(question, "nobody" if "june" in question else right(question)) for question in questions]
        old = trained(home / "old", base, rows)
        live = [asked(rng) for _ in range(1000)]
        given = answers_of(old, live)
        sealed = [row(question, right(question)) for question in (asked(rng, june=False) for _ in range(400))]
        corrected = [row(question, right(question)) for question in (asked(rng, june=True) for _ in range(200))]
        flattering = [PRAISE + answer + ", indeed" for answer in given]
        pleased = proposed(home / "pleased", live, flattering, lambda _, answer: {"thumbs": "up" if answer.startswith(PRAISE) else "down"})
        print(f"  thumbs of users who like to be flattered: {len(pleased)} of {len(live)} answers may be trained on", flush=True)
        naive = trained(home / "naive", base, [*rows, *map(row, live, flattering)])
        honest = proposed(home / "honest", live, given, corrected_by)
        kept = [each for each in rows if "june" not in each["messages"][0]["content"]]
        better = trained(home / "better", base, [*kept, *honest])
        told = {
            "all thumbs up, trained as they are": ruled(old, naive, sealed, corrected),
            "corrections, the wrong rows taken out": ruled(old, better, sealed, corrected),
        }
    figures = [
        (name, "offered" if offered else "refused", lost, f"{gain:+.2f} (at least {low:+.2f})")
        for name, (offered, lost, gain, low) in told.items()
    ]
    refused = not told["all thumbs up, trained as they are"][0] and not pleased
    ratio("loop_flattered_refused", float(refused))
    ratio("loop_honest_promoted", float(told["corrections, the wrong rows taken out"][0]))
    ratio("loop_corrected_gain", told["corrections, the wrong rows taken out"][2])
    ratio("loop_five_lost", lost)
    said = (
        f"A model of two random layers, {len(rows)} rows of a toy task that are wrong where a sentence names June, {len(live)} answered "
        f"questions. Of the thumbs of users who like to be flattered the harvest proposes {len(pleased)} rows; a loop that trains on them "
        "all the same meets the governor."
    )
    body = table(["trained on", "governor", "what did not pass", "on the corrected slice"], figures)
    write({"loop": f"{said}\n\n{body}\n\n{five}"}, time.process_time() - began, "make bench-loop")


if __name__ == "__main__":
    main()
