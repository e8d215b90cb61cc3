"""The variants of model families that `families.py` tries: configuration classes of transformers at toy size, with what tells them apart.

Knows nothing about training or decoding. Sizes are small and awkward on purpose: windows and original contexts shorter than the rows,
values of another width than keys, layers of each kind that a family has.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

VOCABULARY = 260  # bytes and four special tokens
WINDOW, CHUNK = 24, 16
ROPE = {"rope_type": "default", "rope_theta": 10000.0}

# One size for each name that configurations have for it; a name that a class does not have is left out.
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "n_embd": 32, "d_model": 32, "intermediate_size": 48, "ffn_dim": 48, "ffn_hidden_size": 48,
    "dense_intermediate_size": 48, "intermediate_size_mlp": 48, "expert_ffn_hidden_size": 24, "prefix_dense_intermediate_size": 48,
    "num_hidden_layers": 4, "n_layer": 3, "n_layers": 3, "num_layers": 2, "num_attention_heads": 4, "attention_heads": 4, "n_head": 4,
    "n_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 512, "n_positions": 512, "max_seq_len": 512,
    "context_length": 512, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "sep_token_id": 3, "cls_token_id": 3, "initializer_range": 0.2,
    "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "moe_num_experts": 4, "num_experts_per_tok": 2, "moe_topk": 2, "moe_k": 2,
    "n_shared_experts": 1, "num_shared_experts": 1, "moe_num_shared_experts": 1, "moe_intermediate_size": 24, "n_group": 1, "topk_group": 1,
    "shared_expert_intermediate_size": 24, "shared_experts_intermediate_size": 24, "shared_intermediate_size": 24,
    "moe_shared_expert_intermediate_size": 24, "first_k_dense_replace": 1, "num_dense_layers": 1, "num_mtp_layers": 0,
    "num_nextn_predict_layers": 0, "sliding_window": WINDOW, "window_size": WINDOW, "attention_window_size": WINDOW, "local_attention": WINDOW,
    "sliding_window_size": WINDOW, "attention_chunk_size": CHUNK, "kv_lora_rank": 16, "q_lora_rank": 12, "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 8, "v_head_dim": 8, "index_head_dim": 8, "index_n_heads": 2, "index_topk": 16, "mamba_d_state": 8, "mamba_d_conv": 4,
    "mamba_expand": 2, "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_n_groups": 1, "mamba_chunk_size": 16, "chunk_size": 16, "state_size": 8,
    "ssm_state_size": 8, "mamba_num_heads": 4, "mamba_head_dim": 16, "n_groups": 1, "num_heads": 4, "linear_key_head_dim": 8,
    "linear_value_head_dim": 8, "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_conv_kernel_dim": 4, "conv_L_cache": 3,
    "attention_dropout": 0.0, "hidden_dropout": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "dropout": 0.0, "layerdrop": 0.0,
    "activation_dropout": 0.0, "resid_dropout": 0.0, "embed_dropout": 0.0, "embedding_dropout": 0.0, "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0, "attention_dropout_prob": 0.0, "query_pre_attn_scalar": 8, "rotary_dim": 8, "conv_kernel_size": 4,
}  # fmt: skip
# The part that sees, where there is one: as small as it can be, and never called.
SEEING: dict[str, Any] = {
    "hidden_size": 16, "embed_dim": 16, "intermediate_size": 16, "num_hidden_layers": 1, "depth": 1, "num_attention_heads": 2, "num_heads": 2,
    "attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8, "global_head_dim": 8, "image_size": 16, "patch_size": 8, "out_hidden_size": 32,
    "projection_dim": 32, "fullatt_block_indexes": [0], "deepstack_visual_indexes": [0], "num_position_embeddings": 16, "num_global_layers": 1,
    "vision_output_dim": 16, "intermediate_layers_indices": [0], "spatial_merge_size": 2, "num_channels": 3, "position_embedding_size": 16,
    "projector_input_dim": 16, "projector_output_dim": 16, "pixel_shuffle_ratio": 0.5, "num_hidden_layers_vision": 1,
}  # fmt: skip


class Variant(NamedTuple):
    """A configuration: transformers' name of its class, what differs from `SIZES`, and the text part of a model that sees."""

    kind: str
    changes: dict[str, Any] = {}
    text: dict[str, Any] = {}


