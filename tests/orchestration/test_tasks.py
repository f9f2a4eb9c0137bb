"""Tasks: the same batches for the same place in the run, honest splits, and clear words for missing data."""

from __future__ import annotations

import os
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from geta_core.errors import ConfigError
from orchestration.tasks import TASKS
from orchestration.tasks.augment import flip_and_crop, normalize
from orchestration.tasks.base import WHOLE, Placement, classification_metrics, epoch_order, generator, stratified_split
from orchestration.tasks.cifar10 import FOLDER, TEST_FILE, TRAIN_FILES, Cifar10, read_batch
from orchestration.tasks.digits import Digits
from orchestration.tasks.image_folder import ImageFolder, central_box, crop_box

WRONG = {"data": np.zeros((2, 5)), "labels": [0, 1]}
CPU = Placement(torch.device("cpu"))


def write_cifar10(root: Path, images: int = 40, protocol: int = 2) -> Path:
    """Write the published layout with fewer images."""
    folder = root / FOLDER
    folder.mkdir(parents=True)
    numbers = np.random.RandomState(0)
    for name in (*TRAIN_FILES, TEST_FILE):
        content = {
            "batch_label": name,
            "labels": [int(label) for label in np.arange(images) % 10],
            "data": numbers.randint(0, 256, (images, 3072)).astype(np.uint8),
        }
        (folder / name).write_bytes(pickle.dumps(content, protocol))
    return folder


def write_images(root: Path) -> None:
    """Write train/ and val/ with two classes of small colour images."""
    from PIL import Image

    numbers = np.random.RandomState(0)
    for split, count in (("train", 12), ("val", 3)):
        for label in ("cat", "dog"):
            (root / split / label).mkdir(parents=True)
            for number in range(count):
                pixels = numbers.randint(0, 256, (20 + number, 24, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(root / split / label / f"{number:02d}.png")


@pytest.fixture
def tasks(tmp_path: Path) -> dict[str, Any]:
    write_cifar10(tmp_path / "cifar")
    write_images(tmp_path / "folders")
    found: dict[str, Any] = {
        "digits": Digits(),
        "cifar10": Cifar10(root=str(tmp_path / "cifar"), batch_size=16),
        "image_folder": ImageFolder(root=str(tmp_path / "folders"), size=16, batch_size=6, validation=0.2, workers=2),
    }
    for task in found.values():
        task.setup(3, CPU)
    assert sorted(found) == TASKS.names()
    return found


@pytest.mark.parametrize("name", ["digits", "cifar10", "image_folder"])
def test_any_step_can_be_the_first(tasks: dict[str, Any], name: str) -> None:
    task = tasks[name]
    steps = task.steps_per_epoch()
    whole = list(task.train_batches(1))
    assert len(whole) == steps >= 2
    for start in (1, steps - 1):
        for left, right in zip(whole[start:], task.train_batches(1, start), strict=True):
            assert torch.equal(left[0], right[0]) and torch.equal(left[1], right[1])
    other = next(iter(task.train_batches(2)))
    assert not torch.equal(other[0], whole[0][0]), "another epoch has another order"
    again = type(task)(**{key: value for key, value in vars(task).items() if not key.startswith("_")})
    again.setup(4, CPU)
    assert not torch.equal(next(iter(again.train_batches(1)))[0], whole[0][0]), "so has another seed"


@pytest.mark.parametrize("name", ["digits", "cifar10", "image_folder"])
def test_what_a_model_is_told_and_given(tasks: dict[str, Any], name: str) -> None:
    task = tasks[name]
    stated = task.model_options()
    example = task.example_inputs()
    assert example.shape == (2, stated["in_channels"], stated["image_size"], stated["image_size"])
    assert example.dtype == torch.float32
    batches = task.calibration_batches(2)
    assert len(batches) == 2 and batches[0].shape[1:] == example.shape[1:]
    assert torch.equal(batches[0], task.calibration_batches(1)[0])
    every = task.calibration_batches(10_000)
    assert len({len(batch) for batch in every}) == 1, "batches are full, and none is empty"
    images, labels = next(iter(task.train_batches(0)))
    assert images.shape[1:] == example.shape[1:] and labels.dtype == torch.int64
    assert int(labels.max()) < stated["num_classes"]


def test_the_validation_split_is_the_same_for_every_seed_and_not_trained_on() -> None:
    first, second = Digits(), Digits()
    first.setup(0, CPU)
    second.setup(99, CPU)
    assert torch.equal(first._val.images, second._val.images)
    train, val, test = first._train.images, first._val.images, first.read_test().images
    assert (len(train), len(val), len(test)) == (1257, 180, 360)
    keys = [{tuple(image.flatten().tolist()) for image in split} for split in (train, val, test)]
    # Some of scikit-learn's digits occur twice; beyond those, nothing is shared.
    from sklearn.datasets import load_digits

    distinct = len({tuple(image.flatten().tolist()) for image in load_digits().images.astype(int)})
    assert sum(map(len, keys)) - len(keys[0] | keys[1] | keys[2]) <= 1797 - distinct


def test_the_test_split_is_not_read_before_it_is_asked_for(tmp_path: Path) -> None:
    folder = write_cifar10(tmp_path)
    task = Cifar10(root=str(tmp_path), batch_size=16)
    task.setup(0, CPU)
    (folder / TEST_FILE).write_bytes(b"not a pickle")
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3072, 10))
    assert set(task.evaluate(model, "val")) == {"loss", "accuracy"}
    with pytest.raises(ConfigError, match="test_batch is damaged or no CIFAR-10 file"):
        task.evaluate(model, "test")


