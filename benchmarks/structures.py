"""Every structure with its heads on the navigation world: one small backbone, the same data, the same worlds.

    python benchmarks/structures.py --out runs/structures            # 8 to 18 minutes a row on a core
    python benchmarks/structures.py --out runs/structures --only one_step-fc

Rows that are finished are not trained again; the table goes into results/structures.json and, as Markdown, to the terminal.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from common import report

from anyvla.config import load_config
from anyvla.evaluation.navigation import evaluate_nav
from anyvla.training.loop import train

ROWS = {
    "one_step-fc": ("one_step", "{type: fc, hidden: 192, trunk: [256, 128]}"),
    "one_step-flow": ("one_step", "{type: flow, hidden: 128, layers: 2, attention_heads: 4}"),
    "one_step-discrete": ("one_step", "{type: discrete}"),
    "interleaved-fc": ("interleaved", "{type: fc, hidden: 192, trunk: [256, 128]}"),
    "interleaved-flow": ("interleaved", "{type: flow, hidden: 128, layers: 2, attention_heads: 4}"),
    "interleaved-discrete": ("interleaved", "{type: discrete}"),
    "policy_head-lstm": ("policy_head", "{type: lstm, hidden: 192, layers: 1, trunk: [256, 128]}"),
    "policy_head-gpt": ("policy_head", "{type: gpt, hidden: 192, layers: 2, attention_heads: 4, trunk: [256, 128]}"),
    "policy_head-flow": ("policy_head", "{type: flow, hidden: 128, layers: 2, attention_heads: 4}"),
}
IMAGE_SIZE = (126, 224)
FRAMES = 128  # per optimiser step, whatever the window


def run_row(name: str, out: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Train and evaluate one row; what is finished is read."""
    result_file = out / f"{name}.json"
    if result_file.exists():
        result: dict[str, Any] = json.loads(result_file.read_text())
        return result
    structure, head = ROWS[name]
    window = 1 if structure == "one_step" else 8
    config = load_config(
        "nav-tiny",
        [
            f"seed={arguments.seed}",
            f"out={out / name}",
            f"data.source.path={out / 'data'}",
            f"data.cache={out / 'cache'}",
            f"model.structure.type={structure}",
            f"model.head={head}",
            f"actions.window={window}",
            f"training.batch_size={FRAMES // window}",
            f"training.steps={arguments.steps}",
            "training.validate_every=300",
            "training.validation_windows=128",
        ],
    )
    run = train(config, resume=True)
    evaluation = evaluate_nav(
        run, episodes=arguments.episodes, seed=arguments.seed, image_size=IMAGE_SIZE, log_file=out / f"{name}.jsonl"
    )
    result = {key: evaluation[key] for key in ("successes", "episodes", "wilson95", "failures")}
    result |= {"structure": structure, "head": config.model.head.type, "window": window}
    result_file.write_text(json.dumps(result))
    return result


def markdown(rows: dict[str, dict[str, Any]]) -> str:
    lines = ["| structure | head | window | success | 95 % Wilson |", "|---|---|---|---|---|"]
    for row in rows.values():
        low, high = row["wilson95"]
        lines.append(
            f"| `{row['structure']}` | `{row['head']}` | {row['window']} | {row['successes']}/{row['episodes']} "
            f"| {low:.2f} to {high:.2f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, default=Path("runs/structures"))
    parser.add_argument("--only", nargs="*", default=list(ROWS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=900)
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--demonstrations", type=int, default=520)
    arguments = parser.parse_args()
    from anyvla.simulation.gl import choose_backend

    choose_backend()
    from anyvla.simulation.collect import collect_nav

    out = arguments.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    collect_nav(out / "data", "1box", arguments.demonstrations, arguments.seed, IMAGE_SIZE, workers=2)
    rows = {name: run_row(name, out, arguments) for name in arguments.only}
    settings = {key: getattr(arguments, key) for key in ("seed", "steps", "episodes", "demonstrations")}
    report("structures", {"settings": settings, "frames_per_step": FRAMES, "rows": rows})
    print(markdown(rows))


if __name__ == "__main__":
    main()
