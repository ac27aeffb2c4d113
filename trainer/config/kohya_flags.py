"""kohya's flags translated into our options, and the reason for each flag that is not supported."""

from collections.abc import Mapping, Sequence
from typing import Any

# flag -> (our setting, its value); None: the value that follows, as `_value` reads it; True: a switch here, too
MEANS: dict[str, tuple[str, str | bool | None]] = {
    "pretrained_model_name_or_path": ("base", None),
    "output_name": ("name", None),
    "network_dim": ("rank", None),
    "network_alpha": ("alpha", None),
    "network_weights": ("init_lora", None),
    "clip_skip": ("clip_skip", None),
    "min_snr_gamma": ("min_snr_gamma", None),
    "logging_dir": ("logging_dir", None),
    "learning_rate": ("lr", None),
    "unet_lr": ("lr", None),
    "max_train_steps": ("steps", None),
    "lr_warmup_steps": ("warmup_steps", None),
    "optimizer_type": ("optimizer", None),
    "use_8bit_adam": ("optimizer", "adamw8bit"),
    "use_lion_optimizer": ("optimizer", "lion"),
    "mixed_precision": ("precision", None),
    "gradient_checkpointing": ("checkpointing", "all"),
    "xformers": ("attention", "xformers"),
    "sdpa": ("attention", "sdpa"),
    "fp8_base": ("weights", "fp8"),
    "fp8_base_unet": ("weights", "fp8"),
    "v_parameterization": ("prediction_type", "v"),
    "caption_dropout_rate": ("caption_dropout", None),
    "flip_aug": ("flip", True),
    "enable_bucket": ("bucket", True),
    "save_every_n_steps": ("save_every", None),
    "lr_scheduler_type": ("lr_scheduler", None),
    "lr_scheduler_num_cycles": ("lr_scheduler_cycles", None),
    "sample_every_n_steps": ("sample_every", None),
    "config_file": ("config", None),
}
BEATEN = {"learning_rate": "unet_lr"}  # the second wins there, whatever their order
# flags whose values kohya spells differently, and with capitals
VALUES: dict[str, dict[str, str]] = {
    "mixed_precision": {"no": "fp32"},
    "save_precision": {"float": "fp32"},
    "optimizer_type": {},
    "lr_scheduler": {"constant_with_warmup": "constant"},
    "resolution": {},  # "512,512" is a square, too
}
# values that ask for what is done here anyway -> their flags: nothing to set. Other values are refused.
_ANYWAY = {
    "true": "cache_latents cache_latents_to_disk cache_text_encoder_outputs cache_text_encoder_outputs_to_disk "
    "network_train_unet_only no_half_vae bucket_no_upscale save_state save_state_on_train_end use_safetensors "
    "sample_at_first",
    "0": "text_encoder_lr lr_decay_steps min_timestep ip_noise_gamma multires_noise_iterations "
    "adaptive_noise_scale caption_tag_dropout_rate caption_dropout_every_n_epochs token_warmup_step "
    "network_dropout scale_weight_norms max_data_loader_n_workers validation_split",
    "1": "gradient_accumulation_steps prior_loss_weight dataset_repeats token_warmup_min",
    "networks.lora": "network_module",
    "safetensors": "save_model_as",
    ".txt txt .caption caption": "caption_extension caption_extention",  # both are kohya's
    ",": "caption_separator",
    "64 128 192 256": "min_bucket_reso",  # bounds that no usual picture reaches
    "1024 1280 1536 2048": "max_bucket_reso",
    "64": "bucket_reso_steps",
    "lanczos": "resize_interpolation",
    "l2": "loss_type",
    "ddim": "sample_sampler",
    "no": "dynamo_backend",
    "1000": "max_timestep",
}
_REASONS = {
    "means the opposite elsewhere (weights into VRAM to save RAM); for small cards: --lowvram": "lowram",
    "there are two folders here: --unlabeled DIR --sensitive DIR": "train_data_dir dataset_config dataset_class "
    "datasets conditioning_data_dir",
    "the images of a sub-folder named 10_name are shown 10 times as often": "dataset_repeats",
    "there are no regularisation images here; the unlabeled images play that part: --unlabeled": "reg_data_dir",
    "captions stand in a .txt beside each image, or --prompt gives one for all": "in_json",
    "a .txt or .caption beside an image is found by itself, and no other": "caption_extension caption_extention",
    "tags are separated by commas": "caption_separator secondary_separator",
    "not offered: a caption is read as plain text": "enable_wildcard weighted_captions",
    "not offered: every tag of a caption is used": "caption_tag_dropout_rate token_warmup_min token_warmup_step",
    "not offered; --keep-tokens counts the tags that stay in front": "keep_tokens_separator",
    "a share of samples loses its caption: --caption-dropout": "caption_dropout_every_n_epochs",
    "a step has --batch-unlabeled and --batch-sensitive samples; memory decides --micro-batch": "train_batch_size",
    "a step's samples are split by --micro-batch without changing the result": "gradient_accumulation_steps",
    "two folders have no common epoch; give --steps": "max_train_epochs",
    "two folders have no common epoch; give --save-every": "save_every_n_epochs save_n_epoch_ratio",
    "two folders have no common epoch; give --sample-every": "sample_every_n_epochs",
    "not offered; see --lr-scheduler": "lr_scheduler_args lr_scheduler_timescale lr_scheduler_min_lr_ratio "
    "lr_decay_steps",
    "only the U-Net is trained": "text_encoder_lr train_text_encoder network_train_text_encoder_only",
    "only networks.lora is trained here, or with --network full the whole U-Net": "network_module",
    "the targets are kohya's default ones": "network_args",
    "not offered; --rank must be that of the file": "dim_from_weights",
    "not offered: give a --base that has it merged in": "base_weights base_weights_multiplier",
    "not offered; see --weight-decay and --max-grad-norm": "network_dropout scale_weight_norms",
    "not offered; see --weight-decay": "optimizer_args",
    "the LoRA is trained in fp32, which costs 36 MiB at rank 16; leave it out": "full_fp16 full_bf16",
    "--attention sdpa, the default, is as frugal": "mem_eff_attn",
    "not offered; --offload keeps blocks of the U-Net in CPU memory": "blocks_to_swap cpu_offload_checkpointing",
    "belongs to other models than Stable Diffusion 1.x": "v2 weighting_scheme logit_mean logit_std mode_scale "
    "text_encoder_batch_size fused_backward_pass disable_mmap_load_safetensors",
    "not offered: nothing is compiled": "torch_compile dynamo_backend",
    "not needed: several cards work with accelerate launch alone": "ddp_timeout ddp_gradient_as_bucket_view "
    "ddp_static_graph deepspeed zero_stage offload_optimizer_device offload_optimizer_nvme_path offload_param_device "
    "offload_param_nvme_path zero3_init_flag zero3_save_16bit_model fp16_master_weights_and_gradients",
    "not offered; of such things there is --noise-offset": "noise_offset_random_strength adaptive_noise_scale "
    "multires_noise_iterations multires_noise_discount ip_noise_gamma ip_noise_gamma_random_strength",
    "not offered: the schedule is the base model's, and all of it is learned": "zero_terminal_snr min_timestep "
    "max_timestep",
    "not offered: the objective rests on the squared error": "loss_type huber_schedule huber_c huber_scale",
    "not offered; the weighting there is: --min-snr-gamma": "debiased_estimation_loss v_pred_like_loss "
    "scale_v_pred_loss_like_noise_pred",
    "not offered: whole images are learned": "masked_loss alpha_mask",
    "there are no regularisation images here; --prior is the share of hidden sensitive images": "prior_loss_weight",
    "shapes come from the images, in steps of 64 px and without scaling up": "min_bucket_reso max_bucket_reso "
    "bucket_reso_steps",
    "images are scaled by Lanczos": "resize_interpolation",
    "not offered: latents are encoded once": "color_aug",
    "--crops N encodes N different crops of each image": "random_crop face_crop_aug_range",
    "as many images are encoded at once as make sense; leave it out": "vae_batch_size",
    "latents are cached by what is in the images, VAE and settings; leave it out": "skip_cache_check cache_info",
    "latents are read from a cache, without workers; leave it out": "max_data_loader_n_workers "
    "persistent_data_loader_workers",
    "the tokenizer comes along; leave it out": "tokenizer_cache_dir",
    "the command data shows what is found: python -m trainer data": "debug_dataset",
    "--dry-run prints the settings": "output_config",
    "always safetensors; leave it out": "save_model_as",
    "counts steps or epochs there; --keep-states counts states": "save_last_n_steps save_last_n_steps_state "
    "save_last_n_epochs save_last_n_epochs_state",
    "--resume continues the run of this --name at its own step": "skip_until_initial_step initial_step "
    "initial_epoch resume_from_huggingface",
    "two sensitive images, or a tenth, are held out by themselves": "validation_seed validation_split "
    "validate_every_n_steps validate_every_n_epochs max_validation_steps",
    "pictures are made with ddim": "sample_sampler",
    "a tracker of --log-with shows the run under its --name": "log_prefix log_tracker_name log_tracker_config "
    "wandb_run_name",
    "log in before, by the tracker's own command": "wandb_api_key",
    "output/NAME/events.jsonl and config.toml hold all of it": "log_config console_log_level console_log_file "
    "console_log_simple",
    "the metadata tells no paths and, unless --metadata full, no captions of sensitive images": "no_metadata",
    "not offered: the metadata tells how the LoRA was made": "training_comment metadata_title metadata_author "
    "metadata_description metadata_license metadata_tags metadata_usage_hint metadata_thumbnail metadata_merged_from "
    "metadata_trigger_phrase metadata_preprocessor metadata_is_negative_embedding",
    "nothing is uploaded": "huggingface_repo_id huggingface_repo_type huggingface_path_in_repo huggingface_token "
    "huggingface_repo_visibility save_state_to_huggingface async_upload",
}
ANYWAY = {flag: values for values, flags in _ANYWAY.items() for flag in flags.split()}
REFUSED = {flag: reason for reason, flags in _REASONS.items() for flag in flags.split()}
FLAGS = MEANS.keys() | VALUES.keys() | ANYWAY.keys() | REFUSED.keys()


