"""How a model of transformers is built from configuration alone, and the inputs that the families share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from tests.zoo.family import VOCABULARY, Family, Kind, token_ids

SMALL: dict[str, Any] = {
    **dict.fromkeys(["hidden_size", "d_model", "n_embd", "dim", "embed_dim", "word_embed_proj_dim"], 32),
    **dict.fromkeys(["num_hidden_layers", "n_layer", "n_layers", "num_layers"], 2),
    **dict.fromkeys(["encoder_layers", "decoder_layers", "num_decoder_layers"], 2),
    **dict.fromkeys(["num_attention_heads", "n_head", "n_heads", "num_heads"], 4),
    **dict.fromkeys(["encoder_attention_heads", "decoder_attention_heads"], 4),
    **dict.fromkeys(["intermediate_size", "hidden_dim", "d_ff", "ffn_dim", "n_inner", "d_inner"], 56),
    **dict.fromkeys(["encoder_ffn_dim", "decoder_ffn_dim", "ffn_hidden_size"], 56),
    **dict.fromkeys(["max_position_embeddings", "n_positions", "n_ctx", "max_seq_len"], 40),
    **dict.fromkeys(["dropout", "attention_dropout", "activation_dropout", "hidden_dropout", "layerdrop"], 0.0),
    **dict.fromkeys(
        ["hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout", "drop_path_rate"], 0.0
    ),
    **dict.fromkeys(["attn_pdrop", "resid_pdrop", "embd_pdrop", "summary_first_dropout", "dropout_rate"], 0.0),
    **dict.fromkeys(["encoder_layerdrop", "decoder_layerdrop", "feat_proj_dropout", "final_dropout"], 0.0),
    "num_key_value_heads": 2,
    "head_dim": 8,
    "d_kv": 8,
    "embedding_size": 16,
    "vocab_size": VOCABULARY + 10,
    "type_vocab_size": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
    "use_cache": False,
    "image_size": 16,
    "patch_size": 4,
    "projection_dim": 16,
    "num_local_experts": 4,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "state_size": 4,
    "conv_kernel": 3,
}
"""Small values of the fields that many configurations share; each takes those that it has."""


def configuration(kind: str, changes: dict[str, Any]) -> Any:
    """The configuration class of a model type, with the small values of the fields that it declares."""
    from transformers import CONFIG_MAPPING

    made = CONFIG_MAPPING[kind]
    aliases = dict(getattr(made, "attribute_map", {}))
    known = set(made().to_dict()) | set(aliases)
    taken = {name: value for name, value in SMALL.items() if name in known and name not in changes}
    # A field and its other name must not both be given, and some fields follow from others.
    taken = {name: value for name, value in taken.items() if aliases.get(name) not in {*taken, *changes}}
    taken = {name: value for name, value in taken.items() if not isinstance(getattr(made, name, None), property)}
    return made(**{**taken, **changes})


def builder(kind: str, changes: dict[str, Any], head: str, options: dict[str, Any]) -> Callable[[], nn.Module]:
    """A function that makes the model with random weights."""

    def build() -> nn.Module:
        import transformers

        model: nn.Module = getattr(transformers, head).from_config(configuration(kind, changes), **options)
        return unparametrized(model)

    return build


def unparametrized(model: nn.Module) -> nn.Module:
    """Make weights that are computed (by weight norm) plain parameters, as ``prepare`` asks for with quantizers."""
    for module in model.modules():
        if parametrize.is_parametrized(module):
            for name in list(module.parametrizations):
                parametrize.remove_parametrizations(module, name)
    return model


def ids(batch: int, length: int | None) -> dict[str, Any]:
    """Token ids alone."""
    return {"input_ids": token_ids(batch, length)}


def masked(batch: int, length: int | None) -> dict[str, Any]:
    """Token ids and a mask that hides the last token of the second example."""
    mask = torch.ones(batch, length or 8, dtype=torch.long)
    mask[1::2, -1] = 0
    return {"input_ids": token_ids(batch, length), "attention_mask": mask}


def pair(batch: int, length: int | None) -> dict[str, Any]:
    """Token ids for the encoder, and fewer for the decoder."""
    return {"input_ids": token_ids(batch, length), "decoder_input_ids": token_ids(batch, (length or 8) - 2)}


def masked_pair(batch: int, length: int | None) -> dict[str, Any]:
    """The same with masks, which some models cannot make themselves while they are traced."""
    given = pair(batch, length)
    masks = {"attention_mask": given["input_ids"], "decoder_attention_mask": given["decoder_input_ids"]}
    return {**given, **{name: torch.ones_like(tokens) for name, tokens in masks.items()}}


def pixels(side: int) -> Callable[[int, int | None], Any]:
    """Images under the name that the vision models use."""
    return lambda batch, length: {"pixel_values": torch.randn(batch, 3, side, side)}


def family(
    kind: str,
    inputs: Callable[[int, int | None], Any],
    changes: dict[str, Any] | None = None,
    *,
    head: str = "AutoModel",
    options: dict[str, Any] | None = None,
    lengths: tuple[int, int] | None = None,
    group: Kind = "transformer",
) -> Family:
    """One model type of transformers."""
    needs = ("transformers", "torchvision")
    return Family(
        f"transformers/{kind}", builder(kind, changes or {}, head, options or {}), inputs, group, needs, lengths
    )
