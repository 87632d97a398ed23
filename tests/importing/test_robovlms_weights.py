"""Checkpoints of RoboVLMs: what the original computes, built here by hand from its formulas, comes out of the imported run."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from tokenizers.processors import TemplateProcessing
from torch import nn
from torch.nn import functional as F

from anyvla.checkpoint import check_example, load_checkpoint
from anyvla.errors import CheckpointError, ConfigError, DataError
from anyvla.importing.robovlms import describe, import_robovlms
from anyvla.importing.robovlms_weights import read_state
from anyvla.policies.policy import Policy
from tests.importing.shapes import shape
from tests.tiny_models import image_size, make_tiny

WINDOW, CHUNK, HIDDEN = 5, 3, 24
INSTRUCTION = "push the red block to the left!"


def trunk(width: int, out: int) -> nn.ModuleDict:
    widths = [width, 1024, 512, 256, out]
    layers: list[nn.Module] = []
    for i, size in enumerate(widths[:-1]):
        layers += [nn.Linear(size, widths[i + 1]), nn.ReLU()]
    return nn.ModuleDict({"mlp": nn.Sequential(*layers[:-1])})


class OriginalHead(nn.Module):
    """The action heads of the original, with its names: features (1, W, Q, D) -> raw actions (1, W, L, 7)."""

    def __init__(self, kind: str, width: int, latent: int = 1) -> None:
        super().__init__()
        self.kind = kind
        inner = HIDDEN * latent
        if kind == "LSTMDecoder":
            self.rnn = nn.LSTM(width * latent, inner, 4, batch_first=True)
        elif kind == "FCDecoder":
            half = width * latent // 2
            self.mlp = nn.Sequential(nn.Linear(width * latent, half), nn.ReLU(), nn.Linear(half, inner))
        else:
            self.fc = nn.Linear(width, HIDDEN)
            config = hf.GPT2Config(n_layer=8, n_head=8, n_embd=HIDDEN, n_positions=WINDOW, vocab_size=1)
            self.gpt = hf.GPT2Model(config)
        self.actions = trunk(inner, 6 * CHUNK)
        self.gripper = trunk(inner, CHUNK)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        x = features.flatten(2)
        if self.kind == "LSTMDecoder":
            x = self.rnn(x)[0]
        elif self.kind == "FCDecoder":
            x = self.mlp(x)
        else:
            x = self.gpt(inputs_embeds=self.fc(x)).last_hidden_state
        arm = self.actions["mlp"](x).tanh().unflatten(-1, (CHUNK, 6))
        return torch.cat([arm, self.gripper["mlp"](x).unflatten(-1, (CHUNK, 1))], dim=-1)

    def state(self) -> dict[str, torch.Tensor]:
        state = {name: tensor for name, tensor in self.state_dict().items() if not name.endswith("wte.weight")}
        if self.kind == "GPTDecoder":  # buffers that the original's GPT saves
            state["gpt.h.0.attn.bias"] = torch.ones(1, 1, WINDOW, WINDOW)
            state["gpt.h.0.attn.masked_bias"] = torch.tensor(-1e4)
        return {f"act_head.{name}": tensor for name, tensor in state.items()}


def kosmos_states(model: Any, ids: torch.Tensor, action: torch.Tensor | None, images: list[torch.Tensor]) -> torch.Tensor:
    """Hidden states of the hand-made sequence, one frame: (1, T, D)."""
    features = []
    for image in images:
        seen = F.normalize(model.vision_model.model.post_layernorm(model.vision_model(image)[0]), dim=-1)
        features.append(model.image_to_text_projection(seen)[0])
    words = model.text_model.model.embed_tokens(ids)
    sequence = torch.cat([words[:, :1], *features, words[:, 1:-1], *([] if action is None else [action]), words[:, -1:]], dim=1)
    mask = torch.ones(sequence.shape[:2], dtype=torch.long)
    return model.text_model.model(inputs_embeds=sequence, attention_mask=mask).last_hidden_state


def paligemma_states(model: Any, ids: torch.Tensor, action: torch.Tensor | None, images: list[torch.Tensor]) -> torch.Tensor:
    config = model.config
    inner = model.model
    features = [
        inner.multi_modal_projector(inner.vision_tower(image).last_hidden_state) / config.hidden_size**0.5 for image in images
    ]
    words = F.embedding(ids, inner.language_model.embed_tokens.weight)
    sequence = torch.cat([words[:, :1], *features, words[:, 1:-1], *([] if action is None else [action]), words[:, -1:]], dim=1)
    length = sequence.shape[1]
    causal = torch.full((1, 1, length, length), float("-inf")).triu(1)
    scaled = sequence * config.text_config.hidden_size**0.5
    return inner.language_model(inputs_embeds=scaled, attention_mask=causal).last_hidden_state


def kosmos_names(name: str) -> str:
    return name


def paligemma_names(name: str) -> str:
    """As transformers 4.44 called them."""
    name = name.replace("lm_head.", "language_model.lm_head.") if name.startswith("lm_head.") else name
    name = name.replace("model.language_model.", "language_model.model.").replace("model.multi_modal", "multi_modal")
    return name.replace("model.vision_tower.", "vision_tower.vision_model.")


class Original:
    """A random model of the original: its configuration, its checkpoint, and what it computes."""

    def __init__(self, folder: Path, model: str = "kosmos", hand: bool = True, latent: int = 1, **head: Any) -> None:
        torch.manual_seed(0)
        self.folder, self.latent = folder, latent
        family = {"kosmos": "kosmos2"}.get(model, model)
        vlm = make_tiny(family, folder / "vlm")
        if model == "paligemma":  # a width of its own, to divide image features by
            config = json.loads((vlm / "config.json").read_text()) | {"hidden_size": 48}
            (vlm / "config.json").write_text(json.dumps(config))
        else:
            _end_texts(vlm)
        self.tokenizer = hf.AutoTokenizer.from_pretrained(vlm)
        self.vlm = hf.AutoModelForImageTextToText.from_pretrained(vlm).eval()
        self.config = shape("kosmos_hand" if model == "kosmos" else model)
        self.config |= {"image_size": image_size(family)[0], "use_hand_rgb": hand}
        self.config["act_head"] |= {"latent": latent, **head}
        self.config["vlm"]["pretrained_model_name_or_path"] = str(vlm)
        width = self.vlm.get_input_embeddings().weight.shape[1]
        self.pooled = head.get("action_space") == "down_sample"
        self.interleaved = head.get("history_type") == "pre"
        self.head = OriginalHead(self.config["act_head"]["type"], width, latent).eval()
        with torch.no_grad():
            for parameter in self.head.parameters():
                parameter.mul_(2.0)  # else little of the input would reach the output
        self.action = 0.3 * torch.randn(width)
        self.states: Callable[..., torch.Tensor] = {"kosmos": kosmos_states, "paligemma": paligemma_states}[model]
        self.text = {
            "kosmos": f"<grounding>An image of a robot {INSTRUCTION}",
            "paligemma": f"{self.tokenizer.eos_token}{INSTRUCTION}\n",
        }[model]
        names = {"kosmos": kosmos_names, "paligemma": paligemma_names}[model]
        self.state = {f"backbone.{names(name)}": tensor for name, tensor in self.vlm.state_dict().items()}
        self.state |= self.head.state() | ({} if self.pooled else {"action_token": self.action})
        generator = torch.Generator().manual_seed(1)
        size = (1, WINDOW, 3, *image_size(family))
        self.images = {}
        for camera in ("rgb_static", "rgb_gripper"):
            colour = torch.randint(0, 200, (1, WINDOW, 3, 1, 1), generator=generator)
            self.images[camera] = (colour + torch.randint(0, 56, size, generator=generator)).to(torch.uint8)
        settings = json.loads((vlm / "preprocessor_config.json").read_text())
        self.mean, self.std = (torch.tensor(settings[name]).view(3, 1, 1) for name in ("image_mean", "image_std"))
        (folder / "config.json").write_text(json.dumps(self.config))

    def write(self, state: dict[str, torch.Tensor] | None = None) -> Path:
        """As Lightning writes it."""
        state = self.state if state is None else state
        checkpoint = {"epoch": 1, "state_dict": {f"model.{name}": tensor for name, tensor in state.items()}}
        torch.save(checkpoint | {"hyper_parameters": {"configs": self.config}}, self.folder / "model.ckpt")
        return self.folder / "model.ckpt"

    @torch.no_grad()
    def compute(self, swapped: bool = False) -> torch.Tensor:
        """Raw actions of the window, (1, W, L, 7)."""
        special = self.config["model"] != "paligemma"
        ids = torch.tensor([self.tokenizer(self.text, add_special_tokens=special)["input_ids"]])
        action = None if self.pooled else self.action.expand(1, self.latent, -1)
        cameras = ["rgb_gripper", "rgb_static"] if self.config["use_hand_rgb"] else ["rgb_static"]
        cameras = cameras[::-1] if swapped else cameras
        frames = []
        for t in range(WINDOW):
            pixels = [(self.images[camera][:, t] / 255 - self.mean) / self.std for camera in cameras]
            hidden = self.states(self.vlm, ids, action, pixels)
            frames.append(hidden.amax(1, keepdim=True) if self.pooled else hidden[:, -1 - self.latent : -1])
        return self.head(torch.stack(frames, dim=1))

    def import_it(self, checkpoint: Path | None = None, **options: Any) -> Any:
        return import_robovlms(self.folder / "config.json", checkpoint or self.write(), self.folder / "run", **options)

    def imported(self, **options: Any) -> torch.Tensor:
        """Raw actions that the imported run computes."""
        self.import_it(**options)
        loaded = load_checkpoint(self.folder / "run")
        images = {camera: self.images[camera] for camera in loaded.transforms.cameras}
        with torch.no_grad():
            features = loaded.model.features(images, [loaded.transforms.prompt(INSTRUCTION)])
            return loaded.model.head(features)


def _end_texts(vlm: Path) -> None:
    """The tokenizer puts <s> and </s> around every text, as that of Kosmos-2 does."""
    tokenizer = hf.AutoTokenizer.from_pretrained(vlm)
    marks = [(token, tokenizer.convert_tokens_to_ids(token)) for token in ("<s>", "</s>")]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A </s>", special_tokens=marks)
    tokenizer.save_pretrained(vlm)


CASES: dict[str, dict[str, Any]] = {
    "kosmos": {},
    "kosmos one camera": {"hand": False},
    "kosmos fc": {"type": "FCDecoder"},
    "kosmos gpt": {"type": "GPTDecoder"},
    "kosmos two query tokens": {"latent": 2},
    "kosmos pooled": {"action_space": "down_sample", "down_sample": "pooling"},
    "paligemma": {"model": "paligemma"},
    "paligemma one camera, pooled": {
        "model": "paligemma",
        "hand": False,
        "action_space": "down_sample",
        "down_sample": "pooling",
    },
}


@pytest.mark.parametrize("case", CASES)
def test_an_imported_checkpoint_computes_what_the_original_computes(case: str, tmp_path: Path) -> None:
    original = Original(tmp_path, **CASES[case])
    expected = original.compute()
    torch.testing.assert_close(original.imported(), expected, atol=1e-5, rtol=0)
    if original.config["use_hand_rgb"]:  # so precise that the order of cameras shows
        assert (original.compute(swapped=True) - expected).abs().max() > 1e-4


def test_a_policy_gives_the_originals_actions_in_robot_units(tmp_path: Path) -> None:
    original = Original(tmp_path)
    original.import_it()
    policy = Policy.load(tmp_path / "run", device="cpu")
    policy.reset(INSTRUCTION)
    expected = original.compute()[0, :, 0].numpy()
    arm = 0.5 * (expected[:, :6] + 1) * (0.75 - -0.5) - 0.5
    for t in range(WINDOW):
        images = {camera: video[0, t].permute(1, 2, 0).numpy() for camera, video in original.images.items()}
        action = policy.act(images)
        np.testing.assert_allclose(action[:6], arm[t], atol=1e-5)
        assert action[6] == (expected[t, 6] > 0)


def test_interleaved_windows_repeat_the_prompt_with_every_frame(tmp_path: Path) -> None:
    original = Original(tmp_path, history_type="pre", hand=False)
    ids = original.tokenizer(original.text)["input_ids"]
    sequences = []
    with torch.no_grad():
        model = original.vlm
        for t in range(WINDOW):
            pixels = (original.images["rgb_static"][:, t] / 255 - original.mean) / original.std
            seen = F.normalize(model.vision_model.model.post_layernorm(model.vision_model(pixels)[0]), dim=-1)
            words = model.text_model.model.embed_tokens(torch.tensor([ids]))
            image = model.image_to_text_projection(seen)[0]
            sequences.append(
                torch.cat([words[:, :1], image, words[:, 1:-1], original.action[None, None], words[:, -1:]], dim=1)
            )
        hidden = model.text_model.model(inputs_embeds=torch.cat(sequences, dim=1)).last_hidden_state
        expected = original.head(hidden.unflatten(1, (WINDOW, -1))[:, :, -2:-1])
    torch.testing.assert_close(original.imported(), expected, atol=1e-5, rtol=0)


def test_at_run_time_an_interleaved_run_computes_the_same_from_its_cache(tmp_path: Path) -> None:
    original = Original(tmp_path, history_type="pre", hand=False)
    windowed = original.imported()[0]
    loaded = load_checkpoint(tmp_path / "run")
    states = [loaded.model.init_state()]
    for t in range(WINDOW):
        images = {"rgb_static": original.images["rgb_static"][:, t]}
        with torch.inference_mode():
            actions, states = loaded.model.step(images, [loaded.transforms.prompt(INSTRUCTION)], states)
        torch.testing.assert_close(actions[0, :, :6], windowed[t, :, :6], atol=1e-5, rtol=0)


@pytest.mark.parametrize("model", ["kosmos", "paligemma"])
def test_padding_changes_nothing(model: str, tmp_path: Path) -> None:
    original = Original(tmp_path, model=model)
    original.import_it()
    loaded = load_checkpoint(tmp_path / "run")
    prompts = [loaded.transforms.prompt(text) for text in (INSTRUCTION, "stop")]
    images = torch.stack([original.images[camera][0, 0] for camera in loaded.transforms.cameras])
    with torch.inference_mode():
        together = loaded.model.backbone.encode(torch.stack([images, images]), prompts)
        for i, prompt in enumerate(prompts):
            alone = loaded.model.backbone.encode(images[None], [prompt])
            torch.testing.assert_close(together[i : i + 1], alone, atol=1e-5, rtol=0)


def test_a_run_is_complete(tmp_path: Path) -> None:
    original = Original(tmp_path)
    done = original.import_it()
    loaded = load_checkpoint(tmp_path / "run", "best")
    assert loaded.folder == done.checkpoint
    assert check_example(loaded) < 1e-5
    assert loaded.config.model.backbone.layout == "robovlms"
    assert loaded.transforms.fps == 30
    assert done.recipe.is_file()
    assert [name for name, _ in done.unused] == ["backbone.text_model.lm_head.weight"]
    text = describe(done.config)
    assert "window_size = 5 -> actions.window" in text
    assert "image_mean, image_std: " in text


def test_without_a_checkpoint_there_is_a_recipe_only(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(shape("llava")))
    done = import_robovlms(tmp_path / "config.json", None, tmp_path / "run")
    assert done.checkpoint is None
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["recipe.yaml"]
    assert "layout" not in done.recipe.read_text()


@pytest.mark.parametrize("form", ["plain", "lightning", "module", "deepspeed", "old"])
def test_every_form_of_state_dict_is_read(form: str, tmp_path: Path) -> None:
    state = {"action_token": torch.ones(2), "act_head.rnn.weight_ih_l0": torch.ones(3), "backbone.x": torch.ones(1)}
    trees: dict[str, Any] = {
        "plain": state,
        "lightning": {"state_dict": {f"model.{name}": tensor for name, tensor in state.items()}, "epoch": 3},
        "module": {"state_dict": {f"module.model.{name}": tensor for name, tensor in state.items()}},
        "deepspeed": {"module": {f"model.{name}": tensor for name, tensor in state.items()}, "global_steps": 3},
        "old": {"model_state_dict": state},
    }
    torch.save(trees[form], tmp_path / "a.pt", _use_new_zipfile_serialization=form != "old")
    assert read_state(tmp_path / "a.pt").keys() == state.keys()


class Forged:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (os.environ["FORGED"],)


def test_a_forged_pickle_is_refused_and_not_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORGED", str(tmp_path / "executed"))
    torch.save({"state_dict": {"action_token": torch.ones(1)}, "hyper_parameters": Forged()}, tmp_path / "forged.pt")
    with pytest.raises(CheckpointError, match=r"forged\.pt: holds more than tensors and plain values, so it is not loaded"):
        read_state(tmp_path / "forged.pt")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("act_head.rnn.weight_ih_l0"), "missing: head.rnn.weight_ih_l0"),
        (lambda s: s.pop("action_token"), "missing: backbone.queries"),
        (lambda s: s.update({"act_head.more": torch.ones(1)}), "superfluous: head.more"),
        (lambda s: s.update({"embed_arm_state.weight": torch.ones(1)}), "superfluous: embed_arm_state.weight"),
        (lambda s: s.update({"backbone.more": torch.ones(1)}), "superfluous: more"),
        (lambda s: s.pop("backbone.vision_model.model.post_layernorm.bias"), "missing: vision_model.model.post_layernorm.bias"),
        (lambda s: s.update({"action_token": torch.ones(7)}), r"backbone\.queries has the shape \(1, 7\)"),
        (
            lambda s: s.update({"backbone.vision_model.model.post_layernorm.bias": torch.ones(7)}),
            r"vision_model\.model\.post_layernorm\.bias has the shape \(7,\)",
        ),
    ],
)
def test_weights_that_do_not_fit_are_refused(change: Callable[[dict[str, Any]], Any], message: str, tmp_path: Path) -> None:
    original = Original(tmp_path)
    change(original.state)
    with pytest.raises(CheckpointError, match=message):
        original.import_it()
    assert not (tmp_path / "run").exists()


def test_open_x_actions_are_scaled_back_twice(tmp_path: Path) -> None:
    original = Original(tmp_path, hand=False)
    tree = shape("kosmos_bridge")
    for key in ("train_dataset", "val_dataset", "trainer"):
        original.config[key] = tree[key]
    (tmp_path / "config.json").write_text(json.dumps(original.config))
    with pytest.raises(ConfigError, match="--statistics"):
        original.import_it()
    q01, q99 = np.linspace(-0.3, -0.1, 7), np.linspace(0.1, 0.5, 7)
    statistics = {"q01": q01.tolist(), "q99": q99.tolist(), "mask": [True] * 6 + [False]}
    (tmp_path / "statistics.json").write_text(json.dumps({"some_data": {"action": statistics}}))
    original.import_it(statistics=tmp_path / "statistics.json")
    transforms = load_checkpoint(tmp_path / "run").transforms
    assert transforms.fps == 5
    raw = np.linspace(-1, 1, 7)
    once = 0.5 * (raw + 1) * (0.75 - -0.5) - 0.5
    twice = 0.5 * (once + 1) * (q99 - q01) + q01
    np.testing.assert_allclose(transforms.normalizer.denormalize(raw)[:6], twice[:6], atol=1e-6)
    (tmp_path / "statistics.json").write_text(json.dumps({"action": {"q01": [0.0]}}))
    with pytest.raises(DataError, match="no statistics of actions with q01 and q99"):
        original.import_it(statistics=tmp_path / "statistics.json")


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("llava", {}, "LLaVA-MPT"),
        ("qwen", {}, "Qwen-VL"),
        ("kosmos", {"regular_action": True}, "regular_action"),
        ("kosmos", {"tcp_rel": True}, "tcp_rel"),
        ("paligemma", {"use_vision_resampler": True}, "resampler"),
        ("kosmos", {"train_dataset": {"type": "Custom"}}, "--fps"),
    ],
)
def test_what_cannot_be_taken_over_is_said(name: str, changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(shape(name) | changes))
    with pytest.raises((CheckpointError, ConfigError), match=message):
        import_robovlms(tmp_path / "config.json", tmp_path / "model.ckpt", tmp_path / "run")


@pytest.mark.parametrize(
    ("head", "message"),
    [
        ({"type": "DiscreteDecoder", "action_space": "discrete"}, "discrete"),
        ({"action_space": "down_sample", "down_sample": "pooling", "token_source": "text"}, "token_source"),
    ],
)
def test_heads_that_cannot_be_taken_over_are_said(head: dict[str, Any], message: str, tmp_path: Path) -> None:
    tree = shape("kosmos")
    tree["act_head"] |= head
    (tmp_path / "config.json").write_text(json.dumps(tree))
    with pytest.raises(CheckpointError, match=message):
        import_robovlms(tmp_path / "config.json", tmp_path / "model.ckpt", tmp_path / "run")


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.pt").write_bytes(b"nothing")
    torch.save([1, 2], tmp_path / "list.pt")
    torch.save({"state_dict": {"a": 3}}, tmp_path / "number.pt")
    for name, message in (
        ("a.pt", "a.pt"),
        ("list.pt", "no named tensors"),
        ("number.pt", "'a' is no tensor"),
        (".", "DeepSpeed"),
    ):
        with pytest.raises(CheckpointError, match=message):
            read_state(tmp_path / name)
