"""A prepared base and a plan → a model whose trainable weights are the plan's; knows nothing about rows, losses or checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tunesmith.core.errors import ConfigError, TrainingError
from tunesmith.models.layers import FusedLoraLinear, SeededDropout, fuse_norms, register_attention
from tunesmith.train.facts import require_safetensors
from tunesmith.train.plan import ResolvedPlan


def load_base(base: Path, dtype: torch.dtype, device: str = "cpu") -> Any:
    """The causal model in the folder `base`, from safetensors only and without remote code. Raises TrainingError when it cannot be read."""
    from transformers import AutoModelForCausalLM

    require_safetensors(base)
    try:
        model = AutoModelForCausalLM.from_pretrained(
            base, dtype=dtype, use_safetensors=True, trust_remote_code=False, local_files_only=True
        )
    except (OSError, ValueError) as error:
        raise TrainingError(f"the base cannot be loaded: {error}", where=str(base)) from error
    return model.to(device)


def linear_names(model: Any) -> list[str]:
    """The last parts of the names of all linear layers but the output layer: what `targets` may name."""
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    return sorted(
        {name.rsplit(".", 1)[-1] for name, module in model.named_modules() if isinstance(module, nn.Linear) and module is not head}
    )


def _peft_config(model: Any, plan: ResolvedPlan) -> Any:
    from peft import LoraConfig

    adapter = plan.adapter
    if adapter.targets != "all-linear":
        known = linear_names(model)
        missing = [t for t in adapter.targets if t not in known]
        if missing:
            raise ConfigError(f"the base has no layer {', '.join(missing)}", where="train.adapter.targets", allowed=", ".join(known))
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=adapter.r,
        lora_alpha=adapter.alpha,
        lora_dropout=adapter.dropout,
        target_modules=adapter.targets if adapter.targets == "all-linear" else list(adapter.targets),
        use_rslora=adapter.rslora,
        use_dora=adapter.dora,
        init_lora_weights=True if adapter.init == "default" else adapter.init,
        bias="none",
    )
    config._register_custom_module({nn.Linear: FusedLoraLinear})  # peft's own way to bring a layer; its name is all that is private
    return config


class Trainable:
    """A model made ready: forward to hidden states, the output layer, and its trainable parameters by name."""

    def __init__(self, model: Any, plan: ResolvedPlan) -> None:
        self.model = model
        self.causal = model.get_base_model() if hasattr(model, "get_base_model") else model
        self.decoder = getattr(self.causal, self.causal.base_model_prefix)
        self.head = self.causal.get_output_embeddings()
        self.lora = plan.adapter.kind == "lora"
        self.device = plan.device
        # Full training keeps float32 weights and multiplies in the plan's type.
        self.autocast = plan.dtype == "bfloat16" and not self.lora
        for capped in ("final_logit_softcapping", "logits_scaling", "logit_scale"):
            if getattr(self.causal.config, capped, None) not in (None, 1.0):
                raise TrainingError(
                    f"the base changes its logits by {capped}, which the chunked loss does not compute", where=self.causal.config.model_type
                )
        if getattr(self.head, "bias", None) is not None:
            raise TrainingError(
                "the base's output layer has a bias, which the chunked loss does not compute", where=self.causal.config.model_type
            )

    def parameters(self) -> dict[str, nn.Parameter]:
        """Trainable parameters by their full name."""
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    def flops(self, computed: float, targets: float) -> float:
        """Arithmetic that one step cannot avoid: forward and backward through the linear layers (weights too in full training)."""
        inner = sum(m.weight.numel() for m in self.decoder.modules() if isinstance(m, nn.Linear))
        return (4.0 if self.lora else 6.0) * (inner * computed + self.head.weight.numel() * targets)

    def hidden(self, ids: Tensor, positions: Tensor, **pack: Any) -> Tensor:
        """Hidden states [T, H] after the final norm, for one pack; `pack` carries its spans to the attention."""
        with torch.autocast(self.device, torch.bfloat16, enabled=self.autocast):
            states = self.decoder(input_ids=ids[None], position_ids=positions[None], use_cache=False, **pack).last_hidden_state[0]
        return states.to(torch.bfloat16) if self.autocast else states


def prepare(base: Path, plan: ResolvedPlan) -> Trainable:
    """Load the base and make it trainable: adapter attached (in float32) or all weights in float32; seeded by the plan."""
    full = plan.adapter.kind == "none"
    dtype = torch.float32 if full or plan.dtype == "float32" else torch.bfloat16
    model = load_base(base, dtype, plan.device)
    model.set_attn_implementation(register_attention())
    fuse_norms(model)
    if not full:
        from peft import get_peft_model

        torch.manual_seed(plan.seed)
        model = get_peft_model(model, _peft_config(model, plan))
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) is nn.Dropout and child.p > 0:
                setattr(module, name, SeededDropout(child.p))
    if plan.activation_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return Trainable(model, plan)


def groups(trainable: Trainable, plan: ResolvedPlan) -> list[dict[str, Any]]:
    """Optimiser groups: LoRA+ gives B its own rate; norms and biases of full training decay by nothing."""
    rate = plan.learning_rate
    kinds: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, p in trainable.parameters().items():
        ratio = plan.adapter.b_rate_ratio if ".lora_B." in name else 1.0
        decay = plan.weight_decay if p.ndim > 1 else 0.0
        kinds.setdefault((rate * ratio, decay), []).append(p)
    return [{"params": params, "lr": lr, "base_rate": lr, "weight_decay": decay} for (lr, decay), params in kinds.items()]
