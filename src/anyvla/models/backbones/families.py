"""What the adapter must know of each family of vision-language models, and nothing more.

A family says how its prompt is written, which tokens stand for an image, and which further inputs its forward takes. The
defaults are LLaVA's; a subclass says what differs. Merging images, masks and positions stay the model's own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.image_processing_utils import select_best_resolution

from anyvla.errors import CheckpointError, ConfigError, DataError

if TYPE_CHECKING:
    from anyvla.models.backbones.sequence import TokenSequence


class Family:
    """LLaVA's way, and the base of all others.

    Attributes:
        template: the prompt, with the images of the first frame and the text.
        special_tokens: whether the tokenizer adds its own to it.
        connector: path of the module whose output is what the language model gets of an image, (images, tokens, D).
        causal: later tokens never change earlier hidden states. appendable: the key-value cache can be continued with a frame.
        mixes: rows with and without images may share a forward pass.
        writes: the hidden state of each token predicts the next one.
        image_dim: the dimension along which images follow each other in the vision tower's output.
        black: (1, 3, 1, 1), a black pixel, normalised. ending: tokens of a prompt that stand behind its slots.
    """

    black: torch.Tensor

    template = "USER: {images}\n{text} ASSISTANT:"
    special_tokens = True
    connector: str | None = "multi_modal_projector"
    causal = True
    appendable = True
    mixes = True
    writes = True
    image_dim = 0
    ending = 0
    multiple: int | None = None  # images of any size that is a multiple of this; None: of the one size it was trained with

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, image_size: tuple[int, int]) -> None:
        self.config = model.config
        self.tokenizer = tokenizer
        self.image_size = image_size
        self.check_image_size()
        self.pad_id: int = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        self.placeholder_id = self.find_placeholder()
        self.tokens_per_image = self.count_tokens()
        self._prompts: dict[tuple[str, int], list[int]] = {}

    # -- tokens

    def check_image_size(self) -> None:
        size = list(self.image_size)
        if self.multiple is not None:
            if size[0] % self.multiple or size[1] % self.multiple:
                raise ConfigError(
                    f"observation.image_size {size} must be multiples of {self.multiple} for {self.config.model_type}"
                )
        elif size != (own := _pair(self.config.vision_config.image_size)):
            raise ConfigError(f"observation.image_size is {size}, but this {self.config.model_type} takes {own} only")

    def find_placeholder(self) -> int:
        return int(self.config.image_token_id)

    def patches(self) -> int:
        """Patches of the vision tower per image."""
        patch = _pair(self.config.vision_config.patch_size)
        return (self.image_size[0] // patch[0]) * (self.image_size[1] // patch[1])

    def count_tokens(self) -> int:
        """Placeholders per image."""
        if self.config.model_type.startswith("anyvla_"):  # of our own models
            return int(self.config.image_seq_length)
        return self.patches() + (getattr(self.config, "vision_feature_select_strategy", "default") == "full")

    def placeholders(self, ids: Sequence[int]) -> list[bool]:
        """Which tokens stand for images."""
        return [token == self.placeholder_id for token in ids]

    def images_text(self, images: int) -> str:
        """``images`` images as text: their placeholders, and what stands around them."""
        return self.image_text() * images

    def image_text(self) -> str:
        token: str = self.tokenizer.convert_ids_to_tokens(self.placeholder_id)
        return token * self.tokens_per_image

    def prompt_ids(self, text: str, images: int) -> list[int]:
        """Token ids of a prompt with ``images`` images."""
        key = (text, images)
        if key not in self._prompts:
            if len(self._prompts) >= 4096:
                self._prompts.clear()
            self._prompts[key] = self.encode_prompt(text, images)
        return self._prompts[key]

    def encode_prompt(self, text: str, images: int) -> list[int]:
        written = self.template.replace("{images}", self.images_text(images)).replace("{text}", text)
        return self.tokenizer(written, add_special_tokens=self.special_tokens)["input_ids"]

    def frame_ids(self, images: int) -> list[int]:
        """Token ids of a further frame of ``images`` images."""
        return self.tokenizer(self.images_text(images), add_special_tokens=False)["input_ids"]

    def further_ids(self, text: str, images: int) -> list[int]:
        """Token ids of a further frame behind a prompt with ``text``."""
        return self.frame_ids(images)

    def prompt_error(self, prompt: str) -> DataError:
        return DataError(f"the instruction {prompt[:80]!r} contains the token that stands for an image; write it without")

    # -- forward

    def inputs(self, sequence: TokenSequence, pixels: torch.Tensor | None) -> dict[str, Any]:
        """What forward takes, for the pixels (all images, 3, h, w) of all rows one after the other, None if there are none."""
        mask = sequence.mask
        if sequence.past:
            mask = torch.cat([mask.new_ones(len(mask), sequence.past), mask], dim=1)
        result = {"input_ids": sequence.ids, "attention_mask": mask}
        return result if pixels is None else {**result, "pixel_values": pixels}

    def hidden(self, model: PreTrainedModel, inputs: dict[str, Any]) -> torch.Tensor:
        """Run ``model``; hidden states (N, T, D) after the last norm. The vocabulary head is called with no token at all."""
        kept: list[torch.Tensor] = []

        def keep(_module: nn.Module, arguments: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor]:
            kept.append(arguments[0])
            return (arguments[0][:, :0],)  # for even one token it would read all its weights

        handle = model.get_output_embeddings().register_forward_pre_hook(keep)
        try:
            model(**inputs)
        finally:
            handle.remove()
        return kept[-1]

    def logits(self, model: PreTrainedModel, hidden: torch.Tensor) -> torch.Tensor:
        """Vocabulary logits (..., V) of hidden states (..., D)."""
        logits = model.get_output_embeddings()(hidden).float()
        cap = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
        return logits if cap is None else torch.tanh(logits / cap) * cap

    def kept(self, output: Any) -> Any:
        """Of the vision tower's ``output``, what the model goes on with: all that need be remembered of a frame."""
        layers = getattr(self.config, "vision_feature_layer", None)
        states = getattr(output, "hidden_states", None)
        if layers is None or layers == -1 or states is None:
            return output
        chosen = {layer % len(states) for layer in ([layers] if isinstance(layers, int) else layers)}
        return type(output)(hidden_states=tuple(state if i in chosen else None for i, state in enumerate(states)))

    # -- parts

    def vision(self, model: PreTrainedModel) -> nn.Module:
        return model.get_encoder("image")

    def language(self, model: PreTrainedModel) -> nn.Module:
        return model.get_decoder()

    def connector_parameters(self, model: PreTrainedModel) -> list[nn.Parameter]:
        """Parameters of the connector that lie inside the module of the vision tower or of the language model."""
        return []

    def connector_module(self, model: PreTrainedModel) -> nn.Module:
        """Where a resampler is put."""
        inner = getattr(model, "model", model)
        if self.connector is None or not hasattr(inner, self.connector):
            raise ConfigError(f"model.resampler does not go with {self.config.model_type}: no single sequence of visual tokens")
        module: nn.Module = inner.get_submodule(self.connector)
        return module

    @classmethod
    def default_image_size(cls, config: Any, processor: dict[str, Any]) -> tuple[int, int]:
        """(h, w) that the model was trained with, from its image processor's settings."""
        own = _pair(config.vision_config.image_size)
        return own[0], own[1]


