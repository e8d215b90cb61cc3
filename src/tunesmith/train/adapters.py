"""A prepared base and a plan → a model whose trainable weights are the plan's; knows nothing about rows, losses or checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tunesmith.core.chat import Rendered, Renderer
from tunesmith.core.errors import ConfigError, TrainingError
from tunesmith.core.seal import checked
from tunesmith.models.load_causal import load_causal
from tunesmith.models.trust import trusted
from tunesmith.nets.dropout import SeededDropout
from tunesmith.nets.linear import FusedLoraLinear
from tunesmith.nets.nf4 import Nf4Linear, quantise
from tunesmith.train.facts import WEIGHTS, require_safetensors
from tunesmith.train.loss import Head
from tunesmith.train.packing import Pack, pack
from tunesmith.train.plan import ResolvedPlan
from tunesmith.train.routes import PLAIN, Route, lay, take_off
from tunesmith.train.start_check import Choice, choose_route


def load_base(base: Path, dtype: torch.dtype, device: str = "cpu") -> Any:
    """The causal model in the folder `base`, from safetensors only; code beside them runs only where it was allowed by name.

    A model that also sees pictures is loaded whole and used for text. Raises TrainingError when it cannot be read.
    """
    require_safetensors(base)
    try:
        return load_causal(base, dtype=dtype).to(device)
    except (OSError, ValueError, ImportError) as error:
        raise TrainingError(f"the base cannot be loaded: {error}", where=str(base)) from error


def linear_layers(model: Any) -> dict[str, nn.Module]:
    """The linear layers of the part that reads and writes text, but the output layer, by their full names."""
    from transformers.pytorch_utils import Conv1D

    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    text = model.get_decoder() if hasattr(model, "get_decoder") else model
    inside = {id(module) for module in (text if isinstance(text, nn.Module) else model).modules()}
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, Conv1D)) and module is not head and id(module) in inside
    }


def linear_names(model: Any) -> list[str]:
    """The last parts of their names: what `targets` may name."""
    return sorted({name.rsplit(".", 1)[-1] for name in linear_layers(model)})


# What peft refuses to adapt, because the kernels of these layers read the weights themselves.
_STATE_SPACE = {"mamba", "mamba2", "falcon_mamba", "falcon_h1"}
_REFUSED = {"out_proj", "conv1d"}


def _all_linear(model: Any) -> list[str] | str:
    """peft's word for all linear layers, where it means those of the text; else the layers by name."""
    layers, refused = linear_layers(model), _REFUSED if model.config.model_type in _STATE_SPACE else set()
    own = {id(module) for module in layers.values()}
    head = model.get_output_embeddings()
    others = [module for module in model.modules() if isinstance(module, nn.Linear) and id(module) not in own and module is not head]
    if not others and not refused & {name.rsplit(".", 1)[-1] for name in layers}:
        return "all-linear"
    wanted = [name for name in layers if name.rsplit(".", 1)[-1] not in refused]
    if others:
        return wanted
    return sorted({name.rsplit(".", 1)[-1] for name in wanted})


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
        target_modules=_all_linear(model) if adapter.targets == "all-linear" else list(adapter.targets),
        use_rslora=adapter.rslora,
        use_dora=adapter.dora,
        init_lora_weights=True if adapter.init == "default" else adapter.init,
        bias="none",
        trainable_token_indices=_token_rows(model, plan, base),
    )
    config._register_custom_module({nn.Linear: FusedLoraLinear})  # peft's own way to bring a layer; its name is all that is private
    return config


