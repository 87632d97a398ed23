"""The one adapter between vision-language models and everything behind them: images and prompts in, query features out.

Query tokens are slots in the model's own sequence. They are put right behind the last real token, a hook on the input embedding
writes the learnable vectors into them, and the hidden states at these places come back. Merging of images, masks and positions
stay the model's own; the vocabulary head meets only the tokens of answers (``text_loss``). What differs between families is in
``families``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from anyvla.config.model import PoolingConfig
from anyvla.errors import ConfigError, DataError
from anyvla.models.backbones.families import Family
from anyvla.models.backbones.sequence import TokenSequence, build_sequence
from anyvla.models.resampler import PerceiverResampler

# the towers by which parameters are frozen, grouped and counted
TOWERS = ("vision", "connector", "language")

Slots = list[tuple[torch.Tensor, torch.Tensor]]  # places (N, K) and the vectors (N, K, D) that stand there


class Backbone(nn.Module):
    """A vision-language model with Q learnable query tokens, and what may stand around it.

    Attributes:
        width: D, the width of its hidden states. readouts: features per frame, Q, or 1 with pooling.
        image_size: (h, w) of the images it takes. family: see ``families``.
        resampler: a Perceiver between connector and language model, or None. state_encoder: state -> one token, or None.
    """

    pixel_mean: torch.Tensor
    pixel_std: torch.Tensor

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        family: Family,
        queries: int,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        *,
        pooling: PoolingConfig | None = None,
        resampler: PerceiverResampler | None = None,
        state_size: int = 0,
    ) -> None:
        super().__init__()
        self.model = model
        self.tokenizer = tokenizer
        self.family = family
        self.image_size = family.image_size
        self.pooling = pooling
        self.resampler = resampler
        if resampler is not None:
            family.connector_module(model)  # there must be one
            family.tokens_per_image = resampler.latents.shape[0]
        scale = self.embedding_scale()
        self.width = model.get_input_embeddings().weight.shape[1]
        # as large as the embeddings among which they will stand: a query of 0 would get no gradient through the first norm
        self.queries = nn.Parameter(torch.randn(queries, self.width) * scale) if pooling is None else None
        self.readouts = queries if pooling is None else 1
        self.state_size = state_size
        self.state_encoder = nn.Linear(state_size, self.width) if state_size else None
        if self.state_encoder is not None:
            nn.init.normal_(self.state_encoder.weight, std=scale)
            nn.init.normal_(self.state_encoder.bias, std=scale)
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(1, 3, 1, 1) * 255, persistent=False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(1, 3, 1, 1) * 255, persistent=False)
        family.black = -self.pixel_mean / self.pixel_std

    @torch.no_grad()
    def embedding_scale(self) -> float:
        """Standard deviation of what the input embedding gives, which some families scale inside it."""
        embedding = self.model.get_input_embeddings()
        if embedding.weight.is_meta:
            return 0.02
        words = torch.arange(min(4096, len(embedding.weight)), device=embedding.weight.device)
        return embedding(words).float().std().item()

    @property
    def device(self) -> torch.device:
        return self.pixel_mean.device

    def encode(self, images: torch.Tensor, prompts: Sequence[str], state: torch.Tensor | None = None) -> torch.Tensor:
        """Features of N observations, each for itself.

        Args:
            images: (N, C, 3, h, w) uint8 RGB, C cameras. prompts: N strings. state: (N, S), where the model takes one.

        Returns:
            (N, Q, D): hidden states, after the last norm, at the query tokens.
        """
        return self.encode_windows(images[:, None], prompts, state if state is None else state[:, None])[0][:, 0]

    def encode_windows(
        self,
        images: torch.Tensor,
        prompts: Sequence[str],
        state: torch.Tensor | None = None,
        *,
        present: torch.Tensor | None = None,
        suffix: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Features of N windows of H frames, each window one sequence, causal from frame to frame.

        Args:
            images: (N, H, C, 3, h, w) uint8 RGB. prompts: N strings. state: (N, H, S).
            present: (N, C) bool, False where a row lacks a camera; all if None. suffix: (N, K, D) embeddings behind the window.

        Returns:
            (N, H, Q, D) hidden states at the query tokens, and (N, K, D) at the suffix.
        """
        count, window, cameras = images.shape[:3]
        counts = [[n] * window for n in images_per_row(count, cameras, present)]
        flat = images.flatten(0, 2) if present is None else images[present[:, None].expand(count, window, cameras)]
        sequence = self.sequence(prompts, counts, suffix=0 if suffix is None else suffix.shape[1])
        hidden = self.run(sequence, self.family.inputs(sequence, self.pixels(flat)), state, suffix)
        return self.readout(hidden, sequence), gather(hidden, sequence.suffix)

    def text_loss(
        self,
        images: torch.Tensor,
        prompts: Sequence[str],
        answers: Sequence[str],
        *,
        present: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Mean next-token cross-entropy of N answers, each ended by the end-of-sequence token.

        Only the hidden states in front of answer tokens meet the vocabulary head.

        Args:
            images: (N, C, 3, h, w) uint8 RGB. present: (N, C) bool, False where a row lacks an image; all are there if None.

        Raises:
            ConfigError: the model writes no text (see ``Family.logits``).
            DataError: a prompt or an answer contains the token that stands for an image.
        """
        end = [self.tokenizer.eos_token_id]
        tails = [self.tokenizer(answer, add_special_tokens=False)["input_ids"] + end for answer in answers]
        for answer, tail in zip(answers, tails, strict=True):
            if any(self.family.placeholders(tail)):
                raise self.family.prompt_error(answer)
        if present is None:
            present = torch.ones(images.shape[:2], dtype=torch.bool, device=images.device)
        shown = present.any(1)
        groups = [shown | ~shown] if self.family.mixes else [shown, ~shown]
        errors = []
        for group in groups:
            rows = group.nonzero()[:, 0].tolist()
            if rows:
                chosen = images[group], [prompts[i] for i in rows], [tails[i] for i in rows], present[group]
                errors.append(self._token_errors(*chosen))
        return torch.cat(errors).mean()

    def _token_errors(
        self, images: torch.Tensor, prompts: Sequence[str], tails: Sequence[list[int]], present: torch.Tensor
    ) -> torch.Tensor:
        """Cross-entropy of each token of ``tails``, one row after the other; other arguments as ``text_loss`` has them."""
        counts: list[int] = present.sum(1).tolist()
        sequence = build_sequence(self.family, prompts, images.device, cameras=[[n] for n in counts], tails=tails)
        hidden = self.run(sequence, self.family.inputs(sequence, self.pixels(images[present]) if any(counts) else None))
        real = sequence.tail >= 0
        rows = torch.arange(len(tails), device=images.device)[:, None].expand_as(sequence.tail)[real]
        places = sequence.tail[real]
        logits = self.family.logits(self.model, hidden[rows, places - 1])
        return F.cross_entropy(logits, sequence.ids[rows, places], reduction="none")

    def sequence(
        self,
        prompts: Sequence[str],
        cameras: Sequence[Sequence[int]],
        *,
        suffix: int = 0,
        past: int | None = None,
        past_images: int = 0,
    ) -> TokenSequence:
        """The token sequence of N windows; see ``build_sequence``."""
        return build_sequence(
            self.family,
            prompts,
            self.device,
            cameras=cameras,
            state=self.state_encoder is not None,
            queries=0 if self.queries is None else len(self.queries),
            suffix=suffix,
            past=past,
            past_images=past_images,
        )

    def pixels(self, images: torch.Tensor) -> torch.Tensor:
        """(n, 3, h, w) uint8 -> normalised, in the model's type."""
        return ((images - self.pixel_mean) / self.pixel_std).to(self.model.dtype)

    def run(
        self,
        sequence: TokenSequence,
        inputs: dict[str, Any],
        state: torch.Tensor | None = None,
        suffix: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """One forward of the language model: hidden states (N, T, D)."""
        # no state token stands in a text alone, nor in what is decoded behind a context
        if (state is None) == bool(sequence.state.numel()):
            raise ConfigError("the model takes a state, and none is given" if state is None else "the model takes no state")
        slots: Slots = []
        if self.queries is not None and sequence.queries.numel():
            slots.append((sequence.queries.flatten(1), self.queries.repeat(sequence.queries.shape[1], 1)[None]))
        if self.state_encoder is not None and state is not None and sequence.state.numel():
            slots.append((sequence.state.flatten(1), self.state_encoder(state)))
        if suffix is not None:
            slots.append((sequence.suffix, suffix))
        with ExitStack() as hooks:
            hooks.enter_context(self._slots_in(slots, sequence.ids.shape[1]))
            if self.resampler is not None:
                hooks.enter_context(self._resampled(self.resampler))
            return self.family.hidden(self.model, {"use_cache": False, **inputs})

    def readout(self, hidden: torch.Tensor, sequence: TokenSequence) -> torch.Tensor:
        """(N, T, D) -> (N, H, Q, D): at the query tokens, or pooled over the tokens of each frame."""
        if self.pooling is None:
            return gather(hidden, sequence.queries.flatten(1)).unflatten(1, sequence.queries.shape[1:])
        chosen = sequence.mask.bool()
        if self.pooling.tokens == "vision":
            chosen = chosen & (sequence.image >= 0)
        elif self.pooling.tokens == "text":
            chosen = chosen & (sequence.image < 0)
        frames = []
        for h in range(sequence.queries.shape[1]):
            here = (chosen & (sequence.frame == h))[..., None]
            if self.pooling.reduce == "max":
                frames.append(hidden.masked_fill(~here, float("-inf")).amax(1))
            else:
                frames.append((hidden * here).sum(1) / here.sum(1))
        return torch.stack(frames, dim=1)[:, :, None]

    @contextmanager
    def _slots_in(self, slots: Slots, length: int) -> Iterator[None]:
        """While the block runs, the input embedding gives the vectors of ``slots`` at their places."""

        def put(_module: nn.Module, _inputs: Any, output: torch.Tensor) -> torch.Tensor:
            if output.shape[1] != length:  # of something else than our sequence
                return output
            for places, vectors in slots:
                at = places[..., None].expand(-1, -1, output.shape[-1])
                output = output.scatter(1, at, vectors.to(output.dtype).expand_as(at))
            return output

        handle = self.model.get_input_embeddings().register_forward_hook(put)
        try:
            yield
        finally:
            handle.remove()

    @contextmanager
    def _resampled(self, resampler: PerceiverResampler) -> Iterator[None]:
        """While the block runs, the connector gives resampled visual tokens."""

        def resample(_module: nn.Module, _inputs: Any, output: Any) -> Any:
            if isinstance(output, tuple):
                return (resampler(output[0]), *output[1:])
            return resampler(output)

        handle = self.family.connector_module(self.model).register_forward_hook(resample)
        try:
            yield
        finally:
            handle.remove()

    def towers(self) -> dict[str, list[nn.Parameter]]:
        """The parameters by tower (see ``TOWERS``); query tokens belong to the connector, each parameter to one tower."""
        vision = {id(p) for p in self.family.vision(self.model).parameters()}
        connector = {id(p) for p in self.family.connector_parameters(self.model)}
        language = {id(p) for p in self.family.language(self.model).parameters()}
        embedding = self.model.get_output_embeddings()
        language |= {id(p) for p in embedding.parameters()} if embedding is not None else set()
        result: dict[str, list[nn.Parameter]] = {tower: [] for tower in TOWERS}
        for parameter in self.parameters():
            inside = id(parameter)
            in_connector = inside in connector or inside not in vision | language
            result["connector" if in_connector else "vision" if inside in vision else "language"].append(parameter)
        return result

    def save_definition(self, folder: Path) -> None:
        """Write what ``build_backbone`` takes as ``definition``: configuration, tokenizer, image statistics; no weights."""
        folder.mkdir(parents=True, exist_ok=True)
        self.model.config.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        processor = {
            "image_mean": (self.pixel_mean / 255).flatten().tolist(),
            "image_std": (self.pixel_std / 255).flatten().tolist(),
            "size": {"height": self.image_size[0], "width": self.image_size[1]},
        }
        (folder / "preprocessor_config.json").write_text(json.dumps(processor, indent=1))


def images_per_row(rows: int, cameras: int, present: torch.Tensor | None) -> list[int]:
    """How many images each row has: ``cameras``, or as ``present`` (N, C) says. Raises DataError for a row without any."""
    if present is None:
        return [cameras] * rows
    counts: list[int] = present.sum(1).tolist()
    if 0 in counts:
        raise DataError(f"a row of the batch has no image at all: each of its {cameras} cameras is absent")
    return counts


def gather(hidden: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """(N, T, D) at places (N, K) -> (N, K, D)."""
    return hidden.gather(1, places[..., None].expand(-1, -1, hidden.shape[-1]))
