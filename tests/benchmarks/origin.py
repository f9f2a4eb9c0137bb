"""Where a measurement's numbers are from."""

from __future__ import annotations

import platform
from typing import Any

from orchestration.records import environment


def origin() -> dict[str, Any]:
    """Command, commit, versions and threads of this process on the CPU; the name of the machine left out."""
    return {**environment("cpu"), "platform": f"{platform.system()} {platform.machine()}"}
