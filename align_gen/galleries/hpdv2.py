"""The HPDv2 benchmark, by whose tables HPS v2 and v2.1 are quoted (Wu et al., arXiv 2306.09341)."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UserError, user_mistakes
from ..opening import open_rewards
from ..progress import ProgressCallback
from .gallery import METADATA, Gallery
from .parquet_files import SCORES

if TYPE_CHECKING:
    from ..reward_heads import RewardSet

STYLES = ("anime", "concept-art", "paintings", "photo")
PROMPTS = 800  # of a style
GROUP = 80  # consecutive pictures whose mean is one draw of the style's score
KINDS = (".jpg", ".png")  # published galleries are JPEG, `align-gen sample` writes PNG
BESIDE = (METADATA, SCORES)  # what a gallery may hold besides pictures

# What published figures were made with.
HPS = "hps-"
ARCHITECTURE = "ViT-H-14"

# Model -> the styles' scores in the order of STYLES, then the average. From the README of the
# published code.
PUBLISHED: dict[str, dict[str, tuple[float, ...]]] = {
    "v2.0": {
        "GLIDE": (23.34, 23.08, 23.27, 24.50, 23.55),
        "DALL·E 2": (27.34, 26.54, 26.68, 27.24, 26.95),
        "Stable Diffusion v1.4": (27.26, 26.61, 26.66, 27.27, 26.95),
        "Stable Diffusion v2.0": (27.48, 26.89, 26.86, 27.46, 27.17),
        "DeepFloyd-XL": (27.64, 26.83, 26.86, 27.75, 27.27),
        "SDXL Base 0.9": (28.42, 27.63, 27.60, 27.29, 27.73),
        "SDXL Refiner 0.9": (28.45, 27.66, 27.67, 27.46, 27.80),
        "Dreamlike Photoreal 2.0": (28.24, 27.60, 27.59, 27.99, 27.86),
    },
    "v2.1": {
        "GLIDE": (13.90, 13.50, 13.94, 16.72, 14.51),
        "Stable Diffusion v1.4": (26.03, 24.87, 24.80, 25.70, 25.35),
        "Stable Diffusion v2.0": (27.09, 26.02, 25.68, 26.73, 26.38),
        "Deliberate": (31.46, 30.48, 30.17, 28.83, 30.23),
        "SDXL Base 0.9": (32.84, 31.36, 30.86, 27.48, 30.63),
        "SDXL Refiner 0.9": (33.26, 32.07, 31.63, 28.38, 31.34),
    },
}


@dataclass(frozen=True)
class Line:
    """One model under one reward.

    Attributes:
        reward: its label.
        model: the folder's name, or the published model's.
        styles: score by style.
        average: of all pictures.
        deviations: of a style's group means; None where published.
        published: whether the figures are those of the paper's code.
    """

    reward: str
    model: str
    styles: dict[str, float]
    average: float
    deviations: dict[str, float] | None = None
    published: bool = False


@dataclass(frozen=True)
class Table:
    """The result of ``run_hpdv2``; published figures stand below the reward they compare with."""

    suite: str
    lines: list[Line]

    def to_json(self) -> dict[str, Any]:
        return {"suite": self.suite, "lines": [asdict(line) for line in self.lines]}

    def to_text(self) -> list[str]:
        """Lines to print: a header, the user's models, and the published ones, marked."""
        models = max(len(line.model) for line in self.lines)
        rewards = max(len(line.reward) for line in self.lines)
        styles = [f"{style:>14}" for style in STYLES]
        text = [" ".join([" " * rewards, " " * models, *styles, f"{'average':>8}"])]
        for line in self.lines:
            names = [f"{line.reward:{rewards}}", f"{line.model:{models}}"]
            cells = [_cell(line, style) for style in STYLES]
            mark = " published" if line.published else ""
            text.append(" ".join([*names, *cells, f"{line.average:8.2f}{mark}"]))
        return text


def _cell(line: Line, style: str) -> str:
    if line.deviations is None:
        return f"{line.styles[style]:6.2f}{'':8}"
    return f"{line.styles[style]:6.2f} ± {line.deviations[style]:<5.2f}"


def run_hpdv2(
    root: str | Path,
    prompts: str | Path | None,
    rewards: RewardSet | Sequence[Any] | Mapping[str, Any],
    *,
    batch_size: int = 64,
    progress: ProgressCallback | None = None,
) -> Table:
    """Score the 3200 pictures of ``read_hpdv2``. Cosines are multiplied by 100, as in the paper.

    Figures of HPS stand above the published ones of the same version where the model is the
    published ViT-H-14. The published code does not say with which antialias its figures were made;
    the choice moves them by tenths.

    Raises:
        UserError: a picture is missing, left over or unreadable; a reward needs more than pictures
            and prompts.
    """
    from .scoring import score

    gallery = read_hpdv2(root, prompts)
    with user_mistakes():
        reward_set = open_rewards(rewards)
    # Strict: a mean over fewer pictures is no figure of the benchmark.
    table = score(gallery, reward_set, batch_size=batch_size, strict=True, progress=progress)
    model = Path(root).resolve().name
    lines = []
    for name, head in reward_set.heads.items():
        # The table of the paper is in hundredths of a cosine.
        points = _points(table.heads[name], cosine=head.range == (-1.0, 1.0))
        by_style = {
            style: points[n * PROMPTS : (n + 1) * PROMPTS] for n, style in enumerate(STYLES)
        }
        lines.append(aggregate(by_style, name, model))
        lines += published(name, table.provenance[name])
    return Table("hpdv2", lines)


