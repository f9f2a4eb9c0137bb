"""Several workers on GPUs: ``python -m tests.gpu.workers FOLDER RANK SIZE BACKEND SYNC``; needs torch alone."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from orchestration.device import Compute
from orchestration.parallel import SharedNorms
from orchestration.world import LOOPBACK, Group, World
from tests.gpu.training import SCHEDULE, Training

BATCH, EARLY, LIMIT = 8, 5, 300.0
ROOT = Path(__file__).resolve().parents[2]


def train(world: World, device: torch.device, sync: bool) -> dict[str, Any]:
    """Train through all stages as one of the workers, and return the masks at every period and the early weights.

    Args:
        world: the workers, each with its rows of every batch.
        device: of this worker.
        sync: take batch statistics over all workers; else they are frozen.
    """
    training = Training(device, dtype=torch.float64, batch=BATCH)
    model: nn.Module = training.model
    norms = SharedNorms(model, Compute(device, torch.float32, False)) if sync and world.size > 1 else None
    if world.size > 1:
        model = DistributedDataParallel(model, device_ids=[device])
    masks, early = [], {}
    for step in range(SCHEDULE.total):
        if not sync:
            for module in training.model.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        half = slice(0, BATCH) if step % 2 else slice(BATCH, None)
        images, targets = (world.part.rows(each[half]) for each in (training.images, training.targets))
        F.cross_entropy(model(images), targets).backward()
        training.optimizer.step()
        training.optimizer.zero_grad()
        if SCHEDULE.boundary(step):
            masks.append(training.optimizer.pruned.cpu())
        if step + 1 == EARLY:
            early = {
                name: value.detach().cpu()
                for name, value in training.model.state_dict().items()
                if isinstance(value, torch.Tensor) and value.is_floating_point()
            }
    if norms is not None:
        norms.restore_()
        assert not any(isinstance(module, nn.SyncBatchNorm) for module in training.model.modules())
    return {"masks": masks, "early": early, "bits": training.optimizer.fixed_bits()}


def together(folder: Path, backend: str, sync: bool, devices: int) -> list[dict[str, Any]]:
    """Let two processes train on one GPU or on two, and return what each found."""
    arguments = [backend, str(int(sync)), str(devices)]
    log = (folder / "log").open("wb")
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.gpu.workers", str(folder), str(rank), "2", *arguments],
            cwd=ROOT,
            stdout=log,
            stderr=log,
        )
        for rank in range(2)
    ]
    try:
        codes = [process.wait(LIMIT) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
        log.close()
    assert codes == [0, 0], (folder / "log").read_text()[-3000:]
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


def main() -> None:
    folder, rank, size, backend, sync, devices = sys.argv[1:]
    device = torch.device("cuda", int(rank) % int(devices))
    torch.cuda.set_device(device)
    address = Path(folder, "meet")

    def meet(text: str | None) -> str:
        if text is not None:
            address.with_suffix(".new").write_text(text)
            address.with_suffix(".new").replace(address)
        until = time.monotonic() + LIMIT
        while not address.exists() and time.monotonic() < until:
            time.sleep(0.05)
        return address.read_text()

    world = Group.join(int(rank), int(size), meet, host=LOOPBACK, backend=backend, timeout_s=LIMIT)
    torch.save(train(world, device, sync == "1"), Path(folder, f"{rank}.pt"))
    world.close()


if __name__ == "__main__":
    main()
