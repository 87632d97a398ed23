"""What a family's own processor makes of a prompt and its images: what the adapter must equal.

transformers builds several of these processors only with torchvision, which is not needed for anything else here; their image
processors and their expansion of image placeholders work without it and are what is used.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers as hf
from PIL import Image


def reference_inputs(folder: Path, prompt: str, images: Sequence[np.ndarray]) -> dict[str, torch.Tensor]:
    """What the family's own processor makes of one text and its images: the model's arguments, for a batch of one.

    Args:
        folder: from ``make_tiny``. prompt: the whole text with a placeholder per image, as from ``family_prompt``.
        images: (h, w, 3) uint8 arrays of ``image_size(family)``.

    Images are not split into tiles where the family lets one choose. Where the processor itself takes one image only (Kosmos-2,
    Florence-2), or cannot be built without torchvision, its parts are put together in the same way.
    """
    config = hf.AutoConfig.from_pretrained(folder)
    family = {"kosmos-2": "kosmos2", "blip-2": "blip2"}.get(config.model_type, config.model_type)
    family += "2" if family == "paligemma" and config.text_config.model_type == "gemma2" else ""
    tokenizer = hf.AutoTokenizer.from_pretrained(folder)
    settings = folder / "preprocessor_config.json"
    settings = settings if settings.exists() else folder / "processor_config.json"
    image_settings = json.loads(settings.read_text())
    image_settings = image_settings.get("image_processor", image_settings)
    image_processor = getattr(hf, image_settings["image_processor_type"] + "Pil").from_pretrained(folder)
    processor = _processor(family, config, image_processor, tokenizer)
    pictures = [Image.fromarray(image) for image in images]
    if family == "kosmos2":
        return _kosmos2_inputs(processor, config.latent_query_num, prompt, pictures)
    if family in ("florence2", "blip2"):
        return _image_first_inputs(processor, family, prompt, pictures)
    if family == "idefics":
        pieces: list[Any] = [prompt.split("<image>")[0]]
        for image, text in zip(pictures, prompt.split("<image>")[1:], strict=True):
            pieces += [image] + ([text] if text else [])
        inputs = processor(text=pieces, return_tensors="pt")
    elif family in _VIDEO:
        inputs = _with_video_slot(family, processor, image_processor, tokenizer, prompt, pictures)
    else:
        # unlike a first resizing to several tiles and back, this leaves images as they are
        whole = {"do_image_splitting": False, "size": image_processor.max_image_size} if family == "idefics3" else {}
        image_processor.do_image_splitting = False  # here, because Idefics2 looks here when it writes the text
        inputs = processor(images=pictures, text=prompt, return_tensors="pt", **whole)
    return {key: value for key, value in inputs.items() if key != "labels"}


# processors that cannot be built without torchvision, because they hold a video processor too
_VIDEO = ("llava_onevision", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "smolvlm", "internvl")


def _processor(family: str, config: hf.PreTrainedConfig, image_processor: Any, tokenizer: hf.PreTrainedTokenizerBase) -> Any:
    """The family's own processor; one of ``_VIDEO`` with nothing but what its expansion of image placeholders needs."""
    package = {"blip2": "blip_2", "paligemma2": "paligemma"}.get(family, family)
    module = import_module(f"transformers.models.{package}.processing_{package}")
    cls = getattr(module, next(name for name in module.__all__ if name.endswith("Processor")))
    settings: dict[str, Any] = {}
    if family.startswith("qwen"):
        settings = {"image_token": "<|image_pad|>"}
    elif family == "internvl":
        settings = {"image_token": "<IMG_CONTEXT>", "start_image_token": "<img>", "end_image_token": "</img>"}
        settings["image_seq_length"] = config.image_seq_length
    elif family in ("idefics3", "smolvlm"):
        settings = {"image_seq_len": _patches(config) // config.scale_factor**2}
        if family == "smolvlm":
            settings |= {"image_token": "<image>", "fake_image_token": "<fake_token_around_image>"}
            settings["global_image_token"] = "<global-img>"
    elif family.startswith("llava"):
        settings = {"vision_feature_select_strategy": config.vision_feature_select_strategy}
        if family == "llava_onevision":
            settings |= {"image_token": "<image>", "num_image_tokens": _patches(config)}
            settings["vision_aspect_ratio"] = config.vision_aspect_ratio
        else:
            settings |= {"patch_size": config.vision_config.patch_size, "num_additional_image_tokens": 1}
    elif family == "kosmos2":
        settings = {"num_patch_index_tokens": 0}
    elif family == "idefics2":
        settings = {"image_seq_len": config.perceiver_config.resampler_n_latents}
    elif family == "gemma3":
        settings = {"image_seq_length": config.mm_tokens_per_image}
    elif family == "blip2":
        settings = {"num_query_tokens": config.num_query_tokens}
    if family not in _VIDEO:
        return cls(image_processor, tokenizer, **settings)
    processor = object.__new__(cls)
    for name, value in {"image_processor": image_processor, **settings}.items():
        setattr(processor, name, value)
    return processor


def _patches(config: hf.PreTrainedConfig) -> int:
    return (config.vision_config.image_size // config.vision_config.patch_size) ** 2


def _with_video_slot(
    family: str, processor: Any, image_processor: Any, tokenizer: Any, prompt: str, pictures: list[Image.Image]
) -> dict[str, torch.Tensor]:
    """Image processor, expansion of the placeholders, tokenizer: what a processor of ``_VIDEO`` does in its call."""
    if family == "smolvlm":
        whole = {"do_image_splitting": False, "size": image_processor.max_image_size, "return_row_col_info": True}
        image_inputs = image_processor([pictures], return_tensors="pt", **whole)
    elif family == "llava_onevision":
        # a nested list says that the images belong to one text: then, if there are several, none is split into tiles
        image_inputs = image_processor([pictures], return_tensors="pt")
    elif family == "internvl":
        image_inputs = image_processor(pictures, return_tensors="pt", crop_to_patches=False)
    else:
        image_inputs = image_processor(pictures, return_tensors="pt")
    first, *rest = prompt.split(processor.image_token)
    text = first + "".join(processor.replace_image_token(image_inputs, i) + piece for i, piece in enumerate(rest))
    inputs = dict(tokenizer(text, return_tensors="pt"))
    if family.startswith("qwen"):
        inputs["mm_token_type_ids"] = (inputs["input_ids"] == tokenizer.convert_tokens_to_ids("<|image_pad|>")).long()
    return inputs | {key: value for key, value in image_inputs.items() if key not in ("rows", "cols", "num_patches")}


def _kosmos2_inputs(processor: Any, queries: int, prompt: str, pictures: list[Image.Image]) -> dict[str, torch.Tensor]:
    """Its processor takes one image a text, at the front; a second one gets a block like the first, behind it."""
    text = prompt.replace("<image>", "")
    inputs = processor(images=pictures[0], text=text, num_image_tokens=queries, return_tensors="pt")
    inputs = {key: value if value.ndim > 1 else value[None] for key, value in inputs.items()}
    extra = len(pictures) - 1
    if extra:
        start, end = 1, 1 + queries + 2  # behind <s>: <image>, queries, </image>
        for key in ("input_ids", "attention_mask", "image_embeds_position_mask"):
            row = inputs[key]
            inputs[key] = torch.cat([row[:, :end], *[row[:, start:end]] * extra, row[:, end:]], dim=1)
        inputs["pixel_values"] = processor.image_processor(pictures, return_tensors="pt")["pixel_values"]
    return inputs


def _image_first_inputs(processor: Any, family: str, prompt: str, pictures: list[Image.Image]) -> dict[str, torch.Tensor]:
    """Florence-2 and BLIP-2 put the image in front of the text by themselves; a second one is put before the first."""
    inputs = dict(processor(images=pictures[0], text=prompt.replace("<image>", ""), return_tensors="pt"))
    tokens = processor.num_image_tokens if family == "florence2" else processor.num_query_tokens
    for key in ("input_ids", "attention_mask"):
        inputs[key] = torch.cat([inputs[key][:, :tokens]] * (len(pictures) - 1) + [inputs[key]], dim=1)
    inputs["pixel_values"] = processor.image_processor(pictures, return_tensors="pt")["pixel_values"]
    return inputs
