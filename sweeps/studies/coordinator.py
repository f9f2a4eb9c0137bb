"""The coordinator: the one process that asks for settings, starts runs, and tells what they gave.

It holds nothing that it could not find again: trials stand in the storage, attempts in files, runs in their
directories. So starting again after a kill is the same loop over what is there. A run that ended while no coordinator
lived is told; one that goes on is waited for; one that died is started again, once, from its last checkpoint.
"""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from orchestration.signals import StoppedError, StopRequest
from orchestration.tracking.jsonl import JOURNAL, Tail
from sweeps.studies.attempts import Attempt, Attempts, End
from sweeps.studies.definition import Definition
from sweeps.studies.display import Display
from sweeps.studies.ledger import Entry, Ledger, State
from sweeps.studies.pools import open_pool
from sweeps.studies.pools.base import Pool
from sweeps.studies.sampling import Sampling, Suggestion
from sweeps.studies.slots import Slot

LOOK_EVERY = 0.2
"""Seconds between looks at the runs."""
LEAVING = 120.0
"""Seconds that runs get to save when the study is stopped."""
STARTS = 50
"""Starts of a run after which it is given up, whatever became of them."""
HOPELESS = "hopeless"
TOLD = ("test/accuracy", "val/accuracy", "relative_bops", "weight_bits", "activation_bits", "group_sparsity", "bytes")
"""Numbers of a run that stand beside its trial."""


@dataclass
class Running:
    """A run that has a trial and no told end.

    Attributes:
        slot: of the run.
        trial: id in the storage.
        suggestion: its setting.
        number: of its last attempt; 0 before the first.
        launcher: of its last attempt.
        tail: of its journal, where early stopping reads.
        last: the last intermediate accuracy.
        end: how its last attempt ended, once that is known.
    """

    slot: Slot
    trial: int
    suggestion: Suggestion
    number: int = 0
    launcher: str = ""
    tail: Tail | None = None
    last: float | None = None
    end: End | None = field(default=None)

    @property
    def attempt(self) -> Attempt:
        """The last attempt."""
        return Attempt(self.slot.index, self.number)


