"""Tiny random models of every vision-language family of transformers that AnyVLA supports, laid out as real checkpoints.

``make_tiny(family, folder)`` writes config.json, model.safetensors, tokenizer.json, tokenizer_config.json and the settings of
the image processor, so that ``AutoConfig``, ``AutoTokenizer`` and ``AutoModelForImageTextToText`` load the folder as they load
a published checkpoint. Nothing is downloaded: the tokenizer is trained here, with the family's special tokens.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from tests.family_inputs import reference_inputs

__all__ = ["FAMILIES", "family_prompt", "image_size", "make_tiny", "reference_inputs"]

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
        nested = {"image_processor": image_processor.to_dict()}
        (folder / "processor_config.json").write_text(json.dumps(nested, indent=1))
    else:
        image_processor.save_pretrained(folder)
    return folder


def chat_tokenizer(bos: bool = False) -> hf.PreTrainedTokenizerFast:
    """One with the words ``<|im_start|>``, ``<|im_end|>`` and ``<image>``; with ``bos``, one that puts it before a text."""
    roles = {"pad_token": "<|endoftext|>", "eos_token": "<|im_end|>"} | ({"bos_token": "<s>"} if bos else {})
    return _tokenizer(replace(_FAMILIES["llava_onevision"], roles=roles, names=_IMAGE, bos=bos))


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


def _ids(tokenizer: hf.PreTrainedTokenizerBase) -> dict[str, Any]:
    """vocab_size and the ids of the tokenizer's roles, for a text configuration."""
    return {
        "vocab_size": len(tokenizer),
        **{f"{role}_token_id": getattr(tokenizer, f"{role}_token_id") for role in ("bos", "eos", "pad")},
    }


def _kosmos2(t: hf.PreTrainedTokenizerBase) -> hf.PreTrainedConfig:
    text = {"embed_dim": 32, "layers": 2, "ffn_dim": 64, "attention_heads": 2, "max_position_embeddings": 512, **_ids(t)}
    return hf.Kosmos2Config(text_config=text, vision_config={**_VISION, "image_size": 28, "patch_size": 14}, latent_query_num=4)


_SIGLIP = {"model_type": "siglip_vision_model", **_VISION, "image_size": 28, "patch_size": 14, "vision_use_head": False}


def _paligemma(t: hf.PreTrainedTokenizerBase) -> hf.PreTrainedConfig:
    return hf.PaliGemmaConfig(
        vision_config=_SIGLIP,
        text_config={"model_type": "gemma", **_TEXT, "head_dim": 16, **_ids(t)},
        image_token_index=t.convert_tokens_to_ids("<image>"),
        projection_dim=32,
        hidden_size=32,
        vocab_size=len(t),
    )


