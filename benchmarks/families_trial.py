"""One variant of `families.py`: made, trained and asked by Tunesmith, and held against the plain reference. Knows nothing about the table.

Each trial runs in a process of its own (a fork of one that has imported everything), so that nothing of one reaches another.
"""

from __future__ import annotations

import dataclasses
import math
import os
import shutil
import tempfile
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import families_reference as plain
from benchmarks.families_variants import VOCABULARY, Variant, configuration
from tunesmith.core.chat import Rendered
from tunesmith.core.errors import TunesmithError
from tunesmith.train.plan import Adapter, Plan, ResolvedPlan

BOUND = 1e-4  # relative deviation that a right variant may have, in float32
LENGTHS = (18, 30, 41, 57, 66, 100)  # below and above windows, chunks and original contexts
PROMPTS = (12, 33, 60)
NEW = 6
MODES = {
    "full": Adapter(kind="none"),
    "nf4": Adapter(r=4, alpha=8.0, quantise="nf4"),
    "dpo": Adapter(r=4, alpha=8.0),
}


@dataclass
class Outcome:
    """What one variant gave. `trains` and the two `decodes_…` are yes, no, refused, crash, reference (it fails itself) or – (not asked)."""

    name: str
    kind: str
    trains: str = "–"
    deviation: float | None = None
    where: str = ""
    route: str = ""
    packed: bool = False
    decodes_base: str = "–"
    decodes_tuned: str = "–"
    decoding: str = ""
    decode_deviation: float | None = None
    reach: float | None = None
    unrest: float | None = None
    seconds: float = 0.0
    notes: list[str] = field(default_factory=list)

    @property
    def verdicts(self) -> tuple[str, str, str]:
        """Of training, of the base's answers and of the tuned model's."""
        return self.trains, self.decodes_base, self.decodes_tuned