def flat(table: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Flatten a TOML file's settings: kohya's files may group them into sections, whose names mean nothing."""
    parts = [value if isinstance(value, dict) else {key: value} for key, value in table.items()]
    names = {name for part in parts for name in part}
    return [(key, value) for part in parts for key, value in part.items() if BEATEN.get(key) not in names]


def translate(argv: Sequence[str], problems: list[str]) -> list[str]:
    """Translate a command line: dashes for underscores, our names for kohya's. Unsupported flags are left out.

    Args: problems: gets one sentence for each refused flag.
    """
    words, rest = [], list(argv)
    names = {word[2:].partition("=")[0].replace("-", "_") for word in argv if word.startswith("--")}
    while rest:
        word = rest.pop(0)
        given, equals, value = word.partition("=")
        flag = given[2:].replace("-", "_")
        if not word.startswith("--"):
            words.append(word)
        elif flag not in FLAGS:
            words.append(f"--{flag.replace('_', '-')}{equals}{value}")
        else:
            found = take(flag, value if equals else _following(flag, rest), given, problems)
            words += _option(*found) if found and BEATEN.get(flag) not in names else []
    return words


def take(flag: str, value: Any, where: str, problems: list[str]) -> tuple[str, Any] | None:
    """Translate one of FLAGS into our options.

    Args:
        value: as text, or as TOML has it; None where it is missing.
        where: what the user calls the flag.
        problems: gets a sentence where the flag is refused.
    Returns: our setting and its value; None where there is nothing to set.
    """
    plain = _plain(value)
    ours, fixed = MEANS.get(flag, (flag, None))
    if flag in ANYWAY or flag in REFUSED:
        if plain not in ("false", *ANYWAY.get(flag, "").split()):
            problems.append(f"{where}: {REFUSED.get(flag, 'is a switch: it takes no value')}")
        return None
    if fixed is None:
        return ours, _value(flag, value)
    if plain not in ("true", "false"):
        problems.append(f"{where}: must be true or false, got {value!r}")
        return None
    if fixed is True:
        return ours, plain == "true"
    return (ours, fixed) if plain == "true" else None  # a switch that is off asks for nothing


def _following(flag: str, rest: list[str]) -> str | bool | None:
    """Return the value of a flag, taken from the words after it; True for a switch."""
    if ANYWAY.get(flag) == "true" or MEANS.get(flag, (flag, None))[1] is not None:
        return True
    most = 1 if flag in MEANS or flag in VALUES else len(rest)  # of what is refused, all values go
    values: list[str] = []
    while rest and len(values) < most and not rest[0].startswith("--"):
        values.append(rest.pop(0))
    return " ".join(values) if values else None


def _option(ours: str, value: Any) -> list[str]:
    name = ours.replace("_", "-")
    if value is None:
        return [f"--{name}"]  # argparse says that its value is missing
    return [("--" if value else "--no-") + name] if isinstance(value, bool) else [f"--{name}={value}"]


def _plain(value: Any) -> str:
    """Normalize a value: 1, 1.0 and "1.00" are the same, and so are True and "true"."""
    text = str(value).strip().lower()
    try:
        return f"{float(text):g}"
    except ValueError:
        return text


def _value(flag: str, value: Any) -> Any:
    if not isinstance(value, str) or flag not in VALUES:
        return value
    first, _, second = value.partition(",")
    if flag == "resolution":
        return first.strip() if first.strip() == second.strip() else value
    return VALUES[flag].get(value.lower(), value.lower())
