"""Before a run: how many steps and tokens, how much arithmetic, memory and time; knows nothing about prices or hosted providers.

Steps and tokens are counted on the real packs of the first epoch. Memory adds up what the loop keeps; time divides the arithmetic that
cannot be avoided by this machine's rate now and by the share of it that the loop was measured to reach.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tunesmith.core.types import Record
from tunesmith.train.choice import BY_NAME, FUSED, recalled
from tunesmith.train.facts import base_shape, gather, machine_rate
from tunesmith.train.items import Item, Row, usable
from tunesmith.train.methods import METHODS
from tunesmith.train.packing import Pack, epoch_order
from tunesmith.train.plan import Plan, Reason, ResolvedPlan
from tunesmith.train.resolve import resolve

# Share of the matrix-product rate that the loop reached on SmolLM2-135M (2 cores, bfloat16 and float32). In bfloat16 it is 0.42 for rows
# without a common beginning and 0.31 for short rows behind a shared prompt (the demo).
EFFICIENCY = {"bfloat16": 0.36, "float32": 0.6}
# Loading the base, attaching the adapter, saving and the artifact's test of itself, per parameter and once.
SECONDS_PER_PARAMETER, SECONDS_FIXED = 3e-8, 6.0
# Python, torch, transformers and peft with their libraries; on a GPU the driver's context and the libraries' kernels.
RUNTIME_BYTES = {"cpu": 450_000_000, "cuda": 600_000_000, "mps": 600_000_000, "xpu": 600_000_000}
SAMPLED_STEPS = 50
# What the decoder holds at once (`nets/decoder.py`): rows, tokens of prompts that one pass reads, bytes of keys and values.
DECODED_ROWS, READ_TOKENS, CACHE_BYTES = 64, 2048, 2 << 30
POOL_HOLES = 1.25  # a pool that grows leaves holes of its former sizes; measured on the demo
READ_VECTORS = 4  # of the hidden size and of the MLP's, that a pass without gradients holds of each token at once
FLOAT32_BYTES = 4
DRAWN_LOGITS = 3  # float32 numbers for each logit while the next token is drawn
# Chunks of logits in float32 that live at once when two distributions are compared: both, their logarithms, products and gradients.
DISTIL_CHUNKS = 8
CHUNK_BYTES = 64 << 20  # of `train/loss.py`, which needs torch
NF4_BITS = 4.127  # a weight with its share of the scales (arXiv 2305.14314)


class Memory(Record, frozen=True):
    """Peak resident bytes by cause. `loading` is what the base takes before its weights are packed into 4 bits.

    `teacher` are the weights of distillation's teacher. Between steps and at the end `beside` is what a second model takes, which is loaded
    to measure the metric and for the artifact's test of itself, and `answering` are keys, values and logits of answers (metric, grpo).
    """

    runtime: int
    weights: int
    trainable: int
    activations: int
    logits: int
    loading: int = 0
    teacher: int = 0
    beside: int = 0
    answering: int = 0

    @property
    def total(self) -> int:
        """The largest of the peaks: while the base is loaded, in a step, and while the model that it has become is asked or tested."""
        step, between = self.activations + self.logits, self.beside + self.answering
        return self.runtime + max(self.loading, self.weights + self.trainable + self.teacher + max(step, between))


class Estimate(Record, frozen=True):
    """What a run will take. Tokens are per run: `tokens` as rows hold them, `computed_tokens` after packing, `trained_tokens` with loss.

    `longest` is the longest row, `largest_pack` what the largest pack computes; `rate` is FLOP/s of this machine's matrix products, timed.
    `fixed_seconds` of the `seconds` are no steps: loading, saving, testing.
    `route` is what the last run with this base and adapter was computed on (None: none
    was); what is laid down once follows from it, its speed is measured by whoever times the run.
    """

    plan: ResolvedPlan
    reasons: tuple[Reason, ...]
    steps: int
    tokens: int
    computed_tokens: int
    trained_tokens: int
    trainable_parameters: int
    longest: int
    largest_pack: int
    flops: float
    rate: float
    seconds: float
    memory: Memory
    available_bytes: int | None = None
    fixed_seconds: float = 0.0
    route: str | None = None
    route_why: str = ""

    @property
    def fits(self) -> bool:
        """Whether the peak is below what the machine has free; True when that is not known."""
        return self.available_bytes is None or self.memory.total <= self.available_bytes


def available_bytes() -> int | None:
    """Memory that this process may still take, or None when it cannot be known."""
    try:
        import psutil
    except ModuleNotFoundError:
        return None
    return int(psutil.virtual_memory().available)


def linear_shapes(config: dict[str, Any]) -> dict[str, tuple[int, int]]:
    """(out, in) of the linear layers of one block of a Llama-like model, by name."""
    hidden, inner, heads = config["hidden_size"], config["intermediate_size"], config["num_attention_heads"]
    width = config.get("head_dim") or hidden // heads
    keys = (config.get("num_key_value_heads") or heads) * width
    return {
        "q_proj": (heads * width, hidden),
        "k_proj": (keys, hidden),
        "v_proj": (keys, hidden),
        "o_proj": (hidden, heads * width),
        "gate_proj": (inner, hidden),
        "up_proj": (inner, hidden),
        "down_proj": (hidden, inner),
    }


def lora_parameters(config: dict[str, Any], plan: ResolvedPlan) -> int:
    """Trainable parameters of a LoRA adapter: r·(in + out) for each target in each block (arXiv 2106.09685), DoRA adds out; and the rows
    of its tokens."""
    targets = plan.adapter.targets
    chosen = [shape for name, shape in inner_shapes(config).items() if targets == "all-linear" or _last(name) in targets]
    rows = len(plan.adapter.trainable_tokens) * config["hidden_size"] * (1 if config.get("tie_word_embeddings") else 2)
    return sum(plan.adapter.r * (o + i) + (o if plan.adapter.dora else 0) for o, i in chosen) + int(rows)


def inner_shapes(config: dict[str, Any]) -> dict[str, tuple[int, int]]:
    """(out, in) of every matrix inside the blocks, by name: those of the weights, or, of a configuration alone, a Llama-like model's."""
    if "linears" in config:
        shapes: dict[str, tuple[int, int]] = config["linears"]
        return shapes
    layers = range(int(config["num_hidden_layers"]))
    return {f"{layer}.{name}": shape for layer in layers for name, shape in linear_shapes(config).items()}


