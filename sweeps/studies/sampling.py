"""How the settings of a method are chosen: Optuna's samplers on a study of their own in memory.

The trials of the storage are runs; what a sampler learns from are settings, each with the mean of its seeds. So each
method has a study in memory that holds its settings, rebuilt from the storage when the coordinator starts again. The
sampler's random numbers follow from the study's seed, the method and the number of the setting, not from what was
drawn before, so that a coordinator that starts again draws the same.
"""

from __future__ import annotations

import hashlib
import statistics
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from baselines.search import Dimension, OneOf, Real
from sweeps.studies.settings import SweepSettings
from sweeps.studies.space import Setting, ticks


@dataclass(frozen=True)
class Suggestion:
    """A setting, and how the storage writes it down.

    Attributes:
        setting: ``group.key`` -> value.
        params: name -> value as Optuna keeps it.
        distributions: name -> Optuna's distribution.
        notes: what the sampler remembers about it (Optuna's system attributes).
    """

    setting: Setting
    params: Mapping[str, Any] = field(default_factory=dict)
    distributions: Mapping[str, Any] = field(default_factory=dict)
    notes: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class _Known:
    """A setting in the sampler's study: its trial, and what its seeds gave so far."""

    trial: Any
    outcomes: list[tuple[tuple[float, ...], Mapping[str, float]] | None] = field(default_factory=list)


