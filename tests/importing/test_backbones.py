"""Published checkpoints, tiny, become folders that an ordinary configuration names."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast
from typer.testing import CliRunner

from anyvla.cli import app
from anyvla.config import parse_config
from anyvla.errors import CheckpointError, ConfigError
from anyvla.importing.backbones import find, import_backbone
from anyvla.models.backbones import moondream, openflamingo, uform
from anyvla.models.backbones.adapter import Backbone
from anyvla.models.backbones.families import family_of
from anyvla.models.backbones.load import build_backbone, resolve_image_size
from tests.models import test_moondream, test_openflamingo, test_uform
from tests.models.own import moondream_config, openflamingo_config, uform_config
from tests.tiny_models import CLIP, HALF, chat_tokenizer

TEXT = "go left now"


def words(folder: Path, count: int, special: tuple[str, ...] = (), **roles: str) -> PreTrainedTokenizerFast:
    """Save a tokenizer of ``count`` words, the special ones and the roles included."""
    tokens = list(dict.fromkeys(("<unk>", *roles.values(), *special, *TEXT.split())))
    tokens += [f"word{i}" for i in range(count - len(tokens))]
    backend = Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", extra_special_tokens=list(special), **roles
    )
    tokenizer.save_pretrained(folder)
    return tokenizer


def _calm(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights of a size with which no attention sees one place only."""
    return {name: 0.2 * tensor if tensor.ndim > 1 else tensor for name, tensor in state.items()}


class Published:
    """The folders of one published model, and what it is when it is built without them."""

    family: str
    config: PreTrainedConfig
    parts: dict[str, str]
    direct: Callable[[], PreTrainedModel]

    def __init__(self, name: str, folder: Path) -> None:
        self.folder = folder
        self.family, _, kind = name.partition("-")
        self.parts = {}
        folder.mkdir()
        getattr(self, f"_{self.family}")(kind)

    def run(self, out: Path, **changes: str | None) -> Path:
        parts = {**self.parts, "config": self.config, **changes}
        return import_backbone(self.family, str(self.folder), out, **parts)

    def _uform(self, kind: str) -> None:
        state = _calm(test_uform.published(int(kind)))
        save_file(state, self.folder / "model.safetensors")
        words(self.folder, 59, eos_token="<|im_end|>", pad_token="<|im_end|>")  # <image> becomes 59
        self.config = uform_config(int(kind))
        self.direct = lambda: uform.load_published(state, self.config)
        (self.folder / "config.json").write_text('{"model_type": "vlm", "auto_map": {"AutoConfig": "configuration.VLMConfig"}}')

    def _moondream(self, kind: str) -> None:
        state = _calm(test_moondream.published(int(kind)))
        save_file(state, self.folder / "model.safetensors")
        end = "<|endoftext|>"
        words(self.folder, 55, bos_token=end, eos_token=end)
        self.config = moondream_config(kind == "2025")
        self.direct = lambda: moondream.load_published(state, self.config)
        code = {"AutoConfig": "hf_moondream.HfConfig"}
        (self.folder / "config.json").write_text(json.dumps({"model_type": "moondream1", "config": {}, "auto_map": code}))

    def _openflamingo(self, kind: str) -> None:
        every = {"gpt_neox": 2, "mpt": 1, "llama": 4}[kind]
        state = _calm(test_openflamingo.drawn(test_openflamingo.trained_names(kind, every)))
        torch.save(
            {"epoch": 1, "model_state_dict": {f"module.{n}": t for n, t in state.items()}}, self.folder / "checkpoint.pt"
        )
        language = _calm(test_openflamingo.drawn(test_openflamingo.language_names(kind)))
        if kind == "llama":  # the only one whose vocabulary head is not in the checkpoint: it knows fewer words
            language["lm_head.weight"] = language["lm_head.weight"][:57].clone()
        clip = _calm(test_openflamingo.drawn(test_openflamingo.transformers_clip_names()))
        self.config = openflamingo_config(kind, every)
        self.config.image_token_id = 58
        self.config.text_config.save_pretrained(self.folder / "language")
        save_file(language, self.folder / "language" / "model.safetensors")
        words(self.folder / "language", 57, eos_token="<|endoftext|>")  # then <|endofchunk|>, <image>, <PAD>
        (self.folder / "vision").mkdir()
        save_file(clip, self.folder / "vision" / "model.safetensors")
        self.parts = {"language": str(self.folder / "language"), "vision": str(self.folder / "vision")}
        self.direct = lambda: openflamingo.load_published(state, self.config, language, clip)