@given(st.lists(st.integers(0, 4), min_size=20, max_size=200), st.integers(1, 19), st.integers(0, 5))
@settings(max_examples=50)
def test_a_split_keeps_every_class_s_share(labels: list[int], held_out: int, seed: int) -> None:
    tensor = torch.tensor(labels)
    stays, held = stratified_split(tensor, held_out, seed)
    assert len(held) == held_out
    assert sorted([*stays.tolist(), *held.tolist()]) == list(range(len(labels)))
    for label in range(5):
        share = labels.count(label) * held_out / len(labels)
        assert abs(int((tensor[held] == label).sum()) - share) < 1


@given(st.integers(0, 3), st.booleans(), st.integers(0, 1000))
@settings(max_examples=30)
def test_augmentation_is_a_shift_and_a_mirror_of_each_image(padding: int, flip: bool, seed: int) -> None:
    images = torch.randint(1, 256, (5, 2, 6, 7), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    out = flip_and_crop(images, padding, flip, generator(seed))
    for before, after in zip(images, out, strict=True):
        bordered = np.pad(before.numpy(), ((0, 0), (padding, padding), (padding, padding)))
        cuts = [
            bordered[:, top : top + 6, left : left + 7]
            for top in range(2 * padding + 1)
            for left in range(2 * padding + 1)
        ]
        wanted = [*cuts, *([cut[:, :, ::-1] for cut in cuts] if flip else [])]
        assert any(np.array_equal(after.numpy(), each) for each in wanted)
    if flip and seed == 0:
        many = flip_and_crop(images[:1].expand(400, -1, -1, -1), 0, True, generator(seed))
        mirrored = int((many == images[:1].flip(3)).flatten(1).all(1).sum())
        assert 150 < mirrored < 250, "about half are mirrored"


def test_normalized_pixels_have_the_stated_mean_and_deviation() -> None:
    images = torch.tensor([[[[0, 255]], [[51, 102]]]], dtype=torch.uint8)
    out = normalize(images, (0.5, 0.25), (0.25, 0.5))
    expected = torch.tensor([[[[-2.0, 2.0]], [[(0.2 - 0.25) / 0.5, (0.4 - 0.25) / 0.5]]]])
    assert torch.allclose(out, expected, atol=1e-6)
    train = Digits()
    train.setup(0, CPU)
    pixels = normalize(train._train.images, Digits.mean, Digits.std)
    assert abs(pixels.mean().item()) < 0.02 and abs(pixels.std().item() - 1) < 0.02


def test_order_and_generators_depend_on_their_place_alone() -> None:
    assert torch.equal(epoch_order(50, 1, 2), epoch_order(50, 1, 2))
    draws = {tuple(torch.rand(3, generator=generator(*place)).tolist()) for place in [(0, 1), (1, 0), (0, 1, 0), (2,)]}
    assert len(draws) == 4


def test_metrics_of_known_answers_leave_the_model_s_mode() -> None:
    model = torch.nn.Dropout(0.5).train()
    logits = torch.eye(4) * 20
    batches = [(logits[:3], torch.tensor([0, 1, 1])), (logits[3:], torch.tensor([3]))]
    found = classification_metrics(model, iter(batches))
    assert found["accuracy"] == 0.75 and model.training
    assert found["loss"] == pytest.approx(20 / 4, abs=1e-6)


def test_cifar10_in_its_two_pickle_dialects(tmp_path: Path) -> None:
    for protocol in (2, 4):
        folder = write_cifar10(tmp_path / str(protocol), protocol=protocol)
        images, labels = read_batch(folder / "data_batch_1")
        assert images.shape == (40, 3, 32, 32) and labels.tolist() == [number % 10 for number in range(40)]
        expected = np.random.RandomState(0).randint(0, 256, (40, 3072)).astype(np.uint8)
        assert np.array_equal(images.numpy().reshape(40, 3072), expected)


class Attack:
    """A pickle that would run a command."""

    def __reduce__(self) -> Any:
        return os.system, ("touch attacked",)


def test_a_pickle_cannot_run_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "data_batch_1"
    path.write_bytes(pickle.dumps({"data": Attack(), "labels": [1]}))
    with pytest.raises(ConfigError, match=r"asks for posix.system, which an array does not need"):
        read_batch(path)
    assert not (tmp_path / "attacked").exists()


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda folder: (folder / "data_batch_3").unlink(), "is incomplete: data_batch_3 missing"),
        (lambda folder: folder.rename(folder.with_name("other")), f"must hold the folder {FOLDER}"),
        (lambda folder: (folder / "data_batch_2").write_bytes(b"\x80\x02}q"), "data_batch_2 is damaged"),
        (
            lambda folder: (folder / "data_batch_2").write_bytes(pickle.dumps(WRONG)),
            "must hold uint8 [N, 3072] with N labels, but holds float64 [2, 5] with 2 labels",
        ),
    ],
)
def test_a_data_directory_that_is_half_there(tmp_path: Path, damage: Any, words: str) -> None:
    damage(write_cifar10(tmp_path))
    with pytest.raises(ConfigError, match=re.escape(words)):
        Cifar10(root=str(tmp_path)).setup(0, CPU)


