"""PU Unlearn: teach Stable Diffusion what not to generate."""

__version__ = "0.1.0"

# Raise it by hand with each change after which the same settings and images give another LoRA: a formula, a default
# that no node shows, what is drawn at random and in which order, how images and captions are read, the built-in
# classes. The ComfyUI nodes then train anew; otherwise they return the LoRA of before the update.
RECIPE = 2
