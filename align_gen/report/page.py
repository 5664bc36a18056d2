"""One HTML page of one or two scored galleries: what changed, by numbers and by pictures.

The page is a single file: style, script, data and thumbnails are inside, and its content-security
policy lets it reach nothing else. The template writes what needs no script (verdict, means,
provenance); report.js draws the rest from one block of JSON.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import random
from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from align_gen.errors import UserError, writing_to
from align_gen.files import require_file, whole_file
from align_gen.galleries.comparison import Comparison
from align_gen.galleries.table import ScoresTable
from align_gen.galleries.verdicts import LEAST_PROMPTS
from align_gen.report.again import Again
from align_gen.report.figures import curves_of, disagreement, values_of
from align_gen.report.pictures import Json, pictures_of
from align_gen.report.tiles import mean_tiles, tiles
from align_gen.report.words import ROLES, digits_of, facts, listed, run_summary, towards

# Of the default, random order: the same pictures come first each time the page is built.
# With it every page of ours begins.
POLICY = b"default-src 'none'; img-src data:; style-src '"
ORDER_SEED = 0

# Keys of a gallery's row that the page shows in places of their own.
SHOWN_KEYS = ("prompt", "seed", "file_name", "made")

Command = Callable[[Mapping[str, Any]], Again]
Indices = Sequence[tuple[int, int]]  # rows of before and after


def require_page(out: Path) -> None:
    """Refuse to write over what is no page of a report.

    Raises:
        UserError: another suffix than .html, or something else is there.
    """
    require_file(out, ".html", ".htm")
    if out.exists():
        with out.open("rb") as file:
            ours = POLICY in file.read(4096)
        if not ours:
            raise UserError(f"{out}: is no report of ours; want another --out, or it moved away")


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
    command: Command | None = None,
    names: tuple[str, str] = ("before", "after"),
    paired_on: Sequence[str] = ("prompt", "seed"),
    thumbnail: int = 128,
    limit: int = 1000,
) -> Path:
    """Write the page to ``out``, whole or not at all, and return ``out``.

    Pictures come from the tables' folders; one that cannot be read becomes a placeholder with the
    reason.

    Args:
        after: the gallery to show.
        before: the gallery that it is compared with; None shows one gallery.
        out: the file to write.
        title: of the page.
        comparison: of ``before`` and ``after``; its pairs are the page's. None without ``before``.
        optimised: columns of the comparison; the verdict depends on them.
        held_out: likewise.
        lowered: those of the optimised whose weight is negative, shown as −NAME.
        metrics: one mapping per training step, with "step".
        alarm: what a run's early stopping warned of, shown first and in red.
        provenance: shown in the foot, after packages and weights of ``after``.
        command: from a row of ``after`` to the command that makes the picture again.
        names: what the page calls ``before`` and ``after``.
        paired_on: the columns that the pictures of a pair have in common.
        thumbnail: larger pictures are reduced to so many pixels a side.
        limit: of pairs that are shown; of more, a random choice, and the page says so.

    Raises:
        UserError: ``out`` cannot be written, or a column of optimised or held_out was not compared.
        ValueError: ``before`` without ``comparison``.
    """
    require_page(Path(out))

    # Which pairs, in the page's default order.
    pairs = _pairs(before, after, comparison)
    total = len(pairs)
    # Shuffled before the cut, so that a page of the limit's size shows a fair sample.
    random.Random(ORDER_SEED).shuffle(pairs)
    pairs = pairs[:limit]

    # What the script draws.
    columns = _columns(after, before, optimised, held_out)
    items = _items(pairs, after, before, list(columns), thumbnail, command)
    disagree = before is not None and disagreement(items, list(columns.values()))
    data = {
        "paired": before is not None,
        "names": dict(zip(("before", "after"), names, strict=True)),
        "total": total,
        "columns": _described(columns, items),
        "items": items,
        "curves": curves_of(metrics, before, after),
    }

    # What the template writes.
    said = None
    if comparison is not None:
        said = run_summary(comparison, optimised, held_out, lowered, alarm)
    wanted = None if comparison is None else towards(comparison, lowered)
    aims = [f"−{name}" if name in lowered else name for name in optimised]
    made_of = {"packages": after.versions, "weights": after.provenance, **(provenance or {})}
    page = _render(
        title=title,
        data=data,
        disagree=disagree,
        unsure=after.uncertainty is not None,
        summary=said,
        tiles=[] if wanted is None else tiles(wanted, aims, held_out),
        means=mean_tiles(after) if before is None else [],
        paired_on=listed(paired_on),
        least_prompts=LEAST_PROMPTS,
        unmatched=(0, 0) if comparison is None else comparison.unmatched,
        facts=facts(made_of),
    )
    with writing_to(out):
        Path(out).parent.mkdir(parents=True, exist_ok=True)
        with whole_file(Path(out)) as file:
            # A title may hold half a surrogate pair.
            file.write(page.encode("utf-8", "replace"))
    return Path(out)


def inert_json(data: Any) -> str:
    """JSON that may stand in a <script> block: no character ends the block or a line of script."""
    # ASCII, so that U+2028 is escaped already.
    text = json.dumps(_finite(data), allow_nan=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


# --- the template ---------------------------------------------------------------------------------


def _render(data: Json, **values: Any) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    package = __package__ or ""
    # Style and script go into the page: it must open from a disk, or a mail, by itself.
    style = files(package).joinpath("report.css").read_text("utf-8")
    script = files(package).joinpath("report.js").read_text("utf-8")
    environment = Environment(
        loader=PackageLoader(package),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2").render(
        **values,
        data=Markup(inert_json(data)),
        paired=data["paired"],
        names=data["names"],
        columns=data["columns"],
        has_curves=bool(data["curves"]),
        style=Markup(style),
        script=Markup(script),
        style_hash=_hash(style),
        script_hash=_hash(script),
    )


def _hash(block: str) -> str:
    """The name of an inline block in a content-security policy."""
    return "sha256-" + base64.b64encode(hashlib.sha256(block.encode()).digest()).decode()


# --- items ----------------------------------------------------------------------------------------


def _pairs(
    before: ScoresTable | None, after: ScoresTable, comparison: Comparison | None
) -> list[tuple[int, int]]:
    """Rows of before and after in the order of ``after``; for one gallery (row, row)."""
    if before is None:
        return [(row, row) for row in range(len(after.rows))]
    if comparison is None:
        raise ValueError("want a comparison beside before: its pairs are the page's")
    return sorted(comparison.pairs, key=lambda pair: pair[1])


def _columns(
    after: ScoresTable,
    before: ScoresTable | None,
    optimised: Sequence[str],
    held_out: Sequence[str],
) -> dict[str, str]:
    """Name -> role, optimised first, then held out, then the rest."""
    others = [] if before is None else [name for name in before.heads if name not in after.heads]
    roles = {}
    for name in [*after.heads, *others]:
        if name in optimised:
            roles[name] = ROLES[0]
        else:
            roles[name] = ROLES[1] if name in held_out else ROLES[2]
    return dict(sorted(roles.items(), key=lambda entry: ROLES.index(entry[1])))


def _described(columns: Mapping[str, str], items: Sequence[Json]) -> list[Json]:
    """Name, role and digits of every column, for the script; ``columns`` is name -> role."""
    return [
        {"name": name, "role": role, "digits": digits_of(values_of(items, k))}
        for k, (name, role) in enumerate(columns.items())
    ]


def _items(
    pairs: Indices,
    after: ScoresTable,
    before: ScoresTable | None,
    columns: Sequence[str],
    thumbnail: int,
    command: Command | None,
) -> list[Json]:
    """One item per pair, as the script reads it."""
    items = [_item(row, after.rows[row], command) for _, row in pairs]
    sides = {"after": pictures_of(after, [row for _, row in pairs], columns, thumbnail)}
    if before is not None:
        sides["before"] = pictures_of(before, [row for row, _ in pairs], columns, thumbnail)
    for side, pictures in sides.items():
        for item, picture in zip(items, pictures, strict=True):
            item[side] = picture
    if after.uncertainty is not None:
        for item, (_, row) in zip(items, pairs, strict=True):
            item["uncertainty"] = after.uncertainty[row]
    return items


def _item(number: int, row: Mapping[str, Any], command: Command | None) -> Json:
    again = command(row) if command else Again()
    return {
        "id": number,  # names the card in the URL
        "prompt": str(row.get("prompt", "")),
        "seed": row.get("seed"),
        "more": {str(key): _text(value) for key, value in row.items() if key not in SHOWN_KEYS},
        "command": again.command,
        "note": again.note,
    }


# --- plain values ---------------------------------------------------------------------------------


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)


def _finite(value: Any) -> Any:
    """Replace NaN and infinities by None, at any depth."""
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
