"""What is trained, and the frozen reference: LoRAs, full training, wrappers, refreshing."""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from peft import LoraConfig
from torch import Generator, Tensor, nn

from align_gen.pipelines import LoraOptions, Model, rollout
from align_gen.pipelines.sampling import step_log_prob
from align_gen.pipelines.seeding import generator
from align_gen.pipelines.trainable import unwrap

Maker = Callable[..., Any]
X = torch.randn(2, 4, 8, 8, generator=Generator().manual_seed(0))
T = torch.tensor(301.0)


# -- LoRA and full training


def predicted(model: Model, **weights: Any) -> Tensor:
    with torch.no_grad():
        return model.predict(X, T, model.encode_prompts(["a cat", "dogs"]), 4.0)


def perturb(model: Model, seed: int = 1, scale: float = 0.1) -> None:
    """A step of training in a random direction: every trained weight moves."""
    noise = Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=noise), alpha=scale)


def trained_names(model: Model) -> list[str]:
    return [
        n
        for module in model.trainable.values()
        for n, p in module.named_parameters()
        if p.requires_grad
    ]


def test_a_fresh_lora_changes_no_bit(tiny_model: Maker) -> None:
    model = tiny_model()
    before = predicted(model)
    model.train_lora(LoraOptions(2))
    assert torch.equal(predicted(model), before)
    with model.as_reference():
        assert torch.equal(predicted(model), before)


def test_only_the_lora_is_trained(tiny_model: Maker) -> None:
    """A (r, in) and B (out, r) for each target, so r (in + out) numbers a target; the rest is
    frozen, in eval mode.
    """
    model = tiny_model()
    targets = [
        module
        for name, module in model.trainable["unet"].named_modules()
        if name.endswith(("to_q", "to_k", "to_v", "to_out.0"))
    ]
    wanted = sum(3 * (module.in_features + module.out_features) for module in targets)
    model.pipeline.vae.train()
    model.train_lora(LoraOptions(3))
    assert len(targets) == 4 * 2 * 4  # transformer blocks, attentions in each, projections in each
    assert sum(p.numel() for p in model.parameters()) == wanted
    assert all(p.requires_grad for p in model.parameters())
    assert not any(
        p.requires_grad
        for part in ("vae", "text_encoder")
        for p in model.components()[part].parameters()
    )
    assert not any(module.training for module in model.components().values())


def test_alpha_scales_the_update(tiny_model: Maker) -> None:
    """The update is (alpha / rank) B A x: alpha = 6 at rank 2 is alpha = rank with B three times as
    large.
    """
    scaled, plain = tiny_model(), tiny_model()
    scaled.train_lora(LoraOptions(2, alpha=6))
    plain.train_lora(LoraOptions(2))
    perturb(scaled)
    with torch.no_grad():
        for (name, weight), other in zip(
            plain.pipeline.unet.named_parameters(), scaled.pipeline.unet.parameters(), strict=True
        ):
            weight.copy_(3 * other if "lora_B" in name else other)
    assert torch.allclose(predicted(scaled), predicted(plain), atol=1e-5)


def test_full_training_trains_the_unet_only(tiny_model: Maker) -> None:
    model = tiny_model()
    model.train_full()
    assert len(model.parameters()) == len(list(model.pipeline.unet.parameters()))
    assert not any(p.requires_grad for p in model.pipeline.text_encoder.parameters())
    assert not model.pipeline.unet.training


@pytest.mark.slow
def test_what_stands_in_trainable_is_what_runs(tiny_model: Maker) -> None:
    """DDP and torch.compile replace the entry; nothing may go past them to the pipeline's own
    module.
    """
    model = tiny_model()
    calls: list[int] = []
    wrapped = nn.DataParallel(model.trainable["unet"])
    wrapped.register_forward_hook(lambda *_: calls.append(1))
    model.trainable["unet"] = wrapped
    predicted(model)
    assert calls == [1]
    assert unwrap(wrapped) is model.pipeline.unet
    assert unwrap(cast(nn.Module, torch.compile(nn.DataParallel(wrapped)))) is model.pipeline.unet
    compiled = cast(nn.Module, torch.compile(model.pipeline.unet))
    assert unwrap(nn.DataParallel(compiled)) is model.pipeline.unet
    assert unwrap(model.pipeline.unet) is model.pipeline.unet


