"""Tiny real parts for the tests: models of a few random layers with a trained tokenizer, and adapters with random weights."""

from __future__ import annotations

import functools
import gc
import importlib
from pathlib import Path

WORDS = """The credit agreement between Acme Holdings and First Bank of Ohio is dated as of June 3 and was amended in New York.
Say yes or no. List the named entities of this sentence. Who signed it? Nobody did, as far as we know! 1 2 3 4 5 6 7 8 9 0 é ü 你好 🙂"""
TEMPLATE = (
    "{% if tools %}{{ '<|start|>tools ' + (tools | tojson) + '<|end|>' }}{% endif %}"
    "{% for m in messages %}{{ '<|start|>' + m.role + '\\n' + (m.content or '') }}"
    "{% for c in m.tool_calls or [] %}{{ '<tool_call>' + (c.function | tojson) + '</tool_call>' }}{% endfor %}{{ '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>assistant\\n' }}{% endif %}"
)
KINDS = {
    "llama": ("LlamaConfig", {}),
    "qwen2": ("Qwen2Config", {}),  # biases
    "qwen3": ("Qwen3Config", {"head_dim": 16}),  # norms on queries and keys
    "mistral": ("MistralConfig", {"sliding_window": 12}),
    "gemma2": ("Gemma2Config", {"head_dim": 16, "sliding_window": 10, "attn_logit_softcapping": 3.0, "final_logit_softcapping": 5.0}),
    "gemma3": ("Gemma3TextConfig", {"head_dim": 16, "sliding_window": 9}),
    "lfm2": ("Lfm2Config", {"layer_types": ["conv", "full_attention"], "block_ff_dim": 96}),  # states, and no decoder of ours
}


@functools.cache
def libraries() -> None:
    """Import what models need, once, and let garbage collection leave it alone (a quarter of a second each time)."""
    for name in ("peft", "transformers.models.auto.modeling_auto", "transformers.models.llama.modeling_llama"):
        importlib.import_module(name)
    gc.collect()
    gc.freeze()


def tokenizer(folder: Path) -> int:
    """Train a byte-level BPE on a few words and save it as models do; returns its size."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    special = ["<|pad|>", "<|start|>", "<|end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    raw.train_from_iterator([WORDS] * 4, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<|start|>", eos_token="<|end|>", pad_token="<|pad|>")
    fast.chat_template = TEMPLATE
    fast.save_pretrained(folder)
    return raw.get_vocab_size()


def model(folder: Path, kind: str = "llama", seed: int = 0, context: int = 256) -> Path:
    """A two-layer random model of that kind with a tokenizer, saved in `folder`; it reads `context` tokens."""
    import torch
    import transformers

    libraries()
    size = tokenizer(folder)
    name, extra = KINDS[kind]
    config = getattr(transformers, name)(
        vocab_size=size, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=context, initializer_range=0.4, bos_token_id=1, eos_token_id=2, pad_token_id=0, tie_word_embeddings=False, **extra,
    )  # fmt: skip
    torch.manual_seed(seed)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def adapter(base: Path, folder: Path, seed: int = 1, **options: object) -> Path:
    """An adapter with random weights on `base`, as peft saves it."""
    import peft
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    settings = {"r": 4, "lora_alpha": 16, "target_modules": "all-linear", "init_lora_weights": False, **options}
    changed = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(base), peft.LoraConfig(**settings))
    changed.save_pretrained(folder)
    return folder


def encoder(folder: Path) -> Path:
    """A two-layer random sentence encoder with the same tokenizer."""
    import torch
    import transformers

    size = tokenizer(folder)
    config = transformers.BertConfig(
        vocab_size=size, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=128
    )
    torch.manual_seed(0)
    transformers.AutoModel.from_config(config).save_pretrained(folder)
    return folder
