"""The stages of `build` that train: the classifier, the VAE, the U-Net with its text encoder."""

import copy
import json
import time

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from ..builtin import CLASSIFIER, MODEL, digits
from ..builtin.classifier import DigitClassifier, classify
from ..builtin.classifier import load as load_classifier


def classifier(epochs: int = 40) -> None:
    torch.manual_seed(0)
    part = digits.load("model")
    x, y = _pixels(part), torch.from_numpy(part.labels.astype(np.int64))
    model = DigitClassifier()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05)
    steps = epochs * len(x) // 64
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    for step in range(steps):
        i = torch.randint(len(x), (64,))
        logits, _ = model(_jitter(x[i]))
        loss = F.cross_entropy(logits, y[i], label_smoothing=0.05)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 200 == 0:
            print(f"classifier {step}/{steps} loss {loss:.4f}", flush=True)
    # fp16 would do for the weights, but batch norm's counters are integers: save_file keeps each tensor's own type
    tensors = {k: v.half() if v.is_floating_point() else v for k, v in model.state_dict().items()}
    save_file(tensors, CLASSIFIER)
    print_accuracy()


def print_accuracy() -> None:
    test = digits.load("held_out")
    found, _ = classify(load_classifier(), torch.from_numpy(digits.render(test.images)))
    label = torch.from_numpy(test.labels.astype(np.int64))
    print(
        f"held out: digit {(found == label).float().mean():.4f}, even/odd {(found % 2 == label % 2).float().mean():.4f}"
    )


def _pixels(part: digits.Digits) -> Tensor:
    return torch.from_numpy(digits.render(part.images)).float()[:, None] / 127.5 - 1


def _jitter(x: Tensor) -> Tensor:
    """Apply random small affine maps: turns to 12 degrees, scale and shear to 12 %, shifts to 8 % of the picture."""
    n = len(x)
    turn = (torch.rand(n) * 2 - 1) * 0.21
    scale = 1 + (torch.rand(n, 2) * 2 - 1) * 0.12
    shear, shift = (torch.rand(n) * 2 - 1) * 0.12, (torch.rand(n, 2) * 2 - 1) * 0.08
    theta = torch.zeros(n, 2, 3)
    theta[:, 0, 0], theta[:, 0, 1] = turn.cos() * scale[:, 0], -turn.sin() + shear
    theta[:, 1, 0], theta[:, 1, 1] = turn.sin(), turn.cos() * scale[:, 1]
    theta[:, :, 2] = shift
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    return F.grid_sample(x + 1, grid, align_corners=False) - 1  # outside is 0 = black + 1


def vae(steps: int = 1600, batch: int = 32) -> None:
    torch.manual_seed(0)
    x = _pixels(digits.load("model")).expand(-1, 3, -1, -1)
    model = AutoencoderKL(
        block_out_channels=(16, 32, 48, 64),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        norm_num_groups=8,
        latent_channels=4,
        sample_size=digits.SIZE_PX,
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps, pct_start=0.1)
    started = time.time()
    for step in range(steps):
        images = _jitter(x[torch.randint(len(x), (batch,))])
        with torch.autocast("cpu", torch.bfloat16):  # nearly twice as fast, and no difference to be seen
            moments = model.encode(images).latent_dist.parameters.float()
            posterior = DiagonalGaussianDistribution(moments)
            restored = model.decode(posterior.sample()).sample.float()
        # per element: the pull to a standard normal is weak, so that digits stay sharp and the latents smooth
        loss = F.mse_loss(restored, images) + 1e-2 * posterior.kl().mean() / 256
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0:
            print(f"vae {step}/{steps} loss {loss:.4f} {time.time() - started:.0f} s", flush=True)
    with torch.no_grad():
        latents = torch.cat([model.encode(c).latent_dist.mode() for c in x.split(250)])
    model.register_to_config(scaling_factor=round(1 / latents.std().item(), 5))
    model.half().save_pretrained(MODEL / "vae")
    print("scaling factor", model.config.scaling_factor)


