"""A tiny FLUX.1 Kontext."""

from diffusers import FluxKontextPipeline

from .flux import flux


def flux_kontext() -> FluxKontextPipeline:
    """FLUX.1's parts: only the sequence is longer."""
    pipeline = FluxKontextPipeline(**flux().components)
    pipeline.default_sample_size = 8
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
