"""kohya's flags in our words, for those who bring their command lines along; and why some have no meaning here."""

from collections.abc import Sequence

# flag -> (our setting, its value); None: the value that follows, as it is or as VALUES says
MEANS: dict[str, tuple[str, str | None]] = {
    "pretrained_model_name_or_path": ("base", None),
    "output_name": ("name", None),
    "network_dim": ("rank", None),
    "network_alpha": ("alpha", None),
    "network_weights": ("init-lora", None),
    "clip_skip": ("clip-skip", None),
    "min_snr_gamma": ("min-snr-gamma", None),
    "logging_dir": ("logging-dir", None),
    "learning_rate": ("lr", None),
    "unet_lr": ("lr", None),
    "max_train_steps": ("steps", None),
    "lr_warmup_steps": ("warmup-steps", None),
    "optimizer_type": ("optimizer", None),
    "use_8bit_adam": ("optimizer", "adamw8bit"),
    "use_lion_optimizer": ("optimizer", "lion"),
    "mixed_precision": ("precision", None),
    "gradient_checkpointing": ("checkpointing", "all"),
    "xformers": ("attention", "xformers"),
    "sdpa": ("attention", "sdpa"),
    "fp8_base": ("weights", "fp8"),
    "fp8_base_unet": ("weights", "fp8"),
    "v_parameterization": ("prediction-type", "v"),
    "caption_dropout_rate": ("caption-dropout", None),
    "flip_aug": ("flip", ""),
    "save_every_n_steps": ("save-state-every", None),
    "sample_every_n_steps": ("sample-every", None),
    "config_file": ("config", None),
}

VALUES = {
    "mixed_precision": {"no": "fp32"},
    "save_precision": {"float": "fp32"},
    "optimizer_type": {"AdamW": "adamw", "AdamW8bit": "adamw8bit", "Lion": "lion", "Prodigy": "prodigy"},
    "resolution": {},  # "512,512": see `_value`
}

ALWAYS = "always so here; leave it out"
REFUSED = {
    "lowram": "means the opposite elsewhere (weights into VRAM to save RAM); for small cards: --lowvram",
    "train_data_dir": "there are two folders here: --unlabeled DIR --sensitive DIR",
    "reg_data_dir": "there are no regularisation images here; the unlabeled images play that part: --unlabeled",
    "dataset_config": "there are two folders here: --unlabeled DIR --sensitive DIR",
    "in_json": "captions stand in a .txt beside each image, or --prompt gives one for all",
    "train_batch_size": "a step has --batch-unlabeled and --batch-sensitive samples; memory decides --micro-batch",
    "gradient_accumulation_steps": "a step's samples are split by --micro-batch without changing the result",
    "max_train_epochs": "two folders have no common epoch; give --steps",
    "save_every_n_epochs": "two folders have no common epoch; give --save-state-every",
    "lr_scheduler": "a linear rise, then a cosine; --warmup-steps sets the rise",
    "text_encoder_lr": "only the U-Net is trained",
    "train_text_encoder": "only the U-Net is trained",
    "network_train_unet_only": ALWAYS,
    "network_train_text_encoder_only": "only the U-Net is trained",
    "network_args": "the targets are kohya's default ones",
    "cache_latents": ALWAYS,
    "cache_latents_to_disk": ALWAYS,
    "cache_text_encoder_outputs": ALWAYS,
    "no_half_vae": "the VAE is never run in half precision here; leave it out",
    "full_fp16": "the LoRA is trained in fp32, which costs 36 MiB at rank 16; leave it out",
    "full_bf16": "the LoRA is trained in fp32, which costs 36 MiB at rank 16; leave it out",
    "mem_eff_attn": "--attention sdpa, the default, is as frugal",
    "shuffle_caption": "not offered: R compares images under the same caption",
    "keep_tokens": "not offered: R compares images under the same caption",
    "max_token_length": "captions of up to 75 tokens are used",
    "noise_offset": "not offered: the temperature is measured with plain noise",
    "prior_loss_weight": "there are no regularisation images here; --prior is the share of hidden sensitive images",
    "optimizer_args": "not offered; see --weight-decay",
    "caption_extension": "a .txt or .caption beside an image is found by itself; leave it out",
    "save_last_n_steps_state": "counts steps there; --keep-states counts states",
    "save_state": "the state is always saved; --save-state-every says how often",
    "save_model_as": "always safetensors; leave it out",
    "max_data_loader_n_workers": "latents are read from a cache, without workers; leave it out",
    "persistent_data_loader_workers": "latents are read from a cache, without workers; leave it out",
    "color_aug": "not offered: latents are encoded once",
    "random_crop": "--crops N encodes N different crops of each image",
}


def translate(argv: Sequence[str], problems: list[str]) -> list[str]:
    """A command line in our words: dashes for underscores, our names for kohya's. What is refused is left out.

    Args: problems: gets one sentence for each refused flag.
    """
    words, rest = [], list(argv)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--"):
            words.append(word)
            continue
        given, equals, value = word.partition("=")
        name = given[2:].replace("-", "_")
        if name in REFUSED:
            problems.append(f"{given}: {REFUSED[name]}")
            while rest and not rest[0].startswith("--"):
                rest.pop(0)
            continue
        ours, fixed = MEANS.get(name, (name.replace("_", "-"), None))
        if fixed is not None:
            words.append(f"--{ours}={fixed}" if fixed else f"--{ours}")
            continue
        takes_next = not equals and name in VALUES and rest and not rest[0].startswith("--")
        if takes_next:
            equals, value = "=", rest.pop(0)
        words.append(f"--{ours}{equals}{_value(name, value)}")
    return words


def _value(name: str, value: str) -> str:
    if name == "resolution":  # "512,512" is a square too
        first, _, second = value.partition(",")
        return first if first == second else value
    return VALUES.get(name, {}).get(value, value)