class TinyFamily(Family):
    template = "<bos>{images}{text}"
    special_tokens = False

    def check_image_size(self) -> None:
        pass  # the model is made for the size


class PlainFamily(Family):
    """Any model of transformers that marks images as LLaVA does and is not known here."""

    template = "{images}\n{text}"


class Kosmos2Family(Family):
    template = "<grounding> {text}"
    connector = "image_to_text_projection"

    def find_placeholder(self) -> int:
        # the first of the ids that the processor puts into the place of an image; they are also those of frequent words
        return int(self.tokenizer.unk_token_id) + 1

    def count_tokens(self) -> int:
        return int(self.config.latent_query_num)

    def placeholders(self, ids: Sequence[int]) -> list[bool]:
        begin, end = self.tokenizer.convert_tokens_to_ids(["<image>", "</image>"])
        inside, result = False, []
        for token in ids:
            inside = inside and token != end
            result.append(inside)
            inside = inside or token == begin
        return result

    def frame_ids(self, images: int) -> list[int]:
        begin, end = self.tokenizer.convert_tokens_to_ids(["<image>", "</image>"])
        return [begin, *range(self.placeholder_id, self.placeholder_id + self.tokens_per_image), end] * images

    def encode_prompt(self, text: str, images: int) -> list[int]:
        words = self.tokenizer(self.template.replace("{text}", text), add_special_tokens=False)["input_ids"]
        return [self.tokenizer.bos_token_id, *self.frame_ids(images), *words]

    def inputs(self, sequence: TokenSequence, pixels: torch.Tensor | None) -> dict[str, Any]:
        result = super().inputs(sequence, pixels)
        return result if pixels is None else result | {"image_embeds_position_mask": (sequence.image >= 0).long()}

    def hidden(self, model: PreTrainedModel, inputs: dict[str, Any]) -> torch.Tensor:
        past = inputs.get("past_key_values")
        if past is None or past.get_seq_length() == 0:
            return super().hidden(model if "pixel_values" in inputs else model.text_model, inputs)
        # behind a cache the model takes no images: write their features where it would
        inputs = dict(inputs)
        pixels, mask = inputs.pop("pixel_values", None), inputs.pop("image_embeds_position_mask", None)
        if pixels is None or mask is None:
            return super().hidden(model.text_model, inputs)
        vision = model.vision_model
        encoded = F.normalize(vision.model.post_layernorm(vision(pixel_values=pixels)[0]), dim=-1)
        features = model.image_to_text_projection(encoded)[0]

        def put(_module: nn.Module, _inputs: Any, output: torch.Tensor) -> torch.Tensor:
            return output.masked_scatter(mask.bool()[..., None], features.to(output.dtype))

        handle = model.get_input_embeddings().register_forward_hook(put)
        try:
            return super().hidden(model.text_model, inputs)
        finally:
            handle.remove()


