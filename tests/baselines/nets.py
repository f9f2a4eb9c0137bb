"""A small net, its data and a plain training loop for the tests of methods."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import geta_core as geta
from baselines.base import Method

STEPS = 60
Batches = list[tuple[Tensor, Tensor]]


def small_net() -> nn.Module:
    """Convolutions with and without batch norm, so that both kinds of gates occur."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 12, 3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 10),
    )  # fmt: skip


def batches(count: int) -> Batches:
    """Noise with a bright row that tells the class."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for _ in range(count):
        labels = torch.randint(10, (32,), generator=generator)
        images = torch.randn(32, 1, 8, 8, generator=generator)
        for image, label in zip(images, labels.tolist(), strict=True):
            image[0, label % 8, label % 5 :] += 4
        found.append((images, labels))
    return found


def start(method: Method, steps: int = STEPS, **keywords: Any) -> tuple[geta.Prepared, torch.optim.Optimizer]:
    """Prepare the net and make the optimizer."""
    torch.manual_seed(0)
    calibration = [images for images, _ in batches(4)]
    prepared = method.prepare(small_net().train(), calibration[0], calibration)
    prepared.model.train()
    optimizer = method.optimizer(prepared, steps, torch.optim.SGD, **{"lr": 0.05, "momentum": 0.9, **keywords})
    return prepared, optimizer


def train(prepared: geta.Prepared, optimizer: torch.optim.Optimizer, data: Batches) -> list[float]:
    """Train on the batches, one step each; return the losses."""
    losses = []
    for images, labels in data:
        loss = nn.functional.cross_entropy(prepared.model(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def accuracy(model: nn.Module) -> float:
    """Share of right answers on batches that training does not see."""
    model.eval()
    with torch.no_grad():
        rights = [(model(images).argmax(1) == labels).float().mean() for images, labels in batches(STEPS + 8)[STEPS:]]
    return float(torch.stack(rights).mean())


def resumed(method: Method, at: int, steps: int = STEPS) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the model's state after an uninterrupted run, and after one saved and loaded at step ``at``."""
    data = batches(steps)
    prepared, optimizer = start(method, steps)
    train(prepared, optimizer, data[:at])
    saved = {key: value.clone() for key, value in prepared.model.state_dict().items()}
    state, random = clone(optimizer.state_dict()), torch.get_rng_state()
    train(prepared, optimizer, data[at:])
    again, other = start(method, steps)
    again.model.load_state_dict(saved)
    other.load_state_dict(state)
    torch.set_rng_state(random)
    train(again, other, data[at:])
    return prepared.model.state_dict(), again.model.state_dict()


def clone(value: Any) -> Any:
    """Copy what a state_dict holds, tensors included."""
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, dict):
        return {key: clone(each) for key, each in value.items()}
    return [clone(each) for each in value] if isinstance(value, list) else value
