from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoTokenizer, PreTrainedModel

from tests.tiny_models import FAMILIES, family_prompt, image_size, make_tiny, reference_inputs

TEXT = "Pass the box on the left."


def _load(folder: Path) -> PreTrainedModel:
    return AutoModelForImageTextToText.from_pretrained(folder).eval()


def _images(family: str, count: int, seed: int = 0) -> list[np.ndarray]:
    generator = np.random.default_rng(seed)
    return [generator.integers(0, 256, (*image_size(family), 3), dtype=np.uint8) for _ in range(count)]


def _logits(model: PreTrainedModel, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """Of the last token; an encoder-decoder begins its answer."""
    if model.config.is_encoder_decoder:
        inputs = inputs | {"decoder_input_ids": torch.tensor([[model.config.text_config.decoder_start_token_id]])}
    return model(**inputs).logits[:, -1]


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of each family, in a folder of the family's name."""
    return make_tiny(request.param, tmp_path_factory.mktemp("models") / request.param)


def test_a_tiny_model_is_a_whole_checkpoint_in_which_everything_matters(folder: Path) -> None:
    family, model = folder.name, _load(folder)
    assert sum(p.numel() for p in model.parameters()) < 1_000_000
    # the layers that are not used are not used in full size either
    unused = ("vision_tower.encoder.layers.2.", "post_layernorm.")
    for cameras in (1, 2):
        images = _images(family, cameras)
        prompt = family_prompt(family, TEXT, cameras)
        logits = _logits(model, reference_inputs(folder, prompt, images))
        for camera in range(cameras):
            other = [*images[:camera], 255 - images[camera], *images[camera + 1 :]]
            with torch.no_grad():
                change = logits - _logits(model, reference_inputs(folder, prompt, other))
            # the text of IDEFICS looks at the last image only
            assert change.abs().max() > (1e-3 if family == "idefics" and camera < cameras - 1 else 0.02)
        model.zero_grad()
        logits.square().mean().backward()
        still = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
        assert not [name for name in still if not any(part in name for part in unused)]


def test_words_matter_and_text_survives_the_tokenizer(folder: Path) -> None:
    family, model, tokenizer = folder.name, _load(folder), AutoTokenizer.from_pretrained(folder)
    logits = []
    for text in (TEXT, TEXT.replace("left", "right")):
        inputs = reference_inputs(folder, family_prompt(family, text), _images(family, 1))
        assert text in tokenizer.decode(inputs["input_ids"][0])
        with torch.no_grad():
            logits.append(_logits(model, inputs))
    assert (logits[0] - logits[1]).abs().max() > 0.02


def test_a_seed_says_which_weights(tmp_path: Path) -> None:
    torch.manual_seed(3)
    state = torch.random.get_rng_state()
    first, again, other = (_load(make_tiny("llava", tmp_path / str(i), seed)) for i, seed in enumerate((0, 0, 1)))
    assert torch.equal(torch.random.get_rng_state(), state)
    for name, weight in first.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name]), name
    assert not torch.equal(first.lm_head.weight, other.lm_head.weight)
