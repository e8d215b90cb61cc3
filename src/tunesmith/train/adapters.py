"""A prepared base and a plan → a model whose trainable weights are the plan's; knows nothing about rows, losses or checkpoints."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tunesmith.core.chat import Renderer
from tunesmith.core.errors import ConfigError, TrainingError
from tunesmith.models.trust import refuse_own_attention, trusted
from tunesmith.nets.blocks import fuse_blocks
from tunesmith.nets.dropout import SeededDropout
from tunesmith.nets.linear import FusedLoraLinear
from tunesmith.nets.nf4 import Nf4Linear, quantise
from tunesmith.nets.norm import fuse_norms
from tunesmith.nets.spans import Span
from tunesmith.nets.tree_attention import register_attention
from tunesmith.train.facts import WEIGHTS, require_safetensors
from tunesmith.train.plan import ResolvedPlan


def load_base(base: Path, dtype: torch.dtype, device: str = "cpu") -> Any:
    """The causal model in the folder `base`, from safetensors only; code beside them runs only where it was allowed by name.

    Raises TrainingError when it cannot be read.
    """
    from transformers import AutoModelForCausalLM

    require_safetensors(base)
    try:
        model = AutoModelForCausalLM.from_pretrained(
            base, dtype=dtype, use_safetensors=True, trust_remote_code=trusted(base), local_files_only=True
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


def _token_rows(model: Any, plan: ResolvedPlan, base: Path) -> dict[str, list[int]] | list[int] | None:
    """What peft calls trainable_token_indices: the ids of the plan's tokens, for the output layer too where the base does not tie it.

    Raises ConfigError for a token that the base does not have.
    """
    tokens, rows = plan.adapter.trainable_tokens, len(model.get_input_embeddings().weight)
    if not tokens:
        return None
    ids = Renderer.load(base).ids(tokens)
    missing = [token for token, number in zip(tokens, ids, strict=True) if number is None or number >= rows]
    if missing:
        raise ConfigError(
            f"the base has no token {', '.join(missing)}",
            where="train.adapter.trainable_tokens",
            allowed=f"tokens of {base.name}'s tokenizer with one of its {rows} embeddings",
            remedy="add them with transformers: tokenizer.add_tokens([…]), model.resize_token_embeddings(len(tokenizer)), save both",
        )
    found = sorted({number for number in ids if number is not None})
    if model.config.get_text_config().tie_word_embeddings:
        return found
    layers = {id(module): name.rsplit(".", 1)[-1] for name, module in model.named_modules()}
    return {layers[id(layer)]: found for layer in (model.get_input_embeddings(), model.get_output_embeddings())}


def _peft_config(model: Any, plan: ResolvedPlan, base: Path) -> Any:
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
        trainable_token_indices=_token_rows(model, plan, base),
    )
    config._register_custom_module({nn.Linear: FusedLoraLinear})  # peft's own way to bring a layer; its name is all that is private
    return config


class Trainable:
    """A model made ready: forward to hidden states, the output layer, and its trainable parameters by name."""

    def __init__(self, model: Any, plan: ResolvedPlan) -> None:
        self.model = model
        self.causal = model.get_base_model() if hasattr(model, "get_base_model") else model
        self.decoder = getattr(self.causal, self.causal.base_model_prefix)
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
        self._head_size = self.head.weight.numel()  # once: with trained tokens `weight` copies the whole matrix

    @property
    def head(self) -> Any:
        """The output layer; with trained tokens its `weight` has their rows in place, unless the adapter is switched off."""
        layer = self.causal.get_output_embeddings()
        tokens = getattr(layer, "token_adapter", None)
        return tokens.base_layer if tokens is not None and tokens.disable_adapters else layer

    def parameters(self) -> dict[str, nn.Parameter]:
        """Trainable parameters by their full name."""
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    def flops(self, computed: float, targets: float) -> float:
        """Arithmetic that one step cannot avoid: forward and backward through the linear layers (weights too in full training)."""
        inner = sum(m.in_features * m.out_features for m in self.decoder.modules() if isinstance(m, (nn.Linear, Nf4Linear)))
        return (4.0 if self.lora else 6.0) * (inner * computed + self._head_size * targets)

    def hidden(self, ids: Tensor, positions: Tensor, **pack: Any) -> Tensor:
        """Hidden states [T, H] after the final norm, for one pack; `pack` carries its spans to the attention."""
        with torch.autocast(self.device, torch.bfloat16, enabled=self.autocast):
            states = self.decoder(input_ids=ids[None], position_ids=positions[None], use_cache=False, **pack).last_hidden_state[0]
        return states.to(torch.bfloat16) if self.autocast else states


def prepare(base: Path, plan: ResolvedPlan) -> Trainable:
    """Load the base and make it trainable: adapter attached (in float32) or all weights in float32; seeded by the plan."""
    full = plan.adapter.kind == "none"
    dtype = torch.float32 if full or plan.dtype == "float32" else torch.bfloat16
    four = plan.adapter.quantise == "nf4"
    model = load_base(base, dtype, "cpu" if four else plan.device)  # of a base in 4 bits only the packed weights go to a GPU
    if trusted(base):
        refuse_own_attention(model, base, lambda: _leak(model), TrainingError)
        if full:
            what = "a base that runs code of its own is trained through an adapter: its result would need that code beside it"
            raise ConfigError(what, where="train.adapter.kind", allowed="lora")
    model.set_attn_implementation(register_attention())
    _fuse(model, plan.device)
    if not full:
        from peft import get_peft_model

        torch.manual_seed(plan.seed)
        model = get_peft_model(model, _peft_config(model, plan, base))
        chosen = model.peft_config["default"]
        chosen.target_modules = sorted(chosen.target_modules)  # peft keeps a set, which is written in another order each time
        fuse_blocks(model)
        if plan.adapter.start_from is not None:
            _start_from(model, Path(plan.adapter.start_from))
        if four:
            quantise_decoder(model.get_base_model())
            model.to(plan.device)
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) is nn.Dropout and child.p > 0:
                setattr(module, name, SeededDropout(child.p))
    if plan.activation_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return Trainable(model, plan)


def _leak(model: Any) -> str:
    """What is wrong when two rows are in one pack; nothing where each is read as it is alone."""
    ids, decoder = torch.tensor([1, 2, 3, 4, 4, 3, 2, 1], device=model.device), getattr(model, model.base_model_prefix)

    def states(start: int, *spans: Span) -> Tensor:
        places = torch.arange(4, device=model.device).repeat(len(spans))[None]
        pack = {"position_ids": places, "spans": spans, "longest": 4, "use_cache": False}
        found: Tensor = decoder(input_ids=ids[None, start:], **pack).last_hidden_state[0, -4:].float()
        return found

    model.set_attn_implementation(register_attention())
    with torch.no_grad():
        packed, alone = states(0, Span(0, 4, 4), Span(4, 8, 8)), states(4, Span(0, 4, 4))
    change = float((packed - alone).norm() / alone.norm())
    return "" if change <= 0.05 else f"the states of a row change by {change:.0%} with another one in its pack"


def _fuse(model: Any, device: str) -> None:
    """Norms, rotary embeddings and gates in one kernel each: Liger's on a GPU where it is installed, else our own norm."""
    if device == "cuda" and find_spec("liger_kernel") is not None:
        from transformers.integrations import apply_liger_kernel

        ours = {"cross_entropy": False, "fused_linear_cross_entropy": False}  # the loss needs no logits of the model
        apply_liger_kernel(model, {"rope": True, "rms_norm": True, "swiglu": True, **ours})
    else:
        fuse_norms(model)


