"""The trials of a study in Optuna's storage: one per run, written by the coordinator alone.

A trial appears with everything that is known of it in one transaction, and ends in one. Where the storage is away,
each call is tried again; a call whose answer was lost is recognised by what is already there.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, TypeVar

from geta_core.errors import ConfigError, GetaError
from sweeps.studies.sampling import Suggestion
from sweeps.studies.settings import Direction
from sweeps.studies.slots import Slot

T = TypeVar("T")
State = Literal["running", "complete", "pruned", "failed"]
SLOT, TOKEN, RESULT = "geta.slot", "geta.token", "result"
"""Attributes of trials and studies; the last holds the numbers of a run beside its objectives."""
PAUSE = 1.0
"""Seconds between attempts at a storage that is away."""


@dataclass(frozen=True)
class Entry:
    """A trial in the storage.

    Attributes:
        id: of the storage.
        slot: index of its run.
        state: of the trial.
        values: of the objectives; empty unless complete.
        params: name -> value as Optuna keeps it.
        notes: Optuna's system attributes.
        about: user attributes.
    """

    id: int
    slot: int
    state: State
    values: tuple[float, ...] = ()
    params: Mapping[str, Any] = field(default_factory=dict)
    notes: Mapping[str, Any] = field(default_factory=dict)
    about: Mapping[str, Any] = field(default_factory=dict)


def sqlite_beside(folder: Path) -> str:
    """Return the storage of a study that names none."""
    return f"sqlite:///{folder / 'study.db'}"


class Ledger:
    """One study in a storage.

    Args:
        url: of the storage.
        name: of the study.
        patience: seconds that the storage may be away.
        say: tells the user something.
        alone: whether all who open a SQLite storage are on one machine.
    """

    def __init__(self, url: str, name: str, patience: float, say: Callable[[str], None], alone: bool = True) -> None:
        self._url, self._name, self._patience, self._say, self._alone = url, name, patience, say, alone
        self._storage: Any = None
        self._study: int = 0
        self._constraining: Any = None

    def open(self, directions: tuple[Direction, ...], token: str) -> None:
        """Find the study, or make it.

        Args:
            directions: of the objectives.
            token: of the study's folder; no other folder's study has it.

        Raises:
            ConfigError: when the storage cannot be used, or holds another folder's study of this name.
        """
        import optuna
        import sqlalchemy.exc

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        logging.getLogger("alembic").setLevel(logging.WARNING)
        try:
            self._storage = self._patiently(self._connect)
            study = self._patiently(
                lambda: optuna.create_study(
                    storage=self._storage, study_name=self._name, directions=directions, load_if_exists=True
                )
            )
        except (ImportError, sqlalchemy.exc.ArgumentError) as error:
            raise ConfigError([f"sweep.storage={self._url} cannot be opened: {_one_line(error)}"]) from error
        self._study = self._storage.get_study_id_from_name(self._name)
        found = self._patiently(lambda: self._storage.get_study_user_attrs(self._study)).get(TOKEN)
        if found is None and not self._patiently(lambda: self._storage.get_n_trials(self._study)):
            self._patiently(lambda: self._storage.set_study_user_attr(self._study, TOKEN, token))
        elif found != token:
            raise ConfigError(
                [f"{self._url} holds a study {self._name!r} that belongs to another folder; choose another study=NAME"]
            )
        self._constraining = study

    def _connect(self) -> Any:
        import optuna
        import sqlalchemy

        if not self._url.startswith("sqlite"):
            return optuna.storages.RDBStorage(self._url, engine_kwargs={"pool_pre_ping": True})
        storage = optuna.storages.RDBStorage(self._url)
        if self._alone:
            with storage.engine.connect() as connection:  # one sync per transaction instead of several
                connection.execute(sqlalchemy.text("PRAGMA journal_mode=WAL"))
        return storage

    def entries(self) -> list[Entry]:
        """Return every trial, in order."""
        trials = self._patiently(lambda: self._storage.get_all_trials(self._study, deepcopy=False))
        return [_entry(trial) for trial in trials if SLOT in trial.user_attrs]

    def create(self, slot: Slot, suggestion: Suggestion) -> int:
        """Write down a run that is about to start; returns the trial's id."""
        from optuna.trial import FrozenTrial, TrialState

        made = FrozenTrial(
            number=-1, trial_id=-1, state=TrialState.RUNNING, value=None, values=None,
            datetime_start=datetime.now(), datetime_complete=None,
            params=dict(suggestion.params), distributions=dict(suggestion.distributions), intermediate_values={},
            user_attrs={SLOT: slot.index, "method": slot.method, "setting": slot.setting, "seed": slot.seed,
                        "directory": slot.folder},
            system_attrs=dict(suggestion.notes),
        )  # fmt: skip
        tries = 0

        def make() -> int:
            nonlocal tries
            tries += 1
            if tries > 1:  # the answer to the first call may have been lost, not the call
                there = [each.id for each in self.entries() if each.slot == slot.index]
                if there:
                    return there[0]
            return int(self._storage.create_new_trial(self._study, template_trial=made))

        return self._patiently(make)

    def report(self, trial: int, step: int, value: float) -> None:
        """Write down an intermediate value."""
        self._patiently(lambda: self._storage.set_trial_intermediate_value(trial, step, value))

    def tell(
        self,
        trial: int,
        state: State,
        values: tuple[float, ...] | None,
        about: Mapping[str, Any],
        constraints: Mapping[str, float],
    ) -> None:
        """Write down how a trial ended; one that has ended stays as it is."""
        import optuna
        from optuna.exceptions import UpdateFinishedTrialError

        states = optuna.trial.TrialState
        ended = {"complete": states.COMPLETE, "pruned": states.PRUNED, "failed": states.FAIL}[state]

        def write() -> None:
            try:
                self._storage.set_trial_user_attr(trial, RESULT, dict(about))
            except UpdateFinishedTrialError:
                return
            if constraints:
                live = optuna.trial.Trial(self._constraining, trial)
                for name, value in constraints.items():
                    if name not in live.constraints:
                        live.set_constraint(name, value)
            self._storage.set_trial_state_values(trial, ended, values)

        self._patiently(write)

    def _patiently(self, call: Callable[[], T]) -> T:
        """Call the storage; where it is away, wait and call again."""
        from optuna.exceptions import StorageInternalError
        from sqlalchemy.exc import DBAPIError

        until, told = time.monotonic() + self._patience, False
        while True:
            try:
                found = call()
            except (StorageInternalError, DBAPIError) as error:
                if time.monotonic() >= until:
                    raise GetaError(
                        f"the storage {self._url} does not answer ({_one_line(error)}); the same command goes on"
                    ) from error
                if not told:
                    self._say(f"the storage {self._url} does not answer ({_one_line(error)}); waiting for it")
                told = True
                time.sleep(PAUSE)
            else:
                if told:
                    self._say(f"the storage {self._url} answers again")
                return found


def _entry(trial: Any) -> Entry:
    from optuna.trial import TrialState

    states: dict[Any, State] = {TrialState.COMPLETE: "complete", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed"}
    state = states.get(trial.state, "running")
    values = tuple(trial.values) if state == "complete" else ()
    return Entry(
        trial._trial_id, int(trial.user_attrs[SLOT]), state, values, trial.params, trial.system_attrs, trial.user_attrs
    )


def _one_line(error: BaseException) -> str:
    """Return what the innermost library said."""
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(getattr(error, "orig", None) or error).split())[:200]
