"""A prepared base and a plan → a model whose trainable weights are the plan's; knows nothing about rows, losses or checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from inspect import signature
from pathlib import Path
from typing import Any

import msgspec
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
from tunesmith.train.choice import PLAIN, Choice, Route
from tunesmith.train.facts import WEIGHTS, require_safetensors
from tunesmith.train.loss import Head
from tunesmith.train.packing import Pack, pack
from tunesmith.train.plan import ResolvedPlan
from tunesmith.train.routes import lay, take_off
from tunesmith.train.start_check import choose_route
from tunesmith.train.targets import Reach, all_linear, inner_model, linear_names, parameters_to_name, reach


def load_base(base: Path, dtype: torch.dtype, device: str = "cpu") -> Any:
    """The causal model in the folder `base`, from safetensors only; code beside them runs only where it was allowed by name.

    A model that also sees pictures is loaded whole and used for text. Raises TrainingError when it cannot be read.
    """
    require_safetensors(base)
    try:
        return load_causal(base, dtype=dtype).to(device)
    except (OSError, ValueError, ImportError) as error:
        raise TrainingError(f"the base cannot be loaded: {error}", where=str(base)) from error


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
    numbers = sorted({number for number in ids if number is not None})
    if model.config.get_text_config().tie_word_embeddings:
        return numbers
    layers = {id(module): name.rsplit(".", 1)[-1] for name, module in model.named_modules()}
    return {layers[id(layer)]: numbers for layer in (model.get_input_embeddings(), model.get_output_embeddings())}


def _peft_config(model: Any, plan: ResolvedPlan, base: Path) -> Any:
    from peft import LoraConfig

    adapter = plan.adapter
    if adapter.targets != "all-linear":
        known = linear_names(model)
        missing = [t for t in adapter.targets if t not in known]
        if missing:
            raise ConfigError(f"the base has no layer {', '.join(missing)}", where="train.adapter.targets", allowed=", ".join(known))
    if adapter.target_parameters:
        named = parameters_to_name(model)
        missing = [t for t in adapter.target_parameters if not any(name == t or name.endswith(f".{t}") for name in named)]
        if missing:
            what = f"the base has no tensor {', '.join(missing)} inside its layers that is not a linear layer"
            raise ConfigError(what, where="train.adapter.target_parameters", allowed=", ".join(named) or "none: leave it out")
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=adapter.r,
        lora_alpha=adapter.alpha,
        lora_dropout=adapter.dropout,
        target_modules=all_linear(model) if adapter.targets == "all-linear" else list(adapter.targets),
        target_parameters=list(adapter.target_parameters) or None,
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
        self.decoder: Any = inner_model(self.causal)
        self.lora = plan.adapter.kind == "lora"
        self.device = plan.device
        # Full training keeps float32 weights and multiplies in the plan's type.
        self.autocast = plan.dtype == "bfloat16" and not self.lora
        self._attention = str(self.causal.config._attn_implementation)
        self._laid = lay(model, self.causal, PLAIN, self._attention)
        self._keeps = "logits_to_keep" in signature(self.causal.forward).parameters
        self.balances = _balances(self.causal)
        self.balance: Tensor | None = None  # the routers' loss of the rows of the last pass, where the model adds one
        # peft computes adapters of fused experts by changing their weights for a pass: two passes at once would see each other's.
        self.parallel = not self.balances and not any(type(module).__name__ == "ParamWrapper" for module in model.modules())
        self.choice = Choice(route=PLAIN.name)
        self.reach = Reach()
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

    def states(self, packed: Pack) -> Tensor:
        """What `head` takes, at the pack's targets: the last states [M, H] after the final norm, or [M, V] logits on the plain route."""
        if not self.route.tree and packed.shares:
            packed = pack(packed.rows, share=False)  # laid down for another model: the teacher of this one, or its student
        self.balance = None
        with torch.autocast(self.device, torch.bfloat16, enabled=self.autocast):
            states = self._packed(packed) if self.route.packed else self._by_row(packed)
        return states.to(torch.bfloat16) if self.autocast and not self.route.plain else states

    def _packed(self, packed: Pack) -> Tensor:
        ids, positions, at = (torch.from_numpy(a).to(self.device) for a in (packed.ids, packed.positions, packed.at))
        more: dict[str, Any] = {"spans": packed.spans, "longest": packed.longest, "places": positions} if self.route.tree else {}
        states: Tensor = self.decoder(input_ids=ids[None], position_ids=positions[None], use_cache=False, **more).last_hidden_state[0, at]
        return states

    def _by_row(self, packed: Pack) -> Tensor:
        """One row after the other, each whole: what comes after its last trained token counts where frequencies follow the length."""
        states: list[Tensor | None] = [None] * len(packed.at)
        for number in np.unique(packed.row).tolist():
            row = packed.rows[number]
            trained = np.flatnonzero(row.mask[1:])  # the places that predict trained tokens
            ids, at = (torch.from_numpy(a.astype(np.int64)).to(self.device) for a in (row.ids, trained))
            for place, state in zip(np.flatnonzero(packed.row == number).tolist(), self._row(ids[None], at), strict=True):
                states[place] = state
        return torch.stack([state for state in states if state is not None])

    def _row(self, ids: Tensor, at: Tensor) -> Tensor:
        """States or logits of one row alone, at `at`."""
        if not self.route.plain:
            states: Tensor = self.decoder(input_ids=ids, use_cache=False).last_hidden_state[0, at]
            return states
        if self._keeps:
            out = self.causal(input_ids=ids, use_cache=False, logits_to_keep=at)
            if len(out.logits[0]) == len(at):
                return self._balanced(out, out.logits[0])
        out = self.causal(input_ids=ids, use_cache=False)
        return self._balanced(out, out.logits[0, at])

    def _balanced(self, out: Any, logits: Tensor) -> Tensor:
        """The logits; what the model would add to its loss for this row is added up in `balance`."""
        if self.balances:
            more = self.balances * out.aux_loss
            self.balance = more if self.balance is None else self.balance + more
        return logits


