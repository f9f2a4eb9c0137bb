"""torchao, imported where it is used, and an optimizer around one of its optimizers."""

from __future__ import annotations

import importlib
from abc import abstractmethod
from typing import Any

import torch

import geta_core as geta
from geta_core.clocked import ClockedOptimizer, defaults_of
from geta_core.errors import ConfigError, ScheduleError


def torchao(module: str) -> Any:
    """Import a module of torchao by its full name.

    Raises:
        ConfigError: where it is missing, with the line that installs it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        text = " ".join(str(error).split())
        message = f"method=pat and method=parq need {module}: pip install 'torchao>=0.18' ({text})"
        raise ConfigError([message]) from error


class LibraryOptimizer(ClockedOptimizer):
    """Counts the steps of a library's optimizer, and saves and loads what it keeps in parameter groups and state.

    The library's optimizers keep everything in the groups and the state of the optimizer that they wrap; those are this
    object's own, so that schedulers, scalers and checkpoints see one optimizer like any other.

    Args:
        prepared: bound to this optimizer.
        groups: parameter groups, with the keys that the library reads.
        inner: torch.optim class of the weights.
        keywords: its arguments.
        total_steps: of the run.
    """

    def __init__(
        self,
        prepared: geta.Prepared,
        groups: list[dict[str, Any]],
        inner: type[torch.optim.Optimizer],
        keywords: dict[str, Any],
        total_steps: int,
    ) -> None:
        self.prepared, self.total_steps, self._clock = prepared, total_steps, 0
        super().__init__(groups, defaults_of(inner, **keywords))
        self.inner = inner(self.stepped_groups(), **keywords)
        self.share()
        self.library = self.build()
        prepared.bind(self)

    def stepped_groups(self) -> list[dict[str, Any]]:
        """Return the parameter groups that the torch.optim class steps."""
        return self.param_groups

    @abstractmethod
    def build(self) -> Any:
        """Return the library's optimizer."""

    def share(self) -> None:
        """Point the torch.optim class to this object's groups and state."""
        self.inner.param_groups, self.inner.state = self.stepped_groups(), self.state

    def _advance(self) -> None:
        """Call the library."""
        self.library.step()

    def loaded(self) -> None:
        """Follow a state that was loaded."""

    def state_dict(self) -> dict[str, Any]:
        """Return groups and state, the library's entries among them, and the clock."""
        return {**super().state_dict(), "method": {"clock": self._clock, "total_steps": self.total_steps}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a state.

        Raises:
            ScheduleError: the state is of another optimizer or another run.
        """
        own = state_dict.get("method")
        if own is None or own.get("total_steps") != self.total_steps:
            raise ScheduleError(
                f"the state must come from a run of {self.total_steps} steps of this method, but is not"
            )
        super().load_state_dict({key: value for key, value in state_dict.items() if key != "method"})
        self._clock = own["clock"]
        self.share()
        self.loaded()


def demand_finished(prepared: geta.Prepared) -> LibraryOptimizer:
    """Return the bound optimizer.

    Raises:
        ScheduleError: while its run is not complete.
    """
    optimizer = prepared.optimizer
    if not isinstance(optimizer, LibraryOptimizer) or not optimizer.finished:
        raise ScheduleError("finish: the schedule is not complete; train to the run's end")
    return optimizer
