"""``anyvla import-backbone``: a published UForm-Gen, Moondream or OpenFlamingo becomes a folder that recipes can name.

They are converted once instead of being recognised wherever a model is loaded, because none of the published checkpoints is
one complete model: sizes, image statistics and prompts stand in code that comes with them (and is not executed here), some lack
their tokenizer, and OpenFlamingo lies in three places. What comes out is an ordinary folder of a pretrained model.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from transformers import (
    AddedToken,
    AutoConfig,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from anyvla.errors import CheckpointError, ConfigError
from anyvla.models.backbones import moondream, openflamingo, uform
from anyvla.models.backbones.parts import OwnForConditionalGeneration
from anyvla.models.backbones.published import SUFFIXES, check_fit, tied_names

PublishedFamily = Literal["uform", "moondream", "openflamingo"]

_HALF = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
_CLIP = {"image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]}
IMAGES: dict[PublishedFamily, dict[str, list[float]]] = {"uform": _CLIP, "moondream": _HALF, "openflamingo": _CLIP}
_MODELS: dict[PublishedFamily, type[OwnForConditionalGeneration]] = {
    "uform": uform.UFormGenForConditionalGeneration,
    "moondream": moondream.MoondreamForConditionalGeneration,
    "openflamingo": openflamingo.OpenFlamingoForConditionalGeneration,
}
_TOKENIZERS = {
    "uform": "Qwen/Qwen1.5-0.5B-Chat is the second generation's",
    "moondream": "vikhyatk/moondream2@2025-01-09 has that of revisions before 2025-06-21",
    "openflamingo": "it is that of the language model",
}
_STARMIE = "moondream/starmie-v1"
# what is downloaded of a repository of the hub, besides weights; of its code only what says the tokenizer, to be read as text
_SMALL_FILES = ["*.json", "*.txt", "tokenizer.model", "moondream.py"]


def import_backbone(
    family: PublishedFamily,
    checkpoint: str,
    out: Path,
    *,
    language: str | None = None,
    vision: str | None = None,
    tokenizer: str | None = None,
    config: PreTrainedConfig | None = None,
) -> Path:
    """Write the published ``checkpoint`` to the new folder ``out``, for ``model.backbone.path``; returns it.

    Args:
        checkpoint, language, vision, tokenizer: file, folder, or name of the hub, which may end in ``@REVISION``. ``language``
            and ``vision`` are OpenFlamingo's language model and CLIP; ``tokenizer`` is by default beside the weights.
        config: of a model of another size than the published ones.

    Raises:
        ConfigError: ``language`` or ``vision`` is missing, or given to a model that has them.
        CheckpointError: a part is not there, cannot be read or does not fit the others, or ``out`` exists.
    """
    if out.exists():
        raise CheckpointError(f"{out} exists already; import-backbone writes a new folder")
    if family == "openflamingo" and language is None:
        raise ConfigError("an OpenFlamingo checkpoint holds only what was trained: give its language model by --language")
    if family != "openflamingo" and (language or vision):
        raise ConfigError(f"{family} is in one piece: --language and --vision are OpenFlamingo's")
    weights = find(checkpoint)
    home = weights if weights.is_dir() else weights.parent
    language_folder = None if language is None else find(language)
    words = load_tokenizer(family, language_folder or home if tokenizer is None else find(tokenizer, weights=False))
    state: dict[str, torch.Tensor]
    if family == "uform":
        config, state = uform.read_published(weights, config)
    elif family == "moondream":
        _check_moondream_words(home, words)
        config, state = moondream.read_published(weights, config)
    else:
        assert language_folder is not None
        state = openflamingo.read_published(weights, language_folder, None if vision is None else find(vision))
        if vision is None and openflamingo.CLASS not in state:
            raise ConfigError("give OpenFlamingo's vision tower by --vision; it is openai/clip-vit-large-patch14")
        if config is None:
            language_config = _language_config(language_folder)
            config = openflamingo.OpenFlamingoConfig(text_config=language_config, **openflamingo.layout_of(state))
        config.image_token_id = words.convert_tokens_to_ids("<image>")
        config.text_config.vocab_size = _embedded_words(state)
    _check_words(family, config, words)
    with torch.device("meta"):
        model = _MODELS[family](config)
    check_fit(model, state, checkpoint)
    _write(out, config, words, {name: tensor for name, tensor in state.items() if name not in tied_names(model)}, family)
    return out


def find(source: str, weights: bool = True) -> Path:
    """The file or folder ``source``, or the folder of a download of the hub's ``source`` = ``NAME`` or ``NAME@REVISION``."""
    path = Path(source)
    if path.exists():
        return path
    from huggingface_hub import snapshot_download

    name, _, revision = source.partition("@")
    try:
        # most repositories have their weights in several formats: only the first is downloaded
        for suffix in SUFFIXES if weights else [""]:
            patterns = _SMALL_FILES + ([f"*{suffix}"] if suffix else [])
            folder = Path(snapshot_download(name, revision=revision or None, allow_patterns=patterns))
            if not suffix or any(folder.glob(f"*{suffix}")):
                break
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{source}: no file or folder, and no model of the hub that can be reached") from error
    return folder


