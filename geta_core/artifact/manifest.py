"""The manifest file: JSON with a checksum over its own content."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from geta_core.errors import ArtifactError

FORMAT = 2
TENSORS, MANIFEST = "model.safetensors", "manifest.json"
CHECKSUM = "manifest_sha256"


def checksum(manifest: Mapping[str, Any]) -> str:
    """SHA-256 of everything but the checksum itself, in canonical JSON (sorted keys, no spaces)."""
    content = {key: value for key, value in manifest.items() if key != CHECKSUM}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def dumps(manifest: Mapping[str, Any]) -> bytes:
    """The file's content: the manifest with its checksum."""
    sealed = {**manifest, CHECKSUM: checksum(manifest)}
    return (json.dumps(sealed, indent=1, allow_nan=False) + "\n").encode()


def read(folder: Path) -> dict[str, Any]:
    """Read a manifest.

    Raises:
        ArtifactError: if it is missing, of another format, or altered.
    """
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_bytes())
    except OSError as error:
        raise ArtifactError(f"load: cannot read {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"load: {path} is not valid JSON; the artifact is damaged") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        found = manifest.get("format") if isinstance(manifest, dict) else None
        raise ArtifactError(f"load: {path} must have format {FORMAT}, but has {found!r}")
    if manifest.get(CHECKSUM) != checksum(manifest):
        raise ArtifactError(f"load: {path} does not have the checksum that it states; it was altered")
    return manifest


def field(manifest: Mapping[str, Any], key: str, kind: type) -> Any:
    """A value of the stated type.

    Raises:
        ArtifactError: if it is missing or of another type.
    """
    if not isinstance(manifest.get(key), kind):
        raise ArtifactError(f"load: the manifest's {key!r} is missing or not a {kind.__name__}")
    return manifest[key]


def number(value: float | None) -> float | None:
    """A number that JSON can hold; None for infinities and not-a-number."""
    return value if value is None or math.isfinite(value) else None
