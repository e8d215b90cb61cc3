"""A causal language model of transformers from its folder; knows nothing about what it is loaded for.

Weights come from safetensors only. A model that also sees pictures or hears is loaded by the class that its configuration names, and read
and written as text alone.
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
    from transformers.models.auto import modeling_auto

    check_folder(base)
    options: dict[str, Any] = {"dtype": dtype, "use_safetensors": True, "local_files_only": True, "trust_remote_code": trusted(base)}
    if attention is not None:
        options["attn_implementation"] = attention
    config = transformers.AutoConfig.from_pretrained(base, local_files_only=True, trust_remote_code=trusted(base))
    known = modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING
    if type(config) in known or hasattr(config, "auto_map"):
        return transformers.AutoModelForCausalLM.from_pretrained(base, **options)
    if type(config) in modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        return transformers.AutoModelForImageTextToText.from_pretrained(base, **options)
    named = [getattr(transformers, name, None) for name in config.architectures or ()]
    found = next((kind for kind in named if kind is not None and hasattr(kind, "get_output_embeddings")), None)
    if found is None:
        return transformers.AutoModelForCausalLM.from_pretrained(base, **options)  # which says what it knows
    return found.from_pretrained(base, **{key: value for key, value in options.items() if key != "trust_remote_code"})