class Sampling:
    """Chooses the settings of one method.

    Args:
        method: as ``method=``.
        settings: of the study.
        space: ``group.key`` -> dimension.
        settings_of: the settings where they are known beforehand.
        defaults: the method's own values of the dimensions.
    """

    def __init__(
        self,
        method: str,
        settings: SweepSettings,
        space: Mapping[str, Dimension],
        settings_of: Sequence[Setting] | None,
        defaults: Setting,
    ) -> None:
        self._method, self._settings, self._space = method, settings, space
        self._listed, self._defaults = settings_of, defaults
        self._known: dict[int, _Known] = {}
        self._study: Any = None
        self._storage: Any = None
        self._study_id = 0

    def ask(self, number: int) -> Suggestion:
        """Choose the setting with a number, after all before it."""
        if self._listed is not None:
            return self._listed_suggestion(self._listed[number])
        if number == 0 or not self._space:
            return self._default(number)
        import optuna

        study = self._open()
        study.sampler = self._sampler(number)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            trial = study.ask(self._distributions())
        self._known[number] = _Known(trial)
        params = dict(trial.params)
        trial_id = self._storage.get_trial_id_from_study_id_trial_number(self._study_id, trial.number)
        return self._written_down(params, dict(self._storage.get_trial_system_attrs(trial_id)))

    def restore(self, number: int, params: Mapping[str, Any], notes: Mapping[str, Any]) -> Suggestion:
        """Take in a setting that was chosen before this process began; it is returned as it was chosen."""
        if self._listed is not None:
            return self._listed_suggestion(self._listed[number])
        bare = {key.removeprefix(f"{self._method}:"): value for key, value in params.items()}
        kept = {key: value for key, value in notes.items() if not key.startswith("constraints:")}
        if bare:
            self._known[number] = _Known(self._add(bare, kept))
        return self._written_down(bare, kept)

    def report(self, number: int, step: int, accuracy: float) -> bool:
        """Take in an intermediate accuracy; returns whether the run is hopeless."""
        known = self._known.get(number)
        if known is None or self._settings.stopping == "none":
            return False
        known.trial.report(accuracy, step)
        return bool(known.trial.should_prune())

    def tell(
        self, number: int, values: tuple[float, ...] | None, constraints: Mapping[str, float], stopped: bool = False
    ) -> None:
        """Take in what one seed of a setting gave; None where the run failed or was stopped as hopeless."""
        known = self._known.get(number)
        if known is None:
            return
        from optuna.trial import TrialState

        known.outcomes.append(None if values is None else (values, constraints))
        if len(known.outcomes) < len(self._settings.seeds):
            return
        done = [each for each in known.outcomes if each is not None]
        if len(done) < len(known.outcomes):
            state = TrialState.PRUNED if stopped else TrialState.FAIL
            self._open().tell(known.trial, state=state)
            return
        for name in done[0][1]:
            known.trial.set_constraint(name, statistics.fmean(each[name] for _, each in done))
        means = [statistics.fmean(column) for column in zip(*(each for each, _ in done), strict=True)]
        self._open().tell(known.trial, means)

    def _listed_suggestion(self, setting: Setting) -> Suggestion:
        """Return a setting of a grid or list; its values are choices in the storage."""
        from optuna.distributions import CategoricalDistribution

        assert self._listed is not None
        every = {key: [each[key] for each in self._listed if key in each] for key in setting}
        every |= {key: list(ticks(each, self._settings.points)) for key, each in self._space.items() if key in setting}
        choices = {key: list(dict.fromkeys(map(written, own))) for key, own in every.items()}
        return Suggestion(
            setting,
            {f"{self._method}:{key}": written(value) for key, value in setting.items()},
            {f"{self._method}:{key}": CategoricalDistribution(own) for key, own in choices.items()},
        )

    def _default(self, number: int) -> Suggestion:
        """Return the method's own values; the sampler learns from them where they lie in the space."""
        params = {key: self._param(key, self._defaults[key]) for key in self._space}
        if not params or any(value is None for value in params.values()):
            return Suggestion({})
        self._known[number] = _Known(self._add(params, {}))
        return self._written_down(params, {})

    def _written_down(self, params: Mapping[str, Any], notes: Mapping[str, Any]) -> Suggestion:
        """Return a setting as the storage keeps it: names begin with the method, which has a space of its own."""
        if not params:
            return Suggestion({})
        return Suggestion(
            {key: self._value(key, value) for key, value in params.items()},
            {f"{self._method}:{key}": value for key, value in params.items()},
            {f"{self._method}:{key}": each for key, each in self._distributions().items()},
            notes,
        )

    def _add(self, params: Mapping[str, Any], notes: Mapping[str, Any]) -> Any:
        """Add a running trial to the sampler's study."""
        import optuna

        study = self._open()
        made = optuna.trial.create_trial(
            state=optuna.trial.TrialState.RUNNING,
            params=dict(params),
            distributions=self._distributions(),
            system_attrs=dict(notes),
        )
        trial_id = self._storage.create_new_trial(self._study_id, template_trial=made)
        return optuna.trial.Trial(study, trial_id)

    def _open(self) -> Any:
        if self._study is None:
            import optuna

            optuna.logging.set_verbosity(optuna.logging.WARNING)
            self._storage = optuna.storages.InMemoryStorage()
            self._study = optuna.create_study(
                storage=self._storage,
                directions=self._settings.directions,
                sampler=self._sampler(0),
                pruner=self._pruner(),
            )
            self._study_id = self._storage.get_study_id_from_name(self._study.study_name)
        return self._study

    def _sampler(self, number: int) -> Any:
        import optuna

        settings = self._settings
        text = f"{settings.seed}/{self._method}/{number}"
        seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")
        samplers = optuna.samplers
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            if settings.sampler == "nsga2":
                return samplers.NSGAIISampler(seed=seed, population_size=max(2, settings.startup))
            if settings.sampler == "gp":
                return samplers.GPSampler(seed=seed, n_startup_trials=settings.startup)
            if settings.sampler == "tpe":
                return samplers.TPESampler(seed=seed, n_startup_trials=settings.startup, constant_liar=True)
            return samplers.RandomSampler(seed=seed)

    def _pruner(self) -> Any:
        import optuna

        pruners = optuna.pruners
        made: dict[str, type[optuna.pruners.BasePruner]] = {
            "median": pruners.MedianPruner,
            "halving": pruners.SuccessiveHalvingPruner,
        }
        made |= {"hyperband": pruners.HyperbandPruner, "none": pruners.NopPruner}
        return made[self._settings.stopping]()

    def _distributions(self) -> dict[str, Any]:
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

        found: dict[str, Any] = {}
        for key, each in self._space.items():
            if isinstance(each, OneOf):
                found[key] = CategoricalDistribution([written(value) for value in each.values])
            elif isinstance(each, Real):
                found[key] = FloatDistribution(each.low, each.high, log=each.log)
            else:
                found[key] = IntDistribution(each.low, each.high)
        return found

    def _value(self, key: str, param: Any) -> Any:
        """Return the value that Optuna's stands for: lists are kept as text there."""
        each = self._space[key]
        if isinstance(each, OneOf):
            return next(value for value in each.values if written(value) == param)
        return param

    def _param(self, key: str, value: Any) -> Any:
        """Return how Optuna keeps a value; None where it lies outside of the space."""
        each = self._space[key]
        if isinstance(each, OneOf):
            return next((written(own) for own in each.values if written(own) == written(value)), None)
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return value if number and each.low <= value <= each.high else None


def written(value: Any) -> Any:
    """Return a value as Optuna keeps it in a list of choices: numbers and text."""
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(str(written(each)) for each in value) + "]"
    if isinstance(value, Mapping):
        return str(dict(value))
    return "null" if value is None else value
