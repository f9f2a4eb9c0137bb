"""Vision, audio, time series and multimodal models of transformers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from tests.zoo.families.huggingface import family, pixels
from tests.zoo.family import Family, Kind, token_ids

STAGES = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]}
HEADS = {"num_attention_heads": [1, 2, 2, 4]}
WINDOWS = {"image_size": 32, "embed_dim": 16, "depths": [2, 1], "num_heads": [2, 4], "window_size": 4}
PART = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 56}
TEXT = {
    **PART,
    "vocab_size": 60,
    "max_position_embeddings": 40,
    "projection_dim": 16,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
EYES = {**PART, "image_size": 16, "patch_size": 4, "projection_dim": 16}

VISION: dict[str, tuple[Kind, int, dict[str, Any]]] = {
    "beit": ("transformer", 16, {}),
    "bit": ("cnn", 32, {**STAGES, "embedding_size": 8, "num_groups": 2}),
    "convnextv2": ("cnn", 32, {**STAGES, "num_stages": 4}),
    "cvt": (
        "transformer",
        32,
        {
            "embed_dim": [8, 16, 24],
            "num_heads": [1, 2, 3],
            "depth": [1, 2, 3],
            "patch_sizes": [7, 3, 3],
            "drop_rate": [0.0] * 3,
            "attention_drop_rate": [0.0] * 3,
            "drop_path_rate": [0.0] * 3,
        },
    ),
    "deit": ("transformer", 16, {}),
    "dinov2": ("transformer", 16, {}),
    "dinov3_vit": ("transformer", 16, {}),
    "donut-swin": ("transformer", 32, WINDOWS),
    "dpt": ("transformer", 16, {"backbone_out_indices": [0, 1], "neck_hidden_sizes": [8, 16, 24, 32]}),
    "focalnet": (
        "cnn",
        32,
        {
            "image_size": 32,
            "embed_dim": 16,
            "hidden_sizes": [16, 32],
            "depths": [1, 1],
            "focal_levels": [2, 2],
            "focal_windows": [3, 3],
        },
    ),
    "glpn": ("transformer", 64, {**STAGES, **HEADS, "decoder_hidden_size": 16}),
    "hiera": (
        "transformer",
        64,
        {"patch_size": [7, 7], "image_size": [64, 64], "embed_dim": 8, "depths": [1] * 4, "num_heads": [1, 2, 2, 4]},
    ),
    "ijepa": ("transformer", 16, {}),
    "mobilenet_v1": ("cnn", 32, {"depth_multiplier": 0.25}),
    "mobilenet_v2": ("cnn", 32, {"depth_multiplier": 0.25}),
    "mobilevitv2": ("cnn", 64, {"image_size": 64, "width_multiplier": 0.25, "patch_size": 2}),
    "poolformer": ("cnn", 64, {**STAGES, "patch_size": 4}),
    "pvt": ("transformer", 64, {**STAGES, **HEADS, "image_size": 64}),
    "pvt_v2": ("transformer", 64, {**STAGES, **HEADS, "image_size": 64}),
    "regnet": ("cnn", 32, {**STAGES, "embedding_size": 8, "groups_width": 8}),
    "segformer": (
        "transformer",
        64,
        {**STAGES, **HEADS, "decoder_hidden_size": 16, "patch_sizes": [7, 3, 3, 3]},
    ),
    "siglip_vision_model": ("transformer", 16, {}),
    "swin2sr": (
        "transformer",
        16,
        {"embed_dim": 16, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4, "patch_size": 1},
    ),
    "swiftformer": ("transformer", 64, {"embed_dims": [8, 16, 24, 32], "depths": [1, 1, 1, 1]}),
    "swinv2": ("transformer", 32, WINDOWS),
    "textnet": ("cnn", 64, {}),
    "vit": ("transformer", 16, {}),
    "vit_msn": ("transformer", 16, {}),
    "yolos": ("transformer", 32, {"image_size": [32, 32], "num_detection_tokens": 5}),
}

CLASSIFIERS = {"textnet": "AutoModelForImageClassification"}
"""Families that are built with their head: most of their channels are features of the last stage."""

WAVE = {
    "conv_dim": [16, 16],
    "conv_stride": [5, 4],
    "conv_kernel": [10, 8],
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
    "output_hidden_size": 32,
    "mask_time_prob": 0.0,
    "mask_feature_prob": 0.0,
}
WAVES: dict[str, dict[str, Any]] = {
    "data2vec-audio": {},
    "hubert": {},
    "sew": {"squeeze_factor": 2},
    "unispeech": {},
    "wav2vec2": {},
    "wav2vec2-conformer": {},
    "wavlm": {},
}

BOTH: dict[str, dict[str, Any]] = {
    "altclip": {},
    "blip": {},
    "chinese_clip": {},
    "clip": {},
    "owlvit": {},
    "siglip": {},
}


def _wave(batch: int, length: int | None) -> dict[str, Any]:
    return {"input_values": torch.randn(batch, 400)}


def _both(batch: int, length: int | None) -> dict[str, Any]:
    return {"input_ids": token_ids(batch, 8), "pixel_values": torch.randn(batch, 3, 16, 16)}


def _whisper(batch: int, length: int | None) -> dict[str, Any]:
    return {"input_features": torch.randn(batch, 16, 40), "decoder_input_ids": token_ids(batch, length)}


def _speech(batch: int, length: int | None) -> dict[str, Any]:
    return {"input_features": torch.randn(batch, 40, 16), "decoder_input_ids": token_ids(batch, length)}


def _spectrogram(batch: int, length: int | None) -> dict[str, Any]:
    return {"input_values": torch.randn(batch, 32, 16)}


def _series(batch: int, length: int | None) -> dict[str, Any]:
    return {"past_values": torch.randn(batch, 32, 2)}


def _clips(batch: int, length: int | None) -> dict[str, Any]:
    return {"pixel_values": torch.randn(batch, 4, 3, 16, 16)}


OTHERS: dict[str, tuple[Callable[[int, int | None], Any], dict[str, Any], tuple[int, int] | None]] = {
    "audio-spectrogram-transformer": (
        _spectrogram,
        {"max_length": 32, "num_mel_bins": 16, "frequency_stride": 4, "time_stride": 4},
        None,
    ),
    "patchtst": (_series, {"num_input_channels": 2, "context_length": 32, "patch_length": 8, "patch_stride": 8}, None),
    "speech_to_text": (
        _speech,
        {
            "input_feat_per_channel": 16,
            "conv_channels": 16,
            "max_source_positions": 40,
            "max_target_positions": 20,
            "num_conv_layers": 2,
        },
        (6, 9),
    ),
    "timesformer": (_clips, {"num_frames": 4, "drop_path_rate": 0}, None),
    "videomae": (_clips, {"num_frames": 4}, None),
    "vilt": (_both, {}, None),
    "vivit": (_clips, {"num_frames": 4, "tubelet_size": [2, 4, 4]}, None),
    "whisper": (_whisper, {"num_mel_bins": 16, "max_source_positions": 20, "max_target_positions": 20}, (6, 9)),
}


def families() -> Iterator[Family]:
    """Every model that sees or hears."""
    for kind, (group, side, changes) in VISION.items():
        yield family(kind, pixels(side), changes, group=group, head=CLASSIFIERS.get(kind, "AutoModel"))
    for kind, changes in WAVES.items():
        yield family(kind, _wave, {**WAVE, **changes})
    for kind, changes in BOTH.items():
        yield family(kind, _both, {"text_config": TEXT, "vision_config": EYES, **changes})
    for kind, (inputs, changes, lengths) in OTHERS.items():
        yield family(kind, inputs, changes, lengths=lengths)