def load_tokenizer(family: PublishedFamily, folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer in ``folder``, with the special tokens that the published code adds to it."""
    folder = folder if folder.is_dir() else folder.parent
    if not any((folder / name).exists() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        raise CheckpointError(f"{folder}: no tokenizer; name one by --tokenizer ({_TOKENIZERS[family]})")
    try:
        if (folder / "tokenizer_config.json").exists():
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        else:
            tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    except Exception as error:  # of the Rust library; it has no type of its own
        raise CheckpointError(f"{folder}: no usable tokenizer ({error!r})") from error
    added = {"uform": ["<image>"], "moondream": [], "openflamingo": ["<|endofchunk|>", "<image>"]}[family]
    added = [token for token in added if token not in tokenizer.get_vocab()]
    tokenizer.add_tokens([AddedToken(token, normalized=False, special=True) for token in added], special_tokens=True)
    if family == "openflamingo" and tokenizer.pad_token is None:
        tokenizer.add_special_tokens({"pad_token": "<PAD>"})
    if family == "moondream":
        for role in ("bos_token", "eos_token"):  # not in a bare tokenizer.json
            if getattr(tokenizer, role) is None:
                tokenizer.add_special_tokens({role: "<|endoftext|>"})
    return tokenizer


def _check_moondream_words(folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Revision 2025-06-21 holds the tokenizer of the revisions before it, and names in its code the one that it takes."""
    code = folder / "moondream.py"
    if "<|md_reserved_0|>" not in tokenizer.get_vocab() and code.exists() and _STARMIE in code.read_text(errors="replace"):
        raise CheckpointError(
            f"{folder}: the tokenizer in this folder is an older revision's; these weights take --tokenizer {_STARMIE}"
        )


def _language_config(folder: Path) -> PreTrainedConfig:
    folder = folder if folder.is_dir() else folder.parent
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{folder}: no config.json of a language model of transformers ({error!r})") from error


def _embedded_words(state: dict[str, torch.Tensor]) -> int:
    embeddings = [name for name in state if name.endswith((".embed_in.weight", ".wte.weight", ".embed_tokens.weight"))]
    if not embeddings:
        raise CheckpointError("neither the OpenFlamingo checkpoint nor its language model holds word embeddings")
    return len(state[embeddings[0]])


def _check_words(family: PublishedFamily, config: Any, tokenizer: PreTrainedTokenizerBase) -> None:
    """Whether the tokenizer can be the one that the weights were trained with."""
    image, rows = tokenizer.convert_tokens_to_ids("<image>"), config.text_config.vocab_size
    if family == "openflamingo" and len(tokenizer) != rows:
        problem = f"has {len(tokenizer)} words with those of OpenFlamingo, and the checkpoint {rows}"
    elif family != "openflamingo" and len(tokenizer) > rows:
        problem = f"has {len(tokenizer)} words, and the checkpoint {rows}"
    elif family == "uform" and image != config.image_token_id:
        problem = f"gives <image> the id {image}, and the checkpoint takes {config.image_token_id}"
    else:
        return
    raise CheckpointError(f"the tokenizer {problem}; name the right one by --tokenizer ({_TOKENIZERS[family]})")


def _write(
    out: Path,
    config: PreTrainedConfig,
    tokenizer: PreTrainedTokenizerBase,
    state: dict[str, torch.Tensor],
    family: PublishedFamily,
) -> None:
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    config.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    side = config.vision_config.image_size
    processor = {**IMAGES[family], "size": {"height": side, "width": side}}
    (partial / "preprocessor_config.json").write_text(json.dumps(processor, indent=1))
    save_file({name: _alone(tensor) for name, tensor in state.items()}, partial / "model.safetensors", {"format": "pt"})
    os.replace(partial, out)


def _alone(tensor: torch.Tensor) -> torch.Tensor:
    """``tensor`` in memory that no other one shares, which a file of safetensors wants."""
    if tensor.is_contiguous() and tensor.untyped_storage().nbytes() == tensor.nbytes:
        return tensor
    return tensor.clone(memory_format=torch.contiguous_format)