def aggregate(points: Mapping[str, Sequence[float]], reward: str, model: str) -> Line:
    """A model's line: a style's score is the mean of its group means, with their deviation.

    Args:
        points: the pictures' scores, times 100 where they are cosines, by style and in the order of
            files.
        reward: label of the line.
        model: likewise.
    """
    groups = {style: group_means(values) for style, values in points.items()}
    styles = {style: statistics.fmean(means) for style, means in groups.items()}
    deviations = {style: statistics.pstdev(means) for style, means in groups.items()}
    average = statistics.fmean(value for values in points.values() for value in values)
    return Line(reward, model, styles, average, deviations)


def group_means(values: Sequence[float]) -> list[float]:
    """Means of consecutive groups of 80 pictures."""
    return [
        statistics.fmean(values[start : start + GROUP]) for start in range(0, len(values), GROUP)
    ]


def published(reward: str, provenance: Mapping[str, Any]) -> list[Line]:
    """The published lines of a head's version; none where the head is not the published model."""
    options = provenance.get("options", {})
    is_hps = str(provenance["preprocessing"]).startswith(HPS)
    if not is_hps or options.get("architecture") != ARCHITECTURE:
        return []
    return [
        Line(reward, model, dict(zip(STYLES, figures, strict=False)), figures[-1], published=True)
        for model, figures in PUBLISHED[options["version"]].items()
    ]


def read_hpdv2(root: str | Path, prompts: str | Path | None = None) -> Gallery:
    """The benchmark's pictures with their prompts, 4 styles of 800.

    Rows have "file_name", "prompt", "style" and "number", and come style by style in the order of
    STYLES.

    Args:
        root: folder of the pictures, `{root}/{style}/{number:05d}.jpg` (or .png).
        prompts: folder of `{style}.json`, each a list of 800 strings; None: they lie in ``root``.

    Raises:
        UserError: anything is missing, or lies there besides: a mean over other pictures is no
            figure of the benchmark. Hidden files do not count.
    """
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; want one with the folders {', '.join(STYLES)}")
    lists = [f"{style}.json" for style in STYLES]
    _refuse_strays(root, {*STYLES, *lists}, f"the folders {', '.join(STYLES)}")

    # Every prompt and every picture must be there before a row is made.
    texts = {style: _prompts(Path(prompts or root) / f"{style}.json") for style in STYLES}
    names = {
        style: [_picture(root / style, number) for number in range(PROMPTS)] for style in STYLES
    }
    missing = [
        f"{style}/{n:05d}.jpg"
        for style in STYLES
        for n, name in enumerate(names[style])
        if name is None
    ]
    if missing:
        count = f"{len(missing)} of {len(STYLES) * PROMPTS} pictures"
        raise UserError(f"{root}: {count} are missing, first {missing[0]}")

    rows = []
    for style in STYLES:
        _refuse_strays(
            root / style, {*BESIDE, *names[style]}, f"one picture 00000 to {PROMPTS - 1:05d} each"
        )
        for number, (name, prompt) in enumerate(zip(names[style], texts[style], strict=True)):
            rows.append(
                {"file_name": f"{style}/{name}", "prompt": prompt, "style": style, "number": number}
            )
    return Gallery(root, rows)


def _picture(folder: Path, number: int) -> str | None:
    """The name of a picture's file; None where there is none."""
    return next(
        (f"{number:05d}{kind}" for kind in KINDS if (folder / f"{number:05d}{kind}").is_file()),
        None,
    )


def _refuse_strays(folder: Path, known: Iterable[str | None], wanted: str) -> None:
    """UserError where the folder holds a name besides ``known``, hidden ones apart."""
    names = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
    strays = sorted(names - set(known))
    if strays:
        more = f" and {len(strays) - 1} more" if len(strays) > 1 else ""
        raise UserError(
            f"{folder}: holds {strays[0]!r}{more}, which the benchmark does not know; want {wanted}"
        )


def _prompts(file: Path) -> list[str]:
    """The prompts of one style."""
    where = f"ymhao/HPDv2 on the hub has it in benchmark/{file.name}"
    wanted = f"want a list of {PROMPTS} prompts, as {where}"
    try:
        prompts = json.loads(file.read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        raise UserError(f"{file}: no such file; {wanted}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file}: cannot be read as JSON ({str(error)[:80]}); {wanted}") from error
    is_list = isinstance(prompts, list)
    texts = is_list and all(isinstance(prompt, str) for prompt in prompts)
    if not texts or len(prompts) != PROMPTS:
        content = f"a list of {len(prompts)}" if is_list else type(prompts).__name__
        raise UserError(f"{file}: holds {content}; {wanted}")
    return list(prompts)


def _points(scores: Sequence[float | None], cosine: bool) -> list[float]:
    points = [score * (100.0 if cosine else 1.0) for score in scores if score is not None]
    # A strict score left none out; a gap would shift every group behind it.
    assert len(points) == len(scores)
    return points