PUBLISHED = (
    "uform-1", "uform-2", "moondream-2025", "moondream-2024", "openflamingo-gpt_neox", "openflamingo-mpt", "openflamingo-llama"
)  # fmt: skip
ONE_OF_EACH = ("uform-2", "moondream-2025", "openflamingo-gpt_neox")


@pytest.fixture
def published(request: pytest.FixtureRequest, tmp_path: Path) -> Published:
    return Published(request.param, tmp_path / "published")


@torch.no_grad()
@pytest.mark.parametrize("published", PUBLISHED, indirect=True)
def test_features_are_those_of_the_model_built_directly(published: Published, tmp_path: Path) -> None:
    folder = published.run(tmp_path / "ours")
    config = parse_config("{}", [f"model.backbone={{type: pretrained, path: {folder}}}"])
    size = resolve_image_size(config).observation.image_size
    assert size == (16, 16)
    backbone = build_backbone(config.model, size).eval()
    statistics = HALF if published.family == "moondream" else CLIP
    model = published.direct()
    direct = Backbone(
        model,
        AutoTokenizer.from_pretrained(folder),
        family_of(model.config)(model, backbone.tokenizer, size),
        backbone.readouts,
        statistics["image_mean"],
        statistics["image_std"],
    ).eval()
    assert direct.queries is not None
    direct.queries.copy_(backbone.queries)
    images = torch.randint(0, 256, (2, 2, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    features = backbone.encode(images, [TEXT, "go left"])
    assert torch.isfinite(features).all()
    torch.testing.assert_close(features, direct.encode(images, [TEXT, "go left"]), atol=1e-5, rtol=1e-5)
    assert (features - backbone.encode(images.flip(0), [TEXT, "go left"])).abs().max() > 1e-4


@pytest.mark.parametrize("published", PUBLISHED, indirect=True)
def test_the_folder_holds_each_tensor_once_as_it_was_stored(published: Published, tmp_path: Path) -> None:
    weights = next(published.folder.glob("model.safetensors"), None)
    if weights is not None:
        save_file({name: tensor.half() for name, tensor in load_file(weights).items()}, weights)
    state = load_file(published.run(tmp_path / "ours") / "model.safetensors")
    model = published.direct()
    assert set(state) == set(model.state_dict()) - set(getattr(model, "all_tied_weights_keys", {}))
    if weights is not None:
        assert {tensor.dtype for tensor in state.values()} == {torch.float16}


def test_sizes_are_read_from_the_parts_of_an_openflamingo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = openflamingo_config("llama", 4)
    monkeypatch.setattr(openflamingo, "clip_vit_l14", lambda: tiny.vision_config)  # the only one that OpenFlamingo takes
    published = Published("openflamingo-llama", tmp_path / "published")
    with pytest.raises(CheckpointError, match="q_proj") as error:  # eight heads in every published one, two here
        published.run(tmp_path / "ours", config=None)
    assert "missing" not in str(error.value)
    assert "latents" not in str(error.value)
    assert not (tmp_path / "ours").exists()


def test_words_are_added_as_openflamingo_adds_them(tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(Published("openflamingo-mpt", tmp_path / "p").run(tmp_path / "ours"))
    assert tokenizer.convert_tokens_to_ids(["<|endofchunk|>", "<image>", "<PAD>"]) == [57, 58, 59]
    assert tokenizer.pad_token == "<PAD>"


@pytest.mark.parametrize("published", ONE_OF_EACH, indirect=True)
def test_a_published_folder_in_a_recipe_is_answered_with_the_command(published: Published, tmp_path: Path) -> None:
    """And without asking whether to run the code that comes with it."""
    config = parse_config("{}", [f"model.backbone={{type: pretrained, path: {published.folder}}}"])
    with pytest.raises(CheckpointError, match=f"anyvla import-backbone {published.family} {published.folder} --out"):
        build_backbone(config.model, (16, 16))


def _one_line(message: str, *parts: str) -> None:
    assert "\n" not in message
    assert len(message) < 700
    for part in parts:
        assert part in message


@pytest.mark.parametrize("published", ONE_OF_EACH, indirect=True)
def test_what_is_wrong_is_said_in_a_line(published: Published, tmp_path: Path) -> None:
    weights = next(path for path in published.folder.iterdir() if path.name in ("model.safetensors", "checkpoint.pt"))
    whole = weights.read_bytes()

    def problem(**changes: str | None) -> str:
        with pytest.raises((CheckpointError, ConfigError)) as error:
            published.run(tmp_path / "ours", **changes)
        assert list(tmp_path.glob("*ours*")) == []
        return str(error.value)

    if weights.suffix == ".safetensors":
        state = load_file(weights)
        gone = next(name for name in state if name.endswith("norm.weight") or name.endswith("post_ln.weight"))
        save_file({name: tensor for name, tensor in state.items() if name != gone}, weights)
        _one_line(problem(), "do not fit the model", "missing: model.")
        save_file({"other": torch.zeros(1)}, weights)
    else:
        _one_line(problem(vision=None), "--vision", "openai/clip-vit-large-patch14")
        _one_line(problem(language=None), "--language")
        _one_line(problem(language=published.parts["vision"]), "no tokenizer", "--tokenizer")
        torch.save({"other": torch.zeros(1)}, weights)
    _one_line(problem(), "do not fit the model", "missing: ", "unknown: other")
    weights.write_bytes(whole[: len(whole) // 2])
    _one_line(problem(), "no readable weights")
    weights.unlink()
    _one_line(problem(), "no weights")
    torch.save({"weight": _Forged(tmp_path / "executed")}, published.folder / "forged.pt")
    _one_line(problem(), "forged.pt", "never executed")
    assert not (tmp_path / "executed").exists()


class _Forged:
    """Unpickled, it would make a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (self.folder,)


@pytest.mark.parametrize("published", ONE_OF_EACH, indirect=True)
def test_a_tokenizer_is_needed_and_must_be_the_right_one(published: Published, tmp_path: Path) -> None:
    home = Path(published.parts.get("language", published.folder))
    other = tmp_path / "other"
    words(other, 70, eos_token="<|endoftext|>")
    with pytest.raises(CheckpointError, match=r"the tokenizer .* and the checkpoint .* --tokenizer"):
        published.run(tmp_path / "ours", tokenizer=str(other))
    (home / "tokenizer.json").rename(tmp_path / "tokenizer.json")
    with pytest.raises(CheckpointError, match=r"no tokenizer; name one by --tokenizer"):
        published.run(tmp_path / "ours")
    (home / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match="no usable tokenizer"):
        published.run(tmp_path / "ours")
    published.run(tmp_path / "ours", tokenizer=str(tmp_path))  # the bare file
    with pytest.raises(CheckpointError, match="exists already"):
        published.run(tmp_path / "ours")


def test_uform_must_call_its_image_as_the_checkpoint_does(tmp_path: Path) -> None:
    published = Published("uform-2", tmp_path / "published")
    words(published.folder, 50, eos_token="<|im_end|>")
    with pytest.raises(CheckpointError, match="gives <image> the id 50, and the checkpoint takes 59"):
        published.run(tmp_path / "ours")


def test_moondream_of_june_2025_takes_other_words_than_lie_beside_it(tmp_path: Path) -> None:
    published = Published("moondream-2025", tmp_path / "published")
    (published.folder / "moondream.py").write_text('Tokenizer.from_pretrained("moondream/starmie-v1")\nraise SystemExit')
    with pytest.raises(CheckpointError, match="--tokenizer moondream/starmie-v1"):
        published.run(tmp_path / "ours")
    starmie = tmp_path / "starmie"
    words(starmie, 55, ("<|endoftext|>", "<|md_reserved_0|>", "<|md_reserved_1|>", "<|md_reserved_2|>"))
    (starmie / "tokenizer_config.json").unlink()  # it is a bare tokenizer.json
    tokenizer = AutoTokenizer.from_pretrained(published.run(tmp_path / "ours", tokenizer=str(starmie)))
    assert tokenizer.bos_token == tokenizer.eos_token == "<|endoftext|>"


def test_language_and_vision_are_openflamingos_alone(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="uform is in one piece"):
        Published("uform-2", tmp_path / "published").run(tmp_path / "ours", vision="openai/clip-vit-large-patch14")


def test_a_name_of_the_hub_is_downloaded_in_one_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str | None, str]] = []

    def download(name: str, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((name, revision, allow_patterns[-1]))
        if allow_patterns[-1] == "*.bin":
            (tmp_path / "pytorch_model.bin").touch()
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert find("some-org/some-model@2024-08-26") == tmp_path
    assert asked == [("some-org/some-model", "2024-08-26", suffix) for suffix in ("*.safetensors", "*.bin")]


@pytest.mark.parametrize("name", ["some-org/some-model", "some/folder/that/is/not", "some-org/some-model@main"])
def test_what_is_nowhere_is_said(name: str, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["import-backbone", "moondream", name, "--out", str(tmp_path / "ours")])
    assert done.exit_code == 1
    _one_line(done.stderr.strip(), f"error: {name}: no file or folder, and no model of the hub that can be reached")


def test_the_verb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    published = Published("moondream-2025", tmp_path / "published")
    monkeypatch.setattr(moondream, "MoondreamConfig", lambda: published.config)
    done = CliRunner().invoke(app, ["import-backbone", "moondream", str(published.folder), "--out", str(tmp_path / "ours")])
    assert done.exit_code == 0, done.stderr
    assert done.stdout == f"backbone: {tmp_path / 'ours'}\n"
    assert {"config.json", "model.safetensors", "tokenizer.json", "preprocessor_config.json"} <= {
        path.name for path in (tmp_path / "ours").iterdir()
    }
    processor = json.loads((tmp_path / "ours" / "preprocessor_config.json").read_text())
    assert processor == HALF | {"size": {"height": 16, "width": 16}}


# -- the prompts of the published code


def _prompt(config: PreTrainedConfig, tokenizer: PreTrainedTokenizerFast, images: int = 1) -> list[int]:
    model = SimpleNamespace(config=config)
    return family_of(config)(model, tokenizer, (16, 16)).prompt_ids(TEXT, images)


@pytest.mark.parametrize("generation", [1, 2])
def test_uform_chats(generation: int) -> None:
    tokenizer = chat_tokenizer(bos=generation == 1)  # Llama's puts it before other texts
    config = uform_config(generation)
    config.image_token_id = tokenizer.convert_tokens_to_ids("<image>")
    expected = (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        f"<|im_start|>user\n <image><image><image> {TEXT}<|im_end|>\n<|im_start|>assistant\n"
    )
    assert tokenizer.decode(_prompt(config, tokenizer)) == expected


@pytest.mark.parametrize("bos", [True, False])
def test_moondream_asks_behind_bos_and_image(bos: bool, tmp_path: Path) -> None:
    roles = {"eos_token": "<|endoftext|>"} | ({"bos_token": "<|endoftext|>"} if bos else {})
    tokenizer = words(tmp_path, 55, **roles)
    question = tokenizer(f"\n\nQuestion: {TEXT}\n\nAnswer:")["input_ids"]
    assert _prompt(moondream_config(), tokenizer) == [1] + [60] * 16 + question


def test_moondream_of_june_2025_asks_with_tokens_of_its_own(tmp_path: Path) -> None:
    special = ("<|endoftext|>", "<|md_reserved_0|>", "<|md_reserved_1|>", "<|md_reserved_2|>", "query")
    tokenizer = words(tmp_path, 55, special, bos_token="<|endoftext|>")
    text = tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    assert _prompt(moondream_config(), tokenizer) == [1] + [60] * 16 + [2, 5, 3, *text, 4, 4]


@pytest.mark.parametrize("bos", [True, False])
def test_openflamingo_begins_as_its_language_model_does(bos: bool) -> None:
    tokenizer = chat_tokenizer(bos)
    config = openflamingo_config()
    config.image_token_id = tokenizer.convert_tokens_to_ids("<image>")
    expected = (
        [tokenizer.bos_token_id] * bos + [config.image_token_id] * 2 + tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    )
    assert _prompt(config, tokenizer, images=2) == expected