def _paligemma2(t: hf.PreTrainedTokenizerBase) -> hf.PreTrainedConfig:
    text = {"model_type": "gemma2", **_TEXT, "head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 512, **_ids(t)}
    return hf.PaliGemmaConfig(**{**_paligemma(t).to_dict(), "text_config": text})


# three layers, because LLaVA takes the last but one
_CLIP_VISION = {"model_type": "clip_vision_model", **_VISION, "num_hidden_layers": 3, "image_size": 28, "patch_size": 14}


def _llava(t: hf.PreTrainedTokenizerBase) -> hf.PreTrainedConfig:
    return hf.LlavaConfig(
        vision_config=_CLIP_VISION,
        text_config={"model_type": "llama", **_TEXT, **_ids(t)},
        image_token_index=t.convert_tokens_to_ids("<image>"),
        image_seq_length=4,
    )


def _llava_next(t: hf.PreTrainedTokenizerBase) -> hf.PreTrainedConfig:
    return hf.LlavaNextConfig(
        vision_config=_CLIP_VISION,
        text_config={"model_type": "llama", **_TEXT, **_ids(t)},
        image_token_index=t.convert_tokens_to_ids("<image>"),
        image_seq_length=4,
        image_grid_pinpoints=_PINPOINTS,
    )


# (h, w) as LLaVA-NeXT has them for its tiles of 336 px
_PINPOINTS = [[28, 56], [56, 28], [56, 56], [84, 28], [28, 84]]
_ONEVISION_PINPOINTS = [[28, 28], *_PINPOINTS]


def _llava_onevision(t: hf.PreTrainedTokenizerBase) -> hf.PreTrainedConfig:
    return hf.LlavaOnevisionConfig(
        vision_config=_SIGLIP,
        text_config={"model_type": "qwen2", **_TEXT, **_ids(t)},
        image_token_index=t.convert_tokens_to_ids("<image>"),
        video_token_index=t.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=_ONEVISION_PINPOINTS,
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
        text_config={**_TEXT, "head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 64, **_ids(t)}
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


_FAIRSEQ = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
_LLAMA = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
_MISTRAL = _LLAMA | {"pad_token": "<unk>"}
_LLAMA3 = {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>", "pad_token": "<|finetune_right_pad_id|>"}
_GEMMA_ROLES = {"pad_token": "<pad>", "eos_token": "<eos>", "bos_token": "<bos>", "unk_token": "<unk>"}
_QWEN_ROLES = {"pad_token": "<|endoftext|>", "eos_token": "<|im_end|>"}
_CHAT = "<|im_start|>user\n{images}%s{text}<|im_end|>\n<|im_start|>assistant\n"
_FAKE = "<fake_token_around_image>"


def _square(side: int) -> dict[str, Any]:
    return {"size": {"height": side, "width": side}}


def _crop(side: int) -> dict[str, Any]:
    return {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}}


def _tiled(side: int) -> dict[str, Any]:
    return {"size": {"longest_edge": 4 * side}, "max_image_size": {"longest_edge": side}}


def _qwen(size: tuple[int, int], config: Config, image_processor: dict[str, Any]) -> Family:
    settings = {"min_pixels": 1024, "max_pixels": 65536, "merge_size": 2, "temporal_patch_size": 2} | image_processor
    added = ("<|im_start|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>")
    image = "<|vision_start|><|image_pad|><|vision_end|>"
    return Family(size, config, ("Qwen2VLImageProcessor", settings), _QWEN_ROLES, added, _CHAT % "", image)


_IMAGE = {"image_token": "<image>"}
_PALIGEMMA = Family(
    size=(28, 28),
    config=_paligemma,
    image_processor=("SiglipImageProcessor", _square(28) | HALF | {"image_seq_length": 4}),
    roles=_GEMMA_ROLES,
    added=("<image>",),
    prompt="{images}{text}",
    bos=True,
)
_LLAVA = Family(
    size=(28, 28),
    config=_llava,
    image_processor=("CLIPImageProcessor", _crop(28) | CLIP),
    roles=_LLAMA,
    added=("<image>",),
    prompt="USER: {images}\n{text} ASSISTANT:",
    names=_IMAGE,
    bos=True,
)
_IDEFICS3 = Family(
    size=(56, 56),
    config=_idefics3,
    image_processor=("Idefics3ImageProcessor", _tiled(56) | HALF),
    roles=_LLAMA3,
    added=(_FAKE, "<image>", "<end_of_utterance>", "<global-img>"),
    prompt="User:{images}{text}<end_of_utterance>\nAssistant:",
    bos=True,
)

_FAMILIES: dict[str, Family] = {
    "kosmos2": Family(
        size=(28, 28),
        config=_kosmos2,
        image_processor=("CLIPImageProcessor", _crop(28) | CLIP),
        roles=_FAIRSEQ,
        added=(
            "</doc>",
            "<image>",
            "</image>",
            "</chunk>",
            "</line>",
            "<phrase>",
            "</phrase>",
            "<object>",
            "</object>",
            "<grounding>",
        ),
        prompt="{images}<grounding> {text}",
    ),
    "paligemma": _PALIGEMMA,
    "paligemma2": replace(_PALIGEMMA, config=_paligemma2),
    "llava": _LLAVA,
    "llava_next": replace(
        _LLAVA,
        config=_llava_next,
        image_processor=("LlavaNextImageProcessor", _crop(28) | CLIP | {"image_grid_pinpoints": _PINPOINTS}),
        prompt="[INST] {images}\n{text} [/INST]",
    ),
    "llava_onevision": Family(
        size=(28, 28),
        config=_llava_onevision,
        image_processor=("LlavaOnevisionImageProcessor", _square(28) | HALF | {"image_grid_pinpoints": _ONEVISION_PINPOINTS}),
        roles=_QWEN_ROLES,
        added=("<|im_start|>", "<image>", "<video>"),
        prompt="<|im_start|>user {images}\n{text}<|im_end|><|im_start|>assistant\n",
        names=_IMAGE | {"video_token": "<video>"},
    ),
    "qwen2_vl": _qwen((56, 84), _qwen2_vl, CLIP),
    "qwen2_5_vl": _qwen((56, 84), _qwen2_5_vl, CLIP),
    "qwen3_vl": _qwen((64, 96), _qwen3_vl, HALF | {"patch_size": 16}),
    "idefics": Family(
        size=(28, 28),
        config=_idefics,
        image_processor=("IdeficsImageProcessor", {"image_size": 28} | CLIP),
        roles=_MISTRAL,
        added=(_FAKE, "<image>"),
        prompt="User:{images}{text}\nAssistant:",
    ),
    "idefics2": Family(
        size=(28, 42),
        config=_idefics2,
        image_processor=("Idefics2ImageProcessor", HALF | {"size": {"longest_edge": 56, "shortest_edge": 28}}),
        roles=_MISTRAL,
        added=(_FAKE, "<image>", "<end_of_utterance>"),
        prompt=_IDEFICS3.prompt,
        bos=True,
    ),
    "idefics3": _IDEFICS3,
    "smolvlm": Family(
        size=(64, 64),
        config=_smolvlm,
        image_processor=("SmolVLMImageProcessor", _tiled(64) | HALF),
        roles={"bos_token": "<|im_start|>", "eos_token": "<end_of_utterance>", "pad_token": "<|im_end|>"},
        added=(_FAKE, "<image>", "<global-img>"),
        prompt="<|im_start|>" + _IDEFICS3.prompt,
        names=_IMAGE | {"fake_image_token": _FAKE, "global_image_token": "<global-img>"},
    ),
    "internvl": Family(
        size=(56, 56),
        config=_internvl,
        image_processor=("GotOcr2ImageProcessor", _square(56) | IMAGENET | {"crop_to_patches": True}),
        roles=_QWEN_ROLES,
        added=("<|im_start|>", "<img>", "</img>", "<IMG_CONTEXT>", "<video>"),
        prompt=_CHAT % "\n",
        image="<IMG_CONTEXT>",
        names={"start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>"},
    ),
    "gemma3": Family(
        size=(56, 56),
        config=_gemma3,
        image_processor=("Gemma3ImageProcessor", _square(56) | HALF),
        roles=_GEMMA_ROLES,
        added=("<start_of_turn>", "<end_of_turn>", "<start_of_image>", "<end_of_image>", "<image_soft_token>"),
        prompt="<start_of_turn>user\n{images}{text}<end_of_turn>\n<start_of_turn>model\n",
        image="<start_of_image>",
        names={"image_token": "<image_soft_token>", "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>"},
        bos=True,
    ),
    "florence2": Family(
        size=(64, 64),
        config=_florence2,
        image_processor=("CLIPImageProcessor", _square(64) | IMAGENET | {"do_center_crop": False, "image_seq_length": 5}),
        roles=_FAIRSEQ,
        added=("<image>",),
        prompt="{images}{text}",
        names=_IMAGE,
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
        roles=_LLAMA3,
        added=("<|start_header_id|>", "<|end_header_id|>", "<|python_tag|>", "<|image|>"),
        prompt="{images}{text}",
        image="<|image|>",
    ),
}
FAMILIES: tuple[str, ...] = tuple(_FAMILIES)
# families whose settings are written as transformers 5 writes a whole processor: inside processor_config.json
NESTED = ("paligemma2", "gemma3")
