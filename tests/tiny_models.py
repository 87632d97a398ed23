"""Tiny random models of every vision-language family of transformers that AnyVLA supports, laid out as real checkpoints.

``make_tiny(family, folder)`` writes config.json, model.safetensors, tokenizer.json, tokenizer_config.json and the settings of
the image processor, so that ``AutoConfig``, ``AutoTokenizer`` and ``AutoModelForImageTextToText`` load the folder as they load a
published checkpoint. Nothing is downloaded: the tokenizer is trained here, with the family's special tokens.
``reference_inputs`` gives what the family's own processor makes of a prompt and its images: what the adapter must equal.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers as hf
from PIL import Image
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

SENTENCES = (
    "Pass the box on the left, and then stop in front of the green bottle.",
    "Go straight ahead and turn right at the door. What should the robot do to pick up the red block?",
    "USER: ASSISTANT: User: Assistant: Question: Answer: system user assistant An image of a robot.",
)
MERGES = 64  # of the byte-pair encoding, on top of its 256 bytes

CLIP = {"image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]}
IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
HALF = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}

Config = Callable[[hf.PreTrainedTokenizerBase], hf.PreTrainedConfig]


@dataclass(frozen=True)
class Family:
    """What is particular to a family.

    Attributes:
        size: (h, w) of the images that its processor does not resize. config: its configuration, given its tokenizer.
        image_processor: the class, without the suffix Pil, and its settings. roles: bos_token, eos_token, ... of the tokenizer;
            these have its first ids. added: its other special tokens; these have its last ids. names: tokens that the
            tokenizer knows by name, as ``tokenizer.image_token``. bos: whether the tokenizer itself puts its bos before a text.
        prompt: how the family writes a question; {images} stands for the placeholders of all images. image: one placeholder.
    """

    size: tuple[int, int]
    config: Config
    image_processor: tuple[str, dict[str, Any]]
    roles: dict[str, str]
    added: tuple[str, ...]
    prompt: str
    image: str = "<image>"
    names: dict[str, str] = field(default_factory=dict)
    bos: bool = False


def image_size(family: str) -> tuple[int, int]:
    """(h, w) of the images that the model of ``make_tiny(family, ...)`` takes without any resizing."""
    return _FAMILIES[family].size


def family_prompt(family: str, text: str, images: int = 1) -> str:
    """``text`` as an instruction about ``images`` images, as the family's processor wants it (placeholders not expanded)."""
    spec = _FAMILIES[family]
    return spec.prompt.format(images=spec.image * images, text=text)


def make_tiny(family: str, folder: Path, seed: int = 0) -> Path:
    """Write a tiny model of ``family`` into ``folder``, as a checkpoint of that family looks; the same for the same seed."""
    spec = _FAMILIES[family]
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = _tokenizer(spec)
    with torch.random.fork_rng(devices=[]):  # the caller's random numbers stay as they were
        model = hf.AutoModelForImageTextToText.from_config(spec.config(tokenizer), dtype=torch.float32)
    _randomise(model, seed)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    name, settings = spec.image_processor
    image_processor = getattr(hf, f"{name}Pil")(**settings)
    if family in NESTED:
        _processor(family, model.config, image_processor, _tokenizer(spec)).save_pretrained(folder)
        tokenizer.save_pretrained(folder)  # without what the processor adds to a tokenizer, 1152 tokens for PaliGemma
    else:
        image_processor.save_pretrained(folder)
    return folder


def _tokenizer(spec: Family) -> hf.PreTrainedTokenizerFast:
    """A byte-level BPE with the family's special tokens: the tokenizer's roles first, then words, then the rest."""
    first = list(dict.fromkeys(spec.roles.values()))
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=len(first) + len(alphabet) + MERGES, special_tokens=first, initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(SENTENCES, trainer)
    # Kosmos-2's special tokens swallow the space before them
    lstrip = "<grounding>" in spec.added
    bpe.add_special_tokens([AddedToken(token, normalized=False, special=True, lstrip=lstrip) for token in spec.added])
    if spec.bos:
        bos = spec.roles["bos_token"]
        bpe.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A $B", special_tokens=[(bos, bpe.token_to_id(bos))]
        )
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=bpe, padding_side="right", extra_special_tokens=spec.names or list(spec.added), **spec.roles
    )


