"""One model per architecture module of timm: a small registered one, made smaller by constructor arguments."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from typing import Any

from torch import nn

from tests.zoo.family import Family, Kind, images

BLOCKS = 2
_VIT = {"embed_dim": 32, "depth": 2, "num_heads": 4, "img_size": 32}


def _metaformer(module: Any) -> dict[str, Any]:
    mixers = [module.SepConv, module.SepConv, module.Attention, module.Attention]
    norms = [module.LayerNorm2dNoBias] * 2 + [module.LayerNormNoBias] * 2
    return {"depths": (1, 1, 1, 1), "dims": (16, 24, 32, 64), "token_mixers": mixers, "norm_layers": norms}


def _mvitv2(module: Any) -> dict[str, Any]:
    cfg = module.MultiScaleVitCfg(
        depths=(1, 1, 1), embed_dim=(16, 32, 64), num_heads=(1, 2, 4), stride_q=((1, 1), (2, 2), (2, 2))
    )
    return {"cfg": cfg, "img_size": 64}


def _naflexvit(module: Any) -> dict[str, Any]:
    return {"cfg": module.NaFlexVitCfg(patch_size=8, embed_dim=32, depth=2, num_heads=4, global_pool="map")}


CNN: dict[str, tuple[str, int, Any]] = {
    "byobnet": ("test_byobnet", 64, {}),
    "convmixer": ("ConvMixer", 32, {"dim": 24, "depth": 2, "patch_size": 4, "kernel_size": 5}),
    "convnext": ("test_convnext", 64, {"depths": (1, 1, 2, 1), "dims": (8, 12, 16, 24)}),
    "cspnet": ("cs3darknet_focus_s", 64, {}),
    "cspnext": ("cspnext_s", 64, {"depths": (1, 1, 1, 1), "deepen_factor": 1.0, "widen_factor": 0.125}),
    "densenet": ("densenet121", 64, {"block_config": (2, 2, 2, 2), "growth_rate": 8}),
    "dla": ("dla34", 64, {"channels": (8, 8, 12, 16, 16, 24)}),
    "dpn": ("dpn68", 64, {"k_sec": (1, 2, 1, 1)}),
    "efficientnet": ("test_efficientnet", 64, {}),
    "fasternet": ("fasternet_t0", 64, {"depths": (1, 1, 2, 1), "embed_dim": 16, "feature_dim": 32}),
    "ghostnet": ("ghostnet_050", 64, {}),
    "hardcorenas": ("hardcorenas_b", 64, {}),
    "hgnet": ("hgnetv2_b0", 64, {"head_hidden_size": 32}),
    "hrnet": ("hrnet_w18_small", 64, {}),
    "inception_next": ("inception_next_atto", 64, {"depths": (1, 1, 1, 1), "dims": (16, 24, 32, 40)}),
    "inception_resnet_v2": ("inception_resnet_v2", 96, {}),
    "inception_v3": ("inception_v3", 160, {}),
    "inception_v4": ("inception_v4", 160, {}),
    "lcnetv2": ("lcnetv2_small", 64, {"depths": (1, 1, 1, 1), "scale": 0.25, "head_hidden_size": 32}),
    "mambaout": ("test_mambaout", 64, {}),
    "mobilenetv3": ("mobilenetv3_small_050", 64, {}),
    "nasnet": ("nasnetalarge", 96, {"stem_size": 16, "num_features": 96}),
    "nfnet": ("test_nfnet", 64, {}),
    "pnasnet": ("pnasnet5large", 64, {}),
    "rdnet": (
        "rdnet_tiny",
        64,
        {"growth_rates": (8,) * 7, "num_blocks_list": (1,) * 7, "num_init_features": 16},
    ),
    "regnet": ("regnetx_002", 64, {}),
    "repghost": ("repghostnet_050", 64, {}),
    "repvit": ("repvit_m1", 64, {"embed_dim": (8, 16, 24, 32), "depth": (1, 1, 2, 1)}),
    "res2net": ("res2next50", 64, {"layers": (1, 1, 1, 1)}),
    "resnest": ("resnest14d", 64, {}),
    "resnet": ("test_resnet", 64, {}),
    "resnetv2": ("resnetv2_18", 64, {"layers": (1, 1, 1, 1), "channels": (16, 24, 32, 40), "stem_chs": 8}),
    "rexnet": ("rexnet_100", 64, {"width_mult": 0.5}),
    "selecsls": ("selecsls42", 64, {}),
    "senet": ("legacy_seresnext26_32x4d", 64, {"layers": (1, 1, 1, 1)}),
    "sknet": ("skresnet18", 64, {"layers": (1, 1, 1, 1), "channels": (16, 32, 32, 32)}),
    "starnet": ("starnet_s050", 64, {"depths": (1, 1, 1, 1)}),
    "tresnet": ("tresnet_m", 64, {"layers": (1, 1, 1, 1), "width_factor": 0.25}),
    "vgg": ("vgg11_bn", 32, {"mlp_ratio": 0.01}),
    "vovnet": ("ese_vovnet19b_slim_dw", 64, {}),
    "xception": ("legacy_xception", 64, {}),
    "xception_aligned": (
        "xception41",
        64,
        {
            "block_cfg": [
                {"in_chs": 64, "out_chs": 32, "stride": 2},
                {"in_chs": 32, "out_chs": 32, "stride": 1},
                {"in_chs": 32, "out_chs": (32, 40, 48), "stride": 2},
            ]
        },
    ),
}

ATTENTION: dict[str, tuple[str, int, Any]] = {
    "beit": ("beit_base_patch16_224", 32, {**_VIT, "patch_size": 8}),
    "byoanet": ("eca_botnext26ts_256", 64, {"img_size": 64}),
    "cait": ("cait_xxs24_224", 32, {**_VIT, "patch_size": 8}),
    "coat": (
        "coat_tiny",
        64,
        {"img_size": 64, "embed_dims": (16,) * 4, "serial_depths": (1,) * 4, "parallel_depth": 1},
    ),
    "convit": (
        "convit_tiny",
        32,
        {"img_size": 32, "embed_dim": 8, "depth": 3, "local_up_to_layer": 2, "patch_size": 8},
    ),
    "cpubone": ("cpubone_nano", 64, {"width_list": (8, 12, 16, 24, 32), "head_widths": (32, 40)}),
    "crossvit": (
        "crossvit_tiny_240",
        48,
        {"embed_dim": (16, 32), "depth": ((1, 1, 0), (1, 1, 0)), "num_heads": (2, 2)},
    ),
    "csatv2": ("csatv2", 64, {"dims": (8, 16, 24, 32), "depths": (1, 1, 1, 1), "transformer_depths": (0, 0, 1, 1)}),
    "davit": ("davit_tiny", 64, {"depths": (1, 1, 1, 1), "embed_dims": (16, 24, 32, 40), "num_heads": (2, 2, 4, 4)}),
    "deepseek_vit": ("deepseek_vit_412m", 42, {**_VIT, "img_size": 42}),
    "deit": ("deit_tiny_distilled_patch16_224", 32, {**_VIT, "patch_size": 8}),
    "edgenext": (
        "edgenext_x_small",
        64,
        {"depths": (1, 1, 2, 2), "dims": (16, 24, 32, 40), "heads": (4, 4, 4, 4)},
    ),
    "efficientformer": ("efficientformer_l1", 224, {"depths": (1, 1, 1, 2), "embed_dims": (16, 24, 32, 40)}),
    "efficientformer_v2": (
        "efficientformerv2_s0",
        64,
        {
            "depths": (1, 1, 2, 2),
            "embed_dims": (16, 24, 32, 40),
            "num_vit": 1,
            "img_size": 64,
            "mlp_ratios": ((2,), (2,), (2, 2), (2, 2)),
        },
    ),
    "efficientvim": ("efficientvim_m1", 64, {"embed_dim": (16, 24, 32), "depths": (1, 1, 1)}),
    "efficientvit_mit": (
        "efficientvit_b0",
        64,
        {"widths": (4, 8, 16, 16, 32), "depths": (1, 1, 1, 1, 1), "head_widths": (32, 40), "head_dim": 8},
    ),
    "efficientvit_msra": (
        "efficientvit_m0",
        128,
        {"embed_dim": (32, 48, 64), "key_dim": (8, 8, 8), "depth": (1, 1, 1), "img_size": 128},
    ),
    "eva": ("eva02_tiny_patch14_224", 28, {**_VIT, "img_size": 28}),
    "fastvit": ("fastvit_sa12", 64, {"layers": (1, 1, 1, 1), "embed_dims": (16, 32, 64, 128)}),
    "focalnet": ("FocalNet", 64, {"embed_dim": 16, "depths": (1, 1, 2, 1)}),
    "gcvit": (
        "GlobalContextVit",
        64,
        {"img_size": 64, "embed_dim": 16, "depths": (1, 1, 1, 1), "num_heads": (2, 2, 4, 4)},
    ),
    "gemma4_vit": (
        "gemma4_vit_167m_enc",
        96,
        {"img_size": 96, "embed_dim": 32, "depth": 2, "num_heads": 4, "head_dim": 8, "intermediate_size": 48},
    ),
    "hiera": (
        "hiera_tiny_224",
        64,
        {"img_size": 64, "stages": (1, 1, 1, 1), "embed_dim": 16, "mask_unit_attn": (True, True, False, False)},
    ),
    "hieradet_sam2": ("sam2_hiera_tiny", 128, {"stages": (1, 1, 2, 1), "embed_dim": 16, "global_att_blocks": (3,)}),
    "iformer": ("iformer_t", 64, {"depths": (1, 1, 4, 4), "dims": (16, 24, 32, 48), "attn_groups": (0, 0, 1, 1)}),
    "levit": (
        "Levit",
        64,
        {"img_size": 64, "embed_dim": (16, 24, 32), "key_dim": 8, "depth": (1, 1, 1), "num_heads": (2, 3, 4)},
    ),
    "lowformer": (
        "lowformer_b0",
        64,
        {"width_list": (8, 16, 16, 32, 32), "depth_list": (0, 1, 1, 1, 1), "head_widths": (32, 40)},
    ),
    "maxxvit": ("test_maxvit", 64, {"img_size": 64}),
    "metaformer": ("MetaFormer", 64, _metaformer),
    "mlp_mixer": ("MlpMixer", 32, {"img_size": 32, "patch_size": 8, "num_blocks": 2, "embed_dim": 32}),
    "mobilenetv5": ("mobilenetv5_base", 64, {"channel_multiplier": 0.125}),
    "mobilevit": ("mobilevit_xxs", 64, {}),
    "mvitv2": ("MultiScaleVit", 64, _mvitv2),
    "naflexvit": ("NaFlexVit", 32, _naflexvit),
    "nest": (
        "Nest",
        32,
        {"img_size": 32, "embed_dims": (16, 24, 32), "num_heads": (2, 2, 4), "depths": (1, 1, 2), "patch_size": 2},
    ),
    "nextvit": ("nextvit_small", 64, {"depths": (1, 1, 5, 1), "stem_chs": (16, 8, 16)}),
    "pit": (
        "pit_ti_224",
        32,
        {"base_dims": (8, 8, 8), "depth": (1, 1, 1), "patch_size": 8, "stride": 4, "img_size": 32},
    ),
    "pvt_v2": ("pvt_v2_b0", 64, {"depths": (1, 1, 1, 1), "embed_dims": (8, 16, 20, 32)}),
    "qwen3_vit": ("qwen3_vit_88m", 64, {**_VIT, "img_size": 64}),
    "sequencer": (
        "sequencer2d_s",
        56,
        {"img_size": 56, "layers": (1, 1, 1, 1), "embed_dims": (16, 24, 24, 24), "hidden_sizes": (4, 6, 6, 6)},
    ),
    "shvit": ("shvit_s1", 64, {"embed_dim": (32, 48, 64), "depth": (1, 1, 1), "partial_dim": (8, 12, 16)}),
    "swiftformer": ("swiftformer_xs", 64, {"layers": (1, 1, 1, 1), "embed_dims": (16, 24, 32, 40), "img_size": 64}),
    "swin_transformer": (
        "swin_tiny_patch4_window7_224",
        32,
        {
            "img_size": 32,
            "window_size": 4,
            "embed_dim": 16,
            "depths": (2, 1, 2),
            "num_heads": (2, 2, 4),
            "patch_size": 2,
        },
    ),
    "swin_transformer_v2": (
        "swinv2_tiny_window8_256",
        32,
        {
            "img_size": 32,
            "window_size": 4,
            "embed_dim": 16,
            "depths": (2, 1, 2),
            "num_heads": (2, 2, 4),
            "patch_size": 2,
            "pretrained_window_sizes": (0, 0, 0),
        },
    ),
    "swin_transformer_v2_cr": (
        "swinv2_cr_tiny_224",
        64,
        {"img_size": 64, "embed_dim": 16, "depths": (2, 1, 1), "num_heads": (2, 2, 4), "window_size": 4},
    ),
    "tiny_vit": (
        "tiny_vit_5m_224",
        64,
        {
            "embed_dims": (16, 32, 32, 48),
            "depths": (1, 1, 1, 1),
            "num_heads": (2, 2, 4, 4),
            "window_sizes": (4, 4, 4, 2),
        },
    ),
    "tnt": (
        "tnt_s_legacy_patch16_224",
        32,
        {"img_size": 32, "embed_dim": 32, "inner_dim": 8, "depth": 2, "num_heads_outer": 4, "num_heads_inner": 2},
    ),
    "twins": (
        "twins_svt_small",
        64,
        {
            "img_size": 64,
            "embed_dims": (16, 24, 32, 40),
            "num_heads": (2, 2, 4, 4),
            "depths": (2, 2, 2, 2),
            "wss": (4, 4, 4, 2),
        },
    ),
    "visformer": (
        "visformer_tiny",
        64,
        {"img_size": 64, "embed_dim": 32, "depth": (1, 1, 1), "num_heads": 2, "init_channels": 8},
    ),
    "vision_transformer": ("test_vit", 32, {**_VIT, "patch_size": 8}),
    "vision_transformer_hybrid": (
        "vit_tiny_r_s16_p8_224",
        128,
        {"embed_dim": 32, "depth": 2, "num_heads": 4, "img_size": 128},
    ),
    "vision_transformer_relpos": ("test_vit_relpos", 32, {**_VIT, "patch_size": 8}),
    "vision_transformer_sam": (
        "samvit_base_patch16",
        64,
        {**_VIT, "img_size": 64, "window_size": 2, "global_attn_indexes": (1,), "neck_chans": 16},
    ),
    "vitamin": ("vitamin_small_224", 64, {"img_size": 64, "depth": 2}),
    "volo": (
        "VOLO",
        64,
        {
            "img_size": 64,
            "layers": (1, 1, 1, 1),
            "embed_dims": (16, 32, 32, 32),
            "num_heads": (2, 4, 4, 4),
            "stem_hidden_dim": 16,
        },
    ),
    "xcit": ("xcit_nano_12_p8_224", 32, {**_VIT}),
}


Arguments = dict[str, Any] | Callable[[Any], dict[str, Any]]


def shortened(model: nn.Module) -> nn.Module:
    """Leave two blocks of each row of blocks whose shapes repeat from the second on."""
    for row in list(model.modules()):
        if type(row) is nn.Sequential and len(row) > BLOCKS:
            kinds = {type(block) for block in row}
            shapes = {tuple(tensor.shape for tensor in block.state_dict().values()) for block in row[1:]}
            if len(kinds) == len(shapes) == 1 and shapes != {()}:
                del row[BLOCKS:]
    return model


def _builder(module: str, model: str, arguments: Arguments) -> Callable[[], nn.Module]:
    """``model`` is a registered model, or a class of the module where the registered ones fix their arguments."""

    def build() -> nn.Module:
        import timm

        home = importlib.import_module(f"timm.models.{module}")
        given = arguments(home) if callable(arguments) else arguments
        if timm.is_model(model):
            return shortened(timm.create_model(model, num_classes=10, **given))
        return shortened(getattr(home, model)(num_classes=10, **given))

    return build


def families() -> Iterator[Family]:
    """One family per module, all of them with random weights."""
    tables: tuple[tuple[Kind, dict[str, Any]], ...] = (("cnn", CNN), ("transformer", ATTENTION))
    for kind, table in tables:
        for module, (model, side, arguments) in table.items():
            yield Family(
                f"timm/{module}", _builder(module, model, arguments), images(side), kind, ("timm", "torchvision")
            )
