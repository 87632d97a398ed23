"""One combination of backbone, structure, head and action spec, and the checks that every one of them must pass."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from anyvla.actions import ActionSpec, fit_normalizer
from anyvla.actions.spec import action_spec
from anyvla.batch import Batch
from anyvla.checkpoint import build_model
from anyvla.config import Config, parse_config
from anyvla.data.transforms import Transforms
from anyvla.models.vla import VLA

PROMPTS = ["Stop.", "Pass the box on the left and stop in front of the bottle."]
CHUNK = 3
SIZES = {
    "fc": "hidden: 16, trunk: [16]",
    "lstm": "hidden: 16, layers: 2, trunk: [16]",
    "gpt": "hidden: 16, layers: 1, attention_heads: 2, dropout: 0.0, trunk: [16]",
    "flow": "hidden: 32, layers: 1, attention_heads: 2, steps: 4",
    "discrete": "bins: 16",
}


class Case:
    """``backbone``: ``tiny``, or the folder of a pretrained model whose images have ``size``."""

    def __init__(
        self,
        backbone: str | Path,
        structure: str,
        head: str,
        spec: str = "nav2",
        *,
        size: tuple[int, int] = (32, 48),
        window: int = 4,
        overrides: Sequence[str] = (),
    ) -> None:
        self.structure, self.head, self.chunk = structure, head, CHUNK
        self.window = 1 if structure == "one_step" else window
        self.spec: ActionSpec = action_spec(spec)
        model = (
            "{type: tiny, width: 32, vision_layers: 1, language_layers: 2}"
            if backbone == "tiny"
            else f"{{type: pretrained, path: {backbone}}}"
        )
        self.config: Config = parse_config(
            "{}",
            [
                f"actions={{spec: {spec}, window: {self.window}, chunk: {CHUNK}}}",
                f"model.backbone={model}",
                f"model.structure.type={structure}",
                f"model.head={{type: {head}, {SIZES[head]}}}",
                "model.queries=2",
                f"observation.image_size={list(size)}",
                *overrides,
            ],
        )
        ones = np.ones(len(self.spec))
        self.transforms = Transforms(
            spec=self.spec,
            normalizer=fit_normalizer("quantile", {"q01": -ones, "q99": ones}, self.spec),
            statistics={"q01": -ones, "q99": ones},
            cameras=("front",),
            image_size=size,
            fit="stretch",
            prompt_template="{instruction}",
            window=self.window,
            chunk=CHUNK,
            fps=2.5,
        )
        torch.manual_seed(0)
        self.model: VLA = build_model(self.config, self.transforms)
        generator = torch.Generator().manual_seed(1)
        self.images = torch.randint(0, 256, (2, 9, 3, *size), dtype=torch.uint8, generator=generator)
        self.actions = torch.rand(2, self.window, CHUNK, len(self.spec), generator=generator) - 0.5
        self.actions[..., torch.from_numpy(self.spec.binary)] = 1.0
        self.mask = torch.ones(2, self.window, CHUNK, dtype=torch.bool)

    def predict(self, images: torch.Tensor, prompts: Sequence[str] = PROMPTS) -> torch.Tensor:
        return self.model.predict({"front": images}, prompts)

    def batch(self) -> Batch:
        return Batch({"front": self.images[:, : self.window]}, PROMPTS, self.actions, self.mask, ["a@0", "b@0"])

    def loss(self) -> torch.Tensor:
        torch.manual_seed(2)  # flow matching draws noise
        return self.model(self.batch())["loss"]

    def check_the_loss_falls(self, steps: int = 60, learning_rate: float = 1e-2, below: float = 0.6) -> None:
        optimizer = torch.optim.Adam([p for p in self.model.parameters() if p.requires_grad], lr=learning_rate)
        losses = []
        for _ in range(steps):
            loss = self.loss()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < below * losses[0], losses

    def check_gradients(self, inside: bool = True) -> None:
        """Gradients reach the query tokens, the head, every tower (if ``inside``), and nothing that is frozen."""
        self.model.zero_grad()
        self.loss().backward()
        groups = {"head": list(self.model.head.parameters()), "queries": [self.model.backbone.queries]}
        for name, parameters in (groups | (self.model.backbone.towers() if inside else {})).items():
            assert any(p.grad is not None and p.grad.abs().max() > 0 for p in parameters), name
        assert all(p.grad is None for p in self.model.parameters() if not p.requires_grad)

    def exact(self) -> float:
        """Bring the model to evaluation in double precision; returns the tolerance for what differs by rounding only."""
        self.model.eval()
        if self.model.backbone.model.config.model_type == "kosmos-2":  # its masks overflow in double precision
            return 1e-4
        self.model.double()
        return 1e-6

    def check_padded_equals_alone(self) -> None:
        tolerance = self.exact()
        windows = self.images[:, : self.window]
        together = self.predict(windows)
        alone = torch.cat([self.predict(windows[i : i + 1], PROMPTS[i : i + 1]) for i in range(2)])
        torch.testing.assert_close(together, alone, atol=tolerance, rtol=0)

    def check_streaming_equals_windowed(self, keep: int | None = None) -> None:
        """Episode by episode, step by step, the same as the window that ends here; two episodes at different steps."""
        tolerance = self.exact()
        if keep is not None:
            self.model.keep = keep
        states = [self.model.init_state(), self.model.init_state()]
        _, (states[1],) = self.model.step({"front": self.images[1:, 0]}, PROMPTS[1:], [states[1]])
        for t in range(8):
            now = torch.stack([self.images[0, t], self.images[1, t + 1]])
            streamed, states = self.model.step({"front": now}, PROMPTS, states)
            for row, at in enumerate((t, t + 1)):
                first = self.window_start(at)
                windowed = self.predict(self.images[row : row + 1, first : at + 1], PROMPTS[row : row + 1])[:, -1]
                torch.testing.assert_close(streamed[row : row + 1], windowed, atol=tolerance, rtol=0)

    def window_start(self, t: int) -> int:
        """The first frame that the model looks back on at step ``t``."""
        if self.structure != "interleaved":
            return max(0, t - self.window + 1)
        start = 0
        for now in range(t + 1):
            if now - start >= self.window:
                start = now - self.model.keep
        return start
