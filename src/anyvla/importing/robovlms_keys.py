"""What RoboVLMs does with each key of its configurations, established by reading its public code (arXiv 2412.14058).

A key that no line of it turns into anything is dead. The others are either taken over by ``robovlms_config``, or have a
meaning that a recipe does not take, for the reason given here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Family:
    """One of its vision-language models.

    Attributes:
        name: for messages. prompt: what it puts around the instruction. owner: of the model on the hub; None where only the
        address in ``model_url`` names all of the model. own_images: the preprocessing of the model, or of its successor,
        decides the size of images, not ``image_size``. successor: what a recipe takes where the original cannot be loaded,
        and why that is so.
    """

    name: str
    prompt: str
    owner: str | None
    own_images: bool = False
    successor: str | None = None
    why_not: str = ""


FAMILIES = {
    "RoboKosMos": Family("Kosmos-2", "<grounding>An image of a robot {instruction}", "microsoft"),
    "RoboPaligemma": Family("PaliGemma", "<eos>{instruction}\n", "google", True),
    "RoboLLaVA": Family(
        "LLaVA-MPT",
        "{instruction}",
        "liuhaotian",
        True,
        successor="llava-hf/llava-1.5-7b-hf",
        why_not="LLaVA-MPT is a model of the package llava, which transformers does not read",
    ),
    "RoboQwen": Family(
        "Qwen-VL",
        "{instruction}",
        "Qwen",
        True,
        successor="Qwen/Qwen2-VL-2B-Instruct",
        why_not="the first Qwen-VL is remote code, which AnyVLA does not run",
    ),
    "RoboUform": Family("UForm-Gen", "<image> {instruction}", "unum-cloud", True),
    "RoboMoonDream": Family("Moondream", "<|endoftext|>{instruction}", "vikhyatk", True),
    "RoboFlamingo": Family("OpenFlamingo", "<image>{instruction}<|endofchunk|><|endoftext|>", None),
}

# pattern of the key -> what happens to it in the original; nothing that is computed depends on its value
DEAD = {
    r"image_mean|image_std": "the CLIP statistics are written in the code",
    r"data_scale|warmup_ratio|llava_config|act_encoder": "read by nothing",
    r"optimizer": "AdamW is always used",
    r"seq_len": "printed, and otherwise read by nothing",
    r"model_config": "the config.json beside vlm.pretrained_model_name_or_path is read instead",
    r"use_(time_causal_attn|mim_obs_loss|pixel_loss|obs_queries|tube_mask)|vision_masked_ratio": "never given to the model",
    r"use_state": "asked for under another name by mistake, so it is always off",
    r"use_multi_modal_emb|finetune|no_video_pretrained_model": "stored, and read by nothing",
    r"cap_loss_ratio|kl_div_ratio": "weight of a loss that nothing computes",
    r"fwd_loss_ratio": "weight of a loss whose module is missing",
    r"vision_resampler(\..*)?": "the resampler is made with depth 6, 64 latents and 8 heads of 64, whatever is written here",
    r"train_setup\.precision": "overwritten by trainer.precision",
    r"train_setup\.(bits|gradient_checkpointing|mm_projector_lr)": "read by nothing",
    r"train_setup\.(freeze_mm_mlp_adapter|tune_mm_mlp_adapter|mm_use_im_start_end|mm_use_im_patch_token)": "read by nothing",
    r"act_head\.(fwd_pred_next_n|window_size)": "overwritten by the key of the same name at the top",
    r"act_head\.with_history": "read by nothing",
    r"tokenizer\.(tokenizer_type|max_text_len)": "read only where no tokenizer was built, and one always is",
    r"tokenizer\.(use_(img|act|bbox)_start_end|(image|action|bbox)_(start|end)_token)": "read by nothing",
    r"trainer\.gradient_clip_val": "overwritten by gradient_clip_val at the top, which is 0 (no clipping) where absent",
    r"(train|val)_dataset\.(model_name|tokenizer_type|shift_first)": "overwritten, or read by nothing",
    r"(train|val)_dataset\.window_sample": "overwritten: organize_type decides",
    r"config|raw_config_path|llm(\..*)?|data_dir|data_subfolder|annotation_file|task_num": "arguments of the program, not used",
}

# pattern of the key -> why a recipe does not take it
DROPPED = {
    r"task_name|exp_name|output_root|log_root|cache_root|log_dir|output_dir": "folders of the run: --out",
    r"gpus|num_nodes": "how a run is spread is said to `accelerate launch`, not in a recipe",
    r"model_path|model_load_path|model_load_source|resume": "where weights lie is said on the command line",
    r"model_url": "the vision-language model is named by model.backbone.path",
    r"llava|qwen": "chooses a prompt for discrete actions; the recipe's prompt serves them all",
    r"vlm\.(type|name)|tokenizer\.(type|pretrained_model_name_or_path)": "found from the files in model.backbone.path",
    r"vlm\.residual|vision_encoder\..*": "part of the OpenFlamingo model in model.backbone.path",
    r"tokenizer\.additional_special_tokens": "the tokenizer in model.backbone.path has the tokens its model was trained with",
    r"train_setup\.predict_(caption|forward|forward_hand)": "off, or without effect: no such loss is computed there",
    r"train_setup\.lora_bias": "biases stay frozen under LoRA",
    r"train_setup\.(reinit|load_vl_param)": "model.backbone.random_weights starts a model from new weights",
    r"fwd_head(\..*)?": "the module that predicts frames is missing in the public code",
    r"vl_cotrain_ratio": "objectives.conversations trains on such data; this configuration does not name any",
    r"train_weights": "mixtures of sources are set up anew in `data`",
    r"trainer\.(accelerator|strategy|use_distributed_sampler)": "said to `accelerate launch`",
    r"trainer\.check_val_every_n_epoch": "validation is counted in steps: training.validate_every",
    r"trainer\.\w+": "an argument of Lightning's Trainer, which is not used",
    r"val_dataset(\[\d+\])?(\..*)?": "the recipe holds episodes out: data.validation",
    r"train_dataset\.(data_root_dir|data_mix)": "set data.source.type and data.source.path to your copy of Open X-Embodiment",
    r"train_dataset\.(mode|organize_type|shuffle_buffer_size|train)": "every frame begins a window; a seed decides the order",
    r"train_dataset\.traj_cons": "a shift is always drawn once per window",
    r"train_dataset\[\d+\](\..*)?": "one of several sources; name the one with actions in `data`",
    r"train_dataset\.(few_shot|partial_data|exclude_tasks|skip_frames|text_aug|save_format|lang_folder|key|sampler(\..*)?)": (
        "set up in `data`"
    ),
    r"discrete_action_history": "an input that no model here takes",
    r"use_clip_norm|clip_norm_ratio": "objectives.alignment has another frozen feature; choose its weight",
    r"action_scale": "a factor at run time in one benchmark; change the actions in `policy` if you used it",
}


def find(table: dict[str, str], key: str) -> str | None:
    """What ``table`` says about ``key``, if anything."""
    return next((why for pattern, why in table.items() if re.fullmatch(pattern, key)), None)
