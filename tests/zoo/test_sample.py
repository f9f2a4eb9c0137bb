"""A sample of the zoo for every run of the tests: small families that together use every rule which the zoo uses."""

from __future__ import annotations

import pytest

from tests.zoo.__main__ import RECORDS, known
from tests.zoo.check import EXACT, check
from tests.zoo.families import every

SAMPLE = (
    "case/conv1d_gated",
    "case/conv3d",
    "case/convtranspose_instancenorm",
    "case/convtranspose_instancenorm_skip",
    "case/groupnorm",
    "case/groupnorm_concat",
    "case/gru",
    "case/in_place",
    "case/lstm",
    "case/pixel_shuffle",
    "case/rotary_complex",
    "case/unfold",
    "case/weight_share_chain",
    "case/weight_share_scales",
    "case/weight_share_transpose",
    "net/super_resolution",
    "timm/deepseek_vit",
    "timm/hiera",
    "timm/swin_transformer_v2_cr",
    "torchvision/maxvit",
    "torchvision/mobilenetv3",
    "torchvision/video.mvit",
    "torchvision/vision_transformer",
    "timm/cpubone",
    "torchvision/swin_transformer",
    "transformers/clip",
    "transformers/convbert",
    "transformers/flaubert",
    "transformers/fnet",
    "transformers/funnel",
    "transformers/gpt2",
    "transformers/mamba2",
    "transformers/qwen3_moe",
    "transformers/roberta",
    "transformers/xlnet",
)
CHECKED = [pytest.param(name, marks=pytest.mark.needs(*every()[name].needs)) for name in SAMPLE]


@pytest.mark.parametrize("name", CHECKED)
def test_family(name: str) -> None:
    verdict = check(every()[name])
    assert verdict.verdict == "passed", f"{verdict.stage}: {verdict.reason}\n{verdict.trace}"
    assert verdict.error64 <= EXACT
    assert 0 < verdict.removed < verdict.groups


QUICK = 15.0
"""Seconds of CPU time; what only slower families use is left to `make zoo` and to the tests of the rules."""


def test_the_sample_uses_every_rule_that_the_zoo_uses() -> None:
    records = {name: record for name, record in known(RECORDS).items() if record["verdict"] == "passed"}
    assert set(SAMPLE) <= records.keys()
    used = {rule for record in records.values() if record["seconds"] <= QUICK for rule in record["rules"]}
    assert used - {rule for name in SAMPLE for rule in records[name]["rules"]} == set()


def test_every_record_is_of_a_family() -> None:
    assert known(RECORDS).keys() <= every().keys()
