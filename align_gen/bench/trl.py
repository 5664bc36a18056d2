"""The rival: DDPOTrainer of TRL 0.23.1, the last to have it, on the same model, LoRA and rewards.

`scripts/get_trl.py` puts it beside the environment.
"""

import itertools
import warnings
from collections.abc import Callable
from typing import Any

import torch

from .. import bundled
from ..errors import UserError
from ..training.recipe import Lora
from ..training.setup import Session


def trl_ddpo(session: Session) -> tuple[str, int, Callable[[], Any]]:
    """(its name, images of a step, a step), warmed up.

    Raises:
        UserError: TRL is not there.
    """
    trainer = trl_trainer(session)
    counter = itertools.count()

    def step() -> None:
        number = next(counter)
        trainer.step(number, number)

    step()
    return "trl-ddpo", session.recipe.method.images, step


def trl_trainer(session: Session, **options: Any) -> Any:
    """Make a DDPOTrainer with our batch sizes: all images of a step at once.

    Args:
        options: of its DDPOConfig, over ours.

    Raises:
        UserError: TRL is not there.
    """
    import accelerate

    accelerate.PartialState()  # TRL logs while it is imported
    try:
        from trl import DDPOConfig, DDPOTrainer, DefaultDDPOStableDiffusionPipeline
    except (ImportError, RuntimeError) as error:
        raise UserError(
            "--against trl: no trl here that has a DDPOTrainer; python scripts/get_trl.py, then "
            "PYTHONPATH=build/trl align-gen bench --against trl"
        ) from error
    from peft import LoraConfig

    recipe = session.recipe
    rewards = session.rewards
    lora = recipe.model.lora or Lora()

    # TRL's own LoRA has other layers and another rank; for equal work it must be ours.
    class SameLora(DefaultDDPOStableDiffusionPipeline):  # type: ignore[misc]
        def get_trainable_layers(self) -> Any:
            targets: Any = lora.target_modules
            if targets is not None and not isinstance(targets, str):
                targets = list(targets)
            config = LoraConfig(
                r=lora.rank,
                lora_alpha=lora.alpha or lora.rank,
                target_modules=targets,
            )
            self.sd_pipeline.unet.add_adapter(config)
            return self.sd_pipeline.unet

    def reward(
        images: torch.Tensor, texts: tuple[str, ...], metadata: Any
    ) -> tuple[torch.Tensor, dict[str, Any]]:
        with torch.no_grad():
            return rewards(images.float(), texts).combined, {}

    # TRL asks for one prompt at a time, and draws one picture of each.
    prompts = itertools.cycle(session.data.prompts)
    # Its batch, accumulated, makes one step of as many images as ours.
    images = min(session.recipe.method.images, session.state.micro_batch)
    config = DDPOConfig(
        mixed_precision="no",
        allow_tf32=False,
        num_epochs=1,
        save_freq=10**9,
        sample_num_steps=recipe.sampling.num_inference_steps,
        sample_guidance_scale=recipe.sampling.guidance_scale,
        sample_batch_size=images,
        sample_num_batches_per_epoch=session.recipe.method.images // images,
        train_batch_size=images,
        train_gradient_accumulation_steps=session.recipe.method.images // images,
        train_learning_rate=recipe.optim.lr,
        **options,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipeline = SameLora(bundled.model_path(recipe.model.path), use_lora=True)
        trainer = DDPOTrainer(config, reward, lambda: (next(prompts), {}), pipeline)
    pipeline.set_progress_bar_config(disable=True)
    return trainer
