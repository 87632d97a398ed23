"""Checkpoints of RoboVLMs over the models that AnyVLA defines itself: Moondream and OpenFlamingo."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from anyvla.checkpoint import load_checkpoint
from anyvla.errors import CheckpointError
from anyvla.importing.robovlms import import_robovlms
from anyvla.models.backbones import moondream, openflamingo
from anyvla.models.resampler import PerceiverResampler
from tests.importing.shapes import shape
from tests.importing.test_robovlms_weights import HIDDEN, WINDOW, OriginalHead
from tests.models.own import IMAGE, SIDE, moondream_config, openflamingo_config
from tests.models.test_moondream import published
from tests.models.test_openflamingo import drawn, language_names, open_clip_names, trained_names

INSTRUCTION = "push the red block"


def write_vlm(folder: Path, model: PreTrainedModel) -> None:
    """Configuration, tokenizer and image statistics; a word is a token."""
    words = ["<|endoftext|>", "<pad>", "<unk>", "push", "the", "red", "block", "<|endofchunk|>"]
    vocabulary = {word: i for i, word in enumerate(words)} | {"<image>": IMAGE}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|endoftext|>",
        eos_token="<|endoftext|>",
        pad_token="<pad>",
        extra_special_tokens=["<|endofchunk|>", "<image>"],
    )
    model.config.save_pretrained(folder)
    fast.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5] * 3, "image_std": [0.5] * 3}))


def images() -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    colour = torch.randint(0, 200, (1, WINDOW, 3, 1, 1), generator=generator)
    return (colour + torch.randint(0, 56, (1, WINDOW, 3, SIDE, SIDE), generator=generator)).to(torch.uint8)


def imported(folder: Path, tree: dict[str, Any], state: dict[str, torch.Tensor]) -> torch.Tensor:
    tree["vlm"]["pretrained_model_name_or_path"] = str(folder / "vlm")
    tree["image_size"] = SIDE
    (folder / "config.json").write_text(json.dumps(tree))
    torch.save({"state_dict": {f"model.{name}": tensor for name, tensor in state.items()}}, folder / "model.pt")
    import_robovlms(folder / "config.json", folder / "model.pt", folder / "run")
    loaded = load_checkpoint(folder / "run")
    with torch.no_grad():
        return loaded.model.head(loaded.model.features({"rgb_static": images()}, [loaded.transforms.prompt(INSTRUCTION)]))


def small(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: 0.2 * tensor for name, tensor in state.items()}


def test_moondream_with_a_resampler(tmp_path: Path) -> None:
    """The query token stands in front of the last word, where the original's tokenizer has no end of text."""
    torch.manual_seed(0)
    state = small(published(2024))
    vlm = moondream.load_published(state, moondream_config(prefix_attention=False)).eval()
    write_vlm(tmp_path / "vlm", vlm)
    resampler = PerceiverResampler(vlm.config.text_config.hidden_size)
    head = OriginalHead("LSTMDecoder", 32).eval()
    action = 0.3 * torch.randn(32)
    ids = torch.tensor([[0, 3, 4, 5, 6]])  # <|endoftext|> push the red block
    with torch.no_grad():
        frames = []
        for t in range(WINDOW):
            pixels = (images()[:, t] / 255 - 0.5) / 0.5
            features = resampler(vlm.model.get_image_features(pixels).pooler_output)
            words = vlm.get_input_embeddings()(ids)
            sequence = torch.cat([words[:, :1], features, words[:, 1:-1], action[None, None], words[:, -1:]], dim=1)
            frames.append(vlm.model.language_model(inputs_embeds=sequence).last_hidden_state[:, -2:-1])
        expected = head(torch.stack(frames, dim=1))
    whole = {f"backbone.{name}": tensor for name, tensor in state.items()} | head.state() | {"action_token": action}
    whole |= {f"vision_resampler.{name}": tensor for name, tensor in resampler.state_dict().items()}
    torch.testing.assert_close(imported(tmp_path, shape("moondream"), whole), expected, atol=1e-5, rtol=0)


def test_the_moondream_of_2025_has_another_mask(tmp_path: Path) -> None:
    write_vlm(tmp_path / "vlm", moondream.MoondreamForConditionalGeneration(moondream_config(prefix_attention=True)))
    with pytest.raises(CheckpointError, match="prefix_attention"):
        imported(tmp_path, shape("moondream"), {"action_token": torch.zeros(32)})


@pytest.mark.parametrize("kind", ["gpt_neox", "mpt"])
def test_openflamingo_pooled(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    parts = small(drawn(trained_names(kind, 2)))
    words = small(drawn(language_names(kind)))
    layers = {"gpt_neox": "gpt_neox.layers.", "mpt": "transformer.blocks."}[kind]
    clip = small(drawn(open_clip_names("vision_encoder.visual.")))
    flat = {name.replace("vision_encoder.visual.", "visual."): tensor for name, tensor in clip.items()}
    vlm = openflamingo.load_published(parts, openflamingo_config(kind), language=words, vision=flat).eval()
    write_vlm(tmp_path / "vlm", vlm)
    head = OriginalHead("LSTMDecoder", 32).eval()
    ids = torch.tensor([[IMAGE, 3, 4, 5, 6, 7, 0]])  # <image> push the red block <|endofchunk|> <|endoftext|>
    with torch.no_grad():
        frames = []
        for t in range(WINDOW):
            pixels = (images()[:, t] / 255 - 0.5) / 0.5
            hidden = vlm.model(ids, pixels, torch.ones_like(ids)).last_hidden_state
            frames.append(hidden.amax(1, keepdim=True))
        expected = head(torch.stack(frames, dim=1))

    # the original wraps every layer, lists it twice, and has the whole model under two names
    language = {}
    for name, tensor in words.items():
        if name.startswith(layers):
            index, rest = name.removeprefix(layers).split(".", 1)
            language[f"{layers}{index}.decoder_layer.{rest}"] = tensor
            language[f"old_decoder_blocks.{index}.{rest}"] = tensor
        else:
            language[name] = tensor
    language |= {name.removeprefix("lang_encoder."): t for name, t in parts.items() if name.startswith("lang_encoder.")}
    whole = {f"{alias}.{name}": tensor for name, tensor in language.items() for alias in ("backbone", "model")}
    whole |= {name: tensor for name, tensor in parts.items() if name.startswith("perceiver.")} | clip | head.state()
    whole["vision_encoder.text_projection"] = torch.zeros(8, 8)
    tree = shape("flamingo")
    tree["vlm"]["name"] = {"gpt_neox": "mpt_3b", "mpt": "mpt_7b"}[kind]
    assert tree["act_head"]["hidden_size"] == HIDDEN
    torch.testing.assert_close(imported(tmp_path, tree, whole), expected, atol=1e-5, rtol=0)
    del whole["perceiver.latents"]
    with pytest.raises(CheckpointError, match=r"missing: model\.resampler\.latents"):
        imported(tmp_path, tree, whole)