class Trainable:
    """A model made ready: states or logits at a pack's targets, what makes logits of them, and its trainable parameters by name.

    `route` says how a pack is computed (`routes.py`); a fresh one goes the plain way.
    """

    def __init__(self, model: Any, plan: ResolvedPlan) -> None:
        self.model = model
        self.causal = model.get_base_model() if hasattr(model, "get_base_model") else model
        self.decoder: Any = getattr(self.causal, self.causal.base_model_prefix, None)
        self.lora = plan.adapter.kind == "lora"
        self.device = plan.device
        # Full training keeps float32 weights and multiplies in the plan's type.
        self.autocast = plan.dtype == "bfloat16" and not self.lora
        self._attention = str(self.causal.config._attn_implementation)
        self._laid = lay(model, self.causal, PLAIN, self._attention)
        self._keeps = "logits_to_keep" in signature(self.causal.forward).parameters
        # peft computes adapters of fused experts by changing their weights for a pass: two passes at once would see each other's.
        self.parallel = not any(type(module).__name__ == "ParamWrapper" for module in model.modules())
        self.choice = Choice(route=PLAIN.name)
        layer = self.causal.get_output_embeddings()
        self._head_size = layer.weight.numel() if layer is not None else 0  # once: with trained tokens `weight` copies the whole matrix

    @property
    def route(self) -> Route:
        """How packs are computed."""
        return self._laid.route

    def go(self, route: Route) -> None:
        """Compute packs another way from now on. Raises whatever the model raises where it cannot be prepared for it."""
        take_off(self.causal, self._laid, self._attention)
        self._laid = lay(self.model, self.causal, PLAIN, self._attention)
        self._laid = lay(self.model, self.causal, route, self._attention)

    @property
    def head(self) -> Head:
        """What makes logits; with trained tokens its weight has their rows in place, unless the adapter is switched off."""
        if self.route.plain:
            return Head(None)
        layer, config = self.causal.get_output_embeddings(), self.causal.config.get_text_config()
        tokens = getattr(layer, "token_adapter", None)
        layer = tokens.base_layer if tokens is not None and tokens.disable_adapters else layer
        scale = float(getattr(config, "logit_scale", None) or 1.0) / float(getattr(config, "logits_scaling", None) or 1.0)
        return Head(layer.weight, getattr(layer, "bias", None), scale, getattr(config, "final_logit_softcapping", None))

    def parameters(self) -> dict[str, nn.Parameter]:
        """Trainable parameters by their full name."""
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    def flops(self, computed: float, targets: float) -> float:
        """Arithmetic that one step cannot avoid: forward and backward through the linear layers (weights too in full training)."""
        inner = sum(m.in_features * m.out_features for m in self.causal.modules() if isinstance(m, (nn.Linear, Nf4Linear)))
        return (4.0 if self.lora else 6.0) * ((inner - self._head_size) * computed + self._head_size * targets)

    def states(self, one: Pack) -> Tensor:
        """What `head` takes, at the pack's targets: the last states [M, H] after the final norm, or [M, V] logits on the plain route."""
        if not self.route.tree and one.shares:
            one = pack(one.rows, share=False)  # laid down for another model: the teacher of this one, or its student
        with torch.autocast(self.device, torch.bfloat16, enabled=self.autocast):
            states = self._packed(one) if self.route.packed else self._by_row(one)
        return states.to(torch.bfloat16) if self.autocast and not self.route.plain else states

    def _packed(self, one: Pack) -> Tensor:
        ids, positions, at = (torch.from_numpy(a).to(self.device) for a in (one.ids, one.positions, one.at))
        more: dict[str, Any] = {"spans": one.spans, "longest": one.longest, "places": positions} if self.route.tree else {}
        found: Tensor = self.decoder(input_ids=ids[None], position_ids=positions[None], use_cache=False, **more).last_hidden_state[0, at]
        return found

    def _by_row(self, one: Pack) -> Tensor:
        """One row after the other; the targets of a row stand together in `at`, in the rows' order, but need not be in the pack's."""
        starts = [*np.flatnonzero(one.positions == 0).tolist(), len(one.ids)]
        owner = np.searchsorted(starts, one.at, side="right") - 1
        found: list[Tensor | None] = [None] * len(one.at)
        for row in np.unique(owner).tolist():
            begin, end = starts[row], starts[row + 1]
            mine = np.flatnonzero(owner == row)
            ids, at = torch.from_numpy(one.ids[begin:end]).to(self.device)[None], torch.from_numpy(one.at[mine] - begin).to(self.device)
            for place, state in zip(mine.tolist(), self._row(ids, at), strict=True):
                found[place] = state
        return torch.stack([state for state in found if state is not None])

    def _row(self, ids: Tensor, at: Tensor) -> Tensor:
        """States or logits of one row alone, at `at`."""
        if not self.route.plain:
            found: Tensor = self.decoder(input_ids=ids, use_cache=False).last_hidden_state[0, at]
            return found
        if self._keeps:
            logits: Tensor = self.causal(input_ids=ids, use_cache=False, logits_to_keep=at).logits[0]
            if len(logits) == len(at):
                return logits
        whole: Tensor = self.causal(input_ids=ids, use_cache=False).logits[0, at]
        return whole


def prepare(base: Path, plan: ResolvedPlan, probe: Sequence[Rendered] = (), *, route: str | None = None) -> Trainable:
    """Load the base and make it trainable: adapter attached (in float32) or all weights in float32; seeded by the plan.

    Packs are computed on the fastest route on which `probe` (rows of the run, else random ones) gives what transformers itself gives, or
    on the one that is named.
    """
    full = plan.adapter.kind == "none"
    dtype = torch.float32 if full or plan.dtype == "float32" else torch.bfloat16
    four = plan.adapter.quantise == "nf4"
    model = load_base(base, dtype, "cpu" if four else plan.device)  # of a base in 4 bits only the packed weights go to a GPU
    if trusted(base) and full:
        what = "a base that runs code of its own is trained through an adapter: its result would need that code beside it"
        raise ConfigError(what, where="train.adapter.kind", allowed="lora")
    if not full:
        from peft import get_peft_model

        torch.manual_seed(plan.seed)
        model = get_peft_model(model, _peft_config(model, plan, base))
        chosen = model.peft_config["default"]
        chosen.target_modules = sorted(chosen.target_modules)  # peft keeps a set, which is written in another order each time
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
    trainable = Trainable(model, plan)
    choose_route(trainable, base, plan, probe, route)
    return trainable


def quantise_decoder(causal: Any) -> None:
    """Put the frozen linear layers of a model into 4 bits; the output layer stays, as in QLoRA."""
    quantise(getattr(causal, causal.base_model_prefix), keep="lora_")


def _start_from(model: Any, folder: Path) -> None:
    """Give the fresh adapter the weights of the one in `folder`. Raises TrainingError unless it has exactly the same tensors."""
    from peft import get_peft_model_state_dict, set_peft_model_state_dict
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        stored = load_file(checked(folder / WEIGHTS))
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
