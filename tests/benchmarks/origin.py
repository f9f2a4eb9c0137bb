"""Where a measurement's numbers are from."""

from __future__ import annotations

import platform
from typing import Any

from orchestration.records import environment


def origin(device: str = "cpu") -> dict[str, Any]:
    """Command, commit, versions and threads of this process; the name of the machine left out.

    Args:
        device: what the numbers were measured on.
    """
    return {**environment(device), "platform": f"{platform.system()} {platform.machine()}"}
