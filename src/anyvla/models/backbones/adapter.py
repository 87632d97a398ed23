"""The one adapter between vision-language models and everything behind them: images and prompts in, query features out.

Query tokens are slots in the model's own sequence. They are put right behind the last real token of each row, a hook on the
input embedding writes the learnable vectors into them, and the hidden states at these places come back. Merging of images,
masks and positions stay the model's own; vocabulary logits are never computed. Nothing here depends on the family of the model.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForImageTextToText, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from anyvla.config import PretrainedBackboneConfig, TinyBackboneConfig
from anyvla.errors import CheckpointError, ConfigError
from anyvla.models.backbones.tiny import (
    STRIDE,
    TinyVLMConfig,
    TinyVLMForConditionalGeneration,
    register_tiny,
    tiny_tokenizer,
)

# the towers by which parameters are frozen, grouped and counted
TOWERS = ("vision", "connector", "language")


class Backbone(nn.Module):
    """A vision-language model with Q learnable query tokens.

    Attributes:
        width: D, the width of its hidden states. image_size: (h, w) of the images it takes.
    """

    pixel_mean: torch.Tensor
    pixel_std: torch.Tensor

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        queries: int,
        image_size: tuple[int, int],
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
    ) -> None:
        super().__init__()
        self.model = model
        self.tokenizer = tokenizer
        self.image_size = image_size
        embedding = model.get_input_embeddings().weight
        self.width = embedding.shape[1]
        # as large as the embeddings among which they will stand: a query of 0 would get no gradient through the first norm
        scale = embedding.detach().float().std().item() if not embedding.is_meta else 0.02
        self.queries = nn.Parameter(torch.randn(queries, self.width) * scale)
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(1, 3, 1, 1) * 255, persistent=False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(1, 3, 1, 1) * 255, persistent=False)

    def encode(self, images: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        """Features of N observations.

        Args:
            images: (N, C, 3, h, w) uint8 RGB, C cameras. prompts: N strings.

        Returns:
            (N, Q, D): hidden states, after the last norm, at the query tokens.
        """
        count, cameras = images.shape[:2]
        unique = list(dict.fromkeys(prompts))  # the frames of a window share one prompt
        ids, mask, slots = self._sequence(unique, cameras, images.device)
        if len(unique) < count:
            row = {prompt: i for i, prompt in enumerate(unique)}
            rows = torch.tensor([row[prompt] for prompt in prompts], device=images.device)
            ids, mask, slots = ids[rows], mask[rows], slots[rows]
        pixels = ((images.flatten(0, 1) - self.pixel_mean) / self.pixel_std).to(self.model.dtype)
        with self._queries_in(slots):
            hidden = self.model.base_model(input_ids=ids, pixel_values=pixels, attention_mask=mask).last_hidden_state
        return hidden.gather(1, slots[..., None].expand(-1, -1, hidden.shape[-1]))

    def _sequence(
        self, prompts: Sequence[str], cameras: int, device: torch.device
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Token ids (N, T) and attention mask (N, T), padded on the right, and the places of the queries (N, Q)."""
        config = self.model.config
        image_tokens = [config.image_token_id] * (config.image_seq_length * cameras)
        texts = self.tokenizer(list(prompts), add_special_tokens=False)["input_ids"]
        bos = [self.tokenizer.bos_token_id] if self.tokenizer.bos_token_id is not None else []
        rows = [bos + image_tokens + text for text in texts]
        queries = len(self.queries)
        length = max(map(len, rows)) + queries
        pad = self.tokenizer.pad_token_id
        # a slot repeats the id of the last word: neither padding nor an image, whatever the model
        words = [(text or bos or [self.tokenizer.eos_token_id])[-1] for text in texts]
        ids = [row + [word] * queries + [pad] * (length - len(row) - queries) for row, word in zip(rows, words, strict=True)]
        ends = torch.tensor([len(row) for row in rows], device=device)
        slots = ends[:, None] + torch.arange(queries, device=device)
        mask = torch.arange(length, device=device) < ends[:, None] + queries
        return torch.tensor(ids, device=device), mask.long(), slots

    @contextmanager
    def _queries_in(self, slots: torch.Tensor) -> Iterator[None]:
        """While the block runs, the input embedding gives the query vectors at ``slots`` (N, Q)."""

        def put(_module: nn.Module, _inputs: Any, output: torch.Tensor) -> torch.Tensor:
            queries = self.queries.to(output.dtype).expand(len(slots), -1, -1)
            return output.scatter(1, slots[..., None].expand_as(queries), queries)

        handle = self.model.get_input_embeddings().register_forward_hook(put)
        try:
            yield
        finally:
            handle.remove()

    def towers(self) -> dict[str, list[nn.Parameter]]:
        """The parameters by tower (see ``TOWERS``); query tokens belong to the connector, each parameter to one tower."""
        language = {id(p) for p in self.model.get_decoder().parameters()}
        embedding = self.model.get_output_embeddings()
        language |= {id(p) for p in embedding.parameters()} if embedding is not None else set()
        vision = {id(p) for p in self.model.get_encoder("image").parameters()}
        result: dict[str, list[nn.Parameter]] = {tower: [] for tower in TOWERS}
        for parameter in self.parameters():
            tower = "vision" if id(parameter) in vision else "language" if id(parameter) in language else "connector"
            result[tower].append(parameter)
        return result

    def save_definition(self, folder: Path) -> None:
        """Write what ``load_backbone_definition`` needs: configuration, tokenizer, image statistics; no weights."""
        folder.mkdir(parents=True, exist_ok=True)
        self.model.config.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        processor = {
            "image_mean": (self.pixel_mean / 255).flatten().tolist(),
            "image_std": (self.pixel_std / 255).flatten().tolist(),
            "size": {"height": self.image_size[0], "width": self.image_size[1]},
        }
        (folder / "preprocessor_config.json").write_text(json.dumps(processor, indent=1))


