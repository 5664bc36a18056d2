"""What a recipe would do, and what it costs, before it does it."""

from . import methods
from .engine import load_model, prepare_model
from .errors import user_mistakes
from .recipe import Recipe


def describe(recipe: Recipe) -> str:
    """The resolved recipe, what is trained, and the calls and memory of one step."""
    with user_mistakes():
        model = load_model(recipe)
        prepare_model(recipe, model)
        height, width = recipe.sampling.height, recipe.sampling.width
        shape = model.latent_shape(height or model.default_size[0], width or model.default_size[1])
    options = recipe.method_options()
    calls = methods.load(options.name).calls(options, recipe.sampling)
    trained = sum(p.numel() for p in model.parameters())
    weights = sum(p.numel() * p.element_size() for module in model.components().values() for p in module.parameters())
    latents = options.images_per_prompt * options.prompts_per_step * (recipe.sampling.num_inference_steps + 1) * 4
    for size in shape:
        latents *= size
    return "\n".join(
        [
            recipe.to_yaml().rstrip(),
            "---",
            f"trained parameters    {trained:,}",
            f"denoiser per step     {calls['forwards']:,} samples forward, {calls['backwards']:,} of them backward",
            f"memory, at least      {(weights + 16 * trained + latents) / 2**20:,.0f} MiB: weights "
            f"{weights / 2**20:,.0f}, gradient and optimizer {16 * trained / 2**20:,.0f}, stored latents "
            f"{latents / 2**20:,.0f}; activations of {recipe.optim.micro_batch} samples come on top",
        ]
    )
