"""The model as one GGUF file for llama.cpp and what is built on it: adapter and base added in float32, then cast or quantised once.

Written for families whose arithmetic llama.cpp has under the same configuration; others are refused by name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tunesmith.core.errors import UsageError
from tunesmith.core.load import need
from tunesmith.deploy.export.gguf_tokenizer import add_tokenizer
from tunesmith.deploy.export.k_quants import kind_of, packed
from tunesmith.deploy.export.merged import load_whole
from tunesmith.deploy.export.model_files import ModelFiles, read_config

Precision = Literal["f32", "f16", "q8_0", "q4_K_M"]
PRECISIONS: tuple[Precision, ...] = ("f32", "f16", "q8_0", "q4_K_M")
FILE = "model.gguf"
_F16_MOST = 65504.0


@dataclass(frozen=True, slots=True)
class _Family:
    """llama.cpp's name of the arithmetic, and whether it wants queries and keys with the two halves of each rotation interleaved."""

    arch: str
    interleaved: bool = False


FAMILIES = {
    "llama": _Family("llama", interleaved=True),
    "mistral": _Family("llama", interleaved=True),
    "qwen2": _Family("qwen2"),
    "qwen3": _Family("qwen3"),
}


def write_gguf(precision: Precision) -> Callable[[ModelFiles, Path], None]:
    """What fills a folder with the file in that precision."""

    def write(files: ModelFiles, folder: Path) -> None:
        write_file(files, folder / FILE, precision)

    return write


def write_file(files: ModelFiles, out: Path, precision: Precision) -> None:
    """Write the file. Raises UsageError for a family, rotary positions, a window or a tokenizer that llama.cpp computes otherwise."""
    gguf = need("gguf", extra="local")
    family = _family(files.base)
    model = load_whole(files)
    config = model.config
    writer = gguf.GGUFWriter(out, family.arch)
    kinds = {"f32": "ALL_F32", "f16": "MOSTLY_F16", "q8_0": "MOSTLY_Q8_0", "q4_K_M": "MOSTLY_Q4_K_M"}
    _add_facts(writer, config, files.name, gguf.LlamaFileType[kinds[precision]])
    add_tokenizer(writer, files.base, int(model.get_input_embeddings().weight.shape[0]))
    names = gguf.get_tensor_name_map(_arch(gguf, family), config.num_hidden_layers)
    for name, tensor in _tensors(model, family, config):
        own = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if own is None:
            raise UsageError(f"GGUF has no place for the tensor {name}", where=str(files.base), remedy="--to merged")
        tied = _tied(model)
        quantised = kind_of(own, int(tensor.shape[-1]), config.num_hidden_layers, tied=tied) if precision == "q4_K_M" else precision
        data, kind = _stored(gguf, tensor, quantised)
        writer.add_tensor(own, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _arch(gguf: Any, family: _Family) -> Any:
    return next(arch for arch, name in gguf.MODEL_ARCH_NAMES.items() if name == family.arch)


def _family(base: Path) -> _Family:
    """The family of a folder. Raises UsageError with the reason why a model has no place in GGUF."""
    config = read_config(base)
    kind = str(config.get("model_type"))
    where = str(base / "config.json")
    if kind not in FAMILIES:
        raise UsageError(f"GGUF is not written for the family '{kind}'", where=where, allowed=", ".join(FAMILIES), remedy="--to merged")
    window = config.get("sliding_window")
    if window and (kind == "mistral" or config.get("use_sliding_window")) and window < int(config.get("max_position_embeddings", 0)):
        what = f"GGUF cannot hold the window of {window} tokens of '{kind}': llama.cpp reads all of them"
        raise UsageError(what, where=where, allowed="attention over the whole context", remedy="--to merged")
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    scaling = rope.get("rope_type") or rope.get("type") or "default"
    if scaling not in ("default", "llama3"):
        raise UsageError(f"GGUF is not written for rotary positions of type '{scaling}'", where=where, allowed="default, llama3")
    return FAMILIES[kind]


def _add_facts(writer: Any, config: Any, name: str, file_type: Any) -> None:
    rope = config.rope_parameters
    heads = config.num_attention_heads
    head_size = getattr(config, "head_dim", None) or config.hidden_size // heads
    writer.add_name(name)
    writer.add_file_type(file_type)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head_size)
    writer.add_value_length(head_size)
    writer.add_rope_dimension_count(head_size)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(float(rope["rope_theta"]))
    writer.add_vocab_size(config.vocab_size)


def _tensors(model: Any, family: _Family, config: Any) -> Iterator[tuple[str, Any]]:
    """Every weight under the name that the base gives it, in float32, as llama.cpp lays it out."""
    tied = _tied(model)
    for name, tensor in model.state_dict().items():
        if tied and name.startswith("lm_head"):
            continue
        data = tensor.detach().float()
        if family.interleaved and ".q_proj." in name:
            data = _interleaved(data, config.num_attention_heads)
        elif family.interleaved and ".k_proj." in name:
            data = _interleaved(data, config.num_key_value_heads)
        yield name, data
    if config.rope_parameters.get("rope_type") == "llama3":
        # What each rotation's frequency is divided by, as the model itself computes it.
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        torch = need("torch", extra="local")
        plain = 1.0 / config.rope_parameters["rope_theta"] ** (torch.arange(0, size, 2).float() / size)
        yield "rope_freqs.weight", plain / model.model.rotary_emb.inv_freq.float().cpu()


def _tied(model: Any) -> bool:
    """Whether the output layer is the embeddings' matrix."""
    tied: bool = model.get_output_embeddings().weight.data_ptr() == model.get_input_embeddings().weight.data_ptr()
    return tied


def _interleaved(data: Any, heads: int) -> Any:
    """Rows of a head's two halves one by one in turn: [heads, 2, half, …] → [heads, half, 2, …]."""
    shape = data.shape
    return data.reshape(heads, 2, shape[0] // heads // 2, *shape[1:]).swapaxes(1, 2).reshape(shape)


def _stored(gguf: Any, tensor: Any, precision: str) -> tuple[Any, Any]:
    """A tensor as it is stored: vectors, and what float16 cannot hold, in float32; in blocks of numbers where rows are made of them."""
    import numpy as np

    data, kinds = tensor.numpy(), gguf.GGMLQuantizationType
    if precision == "f32" or data.ndim < 2 or float(np.abs(data).max(initial=0.0)) > _F16_MOST:
        return data.astype(np.float32), kinds.F32
    if precision == "q8_0" and data.shape[-1] % 32 == 0:
        return gguf.quants.quantize(data, kinds.Q8_0), kinds.Q8_0
    if precision not in ("f16", "q8_0", "F16"):
        return packed(data, precision), kinds[precision]
    return data.astype(np.float16), kinds.F16
