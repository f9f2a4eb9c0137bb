"""Models by name or by `package.module:function`; options are checked against the factory's typed signature.

The families are imported at the first look-up, so that importing this module does not import torch.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar

from geta_core.errors import ConfigError, GetaError, closest
from orchestration.models.imports import import_callable, one_line
from orchestration.models.inputs import ModelInput
from orchestration.models.options import Option, Signature, fit_options, read_signature

if TYPE_CHECKING:
    from torch import Tensor, nn

FAMILIES = (
    "bert",
    "densenet",
    "digits_cnn",
    "encoder",
    "groupnorm_resnet",
    "mlp",
    "mobilenetv2",
    "resnet",
    "resnet_cifar",
    "senet",
    "unet",
    "vgg7",
    "vit",
)


@dataclass(frozen=True)
class ModelEntry:
    """One model that can be built.

    Attributes:
        name: registered name, or the import path of a user's own factory.
        summary: one line for the help.
        factory: returns the module; keyword options only.
        inputs: what the model reads; None for a user's own factory.
        small: options of a version that is small enough for tests.
    """

    name: str
    summary: str
    factory: Callable[..., nn.Module]
    inputs: ModelInput | None = None
    small: Mapping[str, object] = field(default_factory=dict)

    @cached_property
    def signature(self) -> Signature:
        """The options of the factory, read once."""
        return read_signature(self.factory)

    @property
    def origin(self) -> str:
        """Where the factory is defined, as `package.module:function`."""
        return f"{self.factory.__module__}:{self.factory.__qualname__}"

    @property
    def options(self) -> Mapping[str, Option]:
        """Options by name, in the order of the factory's signature."""
        return self.signature.options

    @property
    def input_shape(self) -> tuple[int, ...] | None:
        """Shape of one example at the defaults, without the batch; None where it is not known."""
        return None if self.inputs is None else self.inputs.shape(self._filled({}))

    def accepts(self, option: str) -> bool:
        """Return whether the factory takes this keyword; the run passes only those that it can state."""
        return option in self.options or self.signature.open

    def faults(self, given: Mapping[str, object]) -> list[str]:
        """Return one sentence per option that is unknown, missing or of a wrong type; nothing is built."""
        return fit_options(self.name, self.signature, given)[1]

    def build(self, given: Mapping[str, object]) -> nn.Module:
        """Build the module.

        Raises:
            ConfigError: every fault of the options.
            GetaError: the factory raised, or did not return a module.
        """
        from torch import nn

        values, faults = fit_options(self.name, self.signature, given)
        if faults:
            raise ConfigError(faults)
        try:
            model = self.factory(**values)
        except GetaError:
            raise
        except Exception as error:
            raise GetaError(f"model {self.name!r} could not be built: {one_line(error)}") from error
        if not isinstance(model, nn.Module):
            raise GetaError(f"model {self.name!r} must return a torch.nn.Module, got {type(model).__name__}")
        return model

    def example_inputs(self, batch: int, given: Mapping[str, object], small: bool = False) -> tuple[Tensor, ...]:
        """Return random inputs for these options, as the positional arguments of the module."""
        if self.inputs is None:
            raise GetaError(f"model {self.name!r} does not state what it reads; take a batch of the task instead")
        return (self.inputs.sample(batch, self._filled(given), small),)

    def _filled(self, given: Mapping[str, object]) -> dict[str, Any]:
        defaults = {name: option.default for name, option in self.options.items()}
        return {**defaults, **given}


Factory = TypeVar("Factory", bound=Callable[..., Any])

_entries: dict[str, ModelEntry] = {}


def register(
    name: str, *, summary: str, inputs: ModelInput, small: Mapping[str, object]
) -> Callable[[Factory], Factory]:
    """Register a factory under a name.

    Args:
        name: as in `model=name`; a second registration of another factory is an error.
        summary: one line for the help.
        inputs: what the model reads.
        small: options of a version that is small enough for tests.
    """

    def add(factory: Factory) -> Factory:
        here = f"{factory.__module__}:{factory.__qualname__}"
        known = _entries.get(name)
        if known is not None and known.origin != here:
            raise GetaError(f"model {name!r} is registered twice, by {known.origin} and {here}; rename one of them")
        _entries[name] = ModelEntry(name, summary, factory, inputs, MappingProxyType(dict(small)))
        return factory

    return add


def available() -> Mapping[str, ModelEntry]:
    """Return every registered model by name, sorted."""
    for family in FAMILIES:
        importlib.import_module(f"orchestration.models.{family}")
    return {name: _entries[name] for name in sorted(_entries)}


def find(name_or_path: str) -> ModelEntry:
    """Return the entry of a registered name, or of a factory given as `package.module:function`.

    Raises:
        ConfigError: unknown name (the closest one is suggested), or the import fails.
    """
    if ":" in name_or_path:
        factory = import_callable(name_or_path, "model")
        lines = (inspect.getdoc(factory) or "").splitlines()
        return ModelEntry(name_or_path, lines[0] if lines else "", factory)
    entries = available()
    if name_or_path not in entries:
        hint = closest(name_or_path, entries)
        raise ConfigError([f"model={name_or_path} is not a known model{hint}; own code is package.module:function"])
    return entries[name_or_path]


def build(name_or_path: str, **options: object) -> nn.Module:
    """Build a model.

    Args:
        name_or_path: registered name, or `package.module:function` of a factory that returns a module.
        options: keywords of the factory.

    Raises:
        ConfigError: unknown model, or every fault of the options.
        GetaError: the factory raised, or did not return a module.
    """
    return find(name_or_path).build(options)


def build_small(name: str, **options: object) -> nn.Module:
    """Build the version of a registered model that is small enough for tests; `options` go before its own."""
    entry = find(name)
    return entry.build({**entry.small, **options})


def example_inputs(name: str, batch: int = 2, *, small: bool = False, **options: object) -> tuple[Tensor, ...]:
    """Return random inputs of a registered model, as its positional arguments.

    Args:
        name: registered name.
        batch: number of examples.
        small: for the model of `build_small`.
        options: those the model is built with; `image_size` also where the factory does not take it.
    """
    entry = find(name)
    return entry.example_inputs(batch, {**(entry.small if small else {}), **options}, small)