@pytest.mark.slow
def test_a_wrapped_module_gets_its_lora_inside(tiny_model: Maker) -> None:
    model = tiny_model()
    model.trainable["unet"] = nn.DataParallel(model.trainable["unet"])
    before = predicted(model)
    model.train_lora(LoraOptions(2))
    assert torch.equal(predicted(model), before)
    assert model.parameters()
    perturb(model)
    assert not torch.allclose(predicted(model), before, atol=1e-2)


# -- references


def lora_off(tiny_model: Maker, folder: Path) -> tuple[Model, Tensor]:
    model: Model = tiny_model()
    before = predicted(model)
    model.train_lora(LoraOptions(2))
    return model, before


def lora_start(tiny_model: Maker, folder: Path) -> tuple[Model, Tensor]:
    """Training goes on from an export: the reference is what was exported, not the base model."""
    first: Model = tiny_model()
    first.train_lora(LoraOptions(2, alpha=6))
    perturb(first, seed=7)
    first.export(folder)
    model: Model = tiny_model()
    base = predicted(model)
    model.reload(folder)
    model.train_lora(LoraOptions(2, alpha=6))
    assert float((predicted(first) - base).abs().max()) > 0.01
    return model, predicted(first)


def full_copy(tiny_model: Maker, folder: Path) -> tuple[Model, Tensor]:
    model: Model = tiny_model()
    before = predicted(model)
    model.train_full()
    return model, before


def refreshed(tiny_model: Maker, folder: Path) -> tuple[Model, Tensor]:
    model, _ = lora_off(tiny_model, folder)
    perturb(model, seed=5)
    model.refresh_reference()
    return model, predicted(model)


REFERENCES = {"off": lora_off, "start": lora_start, "copy": full_copy, "refreshed": refreshed}


@pytest.mark.slow
@pytest.mark.parametrize("wrap", [False, True], ids=["bare", "wrapped"])
@pytest.mark.parametrize("kind", sorted(REFERENCES))
def test_the_reference_is_where_training_began(
    tiny_model: Maker, tmp_path: Path, kind: str, wrap: bool
) -> None:
    """And the policy, its trainable weights and its gradients are untouched after the context, also
    by an exception.
    """
    model, begun = REFERENCES[kind](tiny_model, tmp_path)
    assert model.reference == kind
    assert torch.allclose(predicted(model), begun, atol=1e-6)
    if wrap:
        model.trainable["unet"] = nn.DataParallel(model.trainable["unet"])
    names = trained_names(model)
    assert names
    perturb(model)
    policy = predicted(model)
    assert float((policy - begun).abs().max()) > 0.01

    for failing in (False, True):
        with suppress(ZeroDivisionError), model.as_reference():
            assert torch.allclose(predicted(model), begun, atol=1e-6)
            output = model.predict(
                X.clone().requires_grad_(), T, model.encode_prompts(["a", "b"]), 4.0
            )
            assert not output.requires_grad
            if failing:
                raise ZeroDivisionError
        assert torch.equal(predicted(model), policy)
        assert trained_names(model) == names

    model.predict(X, T, model.encode_prompts(["a", "b"]), 4.0).sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    if kind == "start":
        assert all(".policy." in name for name in names)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["off", "start"])
def test_a_refreshed_reference_is_the_policy_of_that_moment(
    tiny_model: Maker, tmp_path: Path, kind: str
) -> None:
    """Twice; the policy trains on as before, in its own precision, and untraining goes back to the
    very beginning.
    """
    model, begun = REFERENCES[kind](tiny_model, tmp_path)
    names = trained_names(model)
    for seed in (1, 2):
        perturb(model, seed=seed)
        policy = predicted(model)
        model.refresh_reference()
        assert torch.equal(predicted(model), policy) and trained_names(model) == names
        perturb(model, seed=seed + 10)
        with model.as_reference():
            assert torch.allclose(predicted(model), policy, atol=1e-6)
        assert not torch.allclose(predicted(model), policy, atol=1e-3)
    model.restore_weights()
    assert torch.allclose(predicted(model), begun, atol=1e-6) and model.reference == "off"


