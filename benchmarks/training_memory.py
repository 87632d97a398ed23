"""Peak memory and time of a training step: ours beside the textbook way, with and without gradient checkpointing.

    python benchmarks/training_memory.py [--models paligemma kosmos2] [--batch 4] [--window 8] [--steps 10]
    python benchmarks/training_memory.py --device cuda --dtype bf16 --batch 16

Both compute the same loss of the same model: random, of middle size, with a vocabulary of full size (see random_models.py). The
textbook way is ``model(**inputs, output_hidden_states=True)``: logits at every position and hidden states of every layer, of
which the last one's are used at the query tokens. A step is forward and backward, with gradients; an optimiser would add the
same to both. Every variant has a process of its own.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import torch
from common import in_fresh_process, milliseconds, peak_memory_mib, report
from random_models import PROMPT, random_vla

from anyvla.actions import NAV2
from anyvla.batch import Batch
from anyvla.models.tuning import enable_gradient_checkpointing
from anyvla.models.vla import ContinuousVLA

VARIANTS = ("textbook", "ours", "textbook, checkpointing", "ours, checkpointing")
HEAD = "{type: lstm, hidden: 512, layers: 2}"  # in proportion to the model
CHUNK = 10
# left alone, glibc keeps freed blocks of up to 32 MiB for later: now the resident memory is what is in use
MALLOC = {"MALLOC_MMAP_THRESHOLD_": str(2**20)}
MIB = 2**20


def textbook_features(vla: ContinuousVLA, batch: Batch) -> torch.Tensor:
    """(B, H, Q, D): what ``vla.features`` gives, by way of all logits and all hidden states."""
    backbone = vla.backbone
    images = batch.images["front"]
    normalised = backbone.pixels(images.flatten(0, 1))
    prompts = [prompt for prompt in batch.prompts for _ in range(images.shape[1])]
    sequence = backbone.sequence(prompts, [[1]] * len(prompts))
    inputs = backbone.family.inputs(sequence, normalised)
    assert backbone.queries is not None
    with backbone._slots_in([(sequence.queries.flatten(1), backbone.queries[None])], sequence.ids.shape[1]):
        output = backbone.model(**inputs, output_hidden_states=True)
    assert output.logits.shape[:2] == sequence.ids.shape
    return backbone.readout(output.hidden_states[-1], sequence)[:, 0].unflatten(0, images.shape[:2])


def measure(task: dict[str, Any]) -> dict[str, Any]:
    """Run one variant; or, without one, say how far the features of the two ways are apart."""
    device = torch.device(task["device"])
    cuda = device.type == "cuda"
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        vla = random_vla(task["model"], Path(folder), "policy_head", HEAD, task["window"], CHUNK, task["tiny"]).to(device)
    shape = (task["batch"], task["window"])
    batch = Batch(
        {"front": torch.randint(0, 256, (*shape, 3, *vla.backbone.image_size), dtype=torch.uint8, device=device)},
        [PROMPT] * shape[0],
        torch.rand(*shape, CHUNK, len(NAV2), device=device),
        torch.ones(*shape, CHUNK, dtype=torch.bool, device=device),
        [""] * shape[0],
    )
    if task["variant"] is None:
        with torch.no_grad():
            vla.eval()
            difference = textbook_features(vla, batch) - vla.features(batch.images, batch.prompts)
        return {"parameters": sum(p.numel() for p in vla.parameters()), "difference": difference.abs().max().item()}
    vla.train()
    if "checkpointing" in task["variant"]:
        enable_gradient_checkpointing(vla.backbone.model)

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=task["dtype"] == "bf16"):
            if task["variant"].startswith("ours"):
                loss = vla(batch)["loss"]
            else:
                loss, _ = vla.head.loss(textbook_features(vla, batch), batch.actions, batch.action_mask)
        loss.backward()
        vla.zero_grad()
        if cuda:
            torch.cuda.synchronize()

    model_mib = torch.cuda.memory_allocated() / MIB if cuda else psutil.Process().memory_info().rss / MIB
    began = time.process_time()
    times = milliseconds(step, task["steps"], warm_up=1)
    cpu = (time.process_time() - began) / (task["steps"] + 1)
    peak_mib = torch.cuda.max_memory_allocated() / MIB if cuda else peak_memory_mib()
    return {
        "step_ms": times,
        "processor_ms_mean": round(1e3 * cpu, 1),
        "model_mib": round(model_mib),
        "peak_mib": round(peak_mib),
        "above_model_mib": round(peak_mib - model_mib),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--models", nargs="+", default=["paligemma", "kosmos2"])
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--window", type=int, default=8)
    parser.add_argument("--steps", type=int, default=10, help="measured in each process")
    parser.add_argument("--repeats", type=int, default=1, help="processes of each variant, in turn; medians are reported")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=["fp32", "bf16"], default="fp32", help="bf16: of computations, weights stay fp32")
    parser.add_argument("--task", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.task is not None:
        print(json.dumps(measure(arguments.task)))
        return
    settings = {name: getattr(arguments, name) for name in ("batch", "window", "steps", "device", "dtype")}
    results: dict[str, Any] = {**settings, "threads": arguments.threads, "repeats": arguments.repeats, "models": {}}
    for model in arguments.models:
        task = {**settings, "model": model, "variant": None, "tiny": False}
        found = in_fresh_process(__file__, task, arguments.threads, MALLOC)
        assert found["difference"] < 1e-4, "both ways must give the same features"
        runs: dict[str, list[dict[str, Any]]] = {variant: [] for variant in VARIANTS}
        for _ in range(arguments.repeats):
            for variant in VARIANTS:
                runs[variant].append(in_fresh_process(__file__, {**task, "variant": variant}, arguments.threads, MALLOC))
        results["models"][model] = found | {variant: _median(repeated) for variant, repeated in runs.items()}
    report("training_memory", results)


def _median(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The median of every number."""
    return {
        key: _median([run[key] for run in runs]) if isinstance(value, dict) else statistics.median(run[key] for run in runs)
        for key, value in runs[0].items()
    }


if __name__ == "__main__":
    main()
