"""Noise schedule, noising and targets against diffusers' own scheduler."""

import pytest
import torch
from diffusers import DDPMScheduler

from trainer.models import noise_schedule
from trainer.models.noise_schedule import NoiseSchedule

ORACLE = DDPMScheduler(1000, 0.00085, 0.012, "scaled_linear")


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    latents, noise = torch.randn(2, 6, 4, 8, 8, generator=generator)
    return latents, noise, torch.tensor([0, 1, 250, 500, 998, 999])


def test_schedule():
    torch.testing.assert_close(noise_schedule.alphas_cumprod(0.00085, 0.012, 1000), ORACLE.alphas_cumprod)


def test_add_noise(batch):
    latents, noise, t = batch
    found = NoiseSchedule(ORACLE.alphas_cumprod).add_noise(latents, noise, t)
    torch.testing.assert_close(found, ORACLE.add_noise(latents, noise, t))


def test_targets(batch):
    latents, noise, t = batch
    found = NoiseSchedule(ORACLE.alphas_cumprod, "v_prediction").target(latents, noise, t)
    torch.testing.assert_close(found, ORACLE.get_velocity(latents, noise, t))
    assert NoiseSchedule(ORACLE.alphas_cumprod, "epsilon").target(latents, noise, t) is noise
    with pytest.raises(ValueError, match="'sample'"):
        NoiseSchedule(ORACLE.alphas_cumprod, "sample")


def test_per_sample_error_is_a_sum_in_fp32():
    a, b = torch.randn(2, 3, 4, 8, 8).half()
    found = noise_schedule.per_sample_error(a, b)
    assert found.dtype == torch.float32
    for i in range(3):
        assert found[i].item() == pytest.approx(((a[i].double() - b[i].double()) ** 2).sum().item(), rel=1e-4)