def test_a_data_directory_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GETA_DATA", raising=False)
    with pytest.raises(ConfigError, match=r"task=cifar10 needs its data: give task.root=FOLDER or set GETA_DATA"):
        Cifar10().setup(0, CPU)
    with pytest.raises(ConfigError, match="does not exist"):
        Cifar10(root=str(tmp_path / "no")).setup(0, CPU)
    write_cifar10(tmp_path)
    monkeypatch.setenv("GETA_DATA", str(tmp_path))
    Cifar10().setup(0, CPU)


def test_folders_that_are_half_there(tmp_path: Path) -> None:
    def setup() -> None:
        ImageFolder(root=str(tmp_path), size=16, batch_size=4, validation=0.2).setup(0, CPU)

    with pytest.raises(ConfigError, match="train does not exist"):
        setup()
    (tmp_path / "train").mkdir()
    with pytest.raises(ConfigError, match="one folder per class"):
        setup()
    (tmp_path / "train" / "cat").mkdir()
    with pytest.raises(ConfigError, match="must hold images"):
        setup()
    for child in ((tmp_path / "train" / "cat"), tmp_path / "train"):
        child.rmdir()
    write_images(tmp_path)
    (tmp_path / "val").rename(tmp_path / "test")
    with pytest.raises(ConfigError, match="val is missing"):
        setup()


def test_a_broken_image_is_named(tmp_path: Path) -> None:
    write_images(tmp_path)
    (tmp_path / "train" / "cat" / "00.png").write_bytes(b"nothing")
    task = ImageFolder(root=str(tmp_path), size=16, batch_size=4, validation=0.2, workers=1)
    task.setup(0, CPU)
    with pytest.raises(ConfigError, match=r"00\.png cannot be read as an image"):
        list(task.train_batches(0))
        task.evaluate(torch.nn.Identity(), "val")


@given(st.integers(8, 400), st.integers(8, 400), st.lists(st.floats(0, 1), min_size=5, max_size=5))
def test_crops_lie_in_the_image(width: int, height: int, window: list[float]) -> None:
    for left, top, right, bottom in (crop_box(width, height, window, 0.08), central_box(width, height)):
        assert 0 <= left < right <= width + 1e-6 and 0 <= top < bottom <= height + 1e-6
    left, top, right, bottom = crop_box(width, height, window, 0.08)
    assert (right - left) * (bottom - top) <= width * height * (1 + 1e-6)


@pytest.mark.needs("cifar10")
def test_the_real_cifar10(data_root: Path) -> None:
    task = Cifar10(root=str(data_root))
    task.setup(0, CPU)
    assert (len(task._train.labels), len(task._val.labels)) == (45000, 5000)
    assert task._val.labels.bincount().tolist() == [500] * 10
    assert task.steps_per_epoch() == 351
    assert len(task.read_test().labels) == 10000


def test_a_limit_takes_every_class_from_both_splits(tmp_path: Path) -> None:
    write_cifar10(tmp_path, images=100)
    whole, part = Cifar10(root=str(tmp_path)), Cifar10(root=str(tmp_path), limit=100, batch_size=10)
    for task in (whole, part):
        task.setup(0, CPU)
    assert len(part._train.labels) + len(part._val.labels) == 100
    assert torch.equal(torch.bincount(torch.cat([part._train.labels, part._val.labels])), torch.full((10,), 10))
    assert part.totals(torch.nn.Flatten(), "test", WHOLE)["examples"] == 100
    assert whole.totals(torch.nn.Flatten(), "val", WHOLE)["examples"] == 50
    kept = {image.numpy().tobytes() for image in part._train.images}
    assert kept < {image.numpy().tobytes() for image in torch.cat([whole._train.images, whole._val.images])}
