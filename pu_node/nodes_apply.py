"""PU Apply LoRA and PU Compare: use a LoRA and see its effect with ComfyUI's own sampler."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from . import drawing, widgets

FROM_INPUT = "[from input]"
WIDTH_KEY = "attn2_to_k.lora_down.weight"  # its second dimension is the width of the text states


class PUApplyLoRA(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        import folder_paths

        return widgets.schema(
            io,
            node_id="PUApplyLoRA",
            display_name="PU Apply LoRA",
            description="Applies a LoRA from PU Unlearn, or one from the list, to a model.",
            inputs=[
                io.Model.Input("model", tooltip="A Stable Diffusion 1.x model."),
                io.Clip.Input("clip", tooltip="Its text encoder, changed if the LoRA has layers for it."),
                io.LoraModel.Input("lora", optional=True, tooltip="From PU Unlearn."),
                io.Combo.Input(
                    "lora_name",
                    options=[FROM_INPUT, *folder_paths.get_filename_list("loras")],
                    default=FROM_INPUT,
                    tooltip="A LoRA file, used instead of the input.",
                ),
                io.Float.Input(
                    "strength", default=1.0, min=-2.0, max=4.0, step=0.05, tooltip="1: full effect, 0: none."
                ),
            ],
            outputs=[
                io.Model.Output("model_out", "model", tooltip="The model with the LoRA."),
                io.Clip.Output("clip_out", "clip", tooltip="The text encoder with the LoRA."),
            ],
        )

    @classmethod
    def validate_inputs(cls, lora_name) -> bool | str:
        import folder_paths

        is_known = lora_name in (None, FROM_INPUT, *folder_paths.get_filename_list("loras"))
        return is_known or f"lora_name: {lora_name!r} is not in the list of LoRAs"

    @classmethod
    def execute(cls, model, clip, lora_name, strength, lora=None) -> io.NodeOutput:
        import comfy.sd

        weights = _weights(lora, lora_name)
        _check_fit(model, weights)
        return io.NodeOutput(*comfy.sd.load_lora_for_models(model, clip, weights, strength, strength))


def _weights(lora: dict[str, Any] | None, name: str) -> dict[str, Any]:
    """Return the tensors of the chosen LoRA. Raises: ValueError if none is chosen or listed."""
    if name != FROM_INPUT:
        import folder_paths

        from . import comfy_host

        if name not in folder_paths.get_filename_list("loras"):
            raise ValueError(f"lora_name: {name!r} is not in the list of LoRAs")
        return comfy_host.load_lora(folder_paths.get_full_path_or_raise("loras", name))
    if lora is None:
        raise ValueError("lora: connect PU Unlearn, or choose a file as lora_name")
    return lora


def _check_fit(model: Any, weights: dict[str, Any]) -> None:
    """Raise ValueError if the LoRA was trained on a model with another text width, as the built-in miniature has."""
    widths = {int(value.shape[1]) for name, value in weights.items() if name.endswith(WIDTH_KEY)}
    expected = model.model.model_config.unet_config.get("context_dim")
    if widths and expected and widths != {expected}:
        raise ValueError(
            f"this LoRA was trained on a model with text width {widths.pop()}, this one has {expected}. "
            "(The LoRA of the built-in digits demo fits no ComfyUI model; PU Unlearn itself makes its pictures.)"
        )


class PUCompare(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        import comfy.samplers

        return widgets.schema(
            io,
            node_id="PUCompare",
            display_name="PU Compare",
            description="Generates the same seeds with two models and shows them side by side.",
            inputs=[
                io.Model.Input("before", tooltip="The model without the LoRA: left column."),
                io.Model.Input("after", tooltip="The model with the LoRA: right column."),
                io.Clip.Input("clip", tooltip="Text encoder for both models."),
                io.Vae.Input("vae", tooltip="Decodes the latents of both models."),
                io.String.Input("prompt", default="a photo", multiline=True, tooltip="Prompt for both models."),
                io.Int.Input("first_seed", default=0, min=0, max=2**32 - 1, tooltip="Seed of the first row."),
                io.Int.Input("count", default=4, min=1, max=16, tooltip="Number of seeds, counted up from the first."),
                io.Int.Input("width", default=512, min=64, max=1024, step=8, tooltip="Width in pixels."),
                io.Int.Input("height", default=512, min=64, max=1024, step=8, tooltip="Height in pixels."),
                io.Int.Input("steps", default=20, min=1, max=200, tooltip="Number of sampler steps."),
                io.Float.Input("cfg", default=7.0, min=1.0, max=30.0, step=0.1, tooltip="Guidance scale."),
                io.Combo.Input(
                    "sampler", options=comfy.samplers.KSampler.SAMPLERS, default="euler", tooltip="ComfyUI's sampler."
                ),
                io.Combo.Input(
                    "scheduler",
                    options=comfy.samplers.KSampler.SCHEDULERS,
                    default="normal",
                    tooltip="ComfyUI's noise schedule.",
                ),
                io.String.Input(
                    "negative_prompt", default="", optional=True, tooltip="What both models are led away from."
                ),
            ],
            outputs=[
                io.Image.Output("grid", "grid", tooltip="Each seed: before, after."),
                io.Image.Output("before_images", "before", tooltip="The pictures of the first model, one by one."),
                io.Image.Output("after_images", "after", tooltip="The pictures of the second model, one by one."),
            ],
        )

    @classmethod
    def execute(
        cls, before, after, clip, vae, prompt, first_seed, count, width, height, negative_prompt="", **how: Any
    ) -> io.NodeOutput:
        from . import comfy_host

        conditions = [
            clip.encode_from_tokens_scheduled(clip.tokenize(text)) for text in (prompt, negative_prompt or "")
        ]
        seeds = range(first_seed, first_seed + count)
        latents = [  # one model after the other, then the VAE: a small card would load them anew for each seed
            _sample(model, conditions, seed, (width, height), **how) for model in (before, after) for seed in seeds
        ]
        pictures = [comfy_host.picture(vae.decode(latent)[0]) for latent in latents]
        found = [
            ((f"seed {seed}: before", left), ("after", right))
            for seed, left, right in zip(seeds, pictures[:count], pictures[count:], strict=True)
        ]
        kinds = (pictures[:count], pictures[count:])
        return io.NodeOutput(comfy_host.image(drawing.pairs(found)), *map(comfy_host.images, kinds))


def _sample(model, conditions, seed, size, *, steps, cfg, sampler, scheduler) -> Any:
    """Return the latent [1, 4, height / 8, width / 8] of one picture, made by ComfyUI's own sampler."""
    import nodes
    import torch

    width, height = size
    latent = {"samples": torch.zeros(1, 4, height // 8, width // 8)}
    (found,) = nodes.common_ksampler(model, seed, steps, cfg, sampler, scheduler, *conditions, latent)
    return found["samples"]
