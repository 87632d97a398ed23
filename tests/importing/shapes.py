"""Configurations with the keys and the nesting of the eleven that RoboVLMs publishes, and values of our own."""

from __future__ import annotations

import copy
from typing import Any

Tree = dict[str, Any]

CALVIN = (
    "flamingo",
    "kosmos_hand",
    "kosmos",
    "llava",
    "moondream",
    "paligemma",
    "qwen",
    "uform",
)
OPEN_X = ("kosmos_bridge", "kosmos_oxe", "kosmos_rt")
SHAPES = (*CALVIN, *OPEN_X)

_MODELS = {  # robovlm_name, hub address, folder, class
    "flamingo": ("RoboFlamingo", "someone/OpenFlamingo-tiny", "tiny-mpt", "AutoModelForCausalLM"),
    "kosmos": ("RoboKosMos", "microsoft/tiny-kosmos", ".vlms/tiny-kosmos", "AutoModelForVision2Seq"),
    "llava": ("RoboLLaVA", "someone/tiny-llava", ".vlms/tiny-llava-mpt", "AutoModel"),
    "moondream": ("RoboMoonDream", "someone/tiny-moon", ".vlms/tiny-moon", "AutoModelForCausalLM"),
    "paligemma": ("RoboPaligemma", "google/tiny-paligemma2", ".vlms/tiny-paligemma", "PaliGemmaForConditionalGeneration"),
    "qwen": ("RoboQwen", "someone/tiny-qwen", ".vlms/tiny-qwen", "AutoModelForCausalLM"),
    "uform": ("RoboUform", "someone/tiny-uform", ".vlms/tiny-uform", "AutoModel"),
}


def shape(name: str) -> Tree:
    """One of ``SHAPES``."""
    model = name.split("_")[0]
    robovlm, url, path, loader = _MODELS[model]
    tree: Tree = {
        "robovlm_name": robovlm,
        "parent": None,
        "task_name": "a_task",
        "model": model,
        "model_url": f"https://huggingface.co/{url}",
        "seq_len": 1,
        "image_size": 112,
        "image_mean": [0.1, 0.2, 0.3],
        "image_std": [0.3, 0.2, 0.1],
        "window_size": 5,
        "fwd_pred_next_n": 3,
        "arm_gripper_loss_ratio": 0.02,
        "cap_loss_ratio": 0.5,
        "fwd_loss_ratio": 0,
        "seed": 7,
        "batch_size": 6,
        "num_workers": 2,
        "data_scale": 1,
        "optimizer": "adam",
        "learning_rate": 3e-5,
        "min_lr_scale": 1e-2,
        "weight_decay": 0.25,
        "warmup_epochs": 0.5,
        "warmup_steps": 0,
        "warmup_ratio": None,
        "use_hand_rgb": name not in CALVIN or name == "kosmos_hand",
        "use_time_causal_attn": False,
        "use_mim_obs_loss": False,
        "use_pixel_loss": True,
        "use_obs_queries": True,
        "use_vision_resampler": model == "moondream",
        "vision_masked_ratio": 0.5,
        "use_tube_mask": False,
        "output_root": "out/checkpoints",
        "log_root": "out/logs",
        "cache_root": "out/cache",
        "model_load_path": None,
        "model_load_source": "torch",
        "resume": None,
        "model_path": path,
        "model_config": f"{path}/config.json",
        "train_setup": {
            "precision": "bf16",
            "predict_action": True,
            "predict_forward": False,
            "predict_forward_hand": False,
            "predict_caption": False,
            "train_vision": True,
            "bits": -1,
            "freeze_mm_mlp_adapter": False,
            "freeze_backbone": False,
            "freeze_resampler": False,
            "tune_mm_mlp_adapter": False,
            "mm_use_im_start_end": False,
            "mm_use_im_patch_token": False,
            "gradient_checkpointing": False,
            "lora_enable": False,
            "mm_projector_lr": 1e-3,
            "lora_r": 8,
            "lora_alpha": 4,
            "lora_dropout": 0.1,
            "lora_bias": "none",
            "train_text_embedding": True,
        },
        "vision_resampler": {"vis_dim": 16, "depth": 3, "dim_head": 8, "heads": 2, "num_latents": 4},
        "act_encoder": None,
        "act_head": {
            "type": "LSTMDecoder",
            "hidden_size": 24,
            "action_dim": 7,
            "down_sample": "none",
            "latent": 1,
            "fwd_pred_next_n": 1,
            "window_size": 1,
            "action_space": "continuous",
            "with_history": True,
            "history_type": "post",
        },
        "fwd_head": None,
        "tokenizer": {
            "type": "AutoProcessor",
            "pretrained_model_name_or_path": path,
            "tokenizer_type": model,
            "max_text_len": 40,
            "additional_special_tokens": None,
        },
        "vlm": {"type": loader, "name": model, "pretrained_model_name_or_path": path},
        "trainer": {
            "accelerator": "gpu",
            "strategy": "deepspeed_stage_2",
            "precision": "bf16",
            "logger": ["tensorboard"],
            "gradient_clip_val": 0.5,
            "use_distributed_sampler": False,
            "log_every_n_steps": 25,
            "max_epochs": 4,
            "val_check_interval": None,
            "check_val_every_n_epoch": 1,
            "max_steps": -1,
            "accumulate_grad_batches": 2,
        },
        "train_dataset": {
            "type": "DiskCalvinDataset",
            "data_dir": "data/training",
            "shift_first": False,
            "model_name": model,
            "rgb_pad": 7,
            "gripper_pad": 3,
        },
        "val_dataset": {"type": "DiskCalvinDataset", "data_dir": "data/validation", "model_name": model},
        "norm_action": True,
        "norm_min": -0.5,
        "norm_max": 0.75,
    }
    change = {"flamingo": _flamingo, "llava": _llava, "qwen": _qwen, "uform": _uform}.get(model)
    if change is not None:
        change(tree)
    if name in OPEN_X:
        _open_x(tree, {"kosmos_bridge": "bridge", "kosmos_oxe": "a_mixture", "kosmos_rt": "rt_1"}[name])
    return tree


