"""Ray Train's TorchTrainer without the processes that a run has no use for.

Each of them would import for seconds before the first step. What is left out is found by Ray's own names; where a
version of Ray has none of them, everything works as well, only more slowly.
"""

from __future__ import annotations

from typing import Any, cast


def trainer(own_cluster: bool, arguments: dict[str, Any]) -> Any:
    """Return a TorchTrainer whose workers meet by themselves (``orchestration.world``).

    Args:
        own_cluster: whether the Ray cluster was started for this run alone, so that there is nothing to scale.
        arguments: of ``ray.train.torch.TorchTrainer``.
    """
    from ray.train.backend import Backend, BackendConfig
    from ray.train.torch import TorchTrainer

    idle, still = _idle_callbacks(), _still_policy() if own_cluster else None

    class OwnMeeting(BackendConfig):
        """Sets nothing up: Ray's own meeting point listens on every address, and its settings import torch."""

        backend = "gloo"

        @property
        def backend_cls(self) -> type:
            return Backend

    class LeanTrainer(TorchTrainer):
        """Leaves out what would have nothing to do."""

        def _create_default_callbacks(self) -> list[Any]:
            every = super()._create_default_callbacks()  # type: ignore[misc]
            return [each for each in every if not isinstance(each, idle)]

        def _initialize_and_run_controller(self, **parts: Any) -> Any:
            if still is not None:
                parts["scaling_policy"] = still(self.scaling_config)
            return super()._initialize_and_run_controller(**parts)  # type: ignore[misc]

    return LeanTrainer(torch_config=cast(Any, OwnMeeting()), **arguments)


def _idle_callbacks() -> tuple[type, ...]:
    """Return the callbacks that start an actor.

    Data sets are read by the tasks, and a placement group is removed with the job that made it.
    """
    try:
        from ray.train.v2._internal.callbacks import DatasetsCallback
        from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
    except ImportError:
        return ()
    return (DatasetsCallback, PlacementGroupCleanerCallback)


def _still_policy() -> type | None:
    """Return the policy of a fixed number of workers without its actor, which asks for more machines."""
    try:
        from ray.train.v2._internal.execution.scaling_policy.fixed import FixedScalingPolicy
    except ImportError:
        return None

    class StillPolicy(FixedScalingPolicy):
        """Asks nobody."""

        def _send_resource_request(self) -> None:
            return None

        _maybe_send_resource_request = _cancel_resource_request = _send_resource_request

    return StillPolicy
