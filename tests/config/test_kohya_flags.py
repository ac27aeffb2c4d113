"""kohya's flags: every one that is accepted sets what it means, every refused one says why."""

from pathlib import Path

import pytest

from trainer.builtin import CONFIG
from trainer.common.errors import UserError
from trainer.config import kohya_flags
from trainer.config.arguments import RunOptions, parse
from trainer.config.train_config import TrainConfig
from trainer.config.validation import differences

# flag -> (words on the command line, our field, its value)
USED = {
    "pretrained_model_name_or_path": (["runwayml/stable-diffusion-v1-5"], "base", "runwayml/stable-diffusion-v1-5"),
    "output_name": (["my lora"], "name", "my lora"),
    "network_dim": (["8"], "rank", 8),
    "network_alpha": (["4"], "alpha", 4.0),
    "network_weights": ([__file__], "init_lora", Path(__file__)),
    "clip_skip": (["2"], "clip_skip", 2),
    "min_snr_gamma": (["5"], "min_snr_gamma", 5.0),
    "logging_dir": (["logs"], "logging_dir", Path("logs")),
    "learning_rate": (["2e-4"], "lr", 2e-4),
    "unet_lr": (["2e-4"], "lr", 2e-4),
    "max_train_steps": (["77"], "steps", 77),
    "lr_warmup_steps": (["7"], "warmup_steps", 7),
    "optimizer_type": (["AdamW8bit"], "optimizer", "adamw8bit"),
    "use_8bit_adam": ([], "optimizer", "adamw8bit"),
    "use_lion_optimizer": ([], "optimizer", "lion"),
    "mixed_precision": (["no"], "precision", "fp32"),
    "gradient_checkpointing": ([], "checkpointing", "all"),
    "xformers": ([], "attention", "xformers"),
    "sdpa": ([], "attention", "sdpa"),
    "fp8_base": ([], "weights", "fp8"),
    "fp8_base_unet": ([], "weights", "fp8"),
    "v_parameterization": ([], "prediction_type", "v"),
    "caption_dropout_rate": (["0.1"], "caption_dropout", 0.1),
    "flip_aug": ([], "flip", True),
    "save_every_n_steps": (["40"], "save_every", 40),
    "lr_scheduler_type": (["linear"], "lr_scheduler", "linear"),
    "lr_scheduler_num_cycles": (["3"], "lr_scheduler_cycles", 3),
    "sample_every_n_steps": (["50"], "sample_every", 50),
    "enable_bucket": ([], "bucket", True),
    "config_file": None,  # below
}

# flags that are called the same here, with values to try
SAME = {
    "shuffle_caption": ([], True),
    "keep_tokens": (["2"], 2),
    "caption_prefix": (["sks "], "sks "),
    "caption_suffix": (["high quality"], "high quality"),
    "noise_offset": (["0.05"], 0.05),
    "max_token_length": (["225"], 225),
    "lr_scheduler": (["constant_with_warmup"], "constant"),
    "lr_scheduler_power": (["2"], 2),
}