def _flamingo(tree: Tree) -> None:
    for key in ("use_vision_resampler", "vision_resampler"):
        del tree[key]
    tree["gradient_clip_val"] = 0.9
    tree["vision_encoder"] = {"clip_vision_encoder_path": "ViT-tiny", "clip_vision_encoder_pretrained": "someone"}
    tree["vlm"] = {
        "type": "AutoModelForCausalLM",
        "pretrained_model_name_or_path": "tiny-mpt",
        "name": "mpt_1b",
        "residual": False,
    }
    tree["tokenizer"] |= {"type": "AutoTokenizer", "additional_special_tokens": ["<|endofchunk|>", "<image>"]}
    tree["train_setup"] = {
        "predict_action": True,
        "predict_forward": False,
        "predict_forward_hand": False,
        "predict_caption": False,
        "train_vision": False,
        "train_resampler": True,
        "train_text_embedding": True,
        "train_full_decoder": False,
        "train_decoder_layers": -1,
    }
    tree["act_head"] |= {"down_sample": "pooling", "action_space": "down_sample"}
    tree["trainer"] |= {"precision": "16-mixed", "limit_val_batches": 50}
    del tree["train_dataset"]["model_name"], tree["val_dataset"]["model_name"]
    tree["train_dataset"] |= {"tokenizer_type": "flamingo", "traj_cons": True}
    tree["val_dataset"]["tokenizer_type"] = "flamingo"
    del tree["trainer"]["accumulate_grad_batches"]


def _llava(tree: Tree) -> None:
    del tree["model_path"], tree["model_config"]
    tree |= {
        "vl_cotrain_ratio": 1,
        "llava": "tiny-mpt",
        "llava_config": "tiny-mpt/config.json",
        "model_load_source": "deepspeed",
    }
    tree["tokenizer"] |= {"type": "AutoTokenizer", "additional_special_tokens": []}
    tree["train_setup"] |= {"train_text_embedding": False, "tune_mm_mlp_adapter": True}
    tree["trainer"]["limit_val_batches"] = 50
    tree["train_dataset"]["traj_cons"] = True


def _qwen(tree: Tree) -> None:
    del tree["model_path"], tree["model_config"]
    tree["qwen"] = tree["vlm"]["pretrained_model_name_or_path"]
    tree["train_setup"]["train_vision"] = False
    tree["tokenizer"] = {
        "type": "AutoTokenizer",
        "pretrained_model_name_or_path": tree["qwen"],
        "tokenizer_type": "qwen",
        "max_text_len": 40,
        "use_img_start_end": False,
        "image_start_token": "<a>",
        "image_end_token": "<b>",
        "use_act_start_end": False,
        "action_start_token": "<c>",
        "action_end_token": "<d>",
        "use_bbox_start_end": False,
        "bbox_start_token": "<e>",
        "bbox_end_token": "<f>",
    }


def _uform(tree: Tree) -> None:
    tree["act_head"] |= {"down_sample": "pooling", "action_space": "down_sample", "token_source": "all"}
    tree["trainer"] |= {"val_check_interval": 300, "check_val_every_n_epoch": None}


def _open_x(tree: Tree, mix: str) -> None:
    common = {
        "type": "OpenVLADataset",
        "data_root_dir": "data/oxe",
        "model_name": "kosmos",
        "mode": "train",
        "data_mix": mix,
        "window_sample": "sliding",
        "organize_type": "interleave",
        "shuffle_buffer_size": 100,
    }
    tree["train_dataset"] = copy.deepcopy(common) | {"image_aug": True, "train": True}
    tree["val_dataset"] = copy.deepcopy(common) | {"train": False}
    tree["trainer"] |= {"val_check_interval": 300, "check_val_every_n_epoch": None, "max_steps": 900}
    if mix == "rt_1":
        tree |= {"warmup_epochs": 0, "warmup_steps": 50}
