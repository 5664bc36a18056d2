"""What saves memory changes no result, and is refused where a model cannot do it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from align_gen import Recipe, finetune, pipelines
from align_gen.errors import UserError
from align_gen.pipelines import Flow, LoraOptions
from align_gen.pipelines.attention import attention_of, use_attention
from align_gen.reward_heads import RewardHead, RewardSet
from align_gen.training.memory import Memory, encode_and_free, save_memory
from tests.tiny import PIPELINES
from tests.tiny.stable_diffusion import stable_diffusion


def gradient(options: Memory, family: str = "sd") -> list[Tensor]:
    """Of one call of the network, by trained tensor."""
    model = pipelines.load(PIPELINES[family]())
    torch.manual_seed(0)
    model.train_lora(LoraOptions(rank=2))
    save_memory(model, options)
    condition = model.encode_prompts(["a cat"], height=16, width=16)
    x = torch.randn(1, *condition.latent_shape, generator=torch.Generator().manual_seed(0))
    model.predict(
        x, model.times(4, condition.latent_shape)[1, 0], condition, 3.0
    ).square().sum().backward()
    return [p.grad for p in model.parameters() if p.grad is not None]


@pytest.mark.slow
@pytest.mark.parametrize("family", ["sd", "sd3", "flux"])
def test_checkpointing_computes_the_same_gradient(family: str) -> None:
    plain, saved = gradient(Memory(), family), gradient(Memory(checkpointing=True), family)
    assert plain and all(torch.allclose(a, b, atol=1e-6) for a, b in zip(plain, saved, strict=True))


def test_checkpointing_keeps_fewer_activations() -> None:
    """Counted as what autograd saves: well under half for a network of several blocks."""

    def saved(options: Memory) -> int:
        total = 0

        def count(tensor: Tensor) -> Tensor:
            nonlocal total
            total += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            model = pipelines.load(stable_diffusion())
            model.train_full()
            save_memory(model, options)
            condition = model.encode_prompts(["a cat"])
            model.predict(
                torch.randn(1, *condition.latent_shape), torch.tensor(500), condition, 3.0
            )
        return total

    assert saved(Memory(checkpointing=True)) < 0.5 * saved(Memory())


@pytest.mark.parametrize("mode", ["slices", "tiles"])
def test_the_vae_in_parts_decodes_the_same(mode: Any) -> None:
    """At a size of one tile: larger pictures differ at the seams, which the VAE blends."""
    model = pipelines.load(stable_diffusion())
    latents = torch.randn(
        3, *model.latent_shape(16, 16), generator=torch.Generator().manual_seed(0)
    )
    with torch.no_grad():
        whole = model.decode(latents)
        save_memory(model, Memory(vae=mode))
        assert torch.allclose(model.decode(latents), whole, atol=1e-5)
    assert model.pipeline.vae.use_slicing == (
        mode == "slices"
    ) and model.pipeline.vae.use_tiling == (mode == "tiles")


def test_freed_text_encoders_leave_what_was_encoded() -> None:
    model = pipelines.load(stable_diffusion())
    before = model.encode_prompts(["a cat"])
    encode_and_free(model, ["a dog"])
    assert model.pipeline.text_encoder is None
    again = model.encode_prompts(["a cat", "a dog"])
    assert torch.equal(again.tensors["prompt_embeds"][:1], before.tensors["prompt_embeds"])
    model.to("cpu")  # does not forget
    with pytest.raises(ValueError, match=r"prompt 'a bird': the text encoders were freed"):
        model.encode_prompts(["a bird"])


def test_an_offloaded_reference_comes_to_run_and_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its moves are recorded: a second device is not to be had on every machine."""
    model = pipelines.load(stable_diffusion())
    model.train_full()
    save_memory(model, Memory(offload_reference=True))
    moves: list[str] = []
    monkeypatch.setattr(
        model.reference_copies["unet"], "to", lambda device: moves.append(str(device))
    )
    monkeypatch.setattr(type(model), "device", torch.device("cuda"))
    with model.as_reference():
        assert moves == ["cuda"]
        assert model.trainable["unet"] is model.reference_copies["unet"]
    assert moves == ["cuda", "cpu"]


def test_offloaded_rewards_come_to_score_and_go() -> None:
    moved: list[str] = []

    class Head(RewardHead):
        def __call__(self, media: Tensor, prompts: Sequence[str], **context: Any) -> Tensor:
            moved.append("scored")
            return media.mean((1, 2, 3))

        def to(self, device: torch.device | str) -> RewardHead:
            moved.append(str(device))
            return self

    rewards = RewardSet({"mine": Head()}, offload=frozenset({"mine"}))
    rewards.to("cuda")
    rewards(torch.zeros(2, 3, 4, 4), ["a", "b"])
    assert moved == ["cpu", "cuda", "scored", "cpu"]


@pytest.mark.slow
def test_a_model_is_given_back_as_it_samples_attends_and_saves(tmp_path: Path) -> None:
    """A run that ends well leaves its LoRA; the rest of what it set was for the run."""
    model = pipelines.load(PIPELINES["sd3"]())
    use_attention(model, "math")
    recipe = Recipe.load("emoji-sd-prdp").replace(
        model={"lora": {"rank": 2}, "attention": "sdpa"},
        method={"images_per_prompt": 2, "keep": None, "prompts_per_step": 1},
        rewards={"mean_hue": 1.0}, eval_rewards={},
        sampling={"num_inference_steps": 3, "height": 16, "width": 16, "flow_sde": 0.5},
        evaluate={"num_inference_steps": 2, "seeds": [0]},
        memory={"checkpointing": True, "vae": "slices"},
        run={"steps": 1},
    )  # fmt: skip
    finetune(recipe, tmp_path / "run", model=model)
    assert type(model.process) is Flow
    assert set(attention_of(model)["transformer"]) == {"math"}
    vae, network = model.pipeline.vae, model.pipeline.transformer
    assert not (vae.use_slicing or network.gradient_checkpointing)
    assert model.parameters()


def test_a_model_that_cannot_is_refused(tmp_path: Path) -> None:
    recipe = Recipe.load("emoji-sd-prdp").replace(
        model={"path": "toy-diffusion", "lora": None}, memory={"free_text_encoders": True}
    )
    with pytest.raises(UserError, match=r"memory.free_text_encoders: .* has none"):
        finetune(recipe, tmp_path / "run")