# The flags of `train_network.py --help`, sd-scripts 48d368f (2026-02-16)
KOHYAS = """
adaptive_noise_scale alpha_mask async_upload base_weights base_weights_multiplier blocks_to_swap bucket_no_upscale
bucket_reso_steps cache_info cache_latents cache_latents_to_disk cache_text_encoder_outputs
cache_text_encoder_outputs_to_disk caption_dropout_every_n_epochs caption_dropout_rate caption_extension
caption_extention caption_prefix caption_separator caption_suffix caption_tag_dropout_rate clip_skip color_aug
conditioning_data_dir config_file console_log_file console_log_level console_log_simple cpu_offload_checkpointing
dataset_class dataset_config dataset_repeats ddp_gradient_as_bucket_view ddp_static_graph ddp_timeout
debiased_estimation_loss debug_dataset deepspeed dim_from_weights disable_mmap_load_safetensors dynamo_backend
enable_bucket enable_wildcard face_crop_aug_range flip_aug fp16_master_weights_and_gradients fp8_base fp8_base_unet
full_bf16 full_fp16 fused_backward_pass gradient_accumulation_steps gradient_checkpointing highvram huber_c
huber_scale huber_schedule huggingface_path_in_repo huggingface_repo_id huggingface_repo_type
huggingface_repo_visibility huggingface_token in_json initial_epoch initial_step ip_noise_gamma
ip_noise_gamma_random_strength keep_tokens keep_tokens_separator learning_rate log_config log_prefix
log_tracker_config log_tracker_name log_with logging_dir logit_mean logit_std loss_type lowram lr_decay_steps
lr_scheduler lr_scheduler_args lr_scheduler_min_lr_ratio lr_scheduler_num_cycles lr_scheduler_power
lr_scheduler_timescale lr_scheduler_type lr_warmup_steps masked_loss max_bucket_reso max_data_loader_n_workers
max_grad_norm max_timestep max_token_length max_train_epochs max_train_steps max_validation_steps mem_eff_attn
metadata_author metadata_description metadata_is_negative_embedding metadata_license metadata_merged_from
metadata_preprocessor metadata_tags metadata_thumbnail metadata_title metadata_trigger_phrase metadata_usage_hint
min_bucket_reso min_snr_gamma min_timestep mixed_precision mode_scale multires_noise_discount
multires_noise_iterations network_alpha network_args network_dim network_dropout network_module
network_train_text_encoder_only network_train_unet_only network_weights no_half_vae no_metadata noise_offset
noise_offset_random_strength offload_optimizer_device offload_optimizer_nvme_path offload_param_device
offload_param_nvme_path optimizer_args optimizer_type output_config output_dir output_name
persistent_data_loader_workers pretrained_model_name_or_path prior_loss_weight random_crop reg_data_dir
resize_interpolation resolution resume resume_from_huggingface sample_at_first sample_every_n_epochs
sample_every_n_steps sample_prompts sample_sampler save_every_n_epochs save_every_n_steps save_last_n_epochs
save_last_n_epochs_state save_last_n_steps save_last_n_steps_state save_model_as save_n_epoch_ratio save_precision
save_state save_state_on_train_end save_state_to_huggingface scale_v_pred_loss_like_noise_pred scale_weight_norms sdpa
secondary_separator seed shuffle_caption skip_cache_check skip_until_initial_step text_encoder_batch_size
text_encoder_lr token_warmup_min token_warmup_step tokenizer_cache_dir torch_compile train_batch_size train_data_dir
training_comment unet_lr use_8bit_adam use_lion_optimizer use_safetensors v2 v_parameterization v_pred_like_loss vae
vae_batch_size validate_every_n_epochs validate_every_n_steps validation_seed validation_split wandb_api_key
wandb_run_name weighted_captions weighting_scheme xformers zero3_init_flag zero3_save_16bit_model zero_stage
zero_terminal_snr
"""


@pytest.fixture
def folders(tmp_path):
    for name in ("unlabeled", "sensitive"):
        (tmp_path / name).mkdir()
    return tmp_path


def config_of(folders, *words):
    base = [] if "--pretrained_model_name_or_path" in words else ["--base", str(folders)]
    return parse([*base, "--data", str(folders), *words], CONFIG).config


def test_the_table_holds_exactly_the_accepted_flags():
    assert USED.keys() == kohya_flags.MEANS.keys()
    assert {
        field for field, _ in kohya_flags.MEANS.values()
    } <= TrainConfig.model_fields.keys() | RunOptions.model_fields.keys()
    refused = kohya_flags.REFUSED.keys() | kohya_flags.ANYWAY.keys()
    assert not refused & (kohya_flags.MEANS.keys() | TrainConfig.model_fields.keys())


