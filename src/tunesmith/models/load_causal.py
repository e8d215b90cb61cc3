"""A causal language model of transformers from its folder; knows nothing about what it is loaded for.

Weights come from safetensors only. A model that also sees pictures or hears is loaded by the class that its configuration names, and read
and written as text alone. Weights stored in MXFP4 or FP8 are read into ordinary ones.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tunesmith.core.seal import check_folder
from tunesmith.models.trust import trusted


def load_causal(base: Path, *, dtype: Any, attention: str | None = None) -> Any:
    """The model of the folder, in the type; `attention` names an implementation (None: transformers' own choice).

    Raises OSError, ValueError or ImportError as transformers does.
    """
    import transformers

    check_folder(base)
    options: dict[str, Any] = {"dtype": dtype, "use_safetensors": True, "local_files_only": True, "trust_remote_code": trusted(base)}
    if attention is not None:
        options["attn_implementation"] = attention
    config = transformers.AutoConfig.from_pretrained(base, local_files_only=True, trust_remote_code=trusted(base))
    kind = _class(config)
    if not kind.__name__.startswith("Auto"):
        options.pop("trust_remote_code")
    stored = getattr(config, "quantization_config", None)
    if stored is None:
        return kind.from_pretrained(base, **options)
    config.quantization_config = {**(stored if isinstance(stored, dict) else stored.to_dict()), "dequantize": True}
    return _ordinary(kind.from_pretrained(base, config=config, **options).to(dtype))


def _class(config: Any) -> Any:
    """The class of transformers that loads a model of this configuration for text."""
    import transformers
    from transformers.models.auto import modeling_auto

    if type(config) in modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING or hasattr(config, "auto_map"):
        return transformers.AutoModelForCausalLM
    if type(config) in modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        return transformers.AutoModelForImageTextToText
    named = [getattr(transformers, name, None) for name in config.architectures or ()]
    causal = next((kind for kind in named if kind is not None and hasattr(kind, "get_output_embeddings")), None)
    return transformers.AutoModelForCausalLM if causal is None else causal  # which says what it knows


def _ordinary(model: Any) -> Any:
    """A dequantised model without what transformers remembers of how it was stored: it is trained and saved as any other."""
    for holder, name in ((model.config, "quantization_config"), (model, "hf_quantizer"), (model, "quantization_method")):
        if hasattr(holder, name):
            delattr(holder, name)
    model.is_quantized = False
    return model