def unet() -> None:
    """Train the U-Net from scratch, with the text encoder."""
    torch.manual_seed(0)
    text = CLIPTextModel(
        CLIPTextConfig(
            hidden_size=32,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            projection_dim=32,
            bos_token_id=49406,
            eos_token_id=49407,
            pad_token_id=49407,
        )
    )
    model = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(64, 96),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        norm_num_groups=16,
        cross_attention_dim=32,
        attention_head_dim=4,
    )
    _train_unet(model, text, steps=9600, lr=2e-3, own_prompt_share=0.5)


def _train_unet(
    model: UNet2DConditionModel,
    text: CLIPTextModel,
    *,
    steps: int,
    lr: float,
    own_prompt_share: float,
    max_snr: float = 5.0,  # min-SNR weighting, Hang et al. 2023: shapes matter more than the last grain of noise
    batch: int = 64,
) -> None:
    """Train both at once on digits with captions: of the digit, of any digit, or (a tenth) empty.

    Keeps moving averages.
    """
    words = CLIPTokenizer.from_pretrained(MODEL / "tokenizer")
    part = digits.load("model")
    latents, labels = _latents(part), torch.from_numpy(part.labels.astype(np.int64))
    prompts = [digits.own_prompt(i) for i in range(10)] + [digits.PROMPT, ""]
    ids = words(prompts, padding="max_length", max_length=77, return_tensors="pt").input_ids
    schedule = DDPMScheduler(1000, 0.00085, 0.012, "scaled_linear", clip_sample=False, steps_offset=1)
    parameters = [*model.parameters(), *text.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.01)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.05)
    averaged = [copy.deepcopy(m).eval() for m in (model, text)]
    model.train()
    text.train()
    started = time.time()
    for step in range(steps):
        i = torch.randint(len(latents), (batch,))
        kind = torch.rand(batch)
        prompt = torch.where(kind < own_prompt_share, labels[i], torch.where(kind < 0.9, 10, 11))
        noise, t = torch.randn(batch, 4, 8, 8), torch.randint(1000, (batch,))
        states = text(ids).last_hidden_state[prompt]
        found = model(schedule.add_noise(latents[i], noise, t), t, states).sample
        snr = schedule.alphas_cumprod[t] / (1 - schedule.alphas_cumprod[t])
        loss = ((max_snr / snr).clamp(max=1) * (found - noise).square().mean((1, 2, 3))).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        rate.step()
        _average(averaged, (model, text), min(0.9985, (1 + step) / (10 + step)))
        if step % 100 == 0:
            print(f"unet {step}/{steps} loss {loss:.4f} {time.time() - started:.0f} s", flush=True)
    _save_unet(averaged, schedule)


@torch.no_grad()
def _average(targets: list, sources: tuple, keep: float) -> None:
    for target, source in zip(targets, sources, strict=True):
        torch._foreach_lerp_(list(target.parameters()), list(source.parameters()), 1 - keep)


def _save_unet(models: list, schedule: DDPMScheduler) -> None:
    for name, model in zip(("unet", "text_encoder"), models, strict=True):
        copy.deepcopy(model).half().save_pretrained(MODEL / name)
    schedule.save_pretrained(MODEL / "scheduler")
    classes = {
        "vae": ["diffusers", "AutoencoderKL"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "scheduler": ["diffusers", "DDPMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
    }
    none = {"safety_checker": [None, None], "feature_extractor": [None, None], "requires_safety_checker": False}
    index = {"_class_name": "StableDiffusionPipeline", **classes, **none}
    (MODEL / "model_index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


@torch.no_grad()
def _latents(part: digits.Digits) -> Tensor:
    model = AutoencoderKL.from_pretrained(MODEL / "vae")
    x = _pixels(part).expand(-1, 3, -1, -1)
    return torch.cat([model.encode(c).latent_dist.mode() for c in x.split(250)]) * model.config.scaling_factor