def test_every_flag_of_kohyas_is_answered():
    assert len(KOHYAS.split()) > 190
    known = RunOptions.model_fields.keys() | TrainConfig.model_fields.keys() | kohya_flags.FLAGS
    assert set(KOHYAS.split()) <= known


@pytest.mark.parametrize("flag", [f for f, case in USED.items() if case])
@pytest.mark.parametrize("spelling", ["_", "-"])
def test_accepted(flag, spelling, folders):
    words, field, value = USED[flag]
    assert getattr(config_of(folders, f"--{flag.replace('_', spelling)}", *words), field) == value
    if words and field != "base":
        assert getattr(config_of(folders, f"--{flag}={words[0]}"), field) == value


@pytest.mark.parametrize("flag", kohya_flags.REFUSED)
def test_refused_with_a_reason(flag, folders):
    with pytest.raises(UserError) as error:
        config_of(folders, f"--{flag}", "some", "values", "--steps", "5")
    assert str(error.value) == f"--{flag}: {kohya_flags.REFUSED[flag]}"


@pytest.mark.parametrize("flag", SAME)
def test_the_same_name_here(flag, folders):
    words, value = SAME[flag]
    for spelling in (flag, flag.replace("_", "-")):
        assert getattr(config_of(folders, f"--{spelling}", *words), flag) == value
    line = (
        f"{flag} = true" if value is True else f'{flag} = "{value}"' if isinstance(value, str) else f"{flag} = {value}"
    )
    assert getattr(from_toml(folders, line), flag) == value


@pytest.mark.parametrize("flag", [*SAME, "recursive", "folder_repeats"])
def test_a_resumed_run_keeps_them(flag):
    before = TrainConfig()
    now = before.model_copy(update={flag: SAME[flag][1] if flag in SAME else False})
    (problem,) = differences(before, now, [flag], steps_done=1)
    assert problem.startswith(f"--{flag.replace('_', '-')}: this run was started with {getattr(before, flag)}, not ")


@pytest.mark.parametrize("words", ["--max_token_length=100", "--max_token_length 300", "--noise_offset=2"])
def test_values_that_neither_has(words, folders):
    with pytest.raises(UserError, match=words.split("=")[0].split()[0].replace("_", "-")):
        config_of(folders, *words.split())


def test_values_in_kohyas_words(folders):
    assert config_of(folders, "--resolution", "512,512").resolution == 512
    assert config_of(folders, "--resolution=256,256").resolution == 256
    assert config_of(folders, "--save_precision", "float").save_precision == "fp32"
    with pytest.raises(UserError, match="--resolution"):
        config_of(folders, "--resolution", "512,768")


@pytest.mark.parametrize("flag", kohya_flags.ANYWAY)
def test_what_is_done_anyway_changes_nothing(flag, folders):
    plain = config_of(folders)
    for value in kohya_flags.ANYWAY[flag].split():
        words = [] if value == "true" else [value]
        assert config_of(folders, f"--{flag}", *words) == plain
        assert config_of(folders, f"--{flag.replace('_', '-')}={value}") == plain
    with pytest.raises(UserError) as error:
        config_of(folders, f"--{flag}=other")
    assert str(error.value) == f"--{flag}: {kohya_flags.REFUSED.get(flag, 'is a switch: it takes no value')}"


def test_values_that_are_written_otherwise(folders):
    words = (
        "--prior_loss_weight=1.0 --noise_offset 0.00 --save_model_as SafeTensors --text_encoder_lr 0 --keep_tokens=0"
    )
    assert config_of(folders, *words.split()) == config_of(folders)


def test_the_rate_of_the_unet_wins(folders):
    for words in ("--unet_lr 1e-4 --learning_rate 5e-5", "--learning_rate=5e-5 --unet_lr=1e-4"):
        assert config_of(folders, *words.split()).lr == 1e-4
    for lines in ("unet_lr = 1e-4\nlearning_rate = 5e-5", "learning_rate = 5e-5\nunet_lr = 1e-4"):
        assert from_toml(folders, lines).lr == 1e-4
    with pytest.raises(UserError, match="expected one argument"):
        config_of(folders, "--unet_lr")


