"""One HTML page of one or two scored galleries: what changed, by the numbers and by the pictures.

The page is a single file: style, script, data and thumbnails are inside, and its content-security
policy lets it reach nothing else. The template writes what needs no script (verdict, provenance);
report.js draws the rest from one block of JSON.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import random
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align_gen.errors import writing_to
from align_gen.files import whole_file
from align_gen.galleries.comparison import Comparison
from align_gen.galleries.table import ScoresTable
from align_gen.report.words import ROLES, digits_of, facts, summary, tiles, towards

from .pictures import Json, pictures_of

if TYPE_CHECKING:
    pass

ORDER_SEED = (
    0  # of the default, random order: the same pictures come first each time the page is built
)
OWN_KEYS = (
    "prompt",
    "seed",
    "file_name",
    "made",
)  # of a gallery's row: shown in places of their own


def build_report(
    *,
    after: ScoresTable,
    before: ScoresTable | None,
    out: Path,
    title: str,
    comparison: Comparison | None,
    optimised: Sequence[str],
    held_out: Sequence[str],
    lowered: Sequence[str] = (),
    metrics: Sequence[Mapping[str, Any]] = (),
    alarm: str | None = None,
    provenance: Mapping[str, Any] | None = None,
    command: Callable[[Mapping[str, Any]], str | None] | None = None,
    thumbnail: int = 128,
    limit: int = 1000,
) -> Path:
    """Write the page to `out`, whole or not at all, and return `out`.

    Pictures come from the tables' folders; one that cannot be read becomes a placeholder with the
    reason. `before` and `after` pair on prompt and seed (on the file's name where a row lacks
    them); without `before` the page shows one gallery. optimised, held_out: columns of the
    comparison; its verdict depends on them. lowered: those of the optimised whose weight is
    negative, shown as −NAME. metrics: one mapping a step, with "step". alarm: what a guard of the
    run said, shown first and in red. provenance: shown in the foot, packages and weights from
    `after` first. command: from a row of `after` to what makes the picture again, or None. Pictures
    above `thumbnail` pixels a side are reduced to that. More than `limit` pairs are a random
    choice, and the page says so. UserError when `out` cannot be written or a column of optimised or
    held_out was not compared.
    """
    pairs = _pairs(before, after)
    total = len(pairs)
    random.Random(ORDER_SEED).shuffle(pairs)
    columns = _columns(after, before, optimised, held_out)
    sides = {"after": (after, [j for _, j in pairs[:limit]])}
    if before is not None:
        sides["before"] = (before, [i for i, _ in pairs[:limit]])
    shown = {
        side: pictures_of(table, rows, list(columns), thumbnail)
        for side, (table, rows) in sides.items()
    }
    items = [_item(j, after.rows[j], command) for _, j in pairs[:limit]]
    for side, pictures in shown.items():
        for item, picture in zip(items, pictures, strict=True):
            item[side] = picture
    wanted = None if comparison is None else towards(comparison, lowered)
    aims = [f"−{name}" if name in lowered else name for name in optimised]
    unsure = after.uncertainty
    if unsure is not None:
        for item, (_, j) in zip(items, pairs[:limit], strict=True):
            item["uncertainty"] = unsure[j]
    disagree = _disagreement(items, list(columns.values())) if before is not None else False

    digits = {name: digits_of(_values(items, k)) for k, name in enumerate(columns)}
    data = {
        "paired": before is not None,
        "total": total,
        "columns": [
            {"name": name, "role": role, "digits": digits[name]} for name, role in columns.items()
        ],
        "items": items,
        "curves": _curves(metrics, before, after),
    }
    page = _render(
        title=title,
        data=data,
        disagree=disagree,
        unsure=unsure is not None,
        summary=None if wanted is None else summary(wanted, aims, held_out, alarm),
        tiles=[] if wanted is None else tiles(wanted, aims, held_out),
        unmatched=(0, 0) if comparison is None else comparison.unmatched,
        facts=facts(
            {"packages": after.versions, "weights": after.provenance, **(provenance or {})}
        ),
    )
    with writing_to(out):
        Path(out).parent.mkdir(parents=True, exist_ok=True)
        with whole_file(Path(out)) as file:
            file.write(page.encode("utf-8", "replace"))  # a title may hold half a surrogate pair
    return Path(out)


def inert_json(data: Any) -> str:
    """JSON that may stand in a <script> block: no character in it can end the block or a line of
    JavaScript.
    """
    text = json.dumps(
        _finite(data), allow_nan=False, separators=(",", ":")
    )  # ASCII: U+2028 is escaped already
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _render(**values: Any) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    folder = files(__package__ or "")
    style, script = (
        folder.joinpath(name).read_text("utf-8") for name in ("report.css", "report.js")
    )
    environment = Environment(
        loader=PackageLoader(__package__ or ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2").render(
        **{**values, "data": Markup(inert_json(values["data"]))},
        paired=values["data"]["paired"],
        columns=values["data"]["columns"],
        has_curves=bool(values["data"]["curves"]),
        style=Markup(style),
        script=Markup(script),
        style_hash=_hash(style),
        script_hash=_hash(script),
    )


def _hash(block: str) -> str:
    """As a content-security policy names an inline block."""
    return "sha256-" + base64.b64encode(hashlib.sha256(block.encode()).digest()).decode()


def _columns(
    after: ScoresTable,
    before: ScoresTable | None,
    optimised: Sequence[str],
    held_out: Sequence[str],
) -> dict[str, str]:
    """Name -> role, optimised first, then held out, then the rest."""
    names = list(after.heads) + [
        name for name in (before.heads if before else ()) if name not in after.heads
    ]
    roles = {
        name: ROLES[0] if name in optimised else ROLES[1] if name in held_out else ROLES[2]
        for name in names
    }
    return dict(sorted(roles.items(), key=lambda entry: ROLES.index(entry[1])))


def _pairs(before: ScoresTable | None, after: ScoresTable) -> list[tuple[int, int]]:
    """(row of before, row of after); for one gallery (row, row)."""
    if before is None:
        return [(j, j) for j in range(len(after.rows))]
    place = {_key(row): i for i, row in reversed(list(enumerate(before.rows)))}
    return [(place[key], j) for j, row in enumerate(after.rows) if (key := _key(row)) in place]


def _key(row: Mapping[str, Any]) -> str:
    named = "prompt" in row and "seed" in row
    return json.dumps([row["prompt"], row["seed"]] if named else row.get("file_name"), default=str)


def _item(
    index: int, row: Mapping[str, Any], command: Callable[[Mapping[str, Any]], str | None] | None
) -> Json:
    return {
        "id": index,  # names the card in the URL
        "prompt": str(row.get("prompt", "")),
        "seed": row.get("seed"),
        "more": {str(key): _text(value) for key, value in row.items() if key not in OWN_KEYS},
        "command": command(row) if command else None,
    }


def _values(items: Sequence[Json], column: int) -> list[float]:
    found = [
        item[side]["scores"][column]
        for item in items
        for side in ("before", "after")
        if side in item
    ]
    return [value for value in found if value is not None and math.isfinite(value)]


def _disagreement(items: Sequence[Json], roles: Sequence[str]) -> bool:
    """Give each pair its `disagreement`: how far the optimised columns rose above the held-out
    ones.

    Changes are in standard deviations of the column before, and averaged over the columns of a
    role. False, and nothing given, unless there are columns of both roles.
    """
    both = [[k for k, role in enumerate(roles) if role == wanted] for wanted in ROLES[:2]]
    if not all(both):
        return False
    scale = {k: _spread(item["before"]["scores"][k] for item in items) for k in both[0] + both[1]}

    def change(item: Json, columns: Sequence[int]) -> float:
        return statistics.fmean(
            (item["after"]["scores"][k] - item["before"]["scores"][k]) / scale[k] for k in columns
        )

    for item in items:
        whole = all(
            item[side]["scores"][k] is not None for side in ("before", "after") for k in scale
        )
        item["disagreement"] = change(item, both[0]) - change(item, both[1]) if whole else None
    return True


def _spread(values: Iterable[float | None]) -> float:
    known = [value for value in values if value is not None and math.isfinite(value)]
    return (statistics.stdev(known) if len(known) > 1 else 0.0) or 1.0


def _curves(
    metrics: Sequence[Mapping[str, Any]], before: ScoresTable | None, after: ScoresTable
) -> Json:
    """Metric -> [[step, value], …]. The galleries' own means open and close the curves
    eval/COLUMN/mean.
    """
    lines = [line for line in metrics if isinstance(line.get("step"), int | float)]
    if lines and before is not None:
        ends = ((0, before), (max(line["step"] for line in lines), after))
        first, last = ({"step": step, **_means(table)} for step, table in ends)
        lines = [first, *lines, last]
    curves: dict[str, dict[float, float]] = {}
    for line in lines:
        for key, value in line.items():
            if key != "step" and isinstance(value, int | float) and math.isfinite(value):
                curves.setdefault(key, {})[line["step"]] = float(value)
    return {key: sorted(points.items()) for key, points in curves.items() if len(points) > 1}


def _means(table: ScoresTable) -> dict[str, float]:
    known = {
        name: [value for value in column if value is not None]
        for name, column in table.heads.items()
    }
    return {
        f"eval/{name}/mean": statistics.fmean(values) for name, values in known.items() if values
    }


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
