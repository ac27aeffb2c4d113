"""Images and captions in: folders, the samples of a step, latents on disk."""