def rows(*, pairs: bool = False) -> list[Any]:
    """Rows of the given lengths, the later ones beginning alike; the second half of each is trained. Pairs: two answers to a prompt."""
    rng = np.random.default_rng(0)
    common, made = rng.integers(4, VOCABULARY, 24), []
    for i, size in enumerate(LENGTHS):
        ids = np.concatenate([common[: 0 if i < 2 else 24], rng.integers(4, VOCABULARY, size - (0 if i < 2 else 24))]).astype(np.int32)
        mask = (np.arange(size) >= size // 2).astype(np.uint8)
        made.append(Rendered(f"row {i}", ids, mask))
    if not pairs:
        return list(made)
    cut = [(row, len(row.ids) // 2) for row in made[:4]]
    other = [np.concatenate([row.ids[:at], rng.integers(4, VOCABULARY, 9)]).astype(np.int32) for row, at in cut]
    return [
        (row, Rendered(f"{row.example_id} b", ids, (np.arange(len(ids)) >= at).astype(np.uint8)))
        for (row, at), ids in zip(cut, other, strict=True)
    ]


def tokenizer(folder: Path) -> None:
    """A tokenizer of bytes with a chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<|pad|>", "<|start|>", "<|end|>", "<|sep|>"]
    vocabulary = {token: i for i, token in enumerate([*special, *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    raw = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    raw.add_special_tokens(special)
    fast = PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<|start|>", eos_token="<|end|>", pad_token="<|pad|>")
    fast.chat_template = (
        "{% for m in messages %}{{ '<|start|>' + m.role + '\\n' + m.content + '<|end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|start|>assistant\\n' }}{% endif %}"
    )
    fast.save_pretrained(folder)


def attempt(name: str, variant: Variant, mode: str | None) -> Outcome:
    """Everything about one variant. Raises nothing: what goes wrong is in the outcome."""
    outcome, started = Outcome(name, variant.kind), time.perf_counter()
    work = Path(tempfile.mkdtemp(prefix="families-"))
    os.environ["XDG_DATA_HOME"] = str(work / "user")  # no choice of another run
    try:
        base = work / "base"
        try:
            plain.create(configuration(variant), base)
            tokenizer(base)
            reference = [(row.ids.tolist(), row.mask.tolist()) for row in rows()]
            model = plain.load(base)
            outcome.unrest = plain.unrest(model, reference[3:5])
            plain.slope(model.requires_grad_(True), reference[:1])
            del model
        except Exception as error:
            outcome.trains = "reference"
            outcome.notes.append(f"transformers itself: {_shown(error)}")
            return outcome
        artifact = _trains(outcome, base, work / "run", mode)
        if mode is None:
            _decodes(outcome, base, artifact)
    finally:
        outcome.seconds = time.perf_counter() - started
        shutil.rmtree(work, ignore_errors=True)
    return outcome


def _shown(error: BaseException) -> str:
    last = traceback.extract_tb(error.__traceback__)[-1]
    words = " ".join(str(error).split())[:220]
    return f"{type(error).__name__}: {words} ({Path(last.filename).name}:{last.lineno})"


def _failed(outcome: Outcome, what: str, error: Exception) -> str:
    """Note an error of ours; the verdict: a message of the project's is a refusal, anything else a crash."""
    outcome.notes.append(f"{what}: {_shown(error)}")
    return "refused" if isinstance(error, TunesmithError) else "crash"


def _plan(mode: str | None) -> Plan:
    return Plan(
        method="dpo" if mode == "dpo" else "sft", adapter=MODES.get(mode or "", Adapter(r=4, alpha=8.0)), epochs=2, batch_size=6,
        learning_rate=5e-3, dtype="float32", threads=2, lanes=2, device="cpu",
    )  # fmt: skip


def _trains(outcome: Outcome, base: Path, out: Path, mode: str | None) -> Path | None:
    """Train as a user does, then hold the loss and every gradient of what came out against the reference."""
    from tunesmith.train.estimate import estimate
    from tunesmith.train.loop import train

    events: list[dict[str, Any]] = []
    given = rows(pairs=mode == "dpo")
    try:
        estimate(_plan(mode), given, base=base)
        result = train(_plan(mode), given, base=base, out=out, on_event=events.append)
    except Exception as error:
        outcome.trains = _failed(outcome, "training", error)
        _start_of(outcome, events)
        if "artifact failed its own test" in str(error) and (lost := plain.forgets(base, out / "peft")):
            outcome.trains = "reference"
            outcome.notes.append(f"peft itself does not restore what it saved: {lost}")
        return None
    start = _start_of(outcome, events)
    given = given if mode == "dpo" else [row for row in given if len(row.ids) <= start["plan"]["max_length"]]
    artifact = Path(result.artifact)
    try:
        ours = _our_slope(artifact, base, out, mode, given)
    except Exception as error:
        outcome.trains = _failed(outcome, "gradients", error)
        return artifact
    try:
        theirs = _their_slope(artifact, base, mode, given)
    except Exception as error:
        outcome.trains = "reference"
        outcome.notes.append(f"transformers and peft: {_shown(error)}")
        return artifact
    outcome.deviation, outcome.where = worst(ours, theirs)
    if outcome.deviation <= BOUND:
        outcome.trains = "yes"
    else:
        outcome.trains = "no"
        outcome.notes.append(f"deviates at {outcome.where}; {start.get('route_why', '')}")
    return artifact


def _start_of(outcome: Outcome, events: Sequence[dict[str, Any]]) -> dict[str, Any]:
    start = next((event for event in events if event["event"] == "start"), {})
    outcome.route, outcome.reach = start.get("route", ""), start.get("reach")
    outcome.packed = outcome.route in ("fused", "packed")
    return start


def _our_slope(artifact: Path, base: Path, out: Path, mode: str | None, given: Sequence[Any]) -> plain.Slope:
    """The loss and gradients at the weights that came out, on the route of the run."""
    import msgspec

    from tunesmith.train.adapters import prepare
    from tunesmith.train.methods import METHODS
    from tunesmith.train.microbatch import StepItems, gradients, lanes, row_logps
    from tunesmith.train.objectives import report
    from tunesmith.train.run import Manifest
    from tunesmith.train.trainer import kept_route

    resolved: ResolvedPlan = msgspec.json.decode((out / "run.json").read_bytes(), type=Manifest).resolved
    full = mode == "full"
    if not full:
        resolved = msgspec.structs.replace(resolved, adapter=msgspec.structs.replace(resolved.adapter, start_from=str(artifact)))
    method = METHODS[resolved.method]
    items, objective = method.items(given), method.objective(resolved)
    trainable = prepare(artifact if full else base, resolved, [row for item in items for row in item.rows], route=kept_route(out))
    trainable.model.eval()
    reference = np.zeros((len(items), len(items[0].rows)), np.float32)
    with lanes(resolved) as side:
        if objective.reference:
            with trainable.model.disable_adapter():
                reference = row_logps(trainable, [row for item in items for row in item.rows], resolved, side).reshape(reference.shape)
        sums = gradients(trainable, objective, StepItems(items, reference), resolved, side, seed=0)
    figures = report(sums)
    return plain.Slope(figures["loss"] + figures.get("router_loss", 0.0), {name: p.grad for name, p in trainable.parameters().items()})


def _their_slope(artifact: Path, base: Path, mode: str | None, given: Sequence[Any]) -> plain.Slope:
    if mode == "full":
        model = plain.load(artifact).requires_grad_(True)
    else:
        model = plain.load(base, artifact)
    if mode == "nf4":
        _into_four_bits(model)
    if mode == "dpo":
        return _preference_slope(model, given)
    return plain.slope(model, [(row.ids.tolist(), row.mask.tolist()) for row in given])


def _into_four_bits(model: Any) -> None:
    """Give the reference the weights that 4 bits hold, as an ordinary matrix each."""
    from tunesmith.nets.nf4 import Nf4, packable
    from tunesmith.train.targets import inner_model

    for _, _, layer in packable(inner_model(plain.causal_of(model)), keep="lora_"):
        turned = not isinstance(layer, torch.nn.Linear)
        weight = layer.weight.data
        weight.copy_(Nf4(weight.T).dense().T if turned else Nf4(weight).dense())


def _preference_slope(model: Any, pairs: Sequence[tuple[Rendered, Rendered]]) -> plain.Slope:
    """DPO's loss and gradients by its formula (arXiv 2305.18290), beta 0.1."""
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}

    def total(row: Rendered) -> torch.Tensor:
        at = torch.from_numpy(np.flatnonzero(row.mask))
        return plain.logp(model, row.ids.tolist())[at - 1, torch.from_numpy(row.ids.astype(np.int64))[at]].sum()

    loss = torch.zeros(())
    for preferred, other in pairs:
        with torch.no_grad(), model.disable_adapter():
            before = total(preferred) - total(other)
        loss = loss - torch.nn.functional.logsigmoid(0.1 * (total(preferred) - total(other) - before)) / len(pairs)
    grads = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    return plain.Slope(float(loss.detach()), dict(zip(named, grads, strict=True)))


def worst(ours: plain.Slope, theirs: plain.Slope) -> tuple[float, str]:
    """The largest relative deviation, of the loss or of any tensor's gradient, and where. A gradient far below the largest is measured
    against a hundredth of that one: near zero everything is rounding."""
    found = abs(ours.loss - theirs.loss) / max(1.0, abs(theirs.loss))
    deviations = [(found if math.isfinite(found) else math.inf, "the loss")]
    if set(ours.grads) != set(theirs.grads):
        odd = sorted(set(ours.grads) ^ set(theirs.grads))
        return math.inf, f"{len(odd)} tensors that only one of them trains, {odd[0]}"
    largest = max((float(grad.norm()) for grad in theirs.grads.values() if grad is not None), default=0.0)
    for name, grad in theirs.grads.items():
        own = ours.grads[name]
        expected = torch.zeros(()) if grad is None else grad.float()
        gap = float(((torch.zeros(()) if own is None else own.float()) - expected).norm())
        share = gap / max(float(expected.norm()), 1e-2 * largest, 1e-30)
        deviations.append((share if math.isfinite(share) else math.inf, name))
    return max(deviations)


def _decodes(outcome: Outcome, base: Path, artifact: Path | None) -> None:
    """Greedy answers of the base and of the tuned model to prompts that begin alike, in one batch."""
    outcome.decodes_base = _decodes_one(outcome, "base", base, None)
    if artifact is not None:
        outcome.decodes_tuned = _decodes_one(outcome, "tuned", base, artifact)


def _decodes_one(outcome: Outcome, what: str, base: Path, adapter: Path | None) -> str:
    rng = np.random.default_rng(7)
    common = rng.integers(4, VOCABULARY, 60)
    prompts = [[*common[: size - 4].tolist(), *rng.integers(4, VOCABULARY, 4).tolist()] for size in PROMPTS]
    try:
        answers = _answers(outcome, base, adapter, prompts)
    except Exception as error:
        return _failed(outcome, f"decoding ({what})", error)
    try:
        model = plain.load(base, adapter, trainable=False)
        judged = [plain.continued(model, prompt, *answer) for prompt, answer in zip(prompts, answers, strict=True)]
    except Exception as error:
        outcome.notes.append(f"decoding ({what}), transformers itself: {_shown(error)}")
        return "reference"
    deviation = max(max(one.logprob, one.regret) for one in judged)
    outcome.decode_deviation = max(outcome.decode_deviation or 0.0, deviation)
    if deviation <= 10 * BOUND:  # nats
        return "yes"
    outcome.notes.append(f"decoding ({what}): log-probabilities off by {max(one.logprob for one in judged):.1e} nats")
    return "no"


def _answers(outcome: Outcome, base: Path, adapter: Path | None, prompts: Sequence[Sequence[int]]) -> list[tuple[list[int], list[float]]]:
    """Tokens and their log-probabilities, written by the engine that serves."""
    from tunesmith.models.local import LocalModel
    from tunesmith.nets.sequences import DecodeRequest

    model = LocalModel(base, adapter, name="variant", dtype="float32", device="cpu")
    outcome.decoding = ", ".join(filter(None, [outcome.decoding, model.route.route]))
    decoder, found = model.decoder(), {}
    for prompt in prompts:
        number = decoder.add(DecodeRequest(ids=prompt, max_tokens=NEW, adapter=model.adapter, top_logprobs=1))
        found[number] = ([], [])
    while decoder.busy:
        for token in decoder.step():
            found[token.sequence][0].append(token.id)
            found[token.sequence][1].append(float((token.logprob or {})["logprob"]))
    return list(found.values())


def as_json(outcome: Outcome) -> dict[str, Any]:
    """The outcome as it is kept between runs."""
    return dataclasses.asdict(outcome)
