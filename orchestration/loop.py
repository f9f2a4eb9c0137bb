"""The training loop: steps, and what happens between them.

After each step the same things happen in the same order: the numbers of a stage that ended, those of an epoch that
ended, a checkpoint. A checkpoint therefore never splits what belongs to one step, and a resumed run writes the same
lines as an uninterrupted one.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from geta_core.errors import GetaError
from orchestration.agreement import check_agreement
from orchestration.checkpoint import CheckpointStore
from orchestration.evaluate import evaluate_together
from orchestration.parallel import train_batches
from orchestration.progress import Progress
from orchestration.signals import StoppedError, StopRequest
from orchestration.state import NEVER, Session, gather
from orchestration.tasks.base import Loss
from orchestration.tracking.base import Line, Tracker
from orchestration.tracking.jsonl import Journal

LOOK_EVERY = 50
"""Steps between looks at whether every loss was finite: each look waits for the device."""
LATER = 2**62
"""A step that no training reaches."""
SMALLEST_SCALE = 1e-4
"""Scale of fp16 gradients below which they are taken to be infinite for good."""


@dataclass
class Surroundings:
    """What a training writes to."""

    journal: Journal
    trackers: Sequence[Tracker]
    checkpoints: CheckpointStore
    progress: Progress
    stop: StopRequest

    def record(self, line: Line) -> None:
        """Hand a line of the journal on."""
        if line.kind != "final":
            self.progress.line(line)
        for tracker in self.trackers:
            tracker.send([line])


def train(session: Session, around: Surroundings) -> None:
    """Train from where the session stands to the last step.

    Raises:
        GetaError: when the loss stops being finite.
        StoppedError: when a signal asked for a stop; the state is saved then.
    """
    session.stage = session.stage or session.next_stage()
    while session.step < session.total_steps:
        before, start = session.step, session.step % session.task.steps_per_epoch()
        for batch in train_batches(session.task, session.world.part, session.epoch, start):
            started = time.perf_counter()
            train_step(session, batch)
            after_step(session, around)
            session.seconds += time.perf_counter() - started
            between_steps(session, around)
            if session.step == session.total_steps:
                break
        if session.step == before:
            raise GetaError(f"the task gave no batch for epoch {session.epoch}; steps_per_epoch() promises some")


def train_step(session: Session, batch: Any) -> None:
    """Do one optimizer step; nothing here waits for the device, fp16's gradient scaler excepted."""
    while True:
        with session.compute.autocast():
            outcome = session.task.loss(session.model, batch)
        loss, metrics = Loss(*outcome) if isinstance(outcome, tuple) else Loss(outcome, {})
        session.scaler.scale(loss).backward()
        scale = session.scaler.get_scale() if session.scaler.is_enabled() else 1.0
        session.scaler.step(session.optimizer)
        session.scaler.update()
        session.optimizer.zero_grad(set_to_none=True)
        if not session.scaler.is_enabled() or session.scaler.get_scale() >= scale:
            break
        if session.scaler.get_scale() < SMALLEST_SCALE:
            raise GetaError(f"gradients in fp16 are not finite at step {session.step}; use run.precision=bf16")
    session.scheduler.step()
    _note_loss(session, loss.detach(), metrics)


def _note_loss(session: Session, loss: Tensor, metrics: Any) -> None:
    bad = (session.first_bad == NEVER) & ~torch.isfinite(loss)
    session.first_bad = torch.where(bad, session.step, session.first_bad)
    for meter in (session.epoch_meter, session.stage_meter):
        meter.add({"loss": loss, **metrics})


def after_step(session: Session, around: Surroundings) -> None:
    """Count the step and show it."""
    session.step += 1
    around.progress.advance(session.step)
    if session.step % LOOK_EVERY == 0:
        check_finite(session, around.checkpoints)


def between_steps(session: Session, around: Surroundings) -> None:
    """Write the numbers of what ended with this step, and a checkpoint when one is due.

    All workers take the same decisions here: they follow from the step alone, but for a request to stop, which counts
    as soon as one worker has seen it.
    """
    done = session.step == session.total_steps
    (stop_signal,) = session.world.largest([around.stop.heard()])
    following = session.next_stage()
    stage_ended = following != session.stage or done
    epoch_ended = session.step % session.task.steps_per_epoch() == 0 or done
    due = done or stop_signal != 0 or session.step % session.config.run.checkpoint_every == 0
    compared = session.world.size > 1 and (stage_ended or due or session.period_ended())
    if not (stage_ended or epoch_ended or due or compared):
        return
    check_finite(session, around.checkpoints)
    if compared:
        check_agreement(session)
    if stage_ended or epoch_ended:
        write_numbers(session, around, stage_ended, epoch_ended)
    if stage_ended:
        session.stage = following
    if due:
        state = gather(session, around.journal.offset())
        with session.world.leader_first():
            if session.world.leads:
                around.checkpoints.save(state, session.step)
        if stop_signal and not done:
            message = f"stopped after step {session.step}; the same command goes on from {around.checkpoints.last()}"
            raise StoppedError(message, stop_signal)


def write_numbers(session: Session, around: Surroundings, stage: bool, epoch: bool) -> None:
    """Measure the model, and write a line for the stage and one for the epoch that ended."""
    started, journal = time.perf_counter(), around.journal
    position = (session.step, session.epoch)
    held_out = {f"val/{key}": value for key, value in evaluate_together(session, "val").items()}
    ended = [meter for meter, over in ((session.stage_meter, stage), (session.epoch_meter, epoch)) if over]
    for meter in ended:
        meter.agree_(session.world)
    if not session.world.leads:
        for meter in ended:
            meter.clear()
        return
    now = {**session.prepared.status(), **session.learning_rates()}
    seconds = {"seconds": round(session.seconds, 3), "evaluation_seconds": round(time.perf_counter() - started, 3)}
    if stage:
        means = {f"train/{key}": value for key, value in session.stage_meter.means().items()}
        metrics = {f"stage/{key}": value for key, value in {**means, **held_out, **now}.items()}
        around.record(journal.append("stage", position, session.stage, metrics))
        session.stage_meter.clear()
    if epoch:
        means = {f"train/{key}": value for key, value in session.epoch_meter.means().items()}
        around.record(journal.append("epoch", position, session.stage, {**means, **held_out, **now}, seconds))
        session.epoch_meter.clear()


def check_finite(session: Session, checkpoints: CheckpointStore) -> None:
    """Stop a training whose loss or parameters are no longer finite; waits for the device.

    Raises:
        GetaError: saying where, and which checkpoint is good.
    """
    first = int(session.first_bad)
    norms = torch.stack(torch._foreach_norm([parameter.detach() for parameter in session.prepared.model.parameters()]))
    broken = not bool(torch.isfinite(norms).all())
    # The earliest of all workers; each must learn of it, or it would wait for the others in the next step.
    latest, broken_anywhere = session.world.largest([-(LATER if first == NEVER else first), int(broken)])
    if latest == -LATER and not broken_anywhere:
        return
    what, step = ("loss", -latest) if latest != -LATER else ("model's parameters", session.step)
    last = checkpoints.last()
    kept = f"the last good checkpoint is {last}" if last else "no checkpoint was written yet"
    epoch = step // session.task.steps_per_epoch()
    raise GetaError(
        f"the {what} must stay finite, but did not at step {step} (epoch {epoch}, stage {session.stage}); {kept}; "
        "lower optimizer.lr, or use run.precision=float32"
    )