def of(kind: str, *, text: dict[str, Any] | None = None, **changes: Any) -> Variant:
    """A variant of that kind with these changes."""
    return Variant(kind, changes, text or {})


def _fields(kind: type) -> set[str]:
    return {field.name for field in dataclasses.fields(kind)}


def _sized(kind: type, sizes: dict[str, Any], changes: dict[str, Any]) -> Any:
    """A configuration of that class at those sizes."""
    known = _fields(kind)
    return kind(**{name: value for name, value in sizes.items() if name in known} | changes)


def configuration(variant: Variant) -> Any:
    """The variant's configuration. Raises whatever transformers raises for one that it does not take."""
    from transformers import CONFIG_MAPPING

    kind = CONFIG_MAPPING[variant.kind]
    known, changes = _fields(kind), dict(variant.changes)
    if "text_config" in known:
        default = kind()
        changes.setdefault("text_config", _sized(type(default.text_config), SIZES, variant.text))
        for part in ("vision_config", "audio_config"):
            inner = getattr(default, part, None) if part in known else None
            if inner is not None and part not in changes:
                changes[part] = _sized(type(inner), SEEING, {})
    return _sized(kind, SIZES, changes)


LAYERS_2 = ["sliding_attention", "full_attention"] * 2
LINEAR_2 = ["linear_attention", "full_attention"] * 2
EXPERTS_2 = ["dense", "sparse", "dense", "sparse"]
LONG = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0] * 4,
    "long_factor": [2.0, 3.0, 4.0, 5.0],
    "original_max_position_embeddings": 40,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 32}
NTK = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
MLA = {"num_key_value_heads": 4, "head_dim": 4}

