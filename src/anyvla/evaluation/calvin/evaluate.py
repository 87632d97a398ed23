"""``evaluate_calvin``: a policy on the chains of CALVIN, by the protocol of the benchmark, counted, resumable."""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import yaml

import anyvla
from anyvla.checkpoint import Which, resolve_checkpoint
from anyvla.config.tree import ExecutionConfig
from anyvla.errors import ConfigError
from anyvla.evaluation.calvin.chains import CHAINS, SUBTASKS, evaluation_chains
from anyvla.evaluation.calvin.checkout import check_checkout, read_sentences, read_surfaces
from anyvla.evaluation.calvin.drivers import Frame, PolicyDriver
from anyvla.evaluation.calvin.probes import make_jobs
from anyvla.evaluation.calvin.rollouts import MAX_STEPS, ChainResult, Driver, Job, drive_chains
from anyvla.evaluation.calvin.simulator import Simulator
from anyvla.evaluation.driving import fingerprint, machine
from anyvla.evaluation.log import EpisodeLog
from anyvla.evaluation.plots import film
from anyvla.evaluation.results import rate
from anyvla.evaluation.statistics import bootstrap_interval, percentiles
from anyvla.evaluation.tasks import Probe
from anyvla.policies.execution import replans_every
from anyvla.policies.policy import Policy
from anyvla.progress import progress_bar


def evaluate_calvin(
    run: Path | Driver,
    calvin_root: Path,
    *,
    chains: int = CHAINS,
    seed: int = 0,
    probe: Probe = "none",
    checkpoint: Which = "last",
    execution: ExecutionConfig | None = None,
    workers: int = 2,
    python: str | None = None,
    log_file: Path | None = None,
    videos: Path | None = None,
    films: int = 5,
    max_steps: int = MAX_STEPS,
    description: str = "evaluate",
) -> dict[str, Any]:
    """Drive the first ``chains`` chains with the policy of ``run`` and return the result file's content.

    Args:
        run: a run or checkpoint folder, or a driver of one's own. calvin_root: the user's checkout of CALVIN.
        seed: 0 is the published order of the chains. execution: instead of the run's own.
        workers: environments, each in a process of its own. python: the interpreter that has CALVIN's packages.
        log_file: gets every finished chain at once; chains of this very evaluation that it holds are not driven again.
        videos: folder of films of the first ``films`` failures: the static camera during the subtask that failed.
        max_steps: of a subtask; another number than 360 is another benchmark.

    Raises:
        CheckpointError, SimulationError, ConfigError.
    """
    began = time.perf_counter()
    check_checkout(calvin_root)
    if workers < 1:
        raise ConfigError(f"the number of workers must be at least 1, not {workers}")
    jobs = make_jobs(evaluation_chains(chains, seed), read_sentences(calvin_root), read_surfaces(calvin_root), probe, seed)
    about: dict[str, Any] = {"env": "calvin", "scene": "D", "seed": seed, "probe": probe, "max_steps": max_steps}
    driver: Driver
    if isinstance(run, Path):
        folder = resolve_checkpoint(run, checkpoint)
        source, frame = _trained_on(folder)
        policy = Policy.load(run, checkpoint=checkpoint, execution=execution, source=source)
        driver = PolicyDriver(policy, frame)
        about |= {
            "policy": str(run),
            "checkpoint": fingerprint(folder),
            "execution": policy.config.execution.model_dump(),
            "replans_every": replans_every(policy.config.execution),
            "safety": policy.config.safety.model_dump(),
            "frame": frame,
        }
    else:
        if execution is not None:
            raise ConfigError("execution is for policies: this driver decides itself when to look")
        driver = run
        about |= {"policy": type(run).__name__, "checkpoint": None, "execution": None, "replans_every": None}
    log = EpisodeLog(
        log_file,
        {**about, "policy": None, "chains": chains, "jobs": _fingerprint_of(jobs), "anyvla": anyvla.__version__},
        ChainResult.from_dict,
    )
    done = {result.index for result in log.results}
    rest = [job for job in jobs if job.chain.index not in done]
    failures = sum(not result.success for result in log.results)
    with progress_bar(description, len(jobs), done=len(done)) as bar:

        def on_result(result: ChainResult) -> None:
            nonlocal failures
            log.add(result)
            failures += not result.success
            if videos is not None and not result.success and failures <= films:
                _write_film(videos, result)
            bar.advance(note=f"average length {sum(r.solved for r in log.results) / len(log.results):.2f}")

        if rest:
            try:
                with _started(calvin_root, driver, min(workers, len(rest)), python) as simulators:
                    about["simulator"] = simulators[0].versions
                    keep = videos is not None and failures < films
                    drive_chains(simulators, rest, driver, on_result, keep_frames=keep, max_steps=max_steps)
            finally:
                log.add_seconds(time.perf_counter() - began)
    return {**about, **summarize_chains(log.results), "wall_time_s": log.seconds}


