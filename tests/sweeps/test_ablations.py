"""Ablations: variants differ in one resolved key, bad input is said, and the table of differences."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from geta_core.errors import ConfigError
from sweeps import Ablation
from sweeps.ablations.cli import main
from sweeps.ablations.spec import known, read
from tests.sweeps.made import cells

GOLDEN = Path(__file__).with_name("golden")
QUICK = ("run.steps=40", "run.threads=1")
TOPICS = {"stages", "saliency", "forgetting", "step_size", "bit_range", "periods", "heads"}


def file_of(folder: Path, variants: object, **changes: object) -> str:
    base = {"keys": ["task=digits", "method=geta", *QUICK, "tracker=jsonl"], "seeds": [0], "scale": "smoke"}
    values = {"title": "t", "about": "a", "bases": {"digits": base}, "variants": variants, **changes}
    path = folder / "own.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return str(path)


def test_every_ablation_changes_one_key_of_every_base() -> None:
    assert set(known()) == TOPICS
    for name in known():
        spec = read(name)
        for base in spec.bases:
            plan = Ablation(spec, base).plan(Path("nowhere"))  # raises where a variant changes two
            assert list(plan) == ["base", *spec.variants]


def test_two_keys_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="exactly one key"):
        read(file_of(tmp_path, {"two": {"method.without": "warmup", "method.eta": 0.9}}))
    # One stated key that brings others along is refused as well: the resolved configuration decides.
    choice = Ablation.load(file_of(tmp_path, {"optimizer": {"optimizer": "adamw"}, "same": {"method.sparsity": 0.5}}))
    with pytest.raises(ConfigError) as caught:
        choice.plan(tmp_path)
    first, second = caught.value.faults
    assert "'optimizer' must differ from the base in exactly one resolved key, but changes" in first
    assert "optimizer.lr" in first and "optimizer.name" in first
    assert "'same'" in second and "changes nothing" in second


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["stage"], "stages"),
        (["stages", "base=digit"], "digits"),
        (["stages", "variants=[no warmup]"], "no warm-up"),
        (["stages", "--dry"], "--dry-run"),
        (["stages", "seeds=[x]"], "seeds"),
        (["stages", "method.sparsty=0.2"], "sparsity"),
        (["a", "b"], "one ablation"),
    ],
)
def test_bad_input_is_said(
    arguments: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, f"output={tmp_path}/runs"]) == 2
    said = capsys.readouterr().err
    assert words in said and "Traceback" not in said
    assert not (tmp_path / "runs").exists()


def test_golden_table(golden: Callable[[Path, str], None]) -> None:
    found = cells(
        {
            "base": [(98.1, 1.0), (98.4, 1.1), (98.2, 1.0)],
            "no warm-up": [(98.0, 1.1), (98.4, 1.0), (98.3, 1.1)],
            "no projection": [(97.0, 1.2), (97.1, 1.2), (97.2, 1.3)],
            "no cool-down": [(40.0, 1.0), (41.0, 1.1), (40.4, 1.0)],
        }
    )
    golden(GOLDEN / "stages.md", Ablation.load("stages").render(found, "markdown"))


def test_a_smoke_base_says_so(tmp_path: Path) -> None:
    sheet = Ablation.load("stages", "resnet20_smoke").sheet(cells({"base": [(30.0, 9.0)]}))
    assert any(note.startswith("smoke: ") for note in sheet.notes)
    assert any("one pair" in note or "no pair" in note for note in sheet.notes)
