"""Write docs/results/methods.md and its picture from the runs that reproduce_methods.py made.

python scripts/methods_page.py [--runs runs/methods] [--out docs/results/methods.md]
"""

import argparse
import json
import random
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib import pyplot
from PIL import Image, ImageDraw, ImageFont
from reproduce_methods import ARMS, RIVALS
from unlearned import line as unlearned_line
from unlearned import unlearned

from align_gen.galleries.gallery import Gallery
from align_gen.training.journal import read_lines

MANY = [arm for arm in ARMS if "prompts" in arm]
PAIRED = ["flow-dpo", "dpo on videos"]
MAIN = [arm for arm in ARMS if arm not in (*MANY, *PAIRED)]
HEAD = """| method | seed | calls | reward | heldout | alignment | diversity | distance | seconds |
|---|---|---|---|---|---|---|---|---|"""
Summary = dict[str, Any]
COLUMNS, CELL, LABEL = 12, 66, 130  # pictures a row of the sheet; pixels


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


def table(found: list[tuple[Path, Summary]], arms: list[str]) -> str:
    return "\n".join([HEAD, *(line(summary) for _, summary in found if summary["arm"] in arms)])


def pareto(found: list[Summary], file: Path) -> None:
    """Held-out change against distance, a dot a run, its interval a line."""
    figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    for number, arm in enumerate(dict.fromkeys(summary["arm"] for summary in found)):
        own = [summary for summary in found if summary["arm"] == arm]
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


def curves(found: list[tuple[Path, Summary]], file: Path) -> None:
    """The training reward of runs over many prompts, against calls."""
    figure, axes = pyplot.subplots(figsize=(8, 3.6), layout="constrained")
    for folder, summary in found:
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


def sheet(found: list[tuple[Path, Summary]], file: Path) -> None:
    """The same held-out pictures, drawn at random, from the untouched model and from each arm's
    first run.
    """
    first = {summary["arm"]: galleries_of(path, summary) for path, summary in reversed(found)}
    folders = [("untouched", next(iter(first.values()))[0])] + [
        (arm, first[arm][1]) for arm in reversed(first)
    ]
    galleries = [(name, Gallery.load(folder)) for name, folder in folders]
    chosen = random.Random(0).sample(range(len(galleries[0][1])), COLUMNS)
    page = Image.new("RGB", (LABEL + COLUMNS * CELL, len(galleries) * CELL), "white")
    draw = ImageDraw.Draw(page)
    for row, (name, gallery) in enumerate(galleries):
        draw.text(
            (4, row * CELL + CELL // 2 - 6), name, fill="black", font=ImageFont.load_default(13)
        )
        for column, place in enumerate(chosen):
            picture = Image.open(gallery.folder / gallery.rows[place]["file_name"]).convert("RGB")
            page.paste(picture, (LABEL + column * CELL, row * CELL))
    page.save(file, quality=90)


def blocks(found: list[tuple[Path, Summary]]) -> dict[str, str]:
    """The tables of the page by name."""
    main = [(path, summary) for path, summary in found if summary["arm"] in (*MAIN, *RIVALS)]
    checks = [
        unlearned_line(
            f"{summary['arm']}, {summary['seed']}", unlearned(*galleries_of(path, summary))
        )
        for path, summary in main
    ]
    head = "| run | colours | change | hue, before → after |\n|---|---|---|---|"
    return {
        "main": table(found, [*MAIN, *RIVALS]),
        "unlearned": "\n".join([head, *checks]),
        "many": table(found, MANY),
        "pairs": table(found, PAIRED),
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


def main() -> None:
    matplotlib.use("Agg")
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=Path, default=Path("runs/methods"))
    parser.add_argument("--out", type=Path, default=Path("docs/results/methods.md"))
    args = parser.parse_args()
    order = [*ARMS, *RIVALS]
    found = [
        (file.parent, json.loads(file.read_text())) for file in args.runs.glob("*/summary.json")
    ]
    found.sort(key=lambda each: (order.index(each[1]["arm"]), each[1]["seed"]))
    near = [each for each in found if each[1]["arm"] in (*MAIN, *RIVALS)]
    pareto(
        [summary for _, summary in near if summary["distance"] is not None],
        args.out.with_name("pareto.png"),
    )
    sheet(near, args.out.with_name("methods.jpg"))
    curves([each for each in found if each[1]["arm"] in MANY], args.out.with_name("many.png"))
    args.out.write_text(filled(args.out.read_text(), blocks(found)))


if __name__ == "__main__":
    main()
