"""Data sets and what is asked of a model on them; see ``base.Task`` for the contract."""

from __future__ import annotations

from baselines.registry import Registry

TASKS = Registry(
    "task",
    {
        "digits": "orchestration.tasks.digits:Digits",
        "cifar10": "orchestration.tasks.cifar10:Cifar10",
        "image_folder": "orchestration.tasks.image_folder:ImageFolder",
    },
    "geta.tasks",
)
