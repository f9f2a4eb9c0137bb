"""Fetches a data set when the user asks for it (``task.download=true``)."""

from __future__ import annotations

import hashlib
import shutil
import tarfile
import tempfile
import urllib.error
import urllib.request
from pathlib import Path

from geta_core.errors import ConfigError

CIFAR10_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
CIFAR10_SHA256 = "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce"


def fetch_cifar10(root: Path, url: str = CIFAR10_URL, sha256: str = CIFAR10_SHA256) -> None:
    """Download and unpack CIFAR-10; nothing is left behind when it fails.

    Args:
        root: existing folder that will hold ``cifar-10-batches-py``.
        url: of the archive.
        sha256: that the archive must have.

    Raises:
        ConfigError: when the archive cannot be fetched or is not the published one.
    """
    with tempfile.TemporaryDirectory(dir=root, prefix=".download-") as temporary:
        archive = Path(temporary) / "archive.tar.gz"
        try:
            with urllib.request.urlopen(url, timeout=60) as response, archive.open("wb") as file:
                shutil.copyfileobj(response, file)
        except (urllib.error.URLError, OSError) as error:
            raise ConfigError([f"cannot download {url}: {error}"]) from error
        with archive.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != sha256:
            raise ConfigError([f"{url} must have sha256 {sha256}, but what was fetched has {digest}"])
        with tarfile.open(archive) as tar:
            tar.extractall(temporary, filter="data")
        unpacked = Path(temporary) / "cifar-10-batches-py"
        target = root / unpacked.name
        target.mkdir(exist_ok=True)
        for file_path in unpacked.iterdir():
            file_path.replace(target / file_path.name)
