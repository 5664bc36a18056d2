"""Encoded texts on disk: the same tensors come back, of the same encoder only, and the folder keeps
its limit.
"""

import os
from pathlib import Path

import pytest
import torch

from align_gen.pipelines.families.sana import Sana
from align_gen.pipelines.families.stable_diffusion import StableDiffusion
from align_gen.pipelines.prompt_cache import PromptCache, default_folder
from tests.tiny.sana import sana
from tests.tiny.stable_diffusion import stable_diffusion


def cached(folder: Path, seed: int = 0) -> tuple[StableDiffusion, list[int]]:
    """A tiny model with a cache, and the rows its encoder was asked for."""
    model, rows = StableDiffusion(stable_diffusion(seed=seed)), []
    assert model.prompt_cache is None  # encoders this small are not worth a file
    model.prompt_cache = PromptCache(folder)
    model.pipeline.text_encoder.register_forward_hook(
        lambda _, __, output: rows.append(len(output[0]))
    )
    return model, rows


def test_another_model_of_the_same_weights_encodes_nothing(tmp_path: Path) -> None:
    """Two texts and the empty negative are three rows for the first and none for the second; to the
    bit the same.
    """
    (first, asked), (second, asked_again) = cached(tmp_path), cached(tmp_path)
    fresh, found = (
        model.encode_prompts(["a cat", "ein Käfer"]).tensors for model in (first, second)
    )
    assert sum(asked) == 3 and not asked_again
    assert all(torch.equal(fresh[name], found[name]) for name in fresh)


def test_other_weights_are_another_encoder(tmp_path: Path) -> None:
    """One weight in ten thousand, or the length that texts are cut to: what was kept is not
    theirs.
    """
    first, _ = cached(tmp_path)
    first.encode_prompts(["a cat"])
    second, asked = cached(tmp_path)
    with torch.no_grad():
        second.pipeline.text_encoder.get_input_embeddings().weight[0, 0] += 1
    second.encode_prompts(["a cat"])
    third, asked_too = cached(tmp_path)
    third.pipeline.tokenizer.model_max_length -= 1
    third.encode_prompts(["a cat"])
    assert sum(asked) == sum(asked_too) == 2


def test_a_prompt_and_a_negative_text_of_the_same_words_are_two(tmp_path: Path) -> None:
    """Sana's prompts follow an instruction and its negative texts do not; with another one they are
    other prompts.
    """
    rows: list[int] = []
    kept = []
    for instruction in (None, None, "Say it again: "):
        model = Sana(sana())
        model.prompt_cache = PromptCache(tmp_path)
        model.pipeline.text_encoder.register_forward_hook(
            lambda _, __, output: rows.append(len(output[0]))
        )
        if instruction is not None:
            model.instruction, model.template = [instruction], instruction
        kept.append(model.encode_prompts(["a cat"], negative="a cat").tensors)
    first, second, other = kept
    assert rows == [1, 1, 1, 1]  # both by the first, none by the second, both by the third
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["prompt_embeds"], first["negative_prompt_embeds"])
    assert not torch.equal(first["prompt_embeds"], other["prompt_embeds"])


@pytest.mark.parametrize(
    "content", [b"", b"\x08\x00\x00\x00\x00\x00\x00\x00{", b"no tensors at all"]
)
def test_a_damaged_file_is_written_anew(tmp_path: Path, content: bytes) -> None:
    first, _ = cached(tmp_path)
    wanted = first.encode_prompts(["a cat"]).tensors
    for file in tmp_path.glob("*/*.safetensors"):
        file.write_bytes(content)
    second, asked = cached(tmp_path)
    again = second.encode_prompts(["a cat"]).tensors
    assert sum(asked) == 2 and torch.equal(again["prompt_embeds"], wanted["prompt_embeds"])
    assert all(len(file.read_bytes()) > 100 for file in tmp_path.glob("*/*.safetensors"))


def test_the_longest_unused_go(tmp_path: Path) -> None:
    """Files of 4,000 bytes of numbers and a header; three and a half fit. The first is read, so the
    second goes.
    """
    cache = PromptCache(tmp_path, limit=15_000)
    for age, text in enumerate("abc"):
        cache.put("key", {text: {"x": torch.full((1000,), float(age))}})
        os.utime(cache._file("key", text), ns=(age, age))
    assert cache.get("key", "a") is not None  # used now
    cache.put("key", {"d": {"x": torch.zeros(1000)}})
    left = [text for text in "abcd" if cache.get("key", text) is not None]
    assert left == ["a", "c", "d"]


def test_a_folder_that_cannot_be_written_stops_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    model, asked = cached(tmp_path / "file")
    model.encode_prompts(["a cat"])
    assert sum(asked) == 2


def test_the_folder_is_the_users_choice(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ALIGN_GEN_CACHE", str(tmp_path))
    assert default_folder() == tmp_path / "prompts"
    monkeypatch.delenv("ALIGN_GEN_CACHE")
    assert default_folder() == Path.home() / ".cache" / "align_gen" / "prompts"
