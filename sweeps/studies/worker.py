"""One attempt at a run of a study: ``python -m sweeps.studies.worker STUDY_FOLDER SLOT ATTEMPT [PARENT]``.

The attempt is claimed before anything is imported that takes long; whoever comes second leaves. What the run gave, or
why it failed, is published once. Only a process that dies without a word publishes nothing.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import traceback
from pathlib import Path
from typing import Any

from orchestration.launchers.processes import die_with_parent
from sweeps.studies.attempts import Attempt, Attempts, End

TAKEN = 3
"""Exit code of a worker that came second."""
LOOK_EVERY, LIFE_EVERY = 0.5, 20
"""Seconds between looks for a request to stop; looks between signs of life."""


def main(arguments: list[str]) -> int:
    """Do one attempt."""
    folder, slot, number, *parent = arguments
    if parent:
        die_with_parent(int(parent[0]))
    attempts, attempt = Attempts(Path(folder)), Attempt(int(slot), int(number))
    if not attempts.claim(attempt):
        return TAKEN
    asked = threading.Event()
    signal.signal(signal.SIGTERM, lambda number, frame: asked.set())  # until the run itself listens
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    over = threading.Event()
    watch = threading.Thread(target=_watch, args=(attempts, attempt, asked, over), daemon=True)
    watch.start()
    end = work(attempts.spec(attempt))
    over.set()
    watch.join()
    attempts.publish(attempt, end)
    return 0


def work(spec: dict[str, Any]) -> End:
    """Run what a specification says, to its end."""
    from geta_core.errors import GetaError
    from orchestration.config import Config
    from orchestration.run import run
    from orchestration.signals import StoppedError

    try:
        os.chdir(spec["cwd"])
        return ended(run(Config.from_dict(spec["config"])))
    except StoppedError as stopped:
        return End(state="stopped", reason=str(stopped))
    except GetaError as error:
        return End(state="failed", reason=" ".join(str(error).split()))
    except Exception as error:  # noqa: BLE001 - whatever a model or task raises is the end of the run, not of the study
        traceback.print_exc()
        return End(state="failed", reason=f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")


def ended(result: Any) -> End:
    """Return the end that a result makes."""
    numbers = {key.removeprefix("final/"): value for key, value in result.numbers().items()}
    numbers = {key: value for key, value in numbers.items() if value == value}
    if "val/accuracy" not in numbers:
        return End(state="failed", reason="the run measured no accuracy on a validation split, by which a study judges")
    return End(state="complete", numbers={**numbers, "seconds": float(result.seconds["train"])})


def _watch(attempts: Attempts, attempt: Attempt, asked: threading.Event, over: threading.Event) -> None:
    """Show life, and hand a request to stop on as the signal that a run listens to."""
    looks = 0
    while not over.wait(LOOK_EVERY):
        looks += 1
        if looks % LIFE_EVERY == 0:
            attempts.show_life(attempt)
        if asked.is_set() or attempts.stop_asked(attempt) is not None:
            os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
