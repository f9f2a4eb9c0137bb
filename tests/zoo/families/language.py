"""Language models of transformers: encoders, decoders (GQA, experts, state spaces) and encoder-decoders."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tests.zoo.families.huggingface import family, ids, masked, masked_pair, pair
from tests.zoo.family import Family

LENGTHS = (8, 11)

ENCODERS: dict[str, dict[str, Any]] = {
    "bert": {},
    "albert": {"num_hidden_groups": 1},
    "big_bird": {"attention_type": "original_full"},
    "convbert": {"conv_kernel_size": 3},
    "deberta": {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]},
    "deberta-v2": {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]},
    "distilbert": {},
    "electra": {},
    "ernie": {},
    "esm": {"position_embedding_type": "rotary"},
    "flaubert": {"emb_dim": 32},
    "fnet": {},
    "funnel": {"block_sizes": [1, 1]},
    "ibert": {},
    "layoutlm": {},
    "longformer": {"attention_window": 4},
    "megatron-bert": {},
    "mobilebert": {"intra_bottleneck_size": 16, "true_hidden_size": 16, "embedding_size": 16},
    "modernbert": {"local_attention": 4},
    "mpnet": {},
    "mra": {},
    "nomic_bert": {},
    "nystromformer": {"num_landmarks": 8, "segment_means_seq_len": 8},
    "rembert": {"input_embedding_size": 16, "output_embedding_size": 16},
    "roberta": {},
    "roformer": {},
    "squeezebert": {"embedding_size": 32},
    "xlm": {"emb_dim": 32},
    "xlm-roberta-xl": {},
    "xlnet": {"use_mems_eval": False},
    "yoso": {},
}

DECODERS: dict[str, dict[str, Any]] = {
    "arcee": {},
    "biogpt": {},
    "bitnet": {},
    "bloom": {},
    "codegen": {"rotary_dim": 4},
    "cohere": {},
    "ctrl": {"dff": 56},
    # Its value heads go in pairs: of two there is none to spare.
    "diffllama": {"num_attention_heads": 8, "num_key_value_heads": 4},
    "exaone4": {},
    "falcon": {"new_decoder_architecture": False, "multi_query": True},
    "gemma": {},
    "gemma2": {},
    "gemma3_text": {},
    "glm": {},
    "glm4": {},
    "gpt2": {},
    "gpt_bigcode": {},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": 4},
    "gpt_neox": {},
    "gptj": {"rotary_dim": 4},
    "granite": {},
    "helium": {},
    "llama": {},
    "mistral": {},
    "mpt": {},
    "nemotron": {},
    "olmo": {},
    "olmo2": {},
    "openai-gpt": {},
    "opt": {},
    "persimmon": {},
    "phi": {},
    "phi3": {},
    "qwen2": {},
    "qwen3": {},
    "smollm3": {},
    "stablelm": {},
    "starcoder2": {},
    "xglm": {},
}

EXPERTS: dict[str, dict[str, Any]] = {
    "deepseek_v3": {
        "n_routed_experts": 4,
        "n_group": 2,
        "topk_group": 1,
        "kv_lora_rank": 8,
        "q_lora_rank": 16,
        "qk_rope_head_dim": 4,
        "qk_nope_head_dim": 4,
        "v_head_dim": 8,
        "head_dim": 4,
        "first_k_dense_replace": 1,
        "num_key_value_heads": 4,
    },
    "gpt_oss": {},
    "granitemoe": {},
    "jetmoe": {"kv_channels": 8, "num_key_value_heads": 2},
    "mixtral": {},
    "olmoe": {},
    "phimoe": {},
    "qwen2_moe": {"shared_expert_intermediate_size": 24},
    "qwen3_moe": {},
}

STATES: dict[str, dict[str, Any]] = {
    "bamba": {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 4, "attn_layer_indices": [1]},
    "falcon_mamba": {},
    "jamba": {"mamba_d_state": 4, "attn_layer_period": 2, "attn_layer_offset": 1, "use_mamba_kernels": False},
    "mamba": {},
    "mamba2": {"num_heads": 8, "head_dim": 8, "n_groups": 1, "expand": 2, "chunk_size": 4},
    "recurrent_gemma": {"lru_width": 32, "num_hidden_layers": 3, "attention_window_size": 4},
    "rwkv": {"attention_hidden_size": 32},
    "zamba": {
        "mamba_d_state": 4,
        "n_mamba_heads": 2,
        "num_hidden_layers": 3,
        "layers_block_type": ["mamba", "hybrid", "hybrid"],
    },
}

PAIRS: dict[str, dict[str, Any]] = {
    "bart": {},
    "bigbird_pegasus": {"attention_type": "original_full"},
    "blenderbot": {},
    "blenderbot-small": {},
    "fsmt": {"langs": ["en", "de"], "src_vocab_size": 60, "tgt_vocab_size": 60},
    "led": {"attention_window": 4, "max_encoder_position_embeddings": 40, "max_decoder_position_embeddings": 40},
    "longt5": {"local_radius": 3},
    "m2m_100": {},
    "marian": {},
    "mbart": {},
    "mt5": {},
    "mvp": {},
    "pegasus": {},
    "plbart": {},
    "prophetnet": {"num_encoder_layers": 2, "num_encoder_attention_heads": 4, "num_decoder_attention_heads": 4},
    "switch_transformers": {"num_sparse_encoder_layers": 1, "num_sparse_decoder_layers": 1},
    "t5": {},
    "umt5": {},
}

HEADS = {
    "albert": "AutoModelForMaskedLM",
    "bert": "AutoModelForMaskedLM",
    "funnel": "AutoModelForMaskedLM",
    "gemma": "AutoModelForCausalLM",
    "gpt2": "AutoModelForCausalLM",
    "llama": "AutoModelForCausalLM",
    "t5": "AutoModelForSeq2SeqLM",
}
"""Families that are built with their language head; all but Llama's shares its weight with the embedding."""
PAIRED = {"fsmt": masked_pair, "longt5": masked_pair, "switch_transformers": masked_pair}
"""Families that must be given masks."""
BATCHED = {"experts_implementation": "batched_mm"}
"""The default is a grouped product, which exists in single precision only."""


def families() -> Iterator[Family]:
    """Every language model."""
    for kind, changes in {**ENCODERS, **DECODERS, **EXPERTS, **STATES, **PAIRS}.items():
        inputs = masked if kind in ENCODERS and kind != "fnet" else PAIRED.get(kind, pair) if kind in PAIRS else ids
        options = BATCHED if kind in EXPERTS or kind == "jamba" else {}
        yield family(kind, inputs, changes, head=HEADS.get(kind, "AutoModel"), options=options, lengths=LENGTHS)