def test_a_refreshed_reference_has_the_policys_precision(tiny_model: Maker) -> None:
    """A LoRA in float32 on a network in bfloat16, as a run has it: its copy is equal, not
    rounded.
    """
    model = tiny_model()
    model.trainable["unet"].to(torch.bfloat16)
    model.train_lora(LoraOptions(2))
    for parameter in model.parameters():
        parameter.data = torch.randn_like(parameter, dtype=torch.float32)
    model.refresh_reference()
    found = dict(model.trainable["unet"].named_parameters())
    copies = {name: value for name, value in found.items() if ".refreshed." in name}
    assert copies and all(
        torch.equal(value, found[name.replace(".refreshed.", ".policy.")])
        and value.dtype == torch.float32
        for name, value in copies.items()
    )


@pytest.mark.slow
def test_another_adapter_is_refreshed_at_its_own_scale(tiny_model: Maker, tmp_path: Path) -> None:
    """Into a model whose reference was refreshed, a LoRA of another alpha is loaded and
    trained on.
    """
    other = tiny_model()
    other.train_lora(LoraOptions(2, alpha=8))
    perturb(other, seed=3)
    other.export(tmp_path)
    model, _ = refreshed(tiny_model, tmp_path)
    model.reload(tmp_path)
    model.train_lora(LoraOptions(2))
    model.refresh_reference()
    policy = predicted(model)
    with model.as_reference():
        assert torch.allclose(predicted(model), policy, atol=1e-6)


def test_a_reference_without_a_lora_is_not_refreshed(tiny_model: Maker) -> None:
    model = tiny_model()
    for train in (lambda: None, model.train_full):
        train()
        with pytest.raises(
            ValueError, match=r"a refreshed reference is a copy of the LoRA.*want model\.lora"
        ):
            model.refresh_reference()


@pytest.mark.slow
@pytest.mark.parametrize("kind", sorted(REFERENCES))
def test_reference_densities(tiny_model: Maker, tmp_path: Path, kind: str) -> None:
    """A trajectory drawn before training keeps, under the reference, the density it was drawn
    with.
    """
    model, _ = REFERENCES[kind](tiny_model, tmp_path)
    texts = model.encode_prompts(["a cat", "dogs"])
    kept = rollout(
        model,
        texts,
        num_inference_steps=3,
        generator=[generator(0, "t", index=i) for i in range(2)],
    )
    perturb(model)
    for column, step in enumerate(kept.stochastic.tolist()):
        with model.as_reference():
            found = step_log_prob(model, kept, step, texts, eta=1.0, guidance_scale=5.0)
        assert torch.allclose(found, kept.log_probs[:, column], atol=2e-6)
        now = step_log_prob(model, kept, step, texts, eta=1.0, guidance_scale=5.0)
        assert float((now - found).detach().abs().max()) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("kind", sorted(REFERENCES))
def test_references_nest(tiny_model: Maker, tmp_path: Path, kind: str) -> None:
    """A helper that asks for the reference inside the reference must not bring the policy back too
    early.
    """
    model, begun = REFERENCES[kind](tiny_model, tmp_path)
    perturb(model)
    policy = predicted(model)
    with model.as_reference():
        with model.as_reference():
            assert torch.allclose(predicted(model), begun, atol=1e-6)
        assert torch.allclose(predicted(model), begun, atol=1e-6)
    assert torch.equal(predicted(model), policy)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["copy", "off", "start"])
