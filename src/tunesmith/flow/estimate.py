"""How long, how much memory, how many tokens: said before the work, from this machine's own speed, measured in half a second."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from tunesmith.core.load import need
from tunesmith.train.plan import Facts, resolve

if TYPE_CHECKING:
    from tunesmith.flow.circle import Circle

# Shares of the matrix-product rate that training, reading prompts and writing answers reach; measured with SmolLM2-135M on two idle
# cores (docs/performance.md), written down here because an estimate must not take as long as the thing.
_TRAIN, _READ, _WRITE = 0.45, 0.40, 0.12
# An untrained base runs on until it is stopped; a tuned one stops where the references do.
_RAMBLES = 0.85
_FIXED_S = 12.0


@dataclass(frozen=True)
class Estimate:
    """Seconds by stage, tokens computed in training, peak memory in bytes, and the measured rate in FLOP/s."""

    seconds: dict[str, float]
    training_tokens: int
    epochs: int
    memory_bytes: int
    rate: float

    def summary(self) -> dict[str, Any]:
        """As plain numbers."""
        return asdict(self)

    def text(self, waiting: Sequence[str]) -> str:
        """In words."""
        total = sum(self.seconds.get(name, 0.0) for name in waiting)
        parts = [f"{name} {_time(self.seconds[name])}" for name in waiting if self.seconds.get(name, 0) >= 1]
        return (
            f"this will take about {_time(total)} on this machine ({self.rate / 1e9:.0f} GFLOP/s measured): "
            f"{', '.join(parts) or 'nothing long'}; "
            f"{self.training_tokens:,} tokens through training ({self.epochs} epochs), about {self.memory_bytes / 2**30:.1f} GiB of memory"
        )


def _time(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"


def machine_rate(seconds: float = 0.5) -> float:
    """FLOP/s of a matrix product in the precision that this machine trains in, with all its cores."""
    torch = need("torch", extra="local")
    dtype = torch.bfloat16 if _has_bfloat16() else torch.float32
    a, b = torch.randn(512, 576, dtype=dtype), torch.randn(576, 1536, dtype=dtype)
    a @ b
    started, count = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        a @ b
        count += 1
    return float(2 * 512 * 576 * 1536 * count / (time.perf_counter() - started))


def _has_bfloat16() -> bool:
    if not os.path.exists("/proc/cpuinfo"):
        return False
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        flags = next((line for line in file if line.startswith("flags")), "")
    return "avx512_bf16" in flags or "amx_bf16" in flags


def estimate(circle: Circle, waiting: Sequence[str]) -> Estimate:
    """The estimate for the stages that wait; the data stages must be done."""
    tokens = circle.runner.run("tokens").output
    config = json.loads((circle.base / "config.json").read_text("utf-8"))
    hidden, layers, inner, vocabulary = (config[key] for key in ("hidden_size", "num_hidden_layers", "intermediate_size", "vocab_size"))
    kv = hidden * config.get("num_key_value_heads", config["num_attention_heads"]) // config["num_attention_heads"]
    body = layers * (2 * hidden * hidden + 2 * hidden * kv + 3 * hidden * inner)
    rate, rows, shared = machine_rate(), tokens["train"]["rows"], tokens["shared_prefix"]
    facts = Facts(
        parameters=body + hidden * vocabulary,
        hidden_size=hidden,
        layers=layers,
        positions=config["max_position_embeddings"],
        rows=rows,
        trained_tokens=tokens["train"]["trained"],
        longest=tokens["train"]["longest"],
    )
    epochs = resolve(circle.project.train, facts)[0].epochs
    own = tokens["train"]["tokens"] - shared * rows
    computed = own + shared * max(1, own // 1024)
    training = epochs * (4 * body * computed + 4 * hidden * vocabulary * tokens["train"]["trained"]) / (_TRAIN * rate)
    seconds = {"train": training * 1.15 + _FIXED_S}
    test, longest = len(circle.rows("test")), circle.sampling().max_tokens
    mean_own, mean_answer = own / rows, tokens["train"]["trained"] / rows
    for name in waiting:
        if name.startswith("evaluate:"):
            written = test * (mean_answer if name == "evaluate:tuned" else _RAMBLES * longest if "zero" in name else 0.3 * longest)
            read = test * mean_own + shared
            seconds[name] = (2 * body * read / _READ + 2 * (body + hidden * vocabulary) * written / _WRITE) / rate + _FIXED_S / 2
    seconds["ask"] = _FIXED_S
    weights = (body + hidden * vocabulary) * (2 if _has_bfloat16() else 4)
    return Estimate(seconds, epochs * computed, epochs, int(2 * weights + 1.2e9), rate)