def quantise_decoder(causal: Any) -> None:
    """Put the frozen linear layers of a model into 4 bits; the output layer stays, as in QLoRA."""
    quantise(getattr(causal, causal.base_model_prefix), keep="lora_")


def _start_from(model: Any, folder: Path) -> None:
    """Give the fresh adapter the weights of the one in `folder`. Raises TrainingError unless it has exactly the same tensors."""
    from peft import get_peft_model_state_dict, set_peft_model_state_dict
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        stored = load_file(folder / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise TrainingError(f"no adapter to start from: {error}", where=str(folder)) from error
    there = {name: tuple(value.shape) for name, value in stored.items()}
    here = {name: tuple(value.shape) for name, value in get_peft_model_state_dict(model).items()}
    if there != here:
        other = sorted(name for name in {*there, *here} if there.get(name) != here.get(name))
        raise TrainingError(
            f"{len(other)} of {len(here)} tensors differ between the plan's adapter and the one to start from, {other[0]} for one",
            where=str(folder),
            remedy="the same base and the same adapter.targets as it was trained with",
        )
    set_peft_model_state_dict(model, stored)


def groups(trainable: Trainable, plan: ResolvedPlan) -> list[dict[str, Any]]:
    """Optimiser groups: LoRA+ gives B its own rate; norms and biases of full training decay by nothing."""
    rate = plan.learning_rate
    kinds: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, p in trainable.parameters().items():
        ratio = plan.adapter.b_rate_ratio if ".lora_B." in name else 1.0
        decay = plan.weight_decay if p.ndim > 1 else 0.0
        kinds.setdefault((rate * ratio, decay), []).append(p)
    return [{"params": params, "lr": lr, "base_rate": lr, "weight_decay": decay} for (lr, decay), params in kinds.items()]
