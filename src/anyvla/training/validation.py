"""What a model is worth on held-out windows, and how windows become batches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader

from anyvla.config import Config
from anyvla.data.conversations import ConversationDataset
from anyvla.data.dataset import WindowDataset, collate
from anyvla.data.mixture import MixtureDataset
from anyvla.data.sampler import Item
from anyvla.data.transforms import Transforms
from anyvla.models.vla import VLA
from anyvla.processes import leave_interrupts_to_the_main_process


@torch.no_grad()
def validate(model: VLA, loader: DataLoader, transforms: Transforms, accelerator: Accelerator) -> dict[str, float]:
    """Loss over ``loader``, and the mean absolute error (binary: accuracy) of every dimension in robot units.

    ``first/...`` is that of the first action of the last step's chunk: what a robot would do.
    """
    spec = transforms.spec
    sums = torch.zeros(2 * len(spec) + 1, dtype=torch.float64)  # on the CPU: not every device has float64
    counts = torch.zeros_like(sums)
    model.eval()
    for batch in loader:
        batch = batch.to(accelerator.device)
        with accelerator.autocast():
            losses, actions = model.evaluate(batch)
        acted = actions.shape[1]  # how many of the window's last steps the model acts at
        mask = batch.action_mask[:, -acted:].cpu()
        sums[0] += losses["loss"].cpu() * mask.sum()
        counts[0] += mask.sum()
        predicted = transforms.normalizer.denormalize(actions.float().cpu().numpy())
        target = transforms.normalizer.denormalize(batch.actions[:, -acted:].cpu().numpy())
        error = torch.from_numpy(abs(predicted - target)).to(sums)
        error[..., torch.from_numpy(spec.binary)] = 1 - error[..., torch.from_numpy(spec.binary)]  # accuracy
        mask = mask[..., None].to(sums)
        sums[1 : len(spec) + 1] += (error * mask).sum((0, 1, 2))
        counts[1 : len(spec) + 1] += mask.sum()
        sums[len(spec) + 1 :] += (error[:, -1, 0] * mask[:, -1, 0]).sum(0)
        counts[len(spec) + 1 :] += mask[:, -1, 0].sum()
    model.train()
    both = accelerator.reduce(torch.stack([sums, counts]).float().to(accelerator.device))
    means = (both[0] / both[1].clamp(min=1)).tolist()
    kinds = ["accuracy" if dim.kind == "binary" else "error" for dim in spec.dims]
    names = [f"{kind}/{dim.name}" for kind, dim in zip(kinds, spec.dims, strict=True)]
    return dict(zip(["loss", *names, *(f"first/{name}" for name in names)], means, strict=True))


def loader_of(
    dataset: WindowDataset | MixtureDataset | ConversationDataset,
    batches: Any,
    workers: int,
    collate_fn: Callable[..., Any] = collate,
    ahead: int = 1,
) -> DataLoader:
    """Batches of ``dataset`` as ``batches``, a sampler or a list, says; ``workers`` processes load them, 0: this one.

    ``ahead``: how many are taken together.
    """
    # a generator of its own: making an iterator must not touch the one that dropout draws from
    return DataLoader(
        dataset,  # type: ignore[arg-type]
        batch_sampler=batches,
        collate_fn=collate_fn,
        num_workers=workers,
        prefetch_factor=max(2, -(-ahead // workers)) if workers else None,
        generator=torch.Generator(),
        worker_init_fn=leave_interrupts_to_the_main_process,
        pin_memory=torch.cuda.is_available(),
    )


def validation_loader(dataset: WindowDataset, config: Config, parts: int, rank: int, world_size: int) -> DataLoader:
    """The same windows of one of ``parts`` sources every time, spread evenly over its held-out episodes and the processes."""
    count = min(len(dataset), -(-config.training.validation_windows // parts))
    if config.training.shard:  # every batch is a meeting of all processes, so all of them have as many
        count = max(world_size, count - count % world_size)
    items = [Item(0, i * len(dataset) // count) for i in range(count)][rank::world_size]
    size = config.training.batch_size
    return loader_of(dataset, [items[i : i + size] for i in range(0, len(items), size)], 0)
