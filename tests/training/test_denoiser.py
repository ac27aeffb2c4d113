"""Factors of samples by timestep."""

import torch

from trainer.models.noise_schedule import alphas_cumprod
from trainer.objective.temperature import min_snr_weight


def test_importance_is_min_snr():
    """Against the definition, from diffusers' own signal-to-noise ratio."""
    from diffusers import DDPMScheduler
    from diffusers.training_utils import compute_snr

    t = torch.arange(0, 1000, 37)
    snr = compute_snr(DDPMScheduler(1000, 0.00085, 0.012, "scaled_linear"), t)
    signal = alphas_cumprod(0.00085, 0.012, 1000)
    torch.testing.assert_close(min_snr_weight(t, signal, 5.0, "epsilon"), snr.clamp(max=5.0) / snr)
    torch.testing.assert_close(min_snr_weight(t, signal, 5.0, "v_prediction"), snr.clamp(max=5.0) / (snr + 1))
    assert min_snr_weight(t, signal, None, "epsilon").tolist() == [1.0] * len(t)
    assert min_snr_weight(t, signal, 5.0, "epsilon")[0] < 0.02
    assert min_snr_weight(t, signal, 5.0, "epsilon")[-1] == 1