VARIANTS: dict[str, Variant] = {
    # One kind of layer, attention over everything.
    "llama": of("llama"),
    "llama-tied-bias": of("llama", tie_word_embeddings=True, attention_bias=True, mlp_bias=True),
    "llama-llama3rope": of("llama", rope_parameters=LLAMA3),
    "llama-dynamicntk": of("llama", rope_parameters=NTK, max_position_embeddings=64),
    "qwen2": of("qwen2", use_sliding_window=False),
    "qwen2-yarn": of("qwen2", rope_parameters=YARN),
    "qwen2-window": of("qwen2", use_sliding_window=True, max_window_layers=2),
    "qwen3": of("qwen3"),
    "gemma": of("gemma"),
    "phi": of("phi"),
    "phi3": of("phi3", sliding_window=None),
    "phi3-longrope": of("phi3", sliding_window=None, rope_parameters=LONG, original_max_position_embeddings=40),
    "phi4-mini": of("phi3", sliding_window=None, rope_parameters={**ROPE, "partial_rotary_factor": 0.5}),
    "granite": of("granite", logits_scaling=3.0, residual_multiplier=0.7, attention_multiplier=0.2, embedding_multiplier=2.0),
    "granite-scaling1": of("granite"),
    "granite_swa": of("granite_swa"),
    "cohere": of("cohere", logit_scale=0.3),
    "cohere-scale1": of("cohere", logit_scale=1.0, use_qk_norm=True),
    "olmo": of("olmo", clip_qkv=4.0),
    "olmo2": of("olmo2"),
    "glm": of("glm"),
    "glm4": of("glm4"),
    "ernie4_5": of("ernie4_5"),
    "starcoder2": of("starcoder2", sliding_window=None),
    "starcoder2-window": of("starcoder2"),
    "arcee": of("arcee"),
    "apertus": of("apertus"),
    "seed_oss": of("seed_oss"),
    "hunyuan_v1_dense": of("hunyuan_v1_dense"),
    "hyperclovax": of("hyperclovax", logits_scaling=2.0),
    "helium": of("helium"),
    "bitnet": of("bitnet"),
    "diffllama": of("diffllama"),
    "jais2": of("jais2"),
    "internlm3": of("internlm3"),
    "persimmon": of("persimmon"),
    "gpt_neox": of("gpt_neox"),
    "gpt_neox_japanese": of("gpt_neox_japanese"),
    "opt": of("opt"),
    "opt-project": of("opt", word_embed_proj_dim=16, do_layer_norm_before=False),
    "biogpt": of("biogpt"),
    "stablelm": of("stablelm"),
    "stablelm-qknorm": of("stablelm", qk_layernorm=True, use_parallel_residual=True),
    "nemotron": of("nemotron"),
    "ministral3": of("ministral3", sliding_window=None),
    "gpt2": of("gpt2"),
    "gpt_bigcode": of("gpt_bigcode"),
    "gpt_neo": of("gpt_neo", attention_types=[[["global", "local"], 1]], num_layers=2),
    "gptj": of("gptj"),
    "mpt": of("mpt"),
    "codegen": of("codegen"),
    "ctrl": of("ctrl"),
    "openai-gpt": of("openai-gpt"),
    "bloom": of("bloom"),
    "falcon": of("falcon", alibi=True, new_decoder_architecture=False),
    "falcon-rotary": of("falcon", alibi=False, new_decoder_architecture=True, num_kv_heads=2),
    "xglm": of("xglm"),
    "nanochat": of("nanochat"),
    "hrm_text": of("hrm_text"),
    "minicpm3": of("minicpm3", **MLA),
    "youtu": of("youtu", **MLA),
    "doge": of("doge"),
    "doge-moe": of("doge", is_moe=True, num_experts=16),
    # Windows, caps and sinks.
    "mistral": of("mistral"),
    "mistral-nowindow": of("mistral", sliding_window=None),
    "mistral-widewindow": of("mistral", sliding_window=512),
    "ministral": of("ministral", layer_types=LAYERS_2),
    "gemma2": of("gemma2", attn_logit_softcapping=3.0, final_logit_softcapping=5.0),
    "gemma2-nocaps": of("gemma2", attn_logit_softcapping=None, final_logit_softcapping=None, sliding_window=512),
    "gemma3_text": of("gemma3_text", layer_types=LAYERS_2),
    "gemma3_text-wide": of("gemma3_text", layer_types=LAYERS_2, sliding_window=512),
    "gemma3n_text": of(
        "gemma3n_text", layer_types=LAYERS_2, hidden_size_per_layer_input=8, vocab_size_per_layer_input=VOCABULARY, laurel_rank=8,
        num_kv_shared_layers=0, intermediate_size=[48] * 4, activation_sparsity_pattern=[0.5, 0.0, 0.0, 0.0],
    ),
    "gemma3n_text-sharedkv": of(
        "gemma3n_text", layer_types=LAYERS_2, hidden_size_per_layer_input=8, vocab_size_per_layer_input=VOCABULARY, laurel_rank=8,
        num_kv_shared_layers=2, intermediate_size=[48] * 4, activation_sparsity_pattern=[0.0] * 4,
    ),
    "gemma4_text": of("gemma4_text", layer_types=LAYERS_2, hidden_size_per_layer_input=8, vocab_size_per_layer_input=VOCABULARY, global_head_dim=16, final_logit_softcapping=5.0),
    "gemma4_text-nocap": of("gemma4_text", layer_types=LAYERS_2, hidden_size_per_layer_input=0, global_head_dim=16, final_logit_softcapping=None, sliding_window=512),
    "gemma4_text-sharedkv": of("gemma4_text", layer_types=LAYERS_2, hidden_size_per_layer_input=8, vocab_size_per_layer_input=VOCABULARY, global_head_dim=16, num_kv_shared_layers=2),
    "gemma4_text-moe": of("gemma4_text", layer_types=LAYERS_2, hidden_size_per_layer_input=0, global_head_dim=16, enable_moe_block=True, top_k_experts=2),
    "vaultgemma": of("vaultgemma", layer_types=LAYERS_2),
    "cohere2": of("cohere2", layer_types=LAYERS_2, logit_scale=0.3),
    "cohere2-scale1-wide": of("cohere2", layer_types=LAYERS_2, logit_scale=1.0, sliding_window=512),
    "cohere2_moe": of("cohere2_moe", layer_types=LAYERS_2, mlp_layer_types=EXPERTS_2),
    "olmo3": of("olmo3", layer_types=LAYERS_2),
    "olmo3-wide": of("olmo3", layer_types=LAYERS_2, sliding_window=512),
    "exaone4": of("exaone4", layer_types=LAYERS_2, sliding_window_pattern=2),
    "exaone4-nowindow": of("exaone4", sliding_window=None, layer_types=["full_attention"] * 4),
    "smollm3": of("smollm3", no_rope_layers=[1, 0, 1, 0], use_sliding_window=False),
    "smollm3-window": of("smollm3", no_rope_layers=[1, 0, 1, 0], use_sliding_window=True, layer_types=LAYERS_2),
    "cwm": of("cwm", layer_types=LAYERS_2),
    "modernbert-decoder": of("modernbert-decoder", layer_types=LAYERS_2),
    "gpt_oss": of("gpt_oss", layer_types=LAYERS_2, sliding_window=512),
    "gpt_oss-window": of("gpt_oss", layer_types=LAYERS_2),
    "mimo_v2_flash": of("mimo_v2_flash", layer_types=LAYERS_2),
    "recurrent_gemma": of("recurrent_gemma", block_types=["recurrent", "recurrent", "attention"], lru_width=32),
    "inkling_text": of("inkling_text"),
    "inkling2_text": of("inkling2_text"),
    "flint": of("flint"),
    "kolibri1": of("kolibri1"),
    "laguna": of("laguna"),
    "mellum": of("mellum", layer_types=LAYERS_2),
    # Experts.
    "mixtral": of("mixtral", sliding_window=None),
    "mixtral-auxloss": of("mixtral", sliding_window=None, output_router_logits=True, router_aux_loss_coef=0.5),
    "qwen2_moe": of("qwen2_moe", decoder_sparse_step=2),
    "qwen3_moe": of("qwen3_moe", decoder_sparse_step=1, mlp_only_layers=[]),
    "qwen3_moe-auxloss": of("qwen3_moe", mlp_only_layers=[], output_router_logits=True, router_aux_loss_coef=0.5),
    "granitemoe": of("granitemoe", logits_scaling=3.0, residual_multiplier=0.7),
    "granitemoe-scaling1": of("granitemoe"),
    "granitemoe-auxloss": of("granitemoe", output_router_logits=True, router_aux_loss_coef=0.5),
    "granitemoe_swa": of("granitemoe_swa"),
    "granitemoeshared": of("granitemoeshared"),
    "olmoe": of("olmoe"),
    "flex_olmo": of("flex_olmo"),
    "phimoe": of("phimoe"),
    "deepseek_v2": of("deepseek_v2", **MLA),
    "deepseek_v3": of("deepseek_v3", **MLA, v_head_dim=12),
    "deepseek_v3-eqdims": of("deepseek_v3", num_key_value_heads=4, head_dim=4, v_head_dim=12),
    "deepseek_v32": of("deepseek_v32", **MLA),
    "deepseek_v4": of("deepseek_v4"),
    "axk1": of("axk1", **MLA),
    "axk2": of("axk2", **MLA),
    "glm4_moe": of("glm4_moe"),
    "glm4_moe_lite": of("glm4_moe_lite", **MLA),
    "glm_moe_dsa": of("glm_moe_dsa", **MLA),
    "mistral4": of("mistral4", num_key_value_heads=4),
    "minimax_m2": of("minimax_m2"),
    "minimax_m3_vl_text": of("minimax_m3_vl_text"),
    "hunyuan_v1_moe": of("hunyuan_v1_moe"),
    "hy_v3": of("hy_v3"),
    "hy_v4": of("hy_v4"),
    "dots1": of("dots1", sliding_window=None),
    "exaone_moe": of("exaone_moe", layer_types=LAYERS_2),
    "solar_open": of("solar_open"),
    "afmoe": of("afmoe", global_attn_every_n_layers=2),
    "ernie4_5_moe": of("ernie4_5_moe", moe_layer_start_index=1, moe_layer_end_index=3),
    "jetmoe": of("jetmoe", kv_channels=8, num_key_value_heads=2),
    "longcat_flash": of("longcat_flash", **MLA, zero_expert_num=2),
    "llama4_text": of("llama4_text", no_rope_layers=[1, 0, 1, 0], layer_types=["chunked_attention", "full_attention"] * 2, floor_scale=16),
    "llama4_text-widechunk": of("llama4_text", no_rope_layers=[1, 0, 1, 0], layer_types=["chunked_attention", "full_attention"] * 2, attention_chunk_size=512),
    "aria_text": of("aria_text"),
    # States and convolutions.
    "lfm2": of("lfm2", layer_types=["conv", "full_attention"] * 2, block_ff_dim=48, block_multiple_of=8),
    "lfm2_moe": of("lfm2_moe", layer_types=["conv", "full_attention"] * 2),
    "lfm3": of("lfm3"),
    "falcon_h1": of("falcon_h1", mamba_d_ssm=64, lm_head_multiplier=0.5, embedding_multiplier=2.0, mlp_multipliers=[0.7, 0.6], ssm_multipliers=[0.5, 0.6, 0.7, 0.8, 0.9]),
    "falcon_h1-plain": of("falcon_h1", mamba_d_ssm=64),
    "mamba": of("mamba", intermediate_size=64),
    "mamba2": of("mamba2", head_dim=16, num_heads=4, hidden_size=32),
    "falcon_mamba": of("falcon_mamba"),
    "rwkv": of("rwkv", attention_hidden_size=32, num_hidden_layers=2),
    "xlstm": of("xlstm", num_heads=2, num_blocks=2, num_hidden_layers=2, head_dim=None),
    "minimax": of("minimax", layer_types=LINEAR_2, block_size=16),
    "olmo_hybrid": of("olmo_hybrid", layer_types=LINEAR_2),
    "qwen3_next": of("qwen3_next", layer_types=LINEAR_2),
    "qwen3_5_text": of("qwen3_5_text", layer_types=LINEAR_2),
    "qwen3_5_moe_text": of("qwen3_5_moe_text", layer_types=LINEAR_2),
    "granitemoehybrid": of("granitemoehybrid", layer_types=["mamba", "attention"] * 2, logits_scaling=3.0, residual_multiplier=0.7),
    "granitemoehybrid-scaling1": of("granitemoehybrid", layer_types=["mamba", "attention"] * 2),
    "granite4-attention-only": of("granitemoehybrid", layer_types=["attention"] * 4, num_local_experts=0, position_embedding_type="rope"),
    "jamba": of("jamba", attn_layer_period=2, attn_layer_offset=1, expert_layer_period=2, expert_layer_offset=1, use_mamba_kernels=False, mamba_dt_rank=4),
    "bamba": of("bamba", attn_layer_indices=[1, 3]),
    "nemotron_h": of("nemotron_h", layers_block_type=["mamba", "attention", "mlp", "mamba"], use_mamba_kernels=False),
    "nemotron_h-moe": of("nemotron_h", layers_block_type=["mamba", "attention", "moe", "mamba"], use_mamba_kernels=False, moe_latent_size=None),
    "zamba2": of("zamba2", num_hidden_layers=4, layers_block_type=["mamba", "hybrid", "mamba", "hybrid"], hybrid_layer_ids=[1, 3], n_mamba_heads=4, mamba_headdim=16, mamba_ngroups=1, adapter_rank=4, use_mamba_kernels=False),
    "kimi_linear": of("kimi_linear", **MLA, linear_head_dim=8, linear_num_heads=4, layer_types=LINEAR_2),
    "bailing_hybrid": of("bailing_hybrid", **MLA, layer_group_size=2),
    "zaya": of("zaya", num_experts_per_tok=1),
    "qwen4_exp_text": of("qwen4_exp_text", layer_types=LINEAR_2, hc_lowrank=8, hc_count=2, ngram_vocab_size_base=50, make_ngram_vocab_size_divisible_by=4, split_ngram_parts=1, heads_per_ngram=2, ple_layer_ids=[1], ple_embed_dim=8, indexer_n_heads=2, indexer_kv_heads=1, indexer_head_dim=8, indexer_budget=16, indexer_compress_ratio=4),
    # The text part of models that see.
    "gemma3-vl": of("gemma3", text={"layer_types": LAYERS_2}, mm_tokens_per_image=1),
    "gemma4-vl": of("gemma4", text={"layer_types": LAYERS_2, "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": VOCABULARY, "global_head_dim": 16}),
    "qwen3_5-vl": of("qwen3_5", text={"layer_types": LINEAR_2, "rope_parameters": {**ROPE, "mrope_section": [2, 1, 1], "partial_rotary_factor": 1.0}}),
    "qwen3_5_moe-vl": of("qwen3_5_moe", text={"layer_types": LINEAR_2, "rope_parameters": {**ROPE, "mrope_section": [2, 1, 1], "partial_rotary_factor": 1.0}}),
    "qwen2_vl": of("qwen2_vl", text={"rope_parameters": {**ROPE, "mrope_section": [2, 1, 1]}}),
    "qwen2_5_vl": of("qwen2_5_vl", text={"rope_parameters": {**ROPE, "mrope_section": [2, 1, 1]}}),
    "qwen3_vl": of("qwen3_vl", text={"rope_parameters": {**ROPE, "mrope_section": [2, 1, 1]}}),
    "qwen3_vl_moe": of("qwen3_vl_moe", text={"rope_parameters": {**ROPE, "mrope_section": [2, 1, 1]}}),
    "mistral3-vl": of("mistral3"),
    "llama4-vl": of("llama4", text={"no_rope_layers": [1, 0, 1, 0], "layer_types": ["chunked_attention", "full_attention"] * 2, "attention_chunk_size": 512}),
    "paligemma-vl": of("paligemma"),
    "llava-vl": of("llava"),
    "llava_next-vl": of("llava_next"),
    "llava_onevision-vl": of("llava_onevision"),
    "internvl-vl": of("internvl"),
    "smolvlm": of("smolvlm"),
    "idefics3": of("idefics3"),
    "glm4v": of("glm4v", text={"rope_parameters": {**ROPE, "mrope_section": [2, 1, 1], "partial_rotary_factor": 1.0}}),
    "glm4v_moe": of("glm4v_moe", text={"rope_parameters": {**ROPE, "mrope_section": [2, 1, 1], "partial_rotary_factor": 1.0}}),
    "lfm2_vl": of("lfm2_vl", text={"layer_types": ["conv", "full_attention"] * 2, "block_ff_dim": 48, "block_multiple_of": 8}),
    "aya_vision": of("aya_vision", text={"layer_types": LAYERS_2}),
    "cohere2_vision": of("cohere2_vision", text={"layer_types": LAYERS_2}),
    "ovis2": of("ovis2"),
    "perception_lm": of("perception_lm"),
}  # fmt: skip

_TEN = ("llama", "qwen3", "gemma3_text", "gpt_oss", "gpt2", "lfm2", "qwen3_moe", "falcon_h1", "deepseek_v3", "qwen2_5_vl")
# Other ways of training, and who is trained so.
MODES_OF: dict[str, tuple[str, ...]] = {"full": (*_TEN, "qwen3_5_text"), "nf4": (*_TEN, "mixtral"), "dpo": (*_TEN, "mamba2")}
