"""The method on one page: Takahashi et al., ICLR 2025 (arXiv 2503.03789), for a LoRA of Stable Diffusion 1.x.

    python docs/method.py            # 20 steps on the built-in digits

Plain PyTorch: one full batch a step, gradients by autograd. The trainer computes the same gradient in micro-batches,
with less memory; tests/test_method.py compares the two LoRAs.

    U   unlabeled images: an unsorted mixture, p_U = prior * p_S + (1 - prior) * p_N
    S   a few sensitive images: what must no longer be generated
    N   the normal images inside U; nobody has labelled them
"""

import math

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from peft import LoraConfig
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from trainer.builtin import MODEL, digits

SEED, STEPS, BATCH_U, BATCH_S = 0, 20, 16, 8
LR, WARMUP_STEPS, WEIGHT_DECAY, MAX_GRAD_NORM, RANK = 1e-3, 20, 0.01, 1.0, 16
TEMPERATURE, PUSH, MAX_SNR, CAPTION_DROPOUT = 1.5, 2 / 3, 0.2, 0.05
PRIOR = 0.2  # share of sensitive images in U: the true one here; the trainer estimates it
TIMESTEPS, BINS, SAMPLES_PER_BIN = 1000, 20, 24
ORDER, NOISE, CAPTION, SPLIT = 0, 1, 2, 4  # independent streams of random numbers


def objective(loss_u: Tensor, loss_s: Tensor, weight_u: Tensor, weight_s: Tensor, prior: float) -> Tensor:
    """Return a * E_S[phi(l)] + |R|, where l is an error over its temperature and p(normal | x) = exp(-l).

    R = E_U[l] - prior * E_S[l] equals (1 - prior) * E_N[l]: the normal images' loss, without one label "normal".
    phi(l) = -log(1 - exp(-l)) is the loss of calling an image sensitive. The weights are min-SNR's.
    """
    a = PUSH * (1 - prior) * math.expm1(1 / TEMPERATURE)  # as strong at every prior; the paper's a is the prior itself
    normal_risk = (weight_u * loss_u).mean() - prior * (weight_s * loss_s).mean()
    return a * (weight_s * -torch.log(-torch.expm1(-loss_s))).mean() + normal_risk.abs()


BETAS = torch.linspace(0.00085**0.5, 0.012**0.5, TIMESTEPS) ** 2
SIGNAL = torch.cumprod(1 - BETAS, 0)  # share of the image's variance that is left at t


def errors(unet: UNet2DConditionModel, latents: Tensor, noise: Tensor, t: Tensor, text: Tensor) -> Tensor:
    """Return the mean squared error of the predicted noise. [n, 4, h, w], the same, [n], [n, 77, d] -> [n]."""
    signal = SIGNAL[t].view(-1, 1, 1, 1)
    noisy = signal.sqrt() * latents + (1 - signal).sqrt() * noise
    return (unet(noisy, t, text).sample - noise).square().flatten(1).mean(1)


