"""PU Unlearn: teach Stable Diffusion what not to generate."""

__version__ = "0.1.0"