def summarize_chains(results: Sequence[ChainResult]) -> dict[str, Any]:
    """Counts, intervals and the chains themselves, in the order of their indices.

    ``successes`` counts whole chains; ``in_a_row`` says for 1 to 5 how many chains got that far. ``average_length95`` is a
    bootstrap's, as in ``anyvla compare``: it has no width where all chains ended alike, and then ``in_a_row`` says more.
    """
    results = sorted(results, key=lambda result: result.index)
    count = len(results)
    total = sum(result.solved for result in results)
    subtasks = [subtask for result in results for subtask in result.subtasks]
    names = sorted({subtask["task"] for subtask in subtasks})
    return {
        **rate([result.success for result in results]),
        "in_a_row": {str(n): rate([result.solved >= n for result in results]) for n in range(1, SUBTASKS + 1)},
        "average_length": total / count,
        "average_length95": list(bootstrap_interval([result.solved for result in results])),
        "per_task": {name: rate([one["success"] for one in subtasks if one["task"] == name]) for name in names},
        "failures": dict(Counter(r.tasks[r.solved] for r in results if not r.success).most_common()),
        "step_latency_ms": percentiles([ms for result in results for ms in result.latency_ms]),
        "safety_stops": sum(result.stops for result in results),
        "results": [result.to_dict() for result in results],
        "machine": machine(),
    }


def describe_result(result: dict[str, Any]) -> list[str]:
    """The lines that the command line prints."""
    low, high = result["average_length95"]
    rates = " ".join(f"{n}/5 {one['successes'] / one['episodes']:.1%}" for n, one in result["in_a_row"].items())
    every = result["replans_every"]
    return [
        f"average length {result['average_length']:.3f} of 5 (95 % {low:.3f} to {high:.3f}) over {result['episodes']} chains",
        f"in a row: {rates}",
        f"probe {result['probe']}; " + (f"predicts every {every} step{'s' * (every > 1)}" if every else "scripted"),
    ]


def _trained_on(folder: Path) -> tuple[str | None, Frame]:
    """Of a checkpoint: the CALVIN source's name where it was trained on a mixture, and the frame of its relative actions."""
    source = yaml.safe_load((folder / "config.yaml").read_text())["data"]["source"]
    name = None
    if source["type"] == "mixture":
        named = {name: one for name, one in source["sources"].items() if one["type"] == "calvin"}
        if len(named) != 1:
            raise ConfigError(
                f"{folder}: trained on several sources, of which {len(named)} are of the type calvin: it cannot be told which "
                f"of them has the scale of CALVIN's actions ({', '.join(source['sources'])})"
            )
        ((name, source),) = named.items()
    return name, "tcp" if source.get("frame") == "tcp" else "world"


@contextmanager
def _started(root: Path, driver: Driver, count: int, python: str | None) -> Iterator[list[Simulator]]:
    """Environments, ended at exit whatever happens; they take seconds to load and do so at the same time."""
    with ExitStack() as stack:
        with ThreadPoolExecutor(count) as pool:
            starting = [pool.submit(Simulator, root, driver.cameras, python) for _ in range(count)]
        for one in starting:
            if one.exception() is None:
                stack.enter_context(one.result())
        yield [one.result() for one in starting]


def _write_film(folder: Path, result: ChainResult) -> None:
    if result.frames:
        folder.mkdir(parents=True, exist_ok=True)
        moving, _ = film(result.frames)
        (folder / f"chain-{result.index:04d}-{result.tasks[result.solved]}.webp").write_bytes(moving)


def _fingerprint_of(jobs: Sequence[Job]) -> str:
    digest = hashlib.sha256()
    for job in jobs:
        digest.update(repr((job.chain, job.sentences)).encode())
        digest.update(job.robot_obs.tobytes() + job.scene_obs.tobytes())
    return digest.hexdigest()[:16]
