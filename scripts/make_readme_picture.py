"""Make ``docs/images/demo.jpg``: one world driven twice by a trained policy, once for each sentence.

python scripts/make_readme_picture.py runs/demo/run [--seed 11]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from anyvla.data.sources.mobile_h5 import CAMERA
from anyvla.policies.policy import Policy
from anyvla.simulation.env import BoxNav
from anyvla.simulation.gl import choose_backend
from anyvla.simulation.seeds import evaluation_seed

OUT = Path(__file__).parents[1] / "docs/images/demo.jpg"
VIEW, OVERVIEW, GAP = (180, 320), (372, 496), 12  # (height, width)


def drive(policy: Policy, env: BoxNav, side: str, seed: int) -> tuple[str, np.ndarray, list[np.ndarray], bool]:
    """The sentence, an overview of the moment beside the box, four images that the policy saw, and the success."""
    observation, info = env.reset(seed=seed, options={"scenario": f"1box_hori_{side}", "split": "held_out"})
    policy.reset(info["instruction"])
    box = env.layout()["boxes"][0]["center"][0]
    images, overview, over = [], env.render(), False
    while not over:
        images.append(observation["image"])
        observation, _, terminated, truncated, info = env.step(policy.act({CAMERA: observation["image"]}))
        if env.pose[0] < box + 0.2:
            overview = env.render()
        over = terminated or truncated
    picked = [images[round(i * (len(images) - 1) / 3)] for i in range(4)]
    return info["instruction"], overview, picked, info["success"]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("run", type=Path)
    parser.add_argument("--seed", type=int, default=11)
    arguments = parser.parse_args()
    choose_backend()
    policy = Policy.load(arguments.run)
    env = BoxNav("1box", image_size=VIEW, render_mode="rgb_array")
    height = OVERVIEW[0] + 34 + GAP
    picture = Image.new("RGB", (OVERVIEW[1] + 2 * VIEW[1] + 4 * GAP, 2 * height + GAP), "white")
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(size=19)
    for row, side in enumerate(("left", "right")):
        sentence, overview, images, success = drive(policy, env, side, evaluation_seed(0, arguments.seed))
        print(sentence, "success" if success else "failed")
        top = GAP + row * height
        draw.text((GAP, top), f"“{sentence}”", fill="#222222", font=font)
        top += 34
        image = Image.fromarray(overview).resize((OVERVIEW[1], OVERVIEW[0]), Image.Resampling.LANCZOS)
        picture.paste(image, (GAP, top))
        for i, view in enumerate(images):
            place = (OVERVIEW[1] + 2 * GAP + (i % 2) * (VIEW[1] + GAP), top + (i // 2) * (VIEW[0] + GAP))
            picture.paste(Image.fromarray(view), place)
    OUT.parent.mkdir(parents=True, exist_ok=True)
    picture.save(OUT, quality=88)
    print(OUT, OUT.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