def test_a_command_as_people_publish_it(folders):
    words = """--output_name=my --resolution=512,512 --network_module=networks.lora --network_dim=32 --network_alpha=16
    --unet_lr=1e-4 --learning_rate=1e-4 --lr_scheduler=cosine_with_restarts --lr_scheduler_num_cycles=1
    --lr_warmup_steps=50 --max_train_steps=1000 --network_train_unet_only --optimizer_type=AdamW8bit
    --mixed_precision=no --save_precision=fp16 --save_model_as=safetensors --cache_latents --cache_latents_to_disk
    --enable_bucket --min_bucket_reso=256 --max_bucket_reso=2048 --bucket_reso_steps=64 --bucket_no_upscale --xformers
    --seed=1234 --caption_extension=.txt --prior_loss_weight=1.0 --max_data_loader_n_workers=0
    --gradient_checkpointing --max_token_length=75 --clip_skip=2 --no_half_vae --sample_sampler=ddim"""
    config = config_of(folders, *words.split())
    assert (config.name, config.rank, config.alpha, config.lr, config.steps) == ("my", 32, 16, 1e-4, 1000)
    assert (config.optimizer, config.precision, config.checkpointing) == ("adamw8bit", "fp32", "all")


def from_toml(folders, lines):
    file = folders / "settings.toml"
    file.write_text(lines)
    return config_of(folders, "--config", str(file))


SWITCHES = [flag for flag, (_, value) in kohya_flags.MEANS.items() if value is not None]
SWITCHES += [flag for flag, values in kohya_flags.ANYWAY.items() if values == "true"]


@pytest.mark.parametrize("flag", [*SWITCHES, "lowram", "random_crop"])
def test_a_switch_that_is_off_asks_for_nothing(flag, folders):
    off = config_of(folders, "--no-bucket") if flag == "enable_bucket" else config_of(folders)
    assert from_toml(folders, f"{flag} = false") == off
    if flag in SWITCHES:
        assert from_toml(folders, f"{flag} = true") == config_of(folders, f"--{flag}")
        with pytest.raises(UserError, match=f"{flag}: "):
            from_toml(folders, f"{flag} = 'perhaps'")


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("mixed_precision", "no"),
        ("mixed_precision", "bf16"),
        ("save_precision", "float"),
        ("optimizer_type", "AdamW8bit"),
        ("resolution", "512,512"),
        ("resolution", "256, 256"),
        ("network_module", "networks.lora"),
        ("caption_extension", ".txt"),
    ],
)
def test_values_are_the_same_in_a_config_file(flag, value, folders):
    assert from_toml(folders, f'{flag} = "{value}"') == config_of(folders, f"--{flag}", value)


def test_numbers_in_a_config_file(folders):
    assert from_toml(folders, "prior_loss_weight = 1.0\nnoise_offset = 0.0\nresolution = 256").resolution == 256


def test_sections_of_a_config_file(folders):
    config = from_toml(folders, "[model_arguments]\nv_parameterization = true\n[x]\nmax_train_steps = 3")
    assert (config.prediction_type, config.steps) == ("v", 3)


def test_in_a_config_file(folders):
    file = folders / "kohya.toml"
    file.write_text("max_train_steps = 9\nfp8_base = true\n")
    config = config_of(folders, "--config_file", str(file))
    assert (config.steps, config.weights) == (9, "fp8")
    file.write_text("ip_noise_gamma = 0.1\n")
    with pytest.raises(UserError, match="ip_noise_gamma: not offered"):
        config_of(folders, "--config", str(file))


def test_our_own_word_later_wins():
    assert parse(["--unet_lr", "1e-4", "--lr", "5e-5"], CONFIG).config.lr == 5e-5
    assert parse(["--learning_rate", "1e-4", "--lr", "5e-5"], CONFIG).config.lr == 5e-5