def test_untraining_goes_back_to_where_it_began(
    tiny_model: Maker, tmp_path: Path, kind: str
) -> None:
    """A model may be trained, untrained and trained again, each time from the same weights."""
    model, begun = REFERENCES[kind](tiny_model, tmp_path)
    perturb(model)
    model.restore_weights()
    assert torch.allclose(predicted(model), begun, atol=1e-6)
    assert not model.parameters()
    assert model.reference == "off"
    train = (
        model.train_full if kind == "copy" else lambda: model.train_lora(LoraOptions(2, alpha=6))
    )
    train()
    perturb(model, seed=2)
    assert float((predicted(model) - begun).abs().max()) > 0.01
    with model.as_reference():
        assert torch.allclose(predicted(model), begun, atol=1e-6)


@pytest.mark.slow
def test_the_frozen_start_never_moves(tiny_model: Maker, tmp_path: Path) -> None:
    """An optimiser step after the reference was used, which switches adapters, still reaches the
    policy alone.
    """
    model, begun = lora_start(tiny_model, tmp_path)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    for _ in range(2):
        with model.as_reference():
            predicted(model)
        model.predict(X, T, model.encode_prompts(["a", "b"]), 4.0).square().mean().backward()
        optimizer.step()
    with model.as_reference():
        assert torch.allclose(predicted(model), begun, atol=1e-6)
    assert float((predicted(model) - begun).abs().max()) > 1e-3


def test_an_untrained_model_is_its_own_reference(tiny_model: Maker) -> None:
    model = tiny_model()
    before = predicted(model)
    with model.as_reference():
        assert torch.equal(predicted(model), before)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "named"), [(LoraOptions(8), "rank"), (LoraOptions(2, alpha=5), "alpha")]
)
def test_options_that_the_loaded_lora_has_not_are_refused(
    tiny_model: Maker, tmp_path: Path, options: LoraOptions, named: str
) -> None:
    """Going on from rank 2, alpha 6 while the recipe says otherwise would train what was loaded and
    say nothing.
    """
    lora_start(tiny_model, tmp_path)
    model = tiny_model()
    model.reload(tmp_path)
    with pytest.raises(ValueError, match=named):
        model.train_lora(options)


def test_a_lora_of_the_users_own_is_not_switched_off(tiny_model: Maker) -> None:
    """peft would run ours in its place, in the policy and in the reference."""
    model = tiny_model()
    model.pipeline.unet.add_adapter(LoraConfig(r=2, target_modules=["to_q"]), adapter_name="style")
    for train in (lambda: model.train_lora(LoraOptions(2)), model.train_full):
        with pytest.raises(ValueError, match=r"unet: has the LoRA \['style'\] loaded; fuse"):
            train()


@pytest.mark.slow
def test_a_loaded_lora_is_not_trained_in_full(tiny_model: Maker, tmp_path: Path) -> None:
    """Both would be trained, and the LoRA alone be exported."""
    trained = tiny_model()
    trained.train_lora(LoraOptions(2))
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.add_(0.1)
    trained.export(tmp_path)
    model = tiny_model()
    model.reload(tmp_path)
    with pytest.raises(ValueError, match="lora: null"):
        model.train_full()


def test_a_module_that_is_not_there_leaves_no_trace(tiny_model: Maker) -> None:
    """After a mistyped name the same model takes the right one."""
    model = tiny_model()
    with pytest.raises(ValueError, match=r"^lora target_modules: .*to_nothing"):
        model.train_lora(LoraOptions(2, target_modules=("to_nothing",)))
    model.restore_weights()
    model.train_lora(LoraOptions(2))
    assert model.parameters()


def test_moving_the_model_moves_everything(tiny_model: Maker) -> None:
    """Encoded texts kept from before and the frozen copy included; "meta" stands for a second
    device.
    """
    model = tiny_model()
    model.encode_prompts(["a cat"])
    model.train_full()
    model.to("meta")
    assert model.device.type == "meta"
    with model.as_reference():
        assert {p.device.type for p in model.trainable["unet"].parameters()} == {"meta"}
    assert model.encode_prompts(["a cat"]).tensors["prompt_embeds"].device.type == "meta"
