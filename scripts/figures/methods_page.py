"""The page of all methods side by side, and its pictures."""

import json
import random
from pathlib import Path
from typing import Any

from matplotlib import pyplot
from PIL import Image, ImageDraw, ImageFont

from align_gen.galleries.gallery import Gallery
from align_gen.training.journal import read_lines

from .arms import ARMS, RIVALS
from .colours import line as colour_line
from .colours import unlearned

MANY = [arm for arm in ARMS if "prompts" in arm]
PAIRED = ["flow-dpo", "dpo on videos"]
MAIN = [arm for arm in ARMS if arm not in (*MANY, *PAIRED)]
HEAD = """| method | seed | calls | reward | heldout | alignment | diversity | distance | seconds |
|---|---|---|---|---|---|---|---|---|"""
Summary = dict[str, Any]
COLUMNS = 12  # pictures a row of the sheet
CELL, LABEL = 66, 130  # pixels


def change(summary: Summary, name: str) -> tuple[float, float, float]:
    """A column's change and its interval, in standard deviations over pictures before."""
    c = summary[name]
    return (c["after"] - c["before"]) / c["std"], c["ci_low"] / c["std"], c["ci_high"] / c["std"]


def line(summary: Summary) -> str:
    """A row of Markdown."""
    cells = [
        summary["arm"],
        str(summary["seed"]),
        f"{summary['denoiser_calls'] + summary['spent']:,}",
    ]
    for name in ("reward", "heldout", "alignment"):
        cells.append("{:+.2f} [{:+.2f}, {:+.2f}]".format(*change(summary, name)))
    far = "" if summary["distance"] is None else f"{summary['distance']:,.0f}"
    cells += [
        f"{summary['diversity']['ratio']:.2f}",
        far,
        f"{summary['seconds']:.0f}" if summary["seconds"] else "",
    ]
    return "| " + " | ".join(cells) + " |"


def table(runs: list[tuple[Path, Summary]], arms: list[str]) -> str:
    """The runs of some arms as Markdown."""
    return "\n".join([HEAD, *(line(summary) for _, summary in runs if summary["arm"] in arms)])


def pareto(runs: list[Summary], file: Path) -> None:
    """Held-out change against distance, a dot a run, its interval a line."""
    figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    for number, arm in enumerate(dict.fromkeys(summary["arm"] for summary in runs)):
        own = [summary for summary in runs if summary["arm"] == arm]
        middle, low, high = zip(*(change(summary, "heldout") for summary in own), strict=True)
        far = [summary["distance"] for summary in own]
        colour = f"C{number % 10}"
        axes.vlines(far, low, high, color=colour, alpha=0.4)
        axes.scatter(far, middle, label=arm, color=colour, marker="os^"[number // 10])
    axes.axhline(0, color="lightgrey", zorder=0)
    axes.set(
        xscale="log",
        xlabel="distance from the reference, nats a trajectory",
        ylabel="held-out reward, change in std",
    )
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right upper", frameon=False)
    figure.savefig(file, dpi=110)
    pyplot.close(figure)


def curves(runs: list[tuple[Path, Summary]], file: Path) -> None:
    """The training reward of runs over many prompts, against calls."""
    figure, axes = pyplot.subplots(figsize=(8, 3.6), layout="constrained")
    for folder, summary in runs:
        rewards = [
            row["reward/combined"]
            for row in read_lines(folder / "metrics.jsonl")
            if "reward/combined" in row
        ]
        each = summary["denoiser_calls"] / len(rewards)
        axes.plot([each * step for step in range(len(rewards))], rewards, label=summary["arm"])
    axes.set(xlabel="denoiser calls", ylabel="reward of the step's pictures")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right upper", frameon=False)
    figure.savefig(file, dpi=110)
    pyplot.close(figure)


def sheet(runs: list[tuple[Path, Summary]], file: Path) -> None:
    """The same held-out pictures of the untouched model and of each arm's first run, by chance."""
    first = {summary["arm"]: galleries_of(path, summary) for path, summary in reversed(runs)}
    folders = [("untouched", next(iter(first.values()))[0])]
    folders += [(arm, first[arm][1]) for arm in reversed(first)]
    galleries = [(name, Gallery.load(folder)) for name, folder in folders]
    chosen = random.Random(0).sample(range(len(galleries[0][1])), COLUMNS)
    page = Image.new("RGB", (LABEL + COLUMNS * CELL, len(galleries) * CELL), "white")
    draw = ImageDraw.Draw(page)
    for row, (name, gallery) in enumerate(galleries):
        font = ImageFont.load_default(13)
        draw.text((4, row * CELL + CELL // 2 - 6), name, fill="black", font=font)
        for column, index in enumerate(chosen):
            picture = Image.open(gallery.path(index)).convert("RGB")
            page.paste(picture, (LABEL + column * CELL, row * CELL))
    page.save(file, quality=90)


def blocks(runs: list[tuple[Path, Summary]]) -> dict[str, str]:
    """The tables of the page by name."""
    main = [(path, summary) for path, summary in runs if summary["arm"] in (*MAIN, *RIVALS)]
    checks = [
        colour_line(f"{summary['arm']}, {summary['seed']}", unlearned(*galleries_of(path, summary)))
        for path, summary in main
    ]
    head = "| run | colours | change | hue, before → after |\n|---|---|---|---|"
    return {
        "main": table(runs, [*MAIN, *RIVALS]),
        "unlearned": "\n".join([head, *checks]),
        "many": table(runs, MANY),
        "pairs": table(runs, PAIRED),
    }


def filled(text: str, tables: dict[str, str]) -> str:
    """The page with the tables between their marks."""
    for name, rows in tables.items():
        begin = f"<!-- {name} -->"
        end = f"<!-- end of {name} -->"
        head, rest = text.split(begin)
        text = f"{head}{begin}\n{rows}\n{end}{rest.split(end)[1]}"
    return text


def galleries_of(folder: Path, summary: Summary) -> tuple[Path, Path]:
    """Where a run's first and last gallery lie; a rival says it."""
    names = {"before": folder / "before", "after": folder / "samples" / "final"}
    before, after = (Path(summary.get(name) or own) for name, own in names.items())
    return before, after


def write(folder: Path, out: Path) -> None:
    """Fill the tables of the page ``out`` from the runs in ``folder``, and draw its pictures."""
    order = [*ARMS, *RIVALS]
    files = folder.glob("*/summary.json")
    runs = [(file.parent, json.loads(file.read_text())) for file in files]
    runs.sort(key=lambda run: (order.index(run[1]["arm"]), run[1]["seed"]))
    near = [run for run in runs if run[1]["arm"] in (*MAIN, *RIVALS)]
    measured = [summary for _, summary in near if summary["distance"] is not None]
    pareto(measured, out.with_name("pareto.png"))
    sheet(near, out.with_name("methods.jpg"))
    curves([run for run in runs if run[1]["arm"] in MANY], out.with_name("many.png"))
    out.write_text(filled(out.read_text(), blocks(runs)))
