"""The plan of a training run: one frozen record, and `resolve`, which turns every "auto" into a number with its reason and source.

Knows nothing about torch, files or rows; it sees a model and its data only as `Facts`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import msgspec

from tunesmith.core.errors import ConfigError
from tunesmith.core.types import Record

Auto = Literal["auto"]
Method = Literal["sft", "dpo", "orpo", "kto", "text", "grpo", "distil"]
Init = Literal["default", "gaussian", "pissa", "olora", "orthogonal"]


class Adapter(Record, frozen=True):
    """What is trained. `kind` lora adds low-rank matrices to `targets`; none trains every weight.

    `b_rate_ratio` above 1 is LoRA+ (arXiv 2402.12354); `init` pissa is arXiv 2404.02948; `dora` arXiv 2402.09353; `rslora` divides alpha
    by √r instead of r (arXiv 2312.03732). `quantise` nf4 keeps the frozen base in 4 bits (QLoRA, arXiv 2305.14314). `start_from` is the
    folder of an adapter in peft's format that training goes on from; rank and alpha are then its own. `trainable_tokens` are tokens that
    were added to the base: their rows of the embeddings, and of the output layer, are trained whole beside the low-rank matrices.
    """

    kind: Literal["lora", "none"] = "lora"
    r: int | Auto = "auto"
    alpha: float | Auto = "auto"
    dropout: float | Auto = "auto"
    targets: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    rslora: bool = False
    dora: bool = False
    init: Init = "default"
    b_rate_ratio: float = 1.0
    quantise: Literal["none", "nf4"] = "none"
    start_from: str | None = None
    trainable_tokens: tuple[str, ...] = ()


class Preference(Record, frozen=True):
    """Options of the preference methods; each says which method it belongs to.

    `beta` (all) is the strength of the pull to the reference, in ORPO the weight of the odds ratio. DPO: `loss` sigmoid (arXiv
    2305.18290) or ipo (arXiv 2310.12036), `label_smoothing`, `length_normalised`, `reference_free`, and `sft_weight`, the share of the
    preferred answer's mean NLL. KTO: the two weights.
    """

    beta: float = 0.1
    loss: Literal["sigmoid", "ipo"] = "sigmoid"
    label_smoothing: float = 0.0
    length_normalised: bool = False
    reference_free: bool = False
    sft_weight: float = 0.0
    desirable_weight: float = 1.0
    undesirable_weight: float = 1.0


class Reinforcement(Record, frozen=True):
    """Options of grpo: `samples` answers of the model itself to each prompt, each of at most `max_tokens`, drawn at `temperature`.

    `grader` is one of OpenAI's graders, as its JSON. `loss` grpo is arXiv 2402.03300, dapo (arXiv 2503.14476) averages over all tokens of
    a step, dr_grpo (arXiv 2503.20783) divides by constants alone. The ratio to the probabilities at sampling is clipped to 1 − `clip` …
    1 + `clip_high` (None: `clip`); each batch of samples serves `updates` updates. `beta` weighs the divergence from the base.
    """

    grader: dict[str, Any] | None = None
    samples: int | Auto = "auto"
    max_tokens: int | Auto = "auto"
    temperature: float = 1.0
    beta: float = 0.0
    clip: float = 0.2
    clip_high: float | None = None
    updates: int = 1
    loss: Literal["grpo", "dapo", "dr_grpo"] = "grpo"
    eval_samples: int = 1


class Distillation(Record, frozen=True):
    """Options of distil: `teacher` is the folder of a model with the base's vocabulary.

    `beta` 0 is the forward Kullback–Leibler divergence, 1 the reverse one, between them the generalised Jensen–Shannon divergence (arXiv
    2306.13649); both distributions are taken at `temperature`.
    """

    teacher: str | None = None
    beta: float = 0.0
    temperature: float = 1.0


class Plan(Record, frozen=True):
    """Everything a training run needs; the `train:` section of a configuration is this record.

    Method text is continued pre-training: every token of a row is trained, and a row longer than `max_length` is split (`over_length`
    split, for this method alone). Method grpo counts prompts where others count rows, and `keep: best` and `patience` go by the held-out
    reward.
    `batch_size` counts rows of one optimiser step; `micro_batch_tokens` is how many tokens one pack computes at most (memory only: the
    result does not depend on it); `lanes` packs are computed side by side, each on threads / lanes cores. `epochs` counts passes over the
    rows; `eval_every` and `checkpoint_every` count steps, None means at the end of each epoch. `keep: best` takes the weights of the
    best evaluation; `patience` stops after so many evaluations in a row without a better one, and keeps the best. Best is the lowest
    validation loss or, with `metric_rows`, the best value of the task's metric on the answers to so many validation rows.
    A step whose loss is not finite, or lies above the last ones and `spike` robust standard deviations (and at least 1) above their
    median, sends the run back to an earlier checkpoint at half the rate, at most `recoveries` times.
    """

    method: Method = "sft"
    adapter: Adapter = Adapter()
    preference: Preference = Preference()
    reinforcement: Reinforcement = Reinforcement()
    distillation: Distillation = Distillation()
    epochs: int | Auto = "auto"
    learning_rate: float | Auto = "auto"
    batch_size: int | Auto = "auto"
    micro_batch_tokens: int | Auto = "auto"
    max_length: int | Auto = "auto"
    over_length: Literal["drop", "truncate", "split"] = "drop"
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_ratio: float = 0.05
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    seed: int = 0
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    pack: bool = True
    share_prefix: bool = True
    eval_every: int | None = None
    checkpoint_every: int | None = None
    keep_checkpoints: int = 2
    keep: Literal["last", "best"] = "last"
    patience: int | None = None
    metric_rows: int = 0
    recoveries: int = 2
    spike: float | None = 8.0
    activation_checkpointing: bool = False
    threads: int | Auto = "auto"
    lanes: int | Auto = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"


class ResolvedAdapter(Adapter, frozen=True):
    """An adapter without "auto"."""

    r: int = 16
    alpha: float = 32.0
    dropout: float = 0.0


class ResolvedReinforcement(Reinforcement, frozen=True):
    """Reinforcement without "auto"."""

    samples: int = 8
    max_tokens: int = 256


class ResolvedPlan(Plan, frozen=True):
    """A plan without "auto": what a run does, to the number."""

    adapter: ResolvedAdapter = ResolvedAdapter()
    reinforcement: ResolvedReinforcement = ResolvedReinforcement()
    epochs: int = 1
    learning_rate: float = 1e-3
    batch_size: int = 8
    micro_batch_tokens: int = 2048
    max_length: int = 2048
    dtype: Literal["bfloat16", "float32"] = "float32"
    threads: int = 1
    lanes: int = 1
    device: Literal["cpu", "cuda"] = "cpu"


class Facts(Record, frozen=True):
    """What `resolve` may know: the model's size and limits, the rows' token counts, the machine."""

    parameters: int
    hidden_size: int
    layers: int
    positions: int
    rows: int
    trained_tokens: int
    longest: int
    cores: int = 1
    gflops: float = 0.0
    bfloat16: bool = False
    cuda: bool = False
    start_rank: int | None = None
    start_alpha: float | None = None


class Reason(Record, frozen=True):
    """Why an "auto" became this value: `value` as text, the reason in words, the source to check it against."""

    field: str
    value: str
    why: str
    source: str


LORA_WITHOUT_REGRET = "Schulman et al., LoRA Without Regret, Thinking Machines 2025"
COOKBOOK_RATES = "tinker-cookbook's measured LoRA rates: 1e-3 at 1–3 B, 3e-4 at 8 B parameters"
OPENAI_EPOCHS = (
    "OpenAI cookbook, Data preparation and analysis for chat model fine-tuning (3 epochs, 100 to 25,000 examples in all, at most 25)"
)

Choice = tuple[Any, str, str]
TOKEN_METHODS = ("sft", "text", "distil")  # the loss is a sum over tokens
PAIR_METHODS = ("dpo", "orpo", "kto")
TEXT_LENGTH = 2048


def _epochs(facts: Facts) -> Choice:
    wanted = 3
    if facts.rows * wanted < 100:
        wanted = min(25, math.ceil(100 / facts.rows))
    elif facts.rows * wanted > 25_000:
        wanted = max(1, 25_000 // facts.rows)
    return wanted, f"{facts.rows} rows: {facts.rows * wanted} examples in all", OPENAI_EPOCHS


def _learning_rate(facts: Facts, lora: bool, method: Method) -> Choice:
    if method == "grpo":
        why = "grpo: 1e-6 for full training, ten times that for LoRA"
        return (1e-5 if lora else 1e-6), why, f"TRL's default for GRPO; {LORA_WITHOUT_REGRET}"
    if method not in TOKEN_METHODS:
        why = f"{method}: 5e-6 for full training, ten times that for LoRA"
        return (5e-5 if lora else 5e-6), why, f"upper end of the published DPO rates; {LORA_WITHOUT_REGRET}"
    rate = min(1e-3, 3e-4 * math.sqrt(8e9 / facts.parameters))
    size = f"{facts.parameters / 1e6:.0f} M parameters"
    if lora:
        return float(f"{rate:.1e}"), f"{size}: 3e-4·√(8 B / parameters), at most 1e-3", COOKBOOK_RATES
    return float(f"{rate / 10:.1e}"), f"{size}: a tenth of LoRA's rate", LORA_WITHOUT_REGRET


def _batch_size(facts: Facts) -> Choice:
    size = 8 if facts.rows < 1000 else 16 if facts.rows < 10_000 else 32
    return size, f"{facts.rows} rows; LoRA tolerates large batches worse than full training", LORA_WITHOUT_REGRET


def _rank(facts: Facts) -> Choice:
    # Parameters of one unit of rank over all linear layers of a block: about 18 hidden sizes (SmolLM2: 17.3, Llama 3: 20).
    per_rank = 18 * facts.hidden_size * facts.layers
    rank = 16
    while rank < 128 and rank * per_rank < facts.trained_tokens:
        rank *= 2
    why = f"{facts.trained_tokens} trained tokens against about {rank * per_rank / 1e6:.1f} M trainable parameters"
    return rank, why, f"capacity in parameters should exceed the data's information: {LORA_WITHOUT_REGRET}"


def _max_length(facts: Facts, method: Method, answer: int) -> Choice:
    if method == "grpo":
        why = f"the longest prompt and {answer} tokens of an answer, at most the model's {facts.positions} positions"
        return min(facts.longest + answer, facts.positions), why, "the data"
    if method == "text":
        length = min(facts.longest, facts.positions, TEXT_LENGTH)
        return (
            length,
            f"the longest text, at most {TEXT_LENGTH} and the model's {facts.positions} positions; the rest is split off",
            "the data",
        )
    return min(facts.longest, facts.positions), f"the longest row, at most the model's {facts.positions} positions", "the data"


def _dtype(facts: Facts) -> Choice:
    if facts.bfloat16:
        return (
            "bfloat16",
            "the processor multiplies bfloat16 in hardware (2–4 times as fast); adapter and optimiser stay float32",
            "this machine",
        )
    return "float32", "no bfloat16 arithmetic in hardware", "this machine"


def _lanes(device: str, threads: int, batch: int) -> Choice:
    if device != "cpu":
        return 1, "one pack fills the device", "one device"
    lanes = max(n for n in range(1, 9) if threads % n == 0 and (n == 1 or batch >= 4 * n))
    why = f"{lanes} packs side by side, {threads // lanes} threads each: cores that wait for each other in every product lose time"
    return lanes, why, "measured on 2 cores"


def _adapter(adapter: Adapter, facts: Facts, auto: Callable[[str, Any, Choice], Any]) -> ResolvedAdapter:
    own = "the adapter that training starts from", adapter.start_from or ""
    rank = auto("adapter.r", adapter.r, _rank(facts) if facts.start_rank is None else (facts.start_rank, *own))
    scaled = 2.0 * math.sqrt(rank) if adapter.rslora else 2.0 * rank
    why = "2√r keeps the same scale at this rank" if adapter.rslora else "alpha = 2r: the update is scaled by 2"
    alpha = (scaled, why, "arXiv 2106.09685 and 2312.03732") if facts.start_alpha is None else (facts.start_alpha, *own)
    values = msgspec.structs.asdict(adapter) | {
        "r": rank,
        "alpha": auto("adapter.alpha", adapter.alpha, alpha),
        "dropout": auto("adapter.dropout", adapter.dropout, (0.0, "few epochs; validation loss shows overfitting", LORA_WITHOUT_REGRET)),
    }
    return ResolvedAdapter(**values)


def _reinforcement(options: Reinforcement, facts: Facts, auto: Callable[[str, Any, Choice], Any]) -> ResolvedReinforcement:
    room = max(16, min(256, facts.positions // 2))
    samples = (8, "enough that few groups are all right or all wrong", "TRL's default for GRPO")
    tokens = (room, f"256, at most half of the model's {facts.positions} positions", "TRL's default for GRPO")
    values = msgspec.structs.asdict(options) | {
        "samples": auto("reinforcement.samples", options.samples, samples),
        "max_tokens": auto("reinforcement.max_tokens", options.max_tokens, tokens),
    }
    return ResolvedReinforcement(**values)


def resolve(plan: Plan, facts: Facts) -> tuple[ResolvedPlan, tuple[Reason, ...]]:
    """Every "auto" as a number, with reasons. Raises ConfigError for values that exclude each other or lie outside their range."""
    check(plan)
    reasons: list[Reason] = []

    def auto(field: str, given: Any, choice: Choice) -> Any:
        if given != "auto":
            return given
        value, why, source = choice
        reasons.append(Reason(field=field, value=f"{value}", why=why, source=source))
        return value

    lora = plan.adapter.kind == "lora"
    adapter = _adapter(plan.adapter, facts, auto) if lora else ResolvedAdapter(kind="none")
    options = _reinforcement(plan.reinforcement, facts, auto) if plan.method == "grpo" else ResolvedReinforcement()
    batch = auto("batch_size", plan.batch_size, _batch_size(facts))
    tokens = (
        2048 if facts.cuda else 1536,
        "bounds the memory of activations; the result does not depend on it",
        "measured on SmolLM2-135M",
    )
    device = auto("device", plan.device, ("cuda" if facts.cuda else "cpu", "the fastest device found", "this machine"))
    threads = auto("threads", plan.threads, (facts.cores, "every core that this process may use", "this machine"))
    values = msgspec.structs.asdict(plan) | {
        "adapter": adapter,
        "reinforcement": options,
        "epochs": auto("epochs", plan.epochs, _epochs(facts)),
        "learning_rate": auto("learning_rate", plan.learning_rate, _learning_rate(facts, lora, plan.method)),
        "batch_size": batch,
        "micro_batch_tokens": auto("micro_batch_tokens", plan.micro_batch_tokens, tokens),
        "max_length": auto("max_length", plan.max_length, _max_length(facts, plan.method, options.max_tokens)),
        "over_length": "split" if plan.method == "text" else plan.over_length,
        "dtype": auto("dtype", plan.dtype, _dtype(facts)),
        "threads": threads,
        "lanes": auto("lanes", plan.lanes, _lanes(device, threads, batch)),
        "device": device,
    }
    return ResolvedPlan(**values), tuple(reasons)


_POSITIVE = (
    "epochs",
    "learning_rate",
    "batch_size",
    "micro_batch_tokens",
    "max_length",
    "max_grad_norm",
    "threads",
    "lanes",
    "eval_every",
    "checkpoint_every",
    "patience",
    "spike",
)


def check(plan: Plan) -> None:
    """Refuse what cannot be: ranges, and options that exclude each other. Raises ConfigError."""
    values = msgspec.structs.asdict(plan)
    for name in _POSITIVE:
        value = values[name]
        if not isinstance(value, str) and value is not None and value <= 0:
            raise ConfigError(f"{name} is {value}", where=f"train.{name}", allowed="a number above 0")
    for name, value, low, high in (
        ("warmup_ratio", plan.warmup_ratio, 0.0, 1.0),
        ("weight_decay", plan.weight_decay, 0.0, 10.0),
        ("adapter.dropout", plan.adapter.dropout, 0.0, 0.99),
        ("keep_checkpoints", plan.keep_checkpoints, 1, 10_000),
        ("recoveries", plan.recoveries, 0, 10),
        ("metric_rows", plan.metric_rows, 0, 100_000),
    ):
        if not isinstance(value, str) and not low <= value <= high:
            raise ConfigError(f"{name} is {value}", where=f"train.{name}", allowed=f"{low} to {high}")
    if (plan.over_length == "split" and plan.method != "text") or (plan.over_length == "truncate" and plan.method == "text"):
        what = f"over_length {plan.over_length} and method {plan.method} exclude each other"
        raise ConfigError(what, where="train.over_length", remedy="text is split, rows of chats are dropped or truncated")
    if plan.metric_rows and plan.method in ("text", "grpo"):
        why = {"text": "text has no questions to answer", "grpo": "grpo is judged by its reward"}[plan.method]
        raise ConfigError(f"metric_rows and method {plan.method} exclude each other: {why}", where="train.metric_rows")
    if plan.method == "text" and plan.max_length == 1:
        raise ConfigError("max_length is 1", where="train.max_length", allowed="2 or more: the first token predicts the second")
    for section, methods, plain in (
        ("preference", PAIR_METHODS, Preference()),
        ("reinforcement", ("grpo",), Reinforcement()),
        ("distillation", ("distil",), Distillation()),
    ):
        if plan.method not in methods and values[section] != plain:
            what = f"{section} means nothing to method {plan.method}"
            raise ConfigError(what, where=f"train.{section}", remedy=f"method: {' or '.join(methods)}, or leave it out")
    if plan.preference.beta <= 0:
        raise ConfigError(f"preference.beta is {plan.preference.beta}", where="train.preference.beta", allowed="a number above 0")
    if not 0 <= plan.preference.label_smoothing < 0.5:
        smoothing = plan.preference.label_smoothing
        raise ConfigError(f"label_smoothing is {smoothing}", where="train.preference.label_smoothing", allowed="0 to below 0.5")
    _check_sampling(plan)
    _check_teacher(plan)
    _check_adapter(plan.adapter)


def _check_sampling(plan: Plan) -> None:
    """Refuse what grpo cannot be."""
    options = plan.reinforcement
    for name, value, low, high in (
        ("samples", options.samples, 2, 1024),
        ("max_tokens", options.max_tokens, 1, 1 << 20),
        ("temperature", options.temperature, 0.01, 10),
        ("beta", options.beta, 0, 100),
        ("clip", options.clip, 0, 1),
        ("clip_high", options.clip_high, 0, 100),
        ("updates", options.updates, 1, 64),
        ("eval_samples", options.eval_samples, 1, 1024),
    ):
        if value is not None and not isinstance(value, str) and not low <= value <= high:
            raise ConfigError(f"{name} is {value}", where=f"train.reinforcement.{name}", allowed=f"{low} to {high}")
    if plan.method != "grpo":
        return
    if plan.over_length != "drop":
        what = f"over_length {plan.over_length} and method grpo exclude each other: a prompt that was cut asks something else"
        raise ConfigError(what, where="train.over_length", allowed="drop")
    if options.beta and plan.adapter.kind == "none":
        what = "reinforcement.beta compares with the base by switching the adapter off, and adapter.kind none has no adapter"
        raise ConfigError(what, where="train.reinforcement.beta", remedy="beta: 0, or kind: lora")


def _check_teacher(plan: Plan) -> None:
    """Refuse what distil cannot be."""
    options = plan.distillation
    if plan.method == "distil" and options.teacher is None:
        raise ConfigError("method distil has no teacher", where="train.distillation.teacher", remedy="teacher: a larger model's folder")
    if not 0 <= options.beta <= 1:
        raise ConfigError(f"beta is {options.beta}", where="train.distillation.beta", allowed="0 (forward) to 1 (reverse)")
    if options.temperature <= 0:
        raise ConfigError(f"temperature is {options.temperature}", where="train.distillation.temperature", allowed="a number above 0")


def _check_adapter(adapter: Adapter) -> None:
    if isinstance(adapter.r, int) and adapter.r <= 0:
        raise ConfigError(
            f"adapter.r is {adapter.r}", where="train.adapter.r", allowed="a number above 0", remedy="kind: none trains all weights"
        )
    if adapter.kind == "none":
        changed = [f for f in Adapter.__struct_fields__ if f != "kind" and getattr(adapter, f) != getattr(Adapter(), f)]
        if changed:
            raise ConfigError(
                f"adapter.kind none trains every weight, so {', '.join(changed)} mean nothing",
                where="train.adapter",
                remedy="leave them out, or set kind: lora",
            )
    if adapter.dora and adapter.init == "pissa":
        raise ConfigError("dora and init pissa exclude each other", where="train.adapter", remedy="choose one of them")
    if adapter.quantise != "none" and (adapter.dora or adapter.init not in ("default", "gaussian")):
        other = "dora" if adapter.dora else f"init {adapter.init}"
        raise ConfigError(f"quantise {adapter.quantise} and {other} exclude each other", where="train.adapter", remedy="choose one of them")
    if adapter.start_from is not None and adapter.init != "default":
        raise ConfigError(
            f"start_from and init {adapter.init} exclude each other: the adapter has its weights",
            where="train.adapter",
            remedy="leave out init",
        )
