"""What commands read of a finished run, or of an artifact alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

    from orchestration.config import Config


@dataclass(frozen=True)
class Finished:
    """A run directory with an artifact in it, or an artifact."""

    place: Path
    """As it was named."""

    @property
    def is_run(self) -> bool:
        """Whether configuration and data are known besides the artifact."""
        return (self.place / "artifact").is_dir()

    @property
    def artifact(self) -> Path:
        """Folder of the artifact."""
        return self.place / "artifact" if self.is_run else self.place

    def config(self) -> Config:
        """Configuration of the run."""
        from orchestration.compose import load

        return load(str(self.place / "resolved.yaml"), [])

    def task(self) -> Any:
        """Task of the run, set up on the CPU."""
        import torch

        from orchestration.tasks import TASKS
        from orchestration.tasks.base import Placement

        config = self.config()
        task: Any = TASKS.resolve(config.task.name)(**config.task.options)
        task.setup(config.run.seed, Placement(torch.device("cpu")))
        return task

    def dense(self) -> nn.Module:
        """Model of the run as it was before training, on the CPU."""
        import torch

        from orchestration.assemble import build_model

        config = self.config()
        torch.manual_seed(config.run.seed)
        return build_model(config, self.task())
