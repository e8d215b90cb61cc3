"""Adapter and base as one model in safetensors: added in float32, each tensor then cast once to the type in which the base stores it.

What the adapter does not touch has the base's own bits. The merged model is asked the same random ids as adapter on base before anything
is cast, so that one which peft merges wrongly is refused instead of exported.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from tunesmith.core.atomic import write_atomic
from tunesmith.core.errors import TunesmithError, UsageError
from tunesmith.core.load import need
from tunesmith.core.seal import check_folder
from tunesmith.deploy.export.adapter import WEIGHTS
from tunesmith.deploy.export.model_files import ModelFiles, copy_companions, read_config, text_config

_IDS = 24  # random ids of the row that adapter and merged model are asked
# Log-probabilities in float32 may differ by so much, relative to at least 1 nat: other orders of the same sums stay below a tenth of it.
_TOLERANCE = 1e-3
_SHARD = "5GB"


def write_merged(files: ModelFiles, folder: Path) -> None:
    """Fill the folder with a model that transformers and what reads its format load. Whole weights are copied as they are.

    Raises UsageError for an adapter that cannot be merged, with the reason.
    """
    check_folder(files.base)
    if files.adapter is None:
        for path in sorted(files.base.glob("*.safetensors*")):
            shutil.copyfile(path, folder / path.name)
        _finish(files.base, folder, {})
        return
    model = merge(files.base, files.adapter)
    main = _cast(model, files.base)
    quiet = need("transformers", extra="local").utils.logging
    quiet.disable_progress_bar()
    model.save_pretrained(folder, max_shard_size=_SHARD)
    quiet.enable_progress_bar()
    changes: dict[str, Any] = {"dtype": main, "torch_dtype": main}
    if not _tied(model):
        changes["tie_word_embeddings"] = False
    _finish(files.base, folder, changes)


def load_whole(files: ModelFiles) -> Any:
    """The model in float32 as one, its adapter added. Raises as `merge`."""
    if files.adapter is not None:
        return merge(files.base, files.adapter)
    from tunesmith.models.load_causal import load_causal

    return load_causal(files.base, dtype=need("torch", extra="local").float32).eval()


def merge(base: Path, adapter: Path) -> Any:
    """The model with the adapter added to its weights, in float32. Raises UsageError when peft does not load it, TunesmithError when
    what it merges answers otherwise."""
    torch, peft = need("torch", extra="local"), need("peft", extra="local")
    from tunesmith.models.load_causal import load_causal

    check_folder(adapter)
    try:
        adapted = peft.PeftModel.from_pretrained(load_causal(base, dtype=torch.float32), adapter).eval()
        _whole(adapted, adapter)
        _untie(torch, adapted.get_base_model())
        before = _answers(torch, adapted.get_base_model())
        merged = adapted.merge_and_unload().eval()
    except (OSError, ValueError, RuntimeError, ImportError, KeyError, NotImplementedError, TypeError) as error:
        raise UsageError(f"the adapter cannot be merged: {error}", where=str(adapter), remedy="--to adapter keeps it apart") from error
    difference = float(((_answers(torch, merged) - before).abs() / before.abs().clamp(min=1.0)).max())
    if not difference <= _TOLERANCE:
        raise TunesmithError(
            f"the merged model differs from adapter on base by {difference:.2g} (relative log-probability)",
            where=str(adapter),
            allowed=f"at most {_TOLERANCE:g}",
            remedy="--to adapter keeps it apart",
        )
    return merged


def _whole(adapted: Any, adapter: Path) -> None:
    """Raises UsageError unless every tensor of the adapter found its place and every place its tensor: peft itself only warns."""
    peft, safetensors = need("peft", extra="local"), need("safetensors.torch", extra="local")
    stored = set(safetensors.load_file(adapter / WEIGHTS))
    there = set(peft.get_peft_model_state_dict(adapted, save_embedding_layers=False))
    embeddings = {name for name in stored - there if ".lora_" not in name and ("embed" in name or "lm_head" in name)}
    wrong = sorted((stored - there - embeddings) | (there - stored))
    if wrong:
        raise UsageError(
            f"the adapter does not fit the base: {len(wrong)} of its tensors have no place, or no weights: {wrong[0]} for one",
            where=str(adapter),
            remedy="the base that it was trained on: BASE+ADAPTER",
        )


def _untie(torch: Any, model: Any) -> None:
    """Give embedding and output layer a matrix each where they share one and the adapter changes only one of them."""
    layers = [model.get_input_embeddings(), model.get_output_embeddings()]
    if any(layer is None for layer in layers):
        return
    own = [getattr(layer, "base_layer", layer) for layer in layers]
    shared = own[0].weight is own[1].weight
    if shared and any(hasattr(layer, "lora_A") or hasattr(layer, "lora_embedding_A") for layer in layers):
        own[1].weight = torch.nn.Parameter(own[1].weight.detach().clone(), requires_grad=False)


def _tied(model: Any) -> bool:
    """Whether embedding and output layer still share their matrix, or never did."""
    first, last = model.get_input_embeddings(), model.get_output_embeddings()
    if last is None or not getattr(model.config.get_text_config(), "tie_word_embeddings", False):
        return True
    return bool(first.weight.data_ptr() == last.weight.data_ptr())


def _answers(torch: Any, model: Any) -> Any:
    """Log-probabilities [places, V] in float32 that the model gives a row of random ids."""
    size = int(model.get_input_embeddings().weight.shape[0])
    ids = torch.randint(0, size, (1, _IDS), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return model(input_ids=ids, use_cache=False).logits[0].float().log_softmax(-1)


def _cast(model: Any, base: Path) -> str:
    """Cast each tensor to the type that the base stores it in, others to the type that most are in; returns the name of that type."""
    torch, safetensors = need("torch", extra="local"), need("safetensors", extra="local")
    types = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    stored: dict[str, Any] = {}
    sizes: dict[Any, int] = {}
    for path in sorted(base.glob("*.safetensors")):
        with safetensors.safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 - it is no mapping
                piece = file.get_slice(name)
                kind = types.get(piece.get_dtype())
                if kind is not None:
                    stored[name] = kind
                    sizes[kind] = sizes.get(kind, 0) + max(1, int(torch.Size(piece.get_shape()).numel()))
    written = str(text_config(read_config(base)).get("dtype") or text_config(read_config(base)).get("torch_dtype") or "bfloat16")
    main = max(sizes, key=lambda kind: sizes[kind]) if sizes and "quantization_config" not in read_config(base) else getattr(torch, written)
    for name, tensor in model.named_parameters():
        tensor.data = tensor.data.to(stored.get(name, main))
    for name, buffer in model.named_buffers():
        if name in stored:
            buffer.data = buffer.data.to(stored[name])
    return str(main).removeprefix("torch.")


def _finish(base: Path, folder: Path, changes: dict[str, Any]) -> None:
    """The base's own configuration with what changed, and its companions; what the library wrote in their places goes."""
    for path in folder.glob("*.json"):
        if not path.name.endswith(".index.json"):
            path.unlink()
    config = read_config(base)
    inner = text_config(config)
    if changes:
        config.pop("quantization_config", None)
        for key, value in changes.items():
            for part in (config, inner):
                if part is config or key in part:
                    part[key] = value
    inner.update({key: value for key, value in _older_rope(inner).items() if key not in inner})
    write_atomic(folder / "config.json", json.dumps(config, indent=2) + "\n")
    copy_companions(base, folder)


def _older_rope(config: dict[str, Any]) -> dict[str, Any]:
    """The keys by which readers from before transformers 5 know the rotary positions of `rope_parameters`; none where layers differ."""
    rope = config.get("rope_parameters")
    if not isinstance(rope, dict) or "rope_theta" not in rope:
        return {}
    scaled = {key: value for key, value in rope.items() if key != "rope_theta"}
    return {"rope_theta": rope["rope_theta"], **({"rope_scaling": scaled} if scaled.get("rope_type", "default") != "default" else {})}
