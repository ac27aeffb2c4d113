"""Stable Diffusion 1.x: where a model comes from, its networks, its LoRA, its noise schedule."""
