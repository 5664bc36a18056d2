"""Video families: sizes that their VAEs and patches do not take, and the image that one of them
begins with.
"""

import pytest
import torch
from torch import Tensor

from align_gen import bundled, pipelines
from align_gen.pipelines import LoraOptions
from tests.tiny import PIPELINES

REFUSED = [  # height, width, frames
    ("cogvideox", (16, 24, 8)),
    ("cogvideox", (16, 24, 5)),  # two latents, which the VAE makes eight frames
    ("cogvideox-1.5", (16, 20, 9)),
    ("ltx", (24, 64, 5)),
    ("ltx", (32, 64, 4)),
    ("hunyuan-video", (12, 32, 5)),
    ("hunyuan-video", (16, 32, 6)),
    ("wan-image-2.1", (32, 48, 4)),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "size"), REFUSED)
def test_a_size_it_cannot_take_is_refused_in_one_line(
    name: str, size: tuple[int, int, int]
) -> None:
    model = pipelines.load(PIPELINES[name]())
    with pytest.raises(ValueError, match="want") as refusal:
        model.latent_shape(*size)
    assert "\n" not in str(refusal.value)


@pytest.mark.slow
@pytest.mark.parametrize("image", [None, torch.zeros(1, 3, 32, 48), torch.zeros(2, 3, 48, 32)])
def test_image_to_video_wants_an_image_a_prompt(image: Tensor | None) -> None:
    model = pipelines.load(PIPELINES["wan-image-2.1"]())
    with pytest.raises(ValueError, match=r"image: want the first frames, \(2, 3, 32, 48\)"):
        model.encode_prompts(["a", "b"], height=32, width=48, num_frames=5, image=image)


@pytest.mark.slow
def test_wan_ti2v_ends_in_its_image() -> None:
    """Whatever the network says, the first frame's latents finish as the image's."""
    model = pipelines.load(PIPELINES["wan-image-2.2-ti2v"]())
    image = torch.rand(1, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    condition = model.encode_prompts(["a"], height=32, width=48, num_frames=5, image=image)
    final = pipelines.rollout(
        model, condition, num_inference_steps=3, eta=1.0, guidance_scale=3.0
    ).final
    assert torch.allclose(final[:, :, :1], condition.tensors["image_latents"], atol=1e-5)


@pytest.mark.slow
def test_animatediff_takes_no_lora_around_its_motion_modules() -> None:
    """diffusers calls them by the name of their argument; the model is left as it was, and other
    targets go.
    """
    model = pipelines.load(bundled.model_path("emoji-video"))
    with pytest.raises(
        ValueError, match="target_modules: proj_in and proj_out of motion modules take no LoRA"
    ):
        model.train_lora(LoraOptions(2, target_modules=("to_q", "proj_in")))
    assert not model.parameters()
    model.train_lora(LoraOptions(2, target_modules=("to_q", "conv1")))
    assert model.parameters()
