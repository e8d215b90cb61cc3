"""The plan of a training run as frozen records: as a user writes it, without "auto", and the facts and reasons that lie between the two.

Knows nothing about how "auto" is decided (`train/resolve.py`) or about what a method means (`train/methods/`).
"""

from __future__ import annotations

from typing import Any, Literal

from tunesmith.core.types import Record

Auto = Literal["auto"]
# Each has its record in `train/methods/NAME.py`, which says all that is particular to it.
MethodName = Literal["sft", "text", "dpo", "orpo", "kto", "grpo", "distil", "sdft"]
OverLength = Literal["drop", "truncate", "split"]
Init = Literal["default", "gaussian", "pissa", "olora", "orthogonal"]


class Adapter(Record, frozen=True):
    """What is trained. `kind` lora adds low-rank matrices to `targets`, and to the matrices that are no linear layers and are named in
    `target_parameters` (experts in one tensor: mlp.experts.gate_up_proj); none trains every weight.

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
    target_parameters: tuple[str, ...] = ()
    rslora: bool = False
    dora: bool = False
    init: Init = "default"
    b_rate_ratio: float = 1.0
    quantise: Literal["none", "nf4"] = "none"
    start_from: str | None = None
    trainable_tokens: tuple[str, ...] = ()


class PreferencePlan(Record, frozen=True):
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


class SelfDistillation(Record, frozen=True):
    """Options of sdft: `beta` as in `Distillation`, of the model in training from itself as it began and shown the row's answer."""

    beta: float = 1.0


class Plan(Record, frozen=True):
    """Everything a training run needs; the `train:` section of a configuration is this record.

    `method` decides which rows are taken and what `over_length`, what becomes of a row longer than `max_length`, may say: text is split,
    prompts of grpo are dropped, other rows are dropped or truncated. Method grpo counts prompts where others count rows, and `keep: best`
    and `patience` go by the held-out reward.
    `batch_size` counts rows of one optimiser step; `micro_batch_tokens` is how many tokens one pack computes at most (memory only: the
    result does not depend on it); `lanes` packs are computed side by side, each on threads / lanes cores. `epochs` counts passes over the
    rows; `eval_every` and `checkpoint_every` count steps, None means at the end of each epoch. `keep: best` takes the weights of the
    best evaluation; `patience` stops after so many evaluations in a row without a better one, and keeps the best. Best is the lowest
    validation loss or, with `metric_rows`, the best value of the task's metric on the answers to so many validation rows.
    A step whose loss is not finite, or lies above the last ones and `spike` robust standard deviations (and at least 1) above their
    median, sends the run back to an earlier checkpoint at half the rate, at most `recoveries` times.
    `replay`, where training goes on from what a run trained (`base: ALIAS@VERSION`): of the rows that it was trained on, the share that is
    trained on again beside the new ones, drawn by their ids (None: all).
    """

    method: MethodName = "sft"
    adapter: Adapter = Adapter()
    preference: PreferencePlan = PreferencePlan()
    reinforcement: Reinforcement = Reinforcement()
    distillation: Distillation = Distillation()
    self_distillation: SelfDistillation = SelfDistillation()
    epochs: int | Auto = "auto"
    learning_rate: float | Auto = "auto"
    batch_size: int | Auto = "auto"
    micro_batch_tokens: int | Auto = "auto"
    max_length: int | Auto = "auto"
    over_length: OverLength | Auto = "auto"
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
    device: Literal["auto", "cpu", "cuda", "mps", "xpu"] = "auto"
    replay: float | None = None


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
    over_length: OverLength = "drop"
    dtype: Literal["bfloat16", "float32"] = "float32"
    threads: int = 1
    lanes: int = 1
    device: Literal["cpu", "cuda", "mps", "xpu"] = "cpu"


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
    device: str = "cpu"
    start_rank: int | None = None
    start_alpha: float | None = None


class Reason(Record, frozen=True):
    """Why an "auto" became this value: `value` as text, the reason in words, the source to check it against."""

    field: str
    value: str
    why: str
    source: str


# The value that an "auto" becomes, why, and the source to check it against.
Choice = tuple[Any, str, str]

LORA_WITHOUT_REGRET = "Schulman et al., LoRA Without Regret, Thinking Machines 2025"
COOKBOOK_RATES = "tinker-cookbook's measured LoRA rates: 1e-3 at 1–3 B, 3e-4 at 8 B parameters"
