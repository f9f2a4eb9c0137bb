"""A sample of the zoo for every run of the tests: small families that together use every rule which the zoo uses."""

from __future__ import annotations

import pytest

from tests.zoo.__main__ import RECORDS, known
from tests.zoo.check import EXACT, check
from tests.zoo.families import every

SAMPLE = (
    "case/conv3d",
    "case/convtranspose_instancenorm_skip",
    "case/enlarged",
    "case/gru",
    "case/lstm",
    "case/pixel_shuffle",
    "case/rotary_complex",
    "case/unfold",
    "case/weight_share_scales",
    "timm/csatv2",
    "timm/levit",
    "torchvision/maxvit",
    "torchvision/mobilenetv3",
    "torchvision/swin_transformer",
    "torchvision/video.mvit",
    "transformers/convbert",
    "transformers/deepseek_v3",
    "transformers/diffllama",
    "transformers/donut-swin",
    "transformers/fnet",
    "transformers/funnel",
    "transformers/openai-gpt",
    "transformers/owlvit",
    "transformers/patchtst",
    "transformers/phimoe",
    "transformers/sew",
    "transformers/siglip",
    "transformers/wav2vec2-conformer",
    "transformers/wavlm",
    "transformers/xglm",
    "transformers/xlm",
    "transformers/xlm-roberta-xl",
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