class PaliGemmaFamily(Family):
    template = "{images}<bos>{text}\n"
    special_tokens = False

    def inputs(self, sequence: TokenSequence, pixels: torch.Tensor | None) -> dict[str, Any]:
        # 0: images and prompt, which see each other; 1: what follows, causal
        return super().inputs(sequence, pixels) | {"token_type_ids": sequence.later.long()}


class LlavaNextFamily(Family):
    """The image once whole and once in tiles, as its processor cuts it."""

    template = "[INST] {images}\n{text} [/INST]"
    connector = None
    multiple = 1

    def count_tokens(self) -> int:
        side = self.config.vision_config.image_size // self.config.vision_config.patch_size
        height, width = self._best()
        rows, columns = side * (height // self._tile()), side * (width // self._tile())
        image_height, image_width = self.image_size
        if image_width / image_height > width / height:  # what pads the image to the tiles is taken out again
            padding = (rows - int(round(image_height * columns / image_width, 7))) // 2
            rows -= 2 * padding
        else:
            padding = (columns - int(round(image_width * rows / image_height, 7))) // 2
            columns -= 2 * padding
        return side * side + rows * (columns + 1)

    def inputs(self, sequence: TokenSequence, pixels: torch.Tensor | None) -> dict[str, Any]:
        result = super().inputs(sequence, None)
        if pixels is None:
            return result
        sizes = torch.tensor([list(self.image_size)] * len(pixels), device=pixels.device)
        return result | {"pixel_values": self._tiles(pixels), "image_sizes": sizes}

    def _tile(self) -> int:
        return int(self.config.vision_config.image_size)

    def _best(self) -> tuple[int, int]:
        height, width = select_best_resolution(self.image_size, self.config.image_grid_pinpoints)
        return int(height), int(width)

    def _tiles(self, pixels: torch.Tensor) -> torch.Tensor:
        """(n, 3, h, w) -> (n, 1 + tiles, 3, s, s)."""
        tile, (height, width) = self._tile(), self._best()
        scale = min(height / pixels.shape[-2], width / pixels.shape[-1])
        fitted = _resized(
            pixels, min(height, math.ceil(pixels.shape[-2] * scale)), min(width, math.ceil(pixels.shape[-1] * scale))
        )
        top, left = (height - fitted.shape[-2]) // 2, (width - fitted.shape[-1]) // 2
        padded = self.black.to(pixels).expand(len(pixels), 3, height, width).clone()
        padded[..., top : top + fitted.shape[-2], left : left + fitted.shape[-1]] = fitted
        tiles = padded.unflatten(3, (-1, tile)).unflatten(2, (-1, tile)).permute(0, 2, 4, 1, 3, 5).flatten(1, 2)
        return torch.cat([_resized(pixels, tile, tile)[:, None], tiles], dim=1)


class LlavaOnevisionFamily(Family):
    """Without tiles, as it takes several images: one vector ends each image."""

    template = "<|im_start|>user {images}\n{text}<|im_end|><|im_start|>assistant\n"
    connector = None

    def count_tokens(self) -> int:
        return self.patches() + 1

    def inputs(self, sequence: TokenSequence, pixels: torch.Tensor | None) -> dict[str, Any]:
        result = super().inputs(sequence, None)
        if pixels is None:
            return result
        sizes = torch.tensor([list(self.image_size)] * len(pixels), device=pixels.device)
        many = torch.tensor([max(2, len(pixels))], device=pixels.device)  # a single one would be cut into tiles
        return result | {"pixel_values": pixels[:, None], "image_sizes": sizes, "batch_num_images": many}


class QwenVLFamily(Family):
    """Images of any size; rotary positions in three dimensions, given to the model rather than left to its memory."""

    template = "<|im_start|>user\n{images}{text}<|im_end|>\n<|im_start|>assistant\n"
    connector = None

    def check_image_size(self) -> None:
        vision = self.config.vision_config
        self.multiple = vision.patch_size * vision.spatial_merge_size
        super().check_image_size()

    @classmethod
    def default_image_size(cls, config: Any, processor: dict[str, Any]) -> tuple[int, int]:
        multiple = config.vision_config.patch_size * config.vision_config.spatial_merge_size
        side = 224 // multiple * multiple
        return side, side

    def count_tokens(self) -> int:
        return self.patches() // self.config.vision_config.spatial_merge_size**2

    def image_text(self) -> str:
        return f"<|vision_start|>{super().image_text()}<|vision_end|>"

    def kept(self, output: Any) -> Any:
        return type(output)(**{**output, "last_hidden_state": None})  # patches before they are merged, four times as many

    def inputs(self, sequence: TokenSequence, pixels: torch.Tensor | None) -> dict[str, Any]:
        result = super().inputs(sequence, None)
        vision = self.config.vision_config
        patch, merge, times = vision.patch_size, vision.spatial_merge_size, vision.temporal_patch_size
        rows, columns = self.image_size[0] // patch, self.image_size[1] // patch
        # an image counts in positions as its longer side only
        saved = self.tokens_per_image - max(rows, columns) // merge
        result["position_ids"] = self._positions(sequence, rows // merge, columns // merge) + (
            sequence.past - sequence.past_images * saved
        )
        if pixels is None:
            return result
        patches = (
            pixels.view(len(pixels), 3, rows // merge, merge, patch, columns // merge, merge, patch)
            .permute(0, 2, 5, 3, 6, 1, 4, 7)
            .unsqueeze(6)
            .expand(-1, -1, -1, -1, -1, -1, times, -1, -1)
            .reshape(len(pixels) * rows * columns, 3 * times * patch * patch)
        )
        grid = torch.tensor([[1, rows, columns]] * len(pixels), device=pixels.device)
        types = (sequence.image >= 0).int()
        return result | {"pixel_values": patches, "image_grid_thw": grid, "mm_token_type_ids": types}

    def connector_parameters(self, model: PreTrainedModel) -> list[nn.Parameter]:
        tower = self.vision(model)
        parts = [tower.merger, *getattr(tower, "deepstack_merger_list", [])]
        return [p for part in parts for p in part.parameters()]

    def _positions(self, sequence: TokenSequence, rows: int, columns: int) -> torch.Tensor:
        """(3, N, T): time, row and column; words advance all three, an image spans a block."""
        visual = sequence.image >= 0
        first = visual & (sequence.image != F.pad(sequence.image, (1, 0), value=-1)[:, :-1])
        before = (~visual * sequence.mask.bool()).long() + first * max(rows, columns)
        start = before.cumsum(1) - before  # where a word stands, and where an image begins
        block = self.tokens_per_image
        place = (
            torch.arange(visual.shape[1], device=visual.device)
            - torch.where(first, torch.arange(visual.shape[1], device=visual.device), 0).cummax(1).values
        )
        place = (place % block) * visual
        # inside an image all tokens share its beginning
        begin = torch.where(visual, start - (~first) * max(rows, columns) * visual, start)
        offsets = torch.stack([torch.zeros_like(place), place // columns, place % columns])
        return begin + offsets * visual


class IdeficsFamily(Family):
    """Images enter by cross-attention; each token looks at the images of its own frame that stand before it."""

    template = "<s>User:{images}{text}\nAssistant:"
    special_tokens = False
    connector = None
    appendable = False  # nothing of an image is cached

    @classmethod
    def default_image_size(cls, config: Any, processor: dict[str, Any]) -> tuple[int, int]:
        size = int(config.vision_config.image_size)
        return size, size

    def find_placeholder(self) -> int:
        return int(self.tokenizer.convert_tokens_to_ids("<image>"))

    def count_tokens(self) -> int:
        return 1

    def images_text(self, images: int) -> str:
        return "<fake_token_around_image>" + "<image><fake_token_around_image>" * images if images else ""

    def inputs(self, sequence: TokenSequence, pixels: torch.Tensor | None) -> dict[str, Any]:
        result = super().inputs(sequence, None)
        if pixels is None:  # the model takes no text alone: an image that no token looks at
            ids = sequence.ids
            return result | {
                "pixel_values": self.black.expand(len(ids), 1, 3, *self.image_size),
                "image_attention_mask": torch.zeros(*ids.shape, 1, dtype=torch.int64, device=ids.device),
            }
        return result | {
            "pixel_values": _batched(pixels, sequence.images),
            "image_attention_mask": attended_images(sequence).long(),
        }

    def connector_parameters(self, model: PreTrainedModel) -> list[nn.Parameter]:
        inner = model.model
        parts = [inner.gated_cross_attn_layers, *([inner.perceiver_resampler] if hasattr(inner, "perceiver_resampler") else [])]
        return [p for part in parts for p in part.parameters()]


class Idefics2Family(Family):
    template = "User:{images} {text}<end_of_utterance>\nAssistant:"
    connector = "connector"

    def check_image_size(self) -> None:
        self.multiple = int(self.config.vision_config.patch_size)
        super().check_image_size()

    @classmethod
    def default_image_size(cls, config: Any, processor: dict[str, Any]) -> tuple[int, int]:
        patch = config.vision_config.patch_size
        side = min(378, config.vision_config.image_size) // patch * patch
        return side, side

    def count_tokens(self) -> int:
        return int(self.config.perceiver_config.resampler_n_latents)

    def images_text(self, images: int) -> str:
        return "<fake_token_around_image>" + (self.image_text() + "<fake_token_around_image>") * images if images else ""

    def inputs(self, sequence: TokenSequence, pixels: torch.Tensor | None) -> dict[str, Any]:
        result = super().inputs(sequence, None)
        if pixels is None:
            return result
        batched = _batched(pixels, sequence.images)
        return result | {"pixel_values": batched, "pixel_attention_mask": torch.ones_like(batched[:, :, 0], dtype=torch.int64)}


class Idefics3Family(Idefics2Family):
    template = "User:{images}{text}<end_of_utterance>\nAssistant:"

    def check_image_size(self) -> None:
        Family.check_image_size(self)

    @classmethod
    def default_image_size(cls, config: Any, processor: dict[str, Any]) -> tuple[int, int]:
        size = int(config.vision_config.image_size)
        return size, size

    def count_tokens(self) -> int:
        return self.patches() // self.config.scale_factor**2

    def images_text(self, images: int) -> str:
        around = "<fake_token_around_image>"
        return f"{around}<global-img>{self.image_text()}{around}" * images


class SmolVLMFamily(Idefics3Family):
    template = "<|im_start|>User:{images}{text}<end_of_utterance>\nAssistant:"


class InternVLFamily(Family):
    template = "<|im_start|>user\n{images}\n{text}<|im_end|>\n<|im_start|>assistant\n"

    def count_tokens(self) -> int:
        return int(self.config.image_seq_length)

    def image_text(self) -> str:
        return f"<img>{super().image_text()}</img>"


class Gemma3Family(Family):
    template = "<start_of_turn>user\n{images}{text}<end_of_turn>\n<start_of_turn>model\n"

    def count_tokens(self) -> int:
        return int(self.config.mm_tokens_per_image)

    def image_text(self) -> str:
        return f"\n\n<start_of_image>{super().image_text()}<end_of_image>\n\n"

    def inputs(self, sequence: TokenSequence, pixels: torch.Tensor | None) -> dict[str, Any]:
        types = (sequence.image >= 0).long()
        if sequence.past:
            types = torch.cat([types.new_zeros(len(types), sequence.past), types], dim=1)
        return super().inputs(sequence, pixels) | {"token_type_ids": types}


class Florence2Family(Family):
    """Its encoder is used: query tokens look at the whole sequence."""

    template = "<s>{text}</s>"
    special_tokens = False
    causal = False
    appendable = False
    writes = False

    def check_image_size(self) -> None:
        side = 1
        for stride in self.config.vision_config.patch_stride:
            side *= stride
        self.multiple = side
        super().check_image_size()

    @classmethod
    def default_image_size(cls, config: Any, processor: dict[str, Any]) -> tuple[int, int]:
        size = processor["size"]
        return int(size["height"]), int(size["width"])

    def count_tokens(self) -> int:
        side = self.multiple or 1
        return (self.image_size[0] // side) * (self.image_size[1] // side) + 1

    def encode_prompt(self, text: str, images: int) -> list[int]:
        return self.frame_ids(images) + super().encode_prompt(text, 0)

    def hidden(self, model: PreTrainedModel, inputs: dict[str, Any]) -> torch.Tensor:
        start = inputs["input_ids"][:, :1]  # the decoder must run to be allowed to encode; one token of it
        return model.base_model(**inputs, decoder_input_ids=start).encoder_last_hidden_state

    def logits(self, model: PreTrainedModel, hidden: torch.Tensor) -> torch.Tensor:
        raise ConfigError("florence2 writes text with its decoder, which is not used here")


class Blip2Family(Family):
    template = "Question: {text} Answer:"
    connector = "language_projection"

    def hidden(self, model: PreTrainedModel, inputs: dict[str, Any]) -> torch.Tensor:
        return super().hidden(model if "pixel_values" in inputs else model.language_model, inputs)

    def count_tokens(self) -> int:
        return int(self.config.num_query_tokens)

    def encode_prompt(self, text: str, images: int) -> list[int]:
        return self.frame_ids(images) + super().encode_prompt(text, 0)


class MllamaFamily(Family):
    template = "{images}<|begin_of_text|>{text}"
    special_tokens = False
    connector = None
    appendable = False  # its cache keeps the images of all frames
    mixes = False  # where a row has no image, its cross-attention looks at the padding
    image_dim = 1

    def count_tokens(self) -> int:
        return 1

    def inputs(self, sequence: TokenSequence, pixels: torch.Tensor | None) -> dict[str, Any]:
        result = super().inputs(sequence, None)
        if pixels is None:
            return result
        tiles = self.config.vision_config.max_num_tiles
        batched = _batched(pixels, sequence.images)
        count, images = batched.shape[:2]
        whole = torch.zeros(count, images, tiles, dtype=torch.int64, device=pixels.device)
        whole[..., 0] = 1  # an image is one tile
        values = torch.zeros(count, images, tiles, *batched.shape[2:], dtype=pixels.dtype, device=pixels.device)
        values[:, :, 0] = batched
        return result | {
            "pixel_values": values,
            "aspect_ratio_ids": (sequence.frame_of_image >= 0).long(),
            "aspect_ratio_mask": whole,
            "cross_attention_mask": attended_images(sequence)[..., None].long() * whole[:, None],
        }


class UFormFamily(Family):
    """Both generations chat in the same words; a tokenizer with a bos does not add it to a chat."""

    template = (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\n {images} {text}<|im_end|>\n<|im_start|>assistant\n"
    )
    special_tokens = False


class MoondreamFamily(Family):
    """Its image token may lie behind the vocabulary, where no text can name it."""

    template = "\n\nQuestion: {text}\n\nAnswer:"

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, image_size: tuple[int, int]) -> None:
        super().__init__(model, tokenizer, image_size)
        if "<|md_reserved_0|>" in tokenizer.get_vocab():  # the tokenizer since 2025-06-21 has tokens for this
            self.template = "<|md_reserved_0|>query<|md_reserved_1|>{text}<|md_reserved_2|><|md_reserved_2|>"
        self.bos_id = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id

    def frame_ids(self, images: int) -> list[int]:
        return [self.placeholder_id] * (self.tokens_per_image * images)

    def encode_prompt(self, text: str, images: int) -> list[int]:
        words = self.tokenizer(self.template.replace("{text}", text), add_special_tokens=False)["input_ids"]
        return [self.bos_id, *self.frame_ids(images), *words]


class OpenFlamingoFamily(Family):
    template = "{images}{text}"  # with what the tokenizer puts before a text: Llama's bos; the others have none
    connector = None

    def count_tokens(self) -> int:
        return 1

    def inputs(self, sequence: TokenSequence, pixels: torch.Tensor | None) -> dict[str, Any]:
        result = super().inputs(sequence, pixels)
        return result if pixels is None else result | {"image_attention_mask": attended_images(sequence)}


def attended_images(sequence: TokenSequence) -> torch.Tensor:
    """(N, T, I) bool: the images that each token looks at by cross-attention: those of its frame that stand before it."""
    count = sequence.frame_of_image.shape[1]
    images = torch.arange(count, device=sequence.ids.device)
    seen = (sequence.image[..., None] == images).long().cumsum(1) > 0
    return seen & (sequence.frame[..., None] == sequence.frame_of_image[:, None]) & sequence.mask.bool()[..., None]


def _batched(pixels: torch.Tensor, counts: list[int]) -> torch.Tensor:
    """All images one after the other -> (N, most images of a row, 3, h, w), padded with zeros."""
    rows = pixels.split(counts)
    if len(set(counts)) == 1:
        return torch.stack(rows)
    return nn.utils.rnn.pad_sequence(list(rows), batch_first=True)


def _resized(pixels: torch.Tensor, height: int, width: int) -> torch.Tensor:
    if pixels.shape[-2:] == (height, width):
        return pixels
    return F.interpolate(pixels.float(), (height, width), mode="bicubic", antialias=True, align_corners=False).to(pixels.dtype)


def _pair(size: Any) -> list[int]:
    return [int(size), int(size)] if isinstance(size, int) else [int(size[0]), int(size[1])]


FAMILIES: dict[str, type[Family]] = {
    "anyvla_moondream": MoondreamFamily,
    "anyvla_openflamingo": OpenFlamingoFamily,
    "anyvla_tiny": TinyFamily,
    "anyvla_uform_gen": UFormFamily,
    "blip-2": Blip2Family,
    "florence2": Florence2Family,
    "gemma3": Gemma3Family,
    "idefics": IdeficsFamily,
    "idefics2": Idefics2Family,
    "idefics3": Idefics3Family,
    "internvl": InternVLFamily,
    "kosmos-2": Kosmos2Family,
    "llava": Family,
    "llava_next": LlavaNextFamily,
    "llava_onevision": LlavaOnevisionFamily,
    "mllama": MllamaFamily,
    "paligemma": PaliGemmaFamily,
    "qwen2_5_vl": QwenVLFamily,
    "qwen2_vl": QwenVLFamily,
    "qwen3_vl": QwenVLFamily,
    "smolvlm": SmolVLMFamily,
}


def family_of(config: PreTrainedConfig) -> type[Family]:
    """The family that serves models of ``config``.

    Raises:
        CheckpointError: none does, and the model does not mark images as LLaVA does.
    """
    if config.model_type in FAMILIES:
        return FAMILIES[config.model_type]
    if getattr(config, "image_token_id", None) is not None and hasattr(config, "vision_config"):
        return PlainFamily
    raise CheckpointError(f"no support for models of type {config.model_type!r}; known: {', '.join(sorted(FAMILIES))}")