def build_backbone(
    config: TinyBackboneConfig | PretrainedBackboneConfig, queries: int, image_size: tuple[int, int]
) -> Backbone:
    """The backbone that ``config`` asks for, with Q = ``queries`` new query tokens."""
    if isinstance(config, PretrainedBackboneConfig):
        return _load(config.path, queries, image_size, random_weights=config.random_weights)
    if image_size[0] % STRIDE or image_size[1] % STRIDE:
        raise ConfigError(f"observation.image_size {list(image_size)} must be multiples of {STRIDE} for the tiny backbone")
    if config.width % (2 * config.attention_heads):
        raise ConfigError(f"model.backbone.width {config.width} must be a multiple of 2 x attention_heads")
    tokenizer = tiny_tokenizer()
    model_config = TinyVLMConfig(
        vocab_size=len(tokenizer),
        hidden_size=config.width,
        vision_layers=config.vision_layers,
        num_hidden_layers=config.language_layers,
        num_attention_heads=config.attention_heads,
        dropout=config.dropout,
        image_size=image_size,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        pad_token_id=tokenizer.pad_token_id,
    )
    half = (0.5, 0.5, 0.5)
    return Backbone(TinyVLMForConditionalGeneration(model_config), tokenizer, queries, image_size, half, half)


def load_backbone_definition(folder: Path, queries: int, image_size: tuple[int, int]) -> Backbone:
    """The inverse of ``Backbone.save_definition``, with random weights that the caller replaces."""
    return _load(str(folder), queries, image_size, random_weights=True)


def _load(path: str, queries: int, image_size: tuple[int, int], random_weights: bool) -> Backbone:
    register_tiny()
    if not (Path(path) / "config.json").exists():
        raise CheckpointError(f"{path}: no usable vision-language model: no folder with a config.json")
    try:
        config = AutoConfig.from_pretrained(path)
        tokenizer = AutoTokenizer.from_pretrained(path)
        processor = json.loads((Path(path) / "preprocessor_config.json").read_text())
        pixel_mean, pixel_std = processor["image_mean"], processor["image_std"]
        # weights in full precision whatever was stored: training in bf16 computes in bf16, and updates fp32 weights
        make = AutoModelForImageTextToText
        if random_weights:
            model = make.from_config(config, dtype=torch.float32)
        else:
            model = make.from_pretrained(path, dtype=torch.float32)
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path}: no usable vision-language model ({error!r})") from error
    for attribute in ("image_token_id", "image_seq_length"):
        if getattr(config, attribute, None) is None:
            raise CheckpointError(f"{path}: {config.model_type} has no {attribute}: its way to merge images is not known here")
    return Backbone(model, tokenizer, queries, image_size, pixel_mean, pixel_std)
