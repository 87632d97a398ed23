"""Random vision-language models of middle size, written to a folder as published checkpoints are, without weights.

What makes a step dear is in proportion: a vocabulary of full size, and a language model much larger than a toy. ``tiny`` makes
the same models in a size that a test can run.
"""

from __future__ import annotations

from pathlib import Path

import torch
import transformers as hf
from tokenizers import AddedToken

from anyvla.actions import NAV2
from anyvla.config import parse_config
from anyvla.models.backbones.tiny import tiny_tokenizer
from anyvla.models.vla import ContinuousVLA, build_vla

PROMPT = "Pass the box on the left and stop in front of the bottle."
KOSMOS2, PALIGEMMA, LLAVA = "kosmos2", "paligemma", "llava"
IMAGE_TOKENS = 36  # per image, for all of them


def make_model(kind: str, folder: Path, tiny: bool = False) -> tuple[Path, tuple[int, int]]:
    """Write the definition of a random model of ``kind`` into ``folder``; returns it and the (h, w) of its images."""
    width, layers, heads = (32, 2, 2) if tiny else (512, 4, 8)
    vocabulary = {KOSMOS2: 65_037, PALIGEMMA: 257_216, LLAVA: 32_064}[kind] if not tiny else 4096
    tokenizer = tiny_tokenizer()
    side = 28 if tiny else 84
    tokens = 4 if tiny else IMAGE_TOKENS
    vision = {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "image_size": side,
        "patch_size": 14,
    }
    roles = {f"{role}_token_id": getattr(tokenizer, f"{role}_token_id") for role in ("bos", "eos", "pad")}
    text = {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "max_position_embeddings": 8192,
        "vocab_size": vocabulary,
        **roles,
    }
    if kind == KOSMOS2:
        # its image tokens have ids of their own, behind <unk>
        tokenizer.add_special_tokens({"unk_token": "<unk>"})
        tokenizer.add_tokens([AddedToken(f"<image_{i}>", special=True) for i in range(tokens)])
        tokenizer.add_tokens([AddedToken(token, special=True) for token in ("</image>", "<grounding>")])
        sizes = {"embed_dim": width, "ffn_dim": 4 * width, "layers": layers, "attention_heads": heads}
        config = hf.Kosmos2Config(text_config={**text, **sizes}, vision_config=vision, latent_query_num=tokens)
    elif kind == PALIGEMMA:
        config = hf.PaliGemmaConfig(
            text_config={"model_type": "gemma", **text, "num_key_value_heads": 1, "head_dim": width // heads},
            vision_config={"model_type": "siglip_vision_model", **vision, "vision_use_head": False},
            image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
            projection_dim=width,
            hidden_size=width,
            vocab_size=vocabulary,
        )
    else:
        config = hf.LlavaConfig(
            text_config={"model_type": "llama", **text},
            vision_config={"model_type": "clip_vision_model", **vision},
            image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
            image_seq_length=tokens,
        )
    config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    half = [0.5, 0.5, 0.5]
    processor = hf.CLIPImageProcessorPil(size={"height": side, "width": side}, image_mean=half, image_std=half)
    processor.save_pretrained(folder)
    return folder, (side, side)


def random_vla(
    kind: str, folder: Path, structure: str, head: str, window: int, chunk: int, tiny: bool = False
) -> ContinuousVLA:
    """A model of ``kind`` with seeded random weights in a structure with a head (YAML); ``folder`` is needed only meanwhile."""
    _, image_size = make_model(kind, folder, tiny)
    overrides = [
        f"actions.window={window}",
        f"model.backbone={{type: pretrained, path: {folder}, random_weights: true}}",
        f"model.structure.type={structure}",
        f"model.head={head}",
    ]
    config = parse_config("{}", overrides).model
    torch.manual_seed(0)
    vla = build_vla(config, NAV2, window=window, chunk=chunk, image_size=image_size, bounded=True)
    assert isinstance(vla, ContinuousVLA)
    for name, parameter in vla.backbone.model.named_parameters():
        if parameter.ndim >= 2 and "embed" not in name:  # new weights of transformers hardly change what passes through them
            torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    return vla
