"""Reads and writes the weights that a run starts from (``model.weights``)."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path

import torch
from torch import nn

from geta_core.errors import ArtifactError, ConfigError
from orchestration.files import PARTIAL

FILE = "weights.safetensors"


def load_weights(model: nn.Module, place: str) -> None:
    """Fill a model, in place and completely.

    Args:
        model: a freshly built model.
        place: a ``.safetensors`` file, a ``.pt`` or ``.pth`` file that holds a state dict of tensors alone, or the
            directory of a finished run without quantizers (``method=dense``).

    Raises:
        ConfigError: when there is no such file, or its tensors are not the model's.
        ArtifactError: when the file is damaged.
    """
    path = weights_file(place)
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_model

            load_model(model, path)
        else:
            model.load_state_dict(_tensors(path))
    except RuntimeError as error:  # what torch and safetensors raise for missing, unexpected and misshapen tensors
        text = " ".join(str(error).split())
        raise ConfigError([f"model.weights={path} does not fit the model: {text[:400]}"]) from error
    except Exception as error:
        if isinstance(error, (ConfigError, ArtifactError)):
            raise
        raise ArtifactError(f"model.weights={path} is damaged or has another format ({error})") from error


def weights_file(place: str) -> Path:
    """Return the file that ``model.weights`` names.

    Raises:
        ConfigError: when there is none.
    """
    path = Path(place).expanduser()
    path = path / FILE if path.is_dir() else path
    if not path.is_file():
        raise ConfigError([f"model.weights must be a file or the directory of a dense run, but {path} does not exist"])
    return path


def weights_digest(place: str) -> str:
    """Return the SHA-256 of the file that ``model.weights`` names, in hexadecimal."""
    with weights_file(place).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def save_weights(model: nn.Module, path: Path) -> None:
    """Write a model's weights at once."""
    from safetensors.torch import save_model

    partial = path.with_name(path.name + PARTIAL)
    save_model(model, str(partial))
    partial.replace(path)


def _tensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, EOFError, RuntimeError) as error:
        text = " ".join(str(error).split())[:200]
        raise ArtifactError(f"model.weights={path} cannot be read as tensors alone ({text})") from error
    nested = content.get("state_dict", content) if isinstance(content, dict) else None
    if not isinstance(nested, dict):
        raise ArtifactError(f"model.weights={path} must hold a state dict, but holds a {type(content).__name__}")
    return nested
