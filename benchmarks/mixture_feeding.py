"""Are two training processes kept fed by a mixture? How long each waits for its batch, and for the other process.

    python benchmarks/mixture_feeding.py

Two sources of unequal size (frames of 360 x 640 compressed in HDF5, a window of 8 each): one is drawn three times as often
as the other. Each process takes batches of 8 windows as training does (its rank of the sampler, two loader processes),
waits --compute milliseconds where the model would compute, and meets the other process, as an exchange of gradients does.
"cache" reads the frame store, "direct" decodes the frames of every window anew.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from common import report

from anyvla.config import Config, load_config
from anyvla.data.prepare import prepare_data
from anyvla.data.writers import write_mobile_h5
from anyvla.evaluation.statistics import percentiles


def make_source(folder: Path, episodes: int, seed: int) -> None:
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    for i in range(episodes):
        images = np.repeat(np.repeat(rng.integers(0, 256, (18, 45, 80, 3), dtype=np.uint8), 8, axis=1), 8, axis=2)
        write_mobile_h5(folder / f"{i}.h5", images, rng.uniform(-1, 1, (18, 3)), "go", fps=2.5)


def settings(folder: Path, store: str) -> Config:
    sources = ", ".join(f"{name}: {{type: mobile_h5, path: {folder / name}}}" for name in ("large", "small"))
    mixture = f"data.source={{type: mixture, weights: {{large: 3, small: 1}}, sources: {{{sources}}}}}"
    size = "observation.image_size=[112,224]"
    return load_config("nav-tiny", [mixture, size, f"data.store={store}", f"data.cache={folder / 'cache'}", "data.workers=2"])


def one_process(folder: Path, store: str, steps: int, compute: float, out: Path) -> None:
    """Of two; started by ``torch.distributed.run``."""
    import torch.distributed as dist

    from anyvla.training.validation import loader_of

    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    config = settings(folder, store)
    data = prepare_data(config)
    batches = iter(loader_of(data.train, data.sampler(8, 0, rank, world, config.data), config.data.workers))
    next(batches)
    dist.barrier()
    for_data, for_other = [], []
    for _ in range(steps):
        began = time.perf_counter()
        next(batches)
        got = time.perf_counter()
        time.sleep(compute / 1e3)
        ready = time.perf_counter()
        dist.barrier()
        for_data.append(1e3 * (got - began))
        for_other.append(1e3 * (time.perf_counter() - ready))
    waits = {
        what: {name: round(value, 2) for name, value in percentiles(times).items()}
        for what, times in (("for its batch", for_data), ("for the other process", for_other))
    }
    (out / f"{store}-{rank}.json").write_text(json.dumps(waits))
    dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--compute", type=float, default=300.0, help="milliseconds of a training step without its data")
    parser.add_argument("--child", nargs=3, metavar=("FOLDER", "STORE", "OUT"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        folder, store, out = arguments.child
        one_process(Path(folder), store, arguments.steps, arguments.compute, Path(out))
        return
    results: dict[str, Any] = {"steps": arguments.steps, "compute_ms": arguments.compute, "wait_ms": {}}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        make_source(folder / "large", 60, 0)
        make_source(folder / "small", 10, 1)
        prepare_data(settings(folder, "cache"))  # fills the store once, before two processes ask for it
        for store in ("cache", "direct"):
            command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", __file__]
            command += ["--steps", str(arguments.steps), "--compute", str(arguments.compute)]
            began = time.perf_counter()
            subprocess.run(
                [*command, "--child", scratch, store, scratch], check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
            )
            seconds = time.perf_counter() - began
            results["wait_ms"][store] = {
                f"process {rank}": json.loads((folder / f"{store}-{rank}.json").read_text()) for rank in (0, 1)
            }
            results["wait_ms"][store]["seconds, start and end included"] = round(seconds, 1)
    report("mixture_feeding", results)


if __name__ == "__main__":
    main()