class Coordinator:
    """Runs a study to its end.

    Args:
        definition: of the study.
        ledger: open.
        display: shows how it goes.
        pool: opens the pool of a launcher by its name.
    """

    def __init__(
        self,
        definition: Definition,
        ledger: Ledger,
        display: Display,
        pool: Callable[[str, Definition], Pool] = open_pool,
    ) -> None:
        self._definition, self._ledger, self._display, self._open_pool = definition, ledger, display, pool
        self._settings = definition.settings
        self._attempts = Attempts(definition.folder)
        self._pools: dict[str, Pool] = {}
        self._running: dict[int, Running] = {}
        self._left = definition.slots()
        self._next: Slot | None = next(self._left, None)
        self._samplings = {
            method: Sampling(
                method,
                self._settings,
                definition.spaces[method],
                None if definition.lists is None else definition.lists[method],
                definition.defaults(method),
            )
            for method in definition.bases
        }
        self._chosen: dict[tuple[str, int], Suggestion] = {}
        self.sampler_seconds = 0.0
        """Time that was spent in samplers."""

    def run(self, stop: StopRequest) -> None:
        """Do what is left of the study.

        Raises:
            StoppedError: when a request to stop was obeyed; the same command goes on.
            GetaError: when runs cannot be started, or the storage stays away.
        """
        self._take_over()
        try:
            while self._running or self._next is not None:
                if stop:
                    self._leave(stop.signal_number)
                moved = self._collect()
                moved = self._fill() or moved
                if not moved:
                    time.sleep(LOOK_EVERY)
        finally:
            for pool in self._pools.values():
                pool.close()

    def _take_over(self) -> None:
        """Find out how far the study is."""
        last = self._attempts.last()
        known = {entry.slot: entry for entry in self._ledger.entries()}
        while self._next is not None and self._next.index in known:
            slot, entry = self._next, known[self._next.index]
            suggestion = self._restored(slot, entry)
            if entry.state == "running":
                running = Running(slot, entry.id, suggestion, last.get(slot.index, 0))
                if running.number:
                    running.launcher = str(self._attempts.spec(running.attempt).get("launcher", "local"))
                self._watch(running)
            else:
                self._learn(slot, entry.state, entry.values, _constraints(entry))
                self._display.done(slot, entry.state, entry.values, known_before=True)
            self._next = next(self._left, None)

    def _restored(self, slot: Slot, entry: Entry) -> Suggestion:
        key = (slot.method, slot.setting)
        if key not in self._chosen:
            self._chosen[key] = self._samplings[slot.method].restore(slot.setting, entry.params, entry.notes)
        return self._chosen[key]

    def _watch(self, running: Running) -> None:
        if self._settings.stopping != "none":
            running.tail = Tail(self._definition.folder / running.slot.folder / JOURNAL)
        self._running[running.slot.index] = running
        self._display.began(running.slot)

    def _fill(self) -> bool:
        """Start runs until as many go on as may; returns whether any was started."""
        fresh = [each for each in self._running.values() if each.number == 0]  # a coordinator died before their start
        fresh += [self._begin(slot) for slot in self._may_begin()]
        if fresh:
            self._start(fresh)
        return bool(fresh)

    def _may_begin(self) -> Iterator[Slot]:
        """Yield the runs that may begin now: in a synchronous study, those of one batch at a time."""
        parallel = self._settings.parallel
        while self._next is not None and len(self._running) < parallel:
            slot = self._next
            if self._settings.synchronous and any(i // parallel != slot.index // parallel for i in self._running):
                return
            self._next = next(self._left, None)
            yield slot

    def _begin(self, slot: Slot) -> Running:
        """Choose a run's setting and write its trial down."""
        key = (slot.method, slot.setting)
        if key not in self._chosen:
            began = time.perf_counter()
            self._chosen[key] = self._samplings[slot.method].ask(slot.setting)
            self.sampler_seconds += time.perf_counter() - began
        running = Running(slot, self._ledger.create(slot, self._chosen[key]), self._chosen[key])
        self._watch(running)
        return running

    def _start(self, runs: Sequence[Running]) -> None:
        """Start the next attempt of each run."""
        name = self._definition.launcher.name
        for each in runs:
            each.number, each.launcher, each.end = each.number + 1, name, None
            config = self._definition.run_config(each.slot, each.suggestion.setting)
            self._attempts.order(each.attempt, {"config": config, "launcher": name, "cwd": os.getcwd()})
        self._pool(name).start([each.attempt for each in runs])

    def _pool(self, name: str) -> Pool:
        if name not in self._pools:
            self._pools[name] = self._open_pool(name, self._definition)
        return self._pools[name]

    def _collect(self) -> bool:
        """Look at every run that goes on; returns whether any of them has ended."""
        silent = defaultdict(list)
        for each in list(self._running.values()):
            if each.number and each.end is None:
                self._follow(each)
                each.end = self._attempts.end(each.attempt)
                if each.end is None:
                    silent[each.launcher].append(each)
        for launcher, runs in silent.items():
            gone = set(self._pool(launcher).gone([each.attempt for each in runs]))
            self._judge([each for each in runs if each.attempt in gone])
        again = [each for each in self._running.values() if each.end is not None and self._interrupted(each)]
        if again:
            self._start(again)
        ended = [each for each in self._running.values() if each.end is not None]
        if self._settings.synchronous and len(ended) < len(self._running):
            return bool(again)
        if self._settings.synchronous and ended and self._batch_is_open():
            return bool(again)
        for each in sorted(ended, key=lambda each: each.slot.index):
            self._tell(each)
        return bool(again or ended)

    def _batch_is_open(self) -> bool:
        """Whether runs of the batch that goes on have not begun."""
        parallel = self._settings.parallel
        return self._next is not None and any(i // parallel == self._next.index // parallel for i in self._running)

    def _interrupted(self, each: Running) -> bool:
        """Whether a run was stopped by a coordinator that left, and is to go on."""
        assert each.end is not None
        return each.end.state == "stopped" and self._attempts.stop_asked(each.attempt) != HOPELESS

    def _judge(self, runs: Sequence[Running]) -> None:
        """Decide about attempts that are gone: told by their end if they left one, started again, or failed."""
        again = []
        for each in runs:
            each.end = self._attempts.end(each.attempt)  # it may have come between the two looks
            if each.end is not None:
                continue
            if not self._attempts.claimed(each.attempt) and not self._attempts.give_up(each.attempt):
                continue  # a worker has just taken it
            if each.number >= STARTS:
                each.end = End(
                    state="failed", reason=f"no process could take it in {STARTS} starts; its log may say why"
                )
                continue
            lost = self._attempts.lost(each.slot.index, each.number)
            if lost > self._settings.requeues:
                times = f"{lost} times" if lost > 1 else "once"
                each.end = End(state="failed", reason=f"its process died without a word, {times}")
                continue
            self._display.say(f"{each.slot.folder}: its process is gone; it goes on from its last checkpoint")
            again.append(each)
        if again:
            self._start(again)

    def _follow(self, each: Running) -> None:
        """Read the run's numbers; ask it to stop where they are hopeless."""
        if each.tail is None:
            return
        for line in each.tail.read():
            value = line.metrics.get("val/accuracy")
            if line.kind != "epoch" or value is None:
                continue
            each.last = value
            self._ledger.report(each.trial, line.step, value)
            if self._samplings[each.slot.method].report(each.slot.setting, line.step, value):
                self._pool(each.launcher).stop([each.attempt], HOPELESS)

    def _tell(self, each: Running) -> None:
        """Write down how a run ended."""
        end, slot = each.end, each.slot
        assert end is not None
        state: State = {"complete": "complete", "stopped": "pruned", "failed": "failed"}[end.state]  # type: ignore[assignment]
        values: tuple[float, ...] = ()
        constraints: Mapping[str, float] = {}
        if state == "complete":
            accuracy, bops = end.numbers["val/accuracy"], end.numbers["relative_bops"]
            values, constraints = self._settings.values(accuracy, bops), self._settings.constraints(accuracy, bops)
        about: dict[str, Any] = {key: end.numbers[key] for key in TOLD if key in end.numbers}
        if end.reason:
            about["reason"] = end.reason
        if each.number > 1:
            about["attempts"] = each.number
        self._ledger.tell(each.trial, state, values or None, about, constraints)
        del self._running[slot.index]
        self._learn(slot, state, values, constraints)
        self._display.done(slot, state, values, reason=end.reason)

    def _learn(self, slot: Slot, state: State, values: tuple[float, ...], constraints: Mapping[str, float]) -> None:
        sampling = self._samplings[slot.method]
        sampling.tell(slot.setting, values or None, constraints, stopped=state == "pruned")

    def _leave(self, signal_number: int) -> None:
        """Ask the runs to save, wait for that, and leave."""
        for name in {each.launcher for each in self._running.values() if each.number}:
            runs = [each.attempt for each in self._running.values() if each.launcher == name]
            self._pool(name).stop(runs, "")
        until = time.monotonic() + LEAVING
        waiting = [each for each in self._running.values() if each.number and each.launcher != "slurm"]
        while waiting and time.monotonic() < until:
            time.sleep(LOOK_EVERY)
            by_name = defaultdict(list)
            for each in waiting:
                by_name[each.launcher].append(each.attempt)
            gone = {attempt for name, own in by_name.items() for attempt in self._pool(name).gone(own)}
            waiting = [each for each in waiting if each.attempt not in gone and not self._attempts.end(each.attempt)]
        raise StoppedError("the study was stopped, its runs are saved; the same command goes on", signal_number)


def _constraints(entry: Entry) -> dict[str, float]:
    prefix = "constraints:"
    return {key.removeprefix(prefix): float(value) for key, value in entry.notes.items() if key.startswith(prefix)}