def inner_parameters(config: dict[str, Any]) -> int:
    """How many numbers these matrices have."""
    return sum(o * i for o, i in inner_shapes(config).values())


# Experts, which transformers keeps in one tensor: they are not put into 4 bits.
_EXPERTS = re.compile(r"(^|\.)experts\.|\.\d+$")


def _packable(config: dict[str, Any]) -> int:
    """How many numbers of these matrices 4 bits take."""
    return sum(o * i for name, (o, i) in inner_shapes(config).items() if not _EXPERTS.search(name))


def _last(name: str) -> str:
    """The layer's own name: q_proj of model.layers.0.self_attn.q_proj.weight."""
    return name.removesuffix(".weight").rsplit(".", 1)[-1]


def answering_bytes(config: dict[str, Any], size: int, rows: int, length: int) -> int:
    """Bytes that answering takes besides the weights: keys and values of `rows` rows of `length` tokens, a pass over prompts, logits.

    `size` is that of a number of the model's type.
    """
    hidden, inner, heads = config["hidden_size"], config["intermediate_size"], config["num_attention_heads"]
    width = (config.get("num_key_value_heads") or heads) * (config.get("head_dim") or hidden // heads)
    rows = min(rows, DECODED_ROWS)
    cached = 2 * size * rows * length * width * config["num_hidden_layers"]  # keys and values
    read = size * READ_TOKENS * READ_VECTORS * (hidden + inner)
    logits = DRAWN_LOGITS * FLOAT32_BYTES * rows * config["vocab_size"]
    return int(POOL_HOLES * min(cached, CACHE_BYTES) + read + logits)


def _teacher(plan: ResolvedPlan, largest_pack: int, size: int) -> tuple[int, int]:
    """Bytes of the teacher's weights, and of what its pass and the logits of both take in a step."""
    if METHODS[plan.method].demonstrated:
        return 0, plan.lanes * DISTIL_CHUNKS * CHUNK_BYTES
    if plan.distillation.teacher is None:
        return 0, 0
    shape = base_shape(Path(plan.distillation.teacher))
    working = size * largest_pack * READ_VECTORS * (shape["hidden_size"] + shape["intermediate_size"])
    return size * int(shape["parameters"]), plan.lanes * (working + DISTIL_CHUNKS * CHUNK_BYTES)


def _between(config: dict[str, Any], plan: ResolvedPlan, size: int) -> tuple[int, int]:
    """Bytes of a second model and of answers, while no step is computed. On a GPU the artifact tests itself beside it, not on it."""
    second = (4 if plan.adapter.kind == "none" else size) * int(config["parameters"]) if plan.device == "cpu" or plan.metric_rows else 0
    method = METHODS[plan.method]
    if method.draws:
        return second, answering_bytes(
            config, size, plan.batch_size * (plan.reinforcement.samples if method.graded else 1), plan.max_length
        )
    return second, answering_bytes(config, size, plan.metric_rows, plan.max_length) if plan.metric_rows else 0


def memory(config: dict[str, Any], plan: ResolvedPlan, trainable: int, largest_pack: int) -> Memory:
    """Peak bytes of a plan whose largest pack computes so many tokens; `config` as `base_shape` gives it."""
    size = 2 if plan.dtype == "bfloat16" else 4
    full = plan.adapter.kind == "none"
    teacher, taught = _teacher(plan, largest_pack, size)
    beside, answering = _between(config, plan, size)
    hidden, inner, layers = config["hidden_size"], config["intermediate_size"], config["num_hidden_layers"]
    # Kept for the backward pass, per token and block: 8 vectors of the hidden size, 4 of the MLP's.
    per_token = size * (2 * hidden if plan.activation_checkpointing else layers * (8 * hidden + 4 * inner))
    weights = whole = int(config["parameters"]) * (4 if full else size)
    four = plan.adapter.quantise == "nf4"
    if four:
        weights -= round(_packable(config) * (size - NF4_BITS / 8))
    working = size * 4 * (4 * hidden + 4 * inner)
    return Memory(
        runtime=RUNTIME_BYTES[plan.device],
        weights=weights,
        loading=whole if four and plan.device == "cpu" else 0,  # for a GPU the base is packed before it goes there
        # Two moments, a gradient each lane, an adapter's own weights; with self-distillation those of the start, and of now beside them.
        trainable=trainable * (4 * (2 + plan.lanes) + (0 if full else 4) + (8 if METHODS[plan.method].demonstrated else 0)),
        activations=plan.lanes * largest_pack * (per_token + working),
        logits=plan.lanes * (160 << 20) + taught,
        teacher=teacher,
        beside=beside,
        answering=answering,
    )


def _sample(items: Sequence[Item], plan: ResolvedPlan, shares: bool) -> tuple[float, int]:
    """Computed tokens of one epoch and the largest pack, from the packs of its first steps."""
    from tunesmith.train.microbatch import packs_of

    order = epoch_order(len(items), seed=plan.seed, epoch=0)
    steps = math.ceil(len(items) / plan.batch_size)
    packs: list[Pack] = []
    for step in range(min(steps, SAMPLED_STEPS)):
        chosen = order[step * plan.batch_size : (step + 1) * plan.batch_size]
        packs += [work.pack for work in packs_of([items[i].rows for i in chosen], plan, shares=shares)]
    computed = sum(len(packed.ids) for packed in packs) * steps / min(steps, SAMPLED_STEPS)
    return computed, max(len(packed.ids) for packed in packs)


def estimate(plan: Plan, rows: Sequence[Row], validation: Sequence[Row] = (), *, base: Path) -> Estimate:
    """Estimate a run on this machine without loading the base. Raises what `train` would raise for this plan and these rows."""
    config = base_shape(base)
    method = METHODS[plan.method]
    items, valid = method.items(rows), method.items(validation)
    facts = gather(plan, items, base)
    resolved, reasons = resolve(plan, facts)
    ready, _, _ = usable(items, resolved.max_length, resolved.over_length)
    choice = recalled(base, resolved)
    route = FUSED if choice is None else BY_NAME[choice.route]
    trained = sum(row.trained for item in ready for row in item.rows)
    if method.graded:  # the answers are not there yet: as long as they may be, and more of them than a pack holds
        trained = len(ready) * resolved.reinforcement.samples * resolved.reinforcement.max_tokens
        computed, largest = (
            float(trained + sum(len(item.rows[0].ids) for item in ready)),
            max(resolved.micro_batch_tokens, resolved.max_length),
        )
    else:
        computed, largest = _sample(ready, resolved, route.tree)
    full = resolved.adapter.kind == "none"
    trainable = int(config["parameters"]) if full else lora_parameters(config, resolved)
    inner = inner_parameters(config)
    head = int(config["vocab_size"]) * facts.hidden_size
    flops = (6.0 if full else 4.0) * resolved.epochs * (inner * computed + head * trained)
    per_epoch = math.ceil(len(ready) / resolved.batch_size)
    evaluations = (1 + resolved.epochs * (per_epoch / (resolved.eval_every or per_epoch))) if valid else 0
    flops += 2.0 * evaluations * sum(inner * len(row.ids) + head * row.trained for item in valid for row in item.rows)
    rate = machine_rate(facts, resolved)
    fixed = SECONDS_FIXED + SECONDS_PER_PARAMETER * int(config["parameters"])
    return Estimate(
        plan=resolved,
        reasons=reasons,
        steps=per_epoch * resolved.epochs,
        tokens=sum(len(row.ids) for item in ready for row in item.rows) * resolved.epochs,
        computed_tokens=round(computed * resolved.epochs),
        trained_tokens=trained * resolved.epochs,
        trainable_parameters=trainable,
        longest=max(len(row.ids) for item in ready for row in item.rows),
        largest_pack=largest,
        flops=flops,
        rate=rate,
        seconds=flops / (rate * EFFICIENCY[resolved.dtype]) + fixed,
        memory=memory(config, resolved, trainable, largest),
        available_bytes=available_bytes(),
        fixed_seconds=fixed,
        route=None if choice is None else choice.route,
        route_why="found out before the first step" if choice is None else choice.why(),
    )


def step_seconds(run: Estimate, base: Path, computed: float, trained: float) -> float:
    """What the formula says of one pass forward and back over so many computed and trained tokens, in seconds."""
    config = base_shape(base)
    head = int(config["vocab_size"]) * int(config["hidden_size"])
    flops = (6.0 if run.plan.adapter.kind == "none" else 4.0) * (inner_parameters(config) * computed + head * trained)
    return flops / (run.rate * EFFICIENCY[run.plan.dtype])