def _randomise(model: hf.PreTrainedModel, seed: int) -> None:
    """Random weights under which every part of the model matters: 0.02, the custom of wide models, would hide most of them."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        with torch.no_grad():
            if name.endswith(("gate", "alpha_cross_attn", "alpha_dense")):  # closed in a new model: it would ignore images
                parameter.copy_(0.7 + 0.1 * noise)
            elif parameter.ndim < 2:  # norms stay near the identity, biases near 0
                parameter.add_(0.05 * noise)
            elif "embed" in name or parameter.ndim == 3:
                parameter.copy_(0.2 * noise)
            else:
                fan_in = parameter[0].numel()
                parameter.copy_(noise * fan_in**-0.5)


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
    image_processor = getattr(hf, f"{_FAMILIES[family].image_processor[0]}Pil").from_pretrained(folder)
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


def _processor(
    family: str, config: hf.PreTrainedConfig, image_processor: Any, tokenizer: hf.PreTrainedTokenizerBase
) -> hf.ProcessorMixin:
    """The family's own processor; one of ``_VIDEO`` with nothing but what its expansion of image placeholders needs."""
    package = {"blip2": "blip_2", "paligemma2": "paligemma"}.get(family, family)
    module = import_module(f"transformers.models.{package}.processing_{package}")
    cls = getattr(module, next(name for name in module.__all__ if name.endswith("Processor")))
    names: dict[str, Any]
    if family in _VIDEO:
        processor = object.__new__(cls)
        processor.image_processor = image_processor
        names = dict(_FAMILIES[family].names)
        if family.startswith("qwen"):
            names = {"image_token": "<|image_pad|>"}
        elif family == "internvl":
            names |= {"image_token": names["context_image_token"], "image_seq_length": config.image_seq_length}
        elif family == "smolvlm":
            names["image_seq_len"] = (config.vision_config.image_size // config.vision_config.patch_size) ** 2 // 4
        else:
            tokens = (config.vision_config.image_size // config.vision_config.patch_size) ** 2
            names |= {"num_image_tokens": tokens, "vision_feature_select_strategy": config.vision_feature_select_strategy}
            names["vision_aspect_ratio"] = config.vision_aspect_ratio
        for name, value in names.items():
            setattr(processor, name, value)
        return processor
    if family in ("llava", "llava_next"):
        names = {"patch_size": config.vision_config.patch_size, "num_additional_image_tokens": 1}
        names["vision_feature_select_strategy"] = config.vision_feature_select_strategy
    elif family == "kosmos2":
        names = {"num_patch_index_tokens": 0}
    elif family == "idefics2":
        names = {"image_seq_len": config.perceiver_config.resampler_n_latents}
    elif family == "idefics3":
        names = {"image_seq_len": (config.vision_config.image_size // config.vision_config.patch_size) ** 2 // 4}
    elif family == "gemma3":
        names = {"image_seq_length": config.mm_tokens_per_image}
    elif family == "blip2":
        names = {"num_query_tokens": config.num_query_tokens}
    else:
        names = {}
    return cls(image_processor, tokenizer, **names)


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


# what every small transformer below shares; 2 layers, so that freezing the first of them leaves something to train
_TEXT = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 512,
}
_VISION = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
_GEMMA = {**_TEXT, "head_dim": 16}


def _ids(tokenizer: hf.PreTrainedTokenizerBase, roles: Sequence[str] = ("bos", "eos", "pad")) -> dict[str, Any]:
    """vocab_size and the ids of the tokenizer's roles, for a text configuration."""
    return {"vocab_size": len(tokenizer), **{f"{role}_token_id": getattr(tokenizer, f"{role}_token_id") for role in roles}}


def _kosmos2(t: hf.PreTrainedTokenizerBase) -> hf.PreTrainedConfig:
    text = {"embed_dim": 32, "layers": 2, "ffn_dim": 64, "attention_heads": 2, "max_position_embeddings": 512, **_ids(t)}
    return hf.Kosmos2Config(text_config=text, vision_config={**_VISION, "image_size": 28, "patch_size": 14}, latent_query_num=4)


def _paligemma(t: hf.PreTrainedTokenizerBase, text: str = "gemma") -> hf.PreTrainedConfig:
    return hf.PaliGemmaConfig(
        vision_config={"model_type": "siglip_vision_model", **_VISION, "image_size": 28, "vision_use_head": False}
        | {"patch_size": 14},
        text_config={"model_type": text, **_GEMMA, **_ids(t)}
        | ({"query_pre_attn_scalar": 16, "sliding_window": 512} if text == "gemma2" else {}),
        image_token_index=t.convert_tokens_to_ids("<image>"),
        projection_dim=32,
        hidden_size=32,
        vocab_size=len(t),
    )


def _paligemma2(t: hf.PreTrainedTokenizerBase) -> hf.PreTrainedConfig:
    return _paligemma(t, "gemma2")


_CLIP_VISION = {"model_type": "clip_vision_model", **_VISION, "image_size": 28, "patch_size": 14, "projection_dim": 32}
# LLaVA takes the last but one layer
_CLIP_VISION_3 = {**_CLIP_VISION, "num_hidden_layers": 3}


def _llava(t: hf.PreTrainedTokenizerBase) -> hf.PreTrainedConfig:
    return hf.LlavaConfig(
        vision_config=_CLIP_VISION_3,
        text_config={"model_type": "llama", **_TEXT, **_ids(t)},
        image_token_index=t.convert_tokens_to_ids("<image>"),
        image_seq_length=4,
    )


def _llava_next(t: hf.PreTrainedTokenizerBase) -> hf.PreTrainedConfig:
    return hf.LlavaNextConfig(
        vision_config=_CLIP_VISION_3,
        text_config={"model_type": "llama", **_TEXT, **_ids(t)},
        image_token_index=t.convert_tokens_to_ids("<image>"),
        image_seq_length=4,
        image_grid_pinpoints=_PINPOINTS,
    )


# (h, w) as LLaVA-NeXT has them for its tiles of 336 px
_PINPOINTS = [[28, 56], [56, 28], [56, 56], [84, 28], [28, 84]]


def _llava_onevision(t: hf.PreTrainedTokenizerBase) -> hf.PreTrainedConfig:
    vision = {"model_type": "siglip_vision_model", **_VISION, "image_size": 28, "patch_size": 14, "vision_use_head": False}
    return hf.LlavaOnevisionConfig(
        vision_config=vision,
        text_config={"model_type": "qwen2", **_TEXT, **_ids(t)},
        image_token_index=t.convert_tokens_to_ids("<image>"),
        video_token_index=t.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=[[28, 28], *_PINPOINTS],
    )


def _qwen_ids(t: hf.PreTrainedTokenizerBase) -> dict[str, int]:
    names = {"image": "image_pad", "video": "video_pad", "vision_start": "vision_start", "vision_end": "vision_end"}
    return {f"{key}_token_id": t.convert_tokens_to_ids(f"<|{name}|>") for key, name in names.items()}


def _qwen2_vl(t: hf.PreTrainedTokenizerBase) -> hf.PreTrainedConfig:
    rope = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10_000.0}
    return hf.Qwen2VLConfig(
        vision_config={"depth": 2, "embed_dim": 32, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2},
        text_config={**_TEXT, "rope_parameters": rope, **_ids(t)},
        **_qwen_ids(t),
    )


def _qwen2_5_vl(t: hf.PreTrainedTokenizerBase) -> hf.PreTrainedConfig:
    rope = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10_000.0}
    # windows of 2 x 2 merged patches in the first layer, so that an image of 2 x 3 has two of them; the second sees all
    vision = {"depth": 2, "hidden_size": 32, "out_hidden_size": 32, "num_heads": 2, "intermediate_size": 64}
    return hf.Qwen2_5_VLConfig(
        vision_config={**vision, "window_size": 56, "fullatt_block_indexes": [1]},
        text_config={**_TEXT, "rope_parameters": rope, **_ids(t)},
        **_qwen_ids(t),
    )


def _qwen3_vl(t: hf.PreTrainedTokenizerBase) -> hf.PreTrainedConfig:
    rope = {"rope_type": "default", "mrope_section": [4, 2, 2], "mrope_interleaved": True, "rope_theta": 10_000.0}
    vision = {"depth": 2, "hidden_size": 32, "out_hidden_size": 32, "num_heads": 2, "intermediate_size": 64}
    return hf.Qwen3VLConfig(
        vision_config={**vision, "num_position_embeddings": 16, "deepstack_visual_indexes": [0]},
        text_config={**_TEXT, "head_dim": 16, "rope_parameters": rope, **_ids(t)},
        **_qwen_ids(t),
    )


def _idefics(t: hf.PreTrainedTokenizerBase) -> hf.PreTrainedConfig:
    return hf.IdeficsConfig(
        **{key: value for key, value in _TEXT.items() if key != "num_key_value_heads"},
        **{**_ids(t), "vocab_size": len(t) - 2},
        additional_vocab_size=2,  # the last two tokens, those of images, have embeddings of their own
        alpha_type="vector",
        qk_layer_norms=True,
        use_resampler=True,
        vision_config={**_VISION, "embed_dim": 32, "image_size": 28, "patch_size": 14},
        perceiver_config={"resampler_n_latents": 4, "resampler_depth": 2, "resampler_n_heads": 2, "resampler_head_dim": 16}
        | {"use_resampler": True, "qk_layer_norms_perceiver": True},
    )


def _idefics2(t: hf.PreTrainedTokenizerBase) -> hf.PreTrainedConfig:
    perceiver = {"resampler_n_latents": 4, "resampler_depth": 1, "resampler_n_heads": 2, "resampler_head_dim": 16}
    return hf.Idefics2Config(
        vision_config={**_VISION, "image_size": 56, "patch_size": 14},
        perceiver_config={**perceiver, "num_key_value_heads": 1, "hidden_size": 32},
        text_config={"model_type": "mistral", **_TEXT, **_ids(t)},
        image_token_id=t.convert_tokens_to_ids("<image>"),
    )


def _idefics3(t: hf.PreTrainedTokenizerBase) -> hf.PreTrainedConfig:
    return hf.Idefics3Config(
        vision_config={**_VISION, "image_size": 56, "patch_size": 14},
        text_config={"model_type": "llama", **_TEXT, **_ids(t)},
        image_token_id=t.convert_tokens_to_ids("<image>"),
        scale_factor=2,
        pad_token_id=t.pad_token_id,
    )


def _smolvlm(t: hf.PreTrainedTokenizerBase) -> hf.PreTrainedConfig:
    return hf.SmolVLMConfig(
        vision_config={**_VISION, "image_size": 64, "patch_size": 16},
        text_config={"model_type": "llama", **_TEXT, **_ids(t)},
        image_token_id=t.convert_tokens_to_ids("<image>"),
        scale_factor=2,
        pad_token_id=t.pad_token_id,
    )


def _internvl(t: hf.PreTrainedTokenizerBase) -> hf.PreTrainedConfig:
    return hf.InternVLConfig(
        vision_config={**_VISION, "image_size": [56, 56], "patch_size": [14, 14]},
        text_config={"model_type": "qwen2", **_TEXT, **_ids(t)},
        image_token_id=t.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=4,
    )


def _gemma3(t: hf.PreTrainedTokenizerBase) -> hf.PreTrainedConfig:
    return hf.Gemma3Config(
        vision_config={**_VISION, "image_size": 56, "patch_size": 14, "vision_use_head": False},
        text_config={**_GEMMA, "query_pre_attn_scalar": 16, "sliding_window": 64, **_ids(t)}
        | {"layer_types": ["sliding_attention", "full_attention"]},
        mm_tokens_per_image=4,
        boi_token_index=t.convert_tokens_to_ids("<start_of_image>"),
        eoi_token_index=t.convert_tokens_to_ids("<end_of_image>"),
        image_token_index=t.convert_tokens_to_ids("<image_soft_token>"),
    )


def _florence2(t: hf.PreTrainedTokenizerBase) -> hf.PreTrainedConfig:
    stages = {"embed_dim": [16, 16, 32, 32], "num_heads": [1, 1, 2, 2], "num_groups": [1, 1, 2, 2], "depths": [1, 1, 1, 1]}
    text = {"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "max_position_embeddings": 512, "dropout": 0.0}
    return hf.Florence2Config(
        vision_config={**stages, "window_size": 4, "projection_dim": 32, "drop_path_rate": 0.0, "mlp_ratio": 2.0},
        text_config={"model_type": "bart", **text, **heads, **_ids(t), "decoder_start_token_id": t.eos_token_id},
        image_token_id=t.convert_tokens_to_ids("<image>"),
    )


def _blip2(t: hf.PreTrainedTokenizerBase) -> hf.PreTrainedConfig:
    text = {key: _TEXT[key] for key in ("hidden_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings")}
    return hf.Blip2Config(
        vision_config={**_VISION, "image_size": 28, "patch_size": 14},
        qformer_config={**_VISION, "vocab_size": 8, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
        text_config={"model_type": "opt", **text, "ffn_dim": 64, "word_embed_proj_dim": 32, "dropout": 0.0, **_ids(t)},
        num_query_tokens=4,
        image_text_hidden_size=8,
        image_token_index=t.convert_tokens_to_ids("<image>"),
    )


def _mllama(t: hf.PreTrainedTokenizerBase) -> hf.PreTrainedConfig:
    vision = {**_VISION, "attention_heads": 2, "num_global_layers": 1, "intermediate_layers_indices": [0, 1]}
    del vision["num_attention_heads"]
    return hf.MllamaConfig(
        vision_config={**vision, "image_size": 28, "patch_size": 14, "vision_output_dim": 96},
        # the image token has the id behind the vocabulary: it is embedded, never predicted
        text_config={**_TEXT, "num_hidden_layers": 3, "cross_attention_layers": [1], **_ids(t), "vocab_size": len(t) - 1},
        image_token_index=t.convert_tokens_to_ids("<|image|>"),
    )


_SENTENCEPIECE = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
_FAIRSEQ = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
_GEMMA_ROLES = {"pad_token": "<pad>", "eos_token": "<eos>", "bos_token": "<bos>", "unk_token": "<unk>"}
_QWEN = {"pad_token": "<|endoftext|>", "eos_token": "<|im_end|>"}
_QWEN_ADDED = ("<|im_start|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>")
_QWEN_PROMPT = "<|im_start|>user\n{images}{text}<|im_end|>\n<|im_start|>assistant\n"
_QWEN_IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
_QWEN_PROCESSOR = {"min_pixels": 1024, "max_pixels": 65536, "merge_size": 2, "temporal_patch_size": 2}


def _square(side: int) -> dict[str, Any]:
    return {"size": {"height": side, "width": side}}


def _crop(side: int) -> dict[str, Any]:
    return {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}}


_FAMILIES: dict[str, Family] = {
    "kosmos2": Family(
        size=(28, 28),
        config=_kosmos2,
        image_processor=("CLIPImageProcessor", _crop(28) | CLIP),
        roles=_FAIRSEQ,
        added=("</doc>", "<image>", "</image>", "</chunk>", "</line>", "<phrase>", "</phrase>", "<object>", "</object>")
        + ("</delimiter_of_multi_objects/>", "<grounding>"),
        prompt="{images}<grounding> {text}",
    ),
    "paligemma": Family(
        size=(28, 28),
        config=_paligemma,
        image_processor=("SiglipImageProcessor", _square(28) | HALF | {"image_seq_length": 4}),
        roles=_GEMMA_ROLES,
        added=("<image>",),
        prompt="{images}{text}",
        bos=True,
    ),
    "paligemma2": Family(
        size=(28, 28),
        config=_paligemma2,
        image_processor=("SiglipImageProcessor", _square(28) | HALF | {"image_seq_length": 4}),
        roles=_GEMMA_ROLES,
        added=("<image>",),
        prompt="{images}{text}",
        bos=True,
    ),
    "llava": Family(
        size=(28, 28),
        config=_llava,
        image_processor=("CLIPImageProcessor", _crop(28) | CLIP),
        roles=_SENTENCEPIECE | {"pad_token": "<pad>"},
        added=("<image>",),
        names={"image_token": "<image>"},
        prompt="USER: {images}\n{text} ASSISTANT:",
        bos=True,
    ),
    "llava_next": Family(
        size=(28, 28),
        config=_llava_next,
        image_processor=("LlavaNextImageProcessor", _crop(28) | CLIP | {"image_grid_pinpoints": _PINPOINTS}),
        roles=_SENTENCEPIECE | {"pad_token": "<pad>"},
        added=("<image>",),
        names={"image_token": "<image>"},
        prompt="[INST] {images}\n{text} [/INST]",
        bos=True,
    ),
    "llava_onevision": Family(
        size=(28, 28),
        config=_llava_onevision,
        image_processor=(
            "LlavaOnevisionImageProcessor",
            _square(28) | HALF | {"image_grid_pinpoints": [[28, 28], *_PINPOINTS]},
        ),
        roles=_QWEN,
        added=("<|im_start|>", "<image>", "<video>"),
        names={"image_token": "<image>", "video_token": "<video>"},
        prompt="<|im_start|>user {images}\n{text}<|im_end|><|im_start|>assistant\n",
    ),
    "qwen2_vl": Family(
        size=(56, 84),
        config=_qwen2_vl,
        image_processor=("Qwen2VLImageProcessor", _QWEN_PROCESSOR | CLIP),
        roles=_QWEN,
        added=_QWEN_ADDED,
        prompt=_QWEN_PROMPT,
        image=_QWEN_IMAGE,
    ),
    "qwen2_5_vl": Family(
        size=(56, 84),
        config=_qwen2_5_vl,
        image_processor=("Qwen2VLImageProcessor", _QWEN_PROCESSOR | CLIP),
        roles=_QWEN,
        added=_QWEN_ADDED,
        prompt=_QWEN_PROMPT,
        image=_QWEN_IMAGE,
    ),
    "qwen3_vl": Family(
        size=(64, 96),
        config=_qwen3_vl,
        image_processor=("Qwen2VLImageProcessor", _QWEN_PROCESSOR | HALF | {"patch_size": 16}),
        roles=_QWEN,
        added=_QWEN_ADDED,
        prompt=_QWEN_PROMPT,
        image=_QWEN_IMAGE,
    ),
    "idefics": Family(
        size=(28, 28),
        config=_idefics,
        image_processor=("IdeficsImageProcessor", {"image_size": 28} | CLIP),
        roles=_SENTENCEPIECE | {"pad_token": "<unk>"},
        added=("<fake_token_around_image>", "<image>"),
        prompt="User: {images}{text}\nAssistant:",
    ),
    "idefics2": Family(
        size=(28, 42),
        config=_idefics2,
        image_processor=(
            "Idefics2ImageProcessor",
            {"size": {"longest_edge": 56, "shortest_edge": 28}, "do_image_splitting": True} | HALF,
        ),
        roles=_SENTENCEPIECE | {"pad_token": "<unk>"},
        added=("<fake_token_around_image>", "<image>", "<end_of_utterance>"),
        prompt="User:{images}{text}<end_of_utterance>\nAssistant:",
        bos=True,
    ),
    "idefics3": Family(
        size=(56, 56),
        config=_idefics3,
        image_processor=(
            "Idefics3ImageProcessor",
            {"size": {"longest_edge": 224}, "max_image_size": {"longest_edge": 56}} | HALF,
        ),
        roles={"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>", "pad_token": "<|reserved_special_token_0|>"},
        added=("<fake_token_around_image>", "<image>", "<end_of_utterance>", "<global-img>"),
        prompt="User:{images}{text}<end_of_utterance>\nAssistant:",
        bos=True,
    ),
    "smolvlm": Family(
        size=(64, 64),
        config=_smolvlm,
        image_processor=(
            "SmolVLMImageProcessor",
            {"size": {"longest_edge": 256}, "max_image_size": {"longest_edge": 64}} | HALF,
        ),
        roles={"bos_token": "<|im_start|>", "eos_token": "<end_of_utterance>", "pad_token": "<|im_end|>"},
        added=("<fake_token_around_image>", "<image>", "<global-img>"),
        names={"image_token": "<image>", "fake_image_token": "<fake_token_around_image>", "global_image_token": "<global-img>"}
        | {"end_of_utterance_token": "<end_of_utterance>"},
        prompt="<|im_start|>User:{images}{text}<end_of_utterance>\nAssistant:",
    ),
    "internvl": Family(
        size=(56, 56),
        config=_internvl,
        image_processor=("GotOcr2ImageProcessor", _square(56) | IMAGENET | {"crop_to_patches": True}),
        roles=_QWEN,
        added=("<|im_start|>", "<img>", "</img>", "<IMG_CONTEXT>", "<video>"),
        names={"start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>"}
        | {"video_token": "<video>"},
        prompt="<|im_start|>user\n{images}\n{text}<|im_end|>\n<|im_start|>assistant\n",
        image="<IMG_CONTEXT>",
    ),
    "gemma3": Family(
        size=(56, 56),
        config=_gemma3,
        image_processor=("Gemma3ImageProcessor", _square(56) | HALF),
        roles=_GEMMA_ROLES,
        added=("<start_of_turn>", "<end_of_turn>", "<start_of_image>", "<end_of_image>", "<image_soft_token>"),
        names={"image_token": "<image_soft_token>", "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>"},
        prompt="<start_of_turn>user\n{images}{text}<end_of_turn>\n<start_of_turn>model\n",
        image="<start_of_image>",
        bos=True,
    ),
    "florence2": Family(
        size=(64, 64),
        config=_florence2,
        image_processor=("CLIPImageProcessor", _square(64) | IMAGENET | {"do_center_crop": False, "image_seq_length": 5}),
        roles=_FAIRSEQ,
        added=("<image>",),
        names={"image_token": "<image>"},
        prompt="{images}{text}",
    ),
    "blip2": Family(
        size=(28, 28),
        config=_blip2,
        image_processor=("BlipImageProcessor", _square(28) | CLIP),
        roles={"unk_token": "<unk>", "pad_token": "<pad>", "bos_token": "</s>", "eos_token": "</s>"},
        added=("<image>",),
        prompt="{images}Question: {text} Answer:",
        bos=True,
    ),
    "mllama": Family(
        size=(28, 28),
        config=_mllama,
        image_processor=("MllamaImageProcessor", _square(28) | CLIP | {"max_image_tiles": 4}),
        roles={"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>", "pad_token": "<|finetune_right_pad_id|>"},
        added=("<|start_header_id|>", "<|end_header_id|>", "<|python_tag|>", "<|image|>"),
        prompt="{images}{text}",
        image="<|image|>",
    ),
}
FAMILIES: tuple[str, ...] = tuple(_FAMILIES)
# families whose settings are written as transformers 5 writes a whole processor: inside processor_config.json
NESTED = ("paligemma2", "gemma3")