def losses(unet: UNet2DConditionModel, latents: Tensor, text: Tensor, base: Tensor, step: int, positions: range):
    """Return l = error / (temperature * the base model's error) of each sample, and its min-SNR weight: [n], [n].

    Timesteps with little noise count less (Hang et al. 2023): what is pictured is decided where there is much.
    """
    drawn = [noise_and_t(step, position, latents[0].shape) for position in positions]
    noise, t = torch.stack([noise for noise, _ in drawn]), torch.tensor([t for _, t in drawn])
    snr = SIGNAL[t] / (1 - SIGNAL[t])
    scale = TEMPERATURE * base[t * BINS // TIMESTEPS]
    return errors(unet, latents, noise, t, text) / scale, snr.clamp(max=MAX_SNR) / snr


@torch.no_grad()
def base_errors(unet: UNet2DConditionModel, latents: Tensor, text: Tensor) -> Tensor:
    """Return the base model's mean error on U by timestep bin, [20]: it makes l about 1 / temperature everywhere."""
    found = []
    for b in range(BINS):
        which = torch.arange(b * SAMPLES_PER_BIN, (b + 1) * SAMPLES_PER_BIN)
        t = ((b + torch.arange(SAMPLES_PER_BIN) / SAMPLES_PER_BIN) * TIMESTEPS / BINS).long()
        noise = torch.stack([noise_and_t(2**40, int(i), latents[0].shape)[0] for i in which])
        found.append(errors(unet, latents[which % len(latents)], noise, t, text.expand(len(t), -1, -1)).mean())
    return torch.stack(found)


def rng(*key: int) -> np.random.Generator:
    """Images, noise and timesteps are pure functions of (seed, step, position): no state to save."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence((SEED, *key))))


def noise_and_t(step: int, position: int, shape: torch.Size) -> tuple[Tensor, int]:
    chance = rng(NOISE, step, position)
    return torch.from_numpy(chance.standard_normal(tuple(shape), dtype=np.float32)), int(chance.integers(TIMESTEPS))


def pick(kind: int, n: int, count: int) -> int:
    """Return the image at a place of an endless walk over n images, in a new order every epoch."""
    epoch, place = divmod(count, n)
    return int(rng(ORDER, kind, epoch).permutation(n)[place])


@torch.no_grad()
def encode(images: np.ndarray) -> Tensor:
    """Encode digits: [n, 28, 28] -> latents [n, 4, 8, 8]."""
    vae = AutoencoderKL.from_pretrained(MODEL / "vae").eval()
    pixels = torch.from_numpy(np.stack([digits.render(images)] * 3, -1)).permute(0, 3, 1, 2).float() / 127.5 - 1
    return torch.cat([vae.encode(part).latent_dist.mode() for part in pixels.split(64)]) * vae.config.scaling_factor


@torch.no_grad()
def encode_text(caption: str) -> Tensor:
    words = CLIPTokenizer.from_pretrained(MODEL / "tokenizer")(caption, padding="max_length", return_tensors="pt")
    return CLIPTextModel.from_pretrained(MODEL / "text_encoder").eval().float()(words.input_ids).last_hidden_state


def with_lora(unet: UNet2DConditionModel) -> list[torch.nn.Parameter]:
    """Add a LoRA to every Linear and 1x1 convolution of the transformer blocks. Returns: its weights."""
    inside = {name: layer for name, layer in unet.named_modules() if ".attentions." in name}
    linear = [n for n, m in inside.items() if isinstance(m, torch.nn.Linear) or getattr(m, "kernel_size", 0) == (1, 1)]
    torch.manual_seed(SEED)
    unet.requires_grad_(False).add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=linear))
    return [p for p in unet.parameters() if p.requires_grad]


def train(prior: float = PRIOR) -> dict[str, Tensor]:
    """Train the LoRA. Returns: its weights by peft's names."""
    u, s = (encode(part.images) for part in digits.choose(400, 100))
    s = s[np.sort(rng(SPLIT).permutation(len(s))[len(s) // 10 :])]  # a tenth is held out, to be measured
    text = torch.cat([encode_text(digits.PROMPT), encode_text("")])
    unet = UNet2DConditionModel.from_pretrained(MODEL / "unet").eval()
    base = base_errors(unet, u, text[:1])
    parameters = with_lora(unet)
    optimizer = torch.optim.AdamW(parameters, weight_decay=WEIGHT_DECAY)
    for step in range(STEPS):
        of_u = torch.stack([u[pick(0, len(u), step * BATCH_U + i)] for i in range(BATCH_U)])
        of_s = torch.stack([s[pick(1, len(s), step * BATCH_S + i)] for i in range(BATCH_S)])
        # an image is now and then shown without its caption; both kinds share theirs, as R compares like with like
        dropped = torch.tensor([rng(CAPTION, step, i).random() < CAPTION_DROPOUT for i in range(BATCH_U)]).long()
        loss_u, weight_u = losses(unet, of_u, text[dropped], base, step, range(BATCH_U))
        loss_s, weight_s = losses(unet, of_s, text[dropped[:BATCH_S]], base, step, range(BATCH_U, BATCH_U + BATCH_S))
        value = objective(loss_u, loss_s, weight_u, weight_s, prior)
        optimizer.zero_grad()
        value.backward()
        torch.nn.utils.clip_grad_norm_(parameters, MAX_GRAD_NORM)
        optimizer.param_groups[0]["lr"] = LR * lr_factor(step)
        optimizer.step()
        print(f"step {step + 1} of {STEPS}: objective {value.item():.5f}")
    return {name: p.detach() for name, p in unet.named_parameters() if p.requires_grad}


def lr_factor(step: int) -> float:
    warmup = min(WARMUP_STEPS, STEPS - 1)  # linear; then a cosine
    falling = 0.5 * (1 + math.cos(math.pi * (step - warmup) / (STEPS - warmup)))
    return (step + 1) / (warmup + 1) if step < warmup else falling


if __name__ == "__main__":
    train()
