"""`align-gen sample`: pictures of a model, as a gallery."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import UserError, printable
from ..portable import portable_name
from .arguments import Attention, Dtype, Json, Kernel, count_of, default_device, parse_rewards

EXAMPLE = "align-gen sample emoji-sd --prompts emoji-heldout --seeds 0,1 --out galleries/base"


@dataclass(frozen=True)
class Size:
    """Height and width in pixels."""

    height: int | None = None
    width: int | None = None

    @classmethod
    def parse(cls, text: str) -> "Size":
        match = re.fullmatch(r"(\d+)x(\d+)", text)
        if match is None:
            raise typer.BadParameter(f"{text!r}: want HEIGHTxWIDTH, 512x512")
        return cls(int(match[1]), int(match[2]))


@dataclass(frozen=True)
class Numbers:
    """Whole numbers with commas between them."""

    values: tuple[int, ...]

    @classmethod
    def parse(cls, text: str) -> "Numbers":
        try:
            return cls(tuple(int(part) for part in text.split(",")))
        except ValueError:
            raise typer.BadParameter(f"{text!r}: want numbers with commas, 0,1,2") from None


def sample(
    model: Annotated[str, typer.Argument(help="A bundled name, a pipeline folder or a hub name.")],
    prompts: Annotated[
        str | None, typer.Option(help="A .txt or .jsonl file, or a bundled list.")
    ] = None,
    prompt: Annotated[str | None, typer.Option(help="One prompt, in place of --prompts.")] = None,
    seed: Annotated[
        int | None,
        typer.Option(help="With --prompt: the picture's exact seed, as in a gallery's rows."),
    ] = None,
    seeds: Annotated[
        Numbers | None,
        typer.Option(
            parser=Numbers.parse,
            metavar="NUMBERS",
            help="One picture of every prompt for each number: 0,1,2; 0 without it.",
        ),
    ] = None,
    adapter: Annotated[Path | None, typer.Option(help="An export to load.")] = None,
    best_of: Annotated[int, typer.Option(help="Draw n candidates, keep the best by --reward.")] = 1,
    reward: Annotated[str | None, typer.Option(help="For --best-of: NAME[:key=value,…].")] = None,
    steps: Annotated[int, typer.Option(min=1, help="Denoising steps.")] = 30,
    guidance: Annotated[float, typer.Option(help="Classifier-free guidance scale.")] = 5.0,
    eta: Annotated[float, typer.Option(help="0 is the ODE (DDIM), 1 the DDPM posterior.")] = 0.0,
    size: Annotated[
        Size | None,
        typer.Option(
            parser=Size.parse, metavar="HEIGHTxWIDTH", help="The model's default without it."
        ),
    ] = None,
    frames: Annotated[
        int | None, typer.Option(min=1, help="Of a video; the model's default without it.")
    ] = None,
    dtype: Dtype = "fp32",
    attention: Attention = Kernel.auto,
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures at a time.")] = 16,
    out: Annotated[Path, typer.Option(help="The gallery to write.")] = Path("gallery"),
    as_json: Json = False,
) -> None:
    """Sample pictures into a gallery."""
    _require_one_source(prompts, prompt, seed, seeds)
    if (best_of > 1) != (reward is not None):
        raise UserError("--best-of and --reward go together")

    from ..errors import user_mistakes
    from ..galleries.prompts import load_prompts
    from ..galleries.sampling import sample as run_sample
    from ..opening import open_model, open_rewards
    from ..pipelines.guidance.best_of import BestOf
    from ..progress import ProgressBar

    rows = [_row(prompt, seed)] if prompts is None else load_prompts(prompts)
    with user_mistakes():
        device = default_device()
        # The reward first: a mistake in it shows before a large model is loaded.
        rewards = None if reward is None else open_rewards(parse_rewards([reward]))
        opened = open_model(
            model, dtype=dtype, adapter=adapter, attention=attention.value, device=device
        )
        guide = None if rewards is None else BestOf(rewards.to(device), best_of)

    # What a row cannot know of its making, where it is not the default.
    origin: dict[str, str] = {"model": portable_name(model)}
    if adapter is not None:
        origin["adapter"] = portable_name(str(adapter))
    if dtype != "fp32":
        origin["dtype"] = dtype
    if reward is not None:
        origin |= {"reward": portable_name(reward), "best-of": str(best_of)}
    picture_size = size or Size()

    # A size that the model does not have shows only here, once the model is known.
    with user_mistakes(), ProgressBar() as progress:
        gallery = run_sample(
            opened,
            rows,
            out=out,
            seeds=(0,) if seeds is None else seeds.values,
            num_inference_steps=steps,
            guidance_scale=guidance,
            eta=eta,
            height=picture_size.height,
            width=picture_size.width,
            num_frames=frames,
            guide=guide,
            batch_size=batch_size,
            origin=origin,
            progress=progress,
        )
    if as_json:
        print(json.dumps({"pictures": len(gallery), "out": str(gallery.folder)}))
    else:
        print(f"{count_of(len(gallery), 'picture')} in {printable(gallery.folder)}")


def _require_one_source(
    prompts: str | None, prompt: str | None, seed: int | None, seeds: Numbers | None
) -> None:
    """Refuse options that contradict each other."""
    if (prompts is None) == (prompt is None):
        raise UserError("sample: want either --prompts FILE or --prompt TEXT")
    if seed is not None and prompt is None:
        raise UserError(
            "--seed goes with --prompt; with --prompts, want --seeds, or a seed in each of its rows"
        )
    if seed is not None and seeds is not None:
        raise UserError("--seed is a picture's exact seed and --seeds counts pictures; want one")


def _row(prompt: str | None, seed: int | None) -> dict[str, Any]:
    row: dict[str, Any] = {"prompt": prompt}
    return row if seed is None else row | {"seed": seed}
