"""The plain reference of `families.py`: transformers and peft alone, one row at a time, and a full pass for every new token.

Knows nothing of Tunesmith.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

Row = tuple[Sequence[int], Sequence[int]]  # token ids, and 1 where a token is trained


class Slope(NamedTuple):
    """The loss in nats a trained token, and the gradient of every trainable tensor by its name (None: no row reaches it)."""

    loss: float
    grads: dict[str, torch.Tensor | None]


def create(config: Any, folder: Path) -> None:
    """A random model of that configuration in a folder. What starts as a constant (norms, biases, sinks) gets some noise: a fault in it
    would not show otherwise."""
    torch.manual_seed(0)
    model = _class(config).from_config(config)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            if p.is_floating_point() and p.numel() > 1 and float(p.min()) == float(p.max()):
                p.add_(0.1 * torch.randn(p.shape, generator=generator))
    model.save_pretrained(folder)


def _class(config: Any) -> Any:
    import transformers
    from transformers.models.auto import modeling_auto

    text = type(config) in modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING
    return transformers.AutoModelForCausalLM if text else transformers.AutoModelForImageTextToText


def load(folder: Path, adapter: Path | None = None, *, trainable: bool = True) -> Any:
    """The model of a folder in float32 with an adapter of peft over it."""
    import transformers

    config = transformers.AutoConfig.from_pretrained(folder)
    model = _class(config).from_pretrained(folder, dtype=torch.float32)
    if adapter is None:
        return model.eval()
    from peft import PeftModel

    return PeftModel.from_pretrained(model, adapter, is_trainable=trainable).eval()


def causal_of(model: Any) -> Any:
    """The model under its adapter: peft's own forward passes on words that some models do not take."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def logp(model: Any, ids: Sequence[int]) -> torch.Tensor:
    """Log-probabilities [tokens, vocabulary] of one row alone, by one full pass without a cache."""
    return torch.log_softmax(_pass(model, ids).logits[0].float(), -1)


def _pass(model: Any, ids: Sequence[int]) -> Any:
    return causal_of(model)(input_ids=torch.tensor([list(ids)]), use_cache=False)


def router_loss(causal: Any, out: Any) -> torch.Tensor | float:
    """What the model adds to its loss to balance its experts, when its configuration asks for that."""
    config = causal.config.get_text_config()
    asked = getattr(config, "output_router_logits", False) and getattr(out, "aux_loss", None) is not None
    return getattr(config, "router_aux_loss_coef", 0.0) * out.aux_loss if asked else 0.0


def slope(model: Any, rows: Sequence[Row]) -> Slope:
    """Σ −log p of the trained tokens over their number, and the mean router loss of the rows where there is one; with gradients."""
    causal = causal_of(model)
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    count = sum(sum(mask[1:]) for _, mask in rows)
    total: dict[str, torch.Tensor | None] = dict.fromkeys(named)
    value = 0.0
    for ids, mask in rows:
        out = _pass(model, ids)
        at = torch.tensor([i for i in range(1, len(ids)) if mask[i]])
        picked = torch.log_softmax(out.logits[0, at - 1].float(), -1).gather(1, torch.tensor(list(ids))[at, None])
        loss = -picked.sum() / count + router_loss(causal, out) / len(rows)
        value += float(loss.detach())
        for (name, _), grad in zip(named.items(), torch.autograd.grad(loss, list(named.values()), allow_unused=True), strict=True):
            if grad is not None:
                before = total[name]
                total[name] = grad if before is None else before + grad
    return Slope(value, total)


def forgets(folder: Path, work: Path) -> str:
    """What peft itself does not restore of an adapter on all linear layers that it saved: the first tensor, or nothing."""
    from peft import LoraConfig, PeftModel, get_peft_model

    model = get_peft_model(load(folder), LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
    model.save_pretrained(work)
    after = dict(PeftModel.from_pretrained(load(folder), work).named_parameters())
    return next((name for name, p in model.named_parameters() if "lora_" in name and not torch.equal(p, after[name])), "")


class Continued(NamedTuple):
    """How far an answer is from greedy decoding by full passes."""

    logprob: float  # largest difference of a token's log-probability
    regret: float  # largest number of nats that a chosen token lies below the likeliest


@torch.no_grad()
def continued(model: Any, prompt: Sequence[int], tokens: Sequence[int], logprobs: Sequence[float]) -> Continued:
    """Judge an answer's tokens, each with the log-probability that its writer gave it, by full passes over the same beginning."""
    worst, regret = 0.0, 0.0
    for i, (token, said) in enumerate(zip(tokens, logprobs, strict=True)):
        row = logp(model, [*prompt, *tokens[:i]])[-1]
        worst = max(worst, abs(float(row[token]) - said))
        regret = max(regret, float(row.max() - row[token]))
    return Continued(worst, regret) if math.isfinite(worst) else Continued(math.inf, regret)


@torch.no_grad()
def unrest(model: Any, rows: Sequence[Row]) -> float:
    """How much a row's log-probabilities change when other tokens follow it, which a causal model does not see: rounding, or experts that
    change places by it."""
    worst = 0.0
    for ids, _ in rows:
        alone, followed = logp(model, ids), logp(model, [*ids, *list(ids)[:9]])[: len(ids)]
        worst = max(worst, float((alone - followed).abs().max()))
    return worst
