"""A sample of the zoo for every run of the tests: small families that together use every rule which the zoo uses."""

from __future__ import annotations

import pytest

from tests.zoo.__main__ import RECORDS, known
from tests.zoo.check import EXACT, check
from tests.zoo.families import every

SAMPLE = ("case/lora",)
CHECKED = [pytest.param(name, marks=pytest.mark.needs(*every()[name].needs)) for name in SAMPLE]


@pytest.mark.parametrize("name", CHECKED)
def test_family(name: str) -> None:
    verdict = check(every()[name])
    assert verdict.verdict == "passed", f"{verdict.stage}: {verdict.reason}\n{verdict.trace}"
    assert verdict.error64 <= EXACT
    assert 0 < verdict.removed < verdict.groups
    assert verdict.rules == known(RECORDS)[name]["rules"]


def test_the_sample_uses_every_rule_that_the_zoo_uses() -> None:
    records = known(RECORDS)
    used = {rule for record in records.values() for rule in record["rules"]}
    assert used - {rule for name in SAMPLE for rule in records[name]["rules"]} == set()


def test_every_record_is_of_a_family() -> None:
    assert known(RECORDS).keys() <= every().keys()
