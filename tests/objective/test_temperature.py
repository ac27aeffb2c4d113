"""Factors of samples by timestep."""

import torch

from trainer.models.noise_schedule import NoiseSchedule, alphas_cumprod
from trainer.objective.temperature import min_snr_weight


def test_min_snr_weight():
    """Against the definition, from diffusers' own signal-to-noise ratio."""
    from diffusers import DDPMScheduler
    from diffusers.training_utils import compute_snr

    t = torch.arange(0, 1000, 37)
    snr = compute_snr(DDPMScheduler(1000, 0.00085, 0.012, "scaled_linear"), t)
    found = NoiseSchedule(alphas_cumprod(0.00085, 0.012, 1000)).snr(t)
    torch.testing.assert_close(found, snr)
    torch.testing.assert_close(min_snr_weight(found, 5.0, "epsilon"), snr.clamp(max=5.0) / snr)
    torch.testing.assert_close(min_snr_weight(found, 5.0, "v_prediction"), snr.clamp(max=5.0) / (snr + 1))
    assert min_snr_weight(found, None, "epsilon").tolist() == [1.0] * len(t)
    assert min_snr_weight(found, 5.0, "epsilon")[0] < 0.02
    assert min_snr_weight(found, 5.0, "epsilon")[-1] == 1