def _balances(causal: Any) -> float:
    """The weight of the routers' loss (arXiv 2101.03961) that a model adds to its own; 0 where its configuration does not ask for it."""
    config = causal.config.get_text_config()
    if not getattr(config, "output_router_logits", False):
        return 0.0
    places = [(place, name) for name in ("router_aux_loss_coef", "aux_loss_coef") for place in (causal, config)]
    weight = next((value for place, name in places if isinstance(value := getattr(place, name, None), (int, float))), 0.0)
    return float(weight)


def _adapted(model: Any, plan: ResolvedPlan, base: Path) -> Any:
    """The model with a fresh adapter of the plan. Raises ConfigError with peft's own words for what it does not take."""
    from peft import get_peft_model

    torch.manual_seed(plan.seed)
    try:
        model = get_peft_model(model, _peft_config(model, plan, base))
    except (ValueError, NotImplementedError, TypeError, RuntimeError, AttributeError, KeyError) as error:
        what = f"peft does not attach this adapter to {base.name}: {error}"
        raise ConfigError(what, where="train.adapter", remedy="other targets, or without the option that it names") from error
    chosen = model.peft_config["default"]
    chosen.target_modules = sorted(chosen.target_modules)  # peft keeps a set, which is written in another order each time
    if chosen.target_parameters is not None:
        chosen.target_parameters = sorted(chosen.target_parameters)
    return model


def prepare(
    base: Path,
    plan: ResolvedPlan,
    probe: Sequence[Rendered] = (),
    *,
    route: str | None = None,
    load: Callable[[Path, torch.dtype, str], Any] = load_base,
) -> Trainable:
    """Load the base and make it trainable: adapter attached (in float32) or all weights in float32; seeded by the plan.

    Packs are computed on the fastest route on which `probe` (rows of the run, else random ones) gives what transformers itself gives, or
    on the one that is named. `load` gives the model that is made trainable.
    """
    full = plan.adapter.kind == "none"
    dtype = torch.float32 if full or plan.dtype == "float32" else torch.bfloat16
    four = plan.adapter.quantise == "nf4"
    model = load(base, dtype, "cpu" if four else plan.device)  # of a base in 4 bits only the packed weights go to a GPU
    if trusted(base) and full:
        what = "a base that runs code of its own is trained through an adapter: its result would need that code beside it"
        raise ConfigError(what, where="train.adapter.kind", allowed="lora")
    covered = Reach()
    if not full:
        model = _adapted(model, plan, base)
        covered = reach(model, model.get_base_model())
        if plan.adapter.start_from is not None:
            _start_from(model, Path(plan.adapter.start_from))
        if four:
            packed = quantise_decoder(model.get_base_model())
            covered = msgspec.structs.replace(covered, packed=min(1.0, packed / max(1, covered.weights)))
            model.to(plan.device)
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) is nn.Dropout and child.p > 0:
                setattr(module, name, SeededDropout(child.p))
    if plan.activation_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    trainable = Trainable(model, plan)
    trainable.reach = covered
    choose_route(trainable, base, plan, probe, route)
    return trainable


def quantise_decoder(causal: Any) -> int:
    """Put the frozen linear layers of a model into 4 bits; the output layer stays, as in QLoRA. Returns how many weights they have."""
    return quantise(inner_model(causal), keep="lora_")


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


def leaves_the_base(plan: ResolvedPlan) -> bool:
    """Whether the base's weights stay as they are, in its own form, so that trainings may share them."""
    adapter = plan.adapter
    changes = adapter.quantise != "none" or adapter.init not in ("default", "gaussian") or adapter.trainable_tokens
    return adapter.kind == "lora" and not changes and not adapter.target_parameters


def groups(trainable: Trainable, plan: ResolvedPlan) -> list[dict[str, Any]]:
    """Optimiser groups: LoRA+ gives B its own rate; norms and biases of full training decay by nothing."""
    rate = plan.learning_rate
    kinds: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, p in trainable.parameters().items():
        ratio = plan.adapter.b_rate_ratio if ".lora_B." in name else 1.0
        decay = plan.weight_decay if p.ndim > 1 else 0.0
        kinds.setdefault((rate * ratio, decay), []).append(p)
    return [{"params": params, "lr": lr, "base_rate": lr, "weight_decay": decay} for (lr, decay), params in kinds.items()]
