"""The report, as a browser shows it: its numbers, orders, filters, keys and hash, and that it can
do no harm.

One Chromium opens the files from disk. It logs every request and every message of the console; a
test of its own proves that these logs do catch a blocked script and a request to the network.
"""

import base64
import io
import json
import math
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import torch
from PIL import Image

from align_gen.errors import UserError
from align_gen.galleries.comparison import Comparison, compare
from align_gen.galleries.gallery import write_gallery
from align_gen.galleries.table import ScoresTable
from align_gen.report.again import Again
from align_gen.report.page import build_report, inert_json, require_page
from align_gen.report.tiles import tiles
from align_gen.report.words import digits_of, facts, number, summary, towards

# One browser, and the two pages that it shows: made once.
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("browser")]

HOSTILE = (
    "</script><script>alert(1)</script> \" onclick='alert(2)' <img src=x onerror=alert(3)> "
    "&lt; \u2028 <!-- {{ 2 }}"
)
PROMPTS = 30  # with two seeds each: 60 pairs, more than one page
OPTIMISED, HELD_OUT = ["clip"], ["held:out", "alignment"]
OWN = ("file:", "data:", "about:", "chrome:")  # the last are the browser's start page
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip


def table(folder: Path, shift: dict[str, float]) -> ScoresTable:
    """60 grey pictures of 8 px; scores with a spread of about 1 and noise that differs between
    folders.
    """
    rows = [
        {"prompt": HOSTILE if p == 3 else f"thing {p}", "seed": s, "style": f"<b>{p % 2}</b>"}
        for p in range(PROMPTS) for s in range(2)
    ]  # fmt: skip
    generator = torch.Generator().manual_seed(len(folder.name))
    media = torch.linspace(0, 1, len(rows)).view(-1, 1, 1, 1).expand(-1, 3, 8, 8)
    gallery = write_gallery(folder, media, rows)
    heads: dict[str, list[float | None]] = {}
    for k, (name, by) in enumerate(shift.items()):
        base = torch.randn(
            len(rows), generator=torch.Generator().manual_seed(k), dtype=torch.float64
        )
        noise = torch.randn(len(rows), generator=generator, dtype=torch.float64)
        heads[name] = (base + 0.3 * noise + by).tolist()
    provenance = {
        name: {"weights_sha256": "ab" * 32, "options": {"goal": ["</style>"]}} for name in heads
    }
    return ScoresTable(
        gallery.rows, heads, [None] * len(rows), provenance, {"torch": "2.0"}, str(folder)
    )


def again(row: Mapping[str, Any]) -> Again:
    """A command, but for the picture of seed 1 of the second prompt."""
    if (row["prompt"], row["seed"]) == ("thing 1", 1):
        return Again(note="No command is offered: <b>so</b>.")
    return Again(f"align-gen sample --prompt {row['prompt']!r} --seed {row['seed']}")


class Made:
    """A page, and what it was made from."""

    def __init__(self, folder: Path, held_out: float, **options: Any) -> None:
        self.before = table(
            folder / "before", {"measured": 0, "held:out": 0, "alignment": 0, "clip": 0}
        )
        self.after = table(
            folder / "after", {"measured": 0, "held:out": held_out, "alignment": 0, "clip": 1}
        )
        self.comparison = compare(self.before, self.after)
        broken = 7  # after the comparison's time: its picture is lost, its scores are not
        (folder / "after" / self.after.rows[broken]["file_name"]).write_bytes(b"not a picture")
        self.broken = broken
        self.path = build_report(
            before=self.before,
            after=self.after,
            out=folder / "page" / "report.html",
            title=f"A & B {HOSTILE}",
            comparison=self.comparison,
            optimised=OPTIMISED,
            held_out=HELD_OUT,
            metrics=[
                {"step": s, "reward/clip": s / 4, "loss": math.nan if s == 2 else 1 / s}
                for s in (1, 2, 3, 4)
            ],
            provenance={"recipe": f"model:\n  path: {HOSTILE}", "date": "2025-01-02"},
            command=again,
            **options,
        )

    def change(self, column: str) -> list[float]:
        pairs = zip(self.before.heads[column], self.after.heads[column], strict=True)
        return [b - a for a, b in pairs if a is not None and b is not None]


class Page:
    """A tab of the browser, and what it logged since the last look."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def open(self, path: Path, hash: str = "") -> None:
        self.driver.get("about:blank")  # else a change of hash alone would not load the file again
        self.driver.get(path.as_uri() + hash)

    def js(self, code: str, *arguments: Any) -> Any:
        return self.driver.execute_script(code, *arguments)

    def text(self, selector: str) -> str:
        found: str = self.js(
            "return document.querySelector(arguments[0]).innerText.trim()", selector
        )
        return found

    def click(self, selector: str) -> None:
        self.js("document.querySelector(arguments[0]).click()", selector)

    def press(self, *keys: str) -> None:
        """Real key presses, where the focus is, and what they set off: a dialog tells of its
        closing a task later.
        """
        from selenium.webdriver import ActionChains

        ActionChains(self.driver).send_keys(*keys).perform()
        self.driver.execute_async_script(
            "const done = arguments[0]; setTimeout(() => requestAnimationFrame(() => done()), 0)"
        )

    def ids(self) -> list[int]:
        """The rows of `after` shown, in order, every page of them."""
        found: list[int] = self.js(
            "const more = document.getElementById('more'); while (!more.hidden) more.click();"
            "return [...document.querySelectorAll('#grid .pair')].map(node => "
            "Number(node.dataset.id))"
        )
        return found

    def hash(self) -> str:
        found: str = self.js("return location.hash")
        return found

    def messages(self) -> list[str]:
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def requests(self) -> list[str]:
        events = [
            json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")
        ]
        return [
            e["params"]["request"]["url"]
            for e in events
            if e["method"] == "Network.requestWillBeSent"
        ]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    service = shutil.which("chromedriver")
    if not (browser and service and find_spec("selenium")):
        missing = (
            f"no browser to open the page in: want one of {', '.join(BROWSERS)}, "
            "chromedriver and selenium"
        )
        if os.environ.get("CI"):
            pytest.fail(missing)
        pytest.skip(missing)
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(service))
    driver.set_window_size(1280, 900)
    yield Page(driver)
    driver.quit()


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made(tmp_path_factory.mktemp("good"), held_out=0.5)


@pytest.fixture(scope="module")
def hacked(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made(tmp_path_factory.mktemp("hacked"), held_out=-0.5)


@pytest.fixture(autouse=True)
def nothing_in_the_logs(request: pytest.FixtureRequest) -> Iterator[None]:
    """After every test with a page: an empty console, so no violated policy either, and no request
    to a network.
    """
    yield
    if "page" in request.fixturenames and "makes_noise" not in request.node.name:
        page: Page = request.getfixturevalue("page")
        assert page.messages() == []
        assert [url for url in page.requests() if not url.startswith(OWN)] == []


# --- the guard itself -----------------------------------------------------------------------------


def test_a_tampered_page_makes_noise_in_the_logs(page: Page, good: Made, tmp_path: Path) -> None:
    """A script and a picture that are not ours: the policy stops both, and the logs say so."""
    foreign = (
        "<script>document.title = 'pwned'</script><img src='https://example.invalid/x.png'></body>"
    )
    tampered = tmp_path / "tampered.html"
    tampered.write_text(good.path.read_text("utf-8").replace("</body>", foreign), "utf-8")
    page.open(tampered)
    messages = " ".join(page.messages())
    assert "script-src" in messages and "img-src" in messages
    assert page.driver.title != "pwned"
    assert any(url == tampered.as_uri() for url in page.requests())


# --- the verdict ----------------------------------------------------------------------------------


def test_the_verdict_strip_says_the_comparisons_numbers(page: Page, good: Made) -> None:
    page.open(good.path)
    names = page.js(
        "return [...document.querySelectorAll('#verdict .tile')].map(node => node.dataset.column)"
    )
    assert names == ["clip", "held:out", "alignment", "measured"]
    for name in names:
        change = good.comparison.columns[name]
        at = f".tile[data-column='{name}']"
        delta = page.text(f"{at} .figure")
        digits = len(delta.partition(".")[2])
        assert digits >= 2
        assert float(delta.replace("−", "-")) == pytest.approx(change.delta, abs=0.51 * 10**-digits)
        low, high = (float(part.replace("−", "-")) for part in page.text(f"{at} .ci").split(" to "))
        assert (low, high) == pytest.approx((change.ci_low, change.ci_high), abs=0.51 * 10**-digits)
        assert page.text(f"{at} .win") == f"{100 * change.win_rate:.0f} %"
        assert (
            page.text(f"{at} .n")
            == f"{change.n} pairs, {change.prompts} prompts"
            == "60 pairs, 30 prompts"
        )


def test_a_rise_with_nothing_lost_is_good(page: Page, good: Made) -> None:
    page.open(good.path)
    assert page.text("#verdict h2") == "Improved"
    assert page.text("#verdict-reason").startswith(
        "The optimised clip and the held-out held:out rose"
    )
    assert page.js("return document.getElementById('verdict').className") == "good"


def test_reward_hacking_is_red_and_said_in_words(page: Page, hacked: Made) -> None:
    page.open(hacked.path)
    assert "Reward hacking suspected" in page.text("#verdict h2")
    assert (
        page.text("#verdict-reason") == "The optimised clip rose while the held-out held:out fell."
    )
    assert "fell" in page.text(".tile[data-column='held:out'] .direction")
    colour = page.js("return getComputedStyle(document.querySelector('#verdict h2')).color")
    red, green, blue = map(int, re.findall(r"\d+", colour)[:3])
    assert red > 2 * max(green, blue)


def test_the_words_for_the_other_verdicts(good: Made, hacked: Made) -> None:
    def said(comparison: Comparison, optimised: list[str], held_out: list[str]) -> tuple[str, str]:
        found = summary(comparison, optimised, held_out)
        return found.state, f"{found.verdict}: {found.reason}"

    assert said(hacked.comparison, [], ["held:out"]) == (
        "neutral",
        "Worse: The held-out held:out fell.",
    )
    assert said(good.comparison, ["clip"], []) == (
        "neutral",
        "Reward rose; nothing held out checks it: The optimised clip rose; no column is held out.",
    )
    assert said(good.comparison, ["clip"], ["alignment"]) == (
        "neutral",
        "Reward rose; not confirmed by a held-out reward: "
        "The optimised clip rose; no held-out column rose clearly.",
    )
    assert said(good.comparison, [], ["held:out"]) == (
        "good",
        "Improved: The held-out held:out rose; nothing optimised or held out fell.",
    )
    same = compare(good.before, good.before)
    assert said(same, ["clip"], ["alignment"]) == (
        "neutral",
        "No clear change: Every interval includes zero.",
    )
    assert said(hacked.comparison, [], [])[1].startswith("No verdict: Clip rose; held:out fell.")
    unsure = replace(good.comparison.columns["clip"], p=0.06)
    columns = good.comparison.columns | {"clip": unsure}
    assert said(replace(good.comparison, columns=columns), ["clip"], ["alignment"]) == (
        "neutral",
        "No clear change: Interval and p of the optimised clip disagree.",
    )


def test_few_prompts_are_said_to_be_few(good: Made, hacked: Made) -> None:
    """The first pictures of nine prompts and of one; only a warning is given all the same."""

    def first(made: Made, count: int) -> Comparison:
        return compare(*(cut(side, count) for side in (made.before, made.after)))

    def cut(side: ScoresTable, count: int) -> ScoresTable:
        heads = {name: values[:count] for name, values in side.heads.items()}
        return ScoresTable(side.rows[:count], heads, [None] * count, {}, {})

    for count, prompts in ((18, 9), (1, 1)):
        found = summary(first(good, count), OPTIMISED, HELD_OUT)
        said = {tile.direction for tile in tiles(first(good, count), OPTIMISED, HELD_OUT)}
        assert said == {"too few prompts"}
        assert found.state == "neutral"
        assert found.verdict == f"Too few prompts to say ({prompts} of at least 10)"
    assert summary(first(good, 20), OPTIMISED, HELD_OUT).verdict == "Improved"
    found = summary(first(hacked, 18), OPTIMISED, HELD_OUT)
    assert (found.state, found.verdict) == ("bad", "Reward hacking suspected")
    assert found.reason.endswith("Only 9 prompts were measured.")
    with pytest.raises(UserError, match="hps"):
        summary(good.comparison, ["hps"], [])


def test_a_verdict_that_is_not_confirmed_is_grey(page: Page, good: Made, tmp_path: Path) -> None:
    """Neither green nor red, in the heading; its tile says the same of its column."""
    options: dict[str, Any] = {"before": good.before, "after": good.after, "title": "t"}
    for held_out in ([], ["alignment"]):
        made = build_report(
            **options, out=tmp_path / "r.html", comparison=good.comparison, optimised=["clip"],
            held_out=held_out,
        )  # fmt: skip
        page.open(made)
        assert page.text("#verdict h2").startswith("Reward rose; no")
        colour = page.js("return getComputedStyle(document.querySelector('#verdict h2')).color")
        red, green, blue = map(int, re.findall(r"\d+", colour)[:3])
        assert max(red, green, blue) - min(red, green, blue) < 30


def test_a_command_that_is_not_offered_says_why(page: Page, good: Made) -> None:
    row = next(
        number for number, each in enumerate(good.after.rows)
        if (each["prompt"], each["seed"]) == ("thing 1", 1)
    )  # fmt: skip
    page.open(good.path, f"#card={row}")
    assert page.text("#card .command .note") == "No command is offered: <b>so</b>."
    assert page.js("return document.querySelector('#copy, pre#command')") is None


# --- orders, filters, views -----------------------------------------------------------------------


def test_the_first_order_is_random_the_same_each_time_and_says_n_of_n(
    page: Page, good: Made, tmp_path: Path
) -> None:
    page.open(good.path)
    assert page.text("#status") == "Showing 48 of 60 pairs, order: random"
    assert page.text(".pair .place") == "1 of 60"
    assert page.text("#more") == "Show 12 more of 12"
    first = page.ids()
    assert page.text("#status") == "Showing 60 of 60 pairs, order: random"
    assert sorted(first) == list(range(60)) != first
    again = build_report(
        before=good.before, after=good.after, out=tmp_path / "again.html", title="again",
        comparison=good.comparison, optimised=OPTIMISED, held_out=HELD_OUT,
    )  # fmt: skip
    page.open(again)
    assert page.ids() == first


def test_orders_sort_as_python_does(page: Page, good: Made) -> None:
    page.open(good.path)
    for column in ("clip", "alignment"):
        change = good.change(column)
        page.open(good.path, f"#order=gain&column={column}")
        assert page.ids() == sorted(range(60), key=lambda j: -change[j])
        page.open(good.path, f"#order=loss&column={column}")
        assert page.ids() == sorted(range(60), key=lambda j: change[j])


def test_disagreement_is_the_optimised_rise_above_the_held_out_in_standard_deviations(
    page: Page, good: Made
) -> None:
    """(Δclip / std) - (Δheld:out / std + Δalignment / std) / 2, with the std of before over
    pictures.
    """
    units = {name: good.comparison.columns[name].std for name in OPTIMISED + HELD_OUT}
    clip, held, alignment = (
        [d / units[name] for d in good.change(name)] for name in OPTIMISED + HELD_OUT
    )
    expected = [c - (h + a) / 2 for c, h, a in zip(clip, held, alignment, strict=True)]
    page.open(good.path, "#order=disagreement")
    assert page.ids() == sorted(range(60), key=lambda j: -expected[j])


def test_a_bar_shows_exactly_the_pairs_whose_value_lies_in_it(page: Page, good: Made) -> None:
    page.open(good.path)
    bars = page.js("""
        const all = (selector) => [...document.querySelectorAll(selector)];
        return all("button.bar").map((bar) => {
            bar.click();
            return [
                bar.dataset.filter, bar.dataset.low, bar.dataset.high,
                document.getElementById("filter-text").innerText,
                all("#grid .pair").map((node) => Number(node.dataset.id)),
                all(".bar[aria-pressed=true]").length,
            ];
        });""")
    assert len(bars) > 4 * 2 * 3  # columns, sides, and several bars in each
    covered: dict[tuple[str, str], list[int]] = {}
    for filter, low, high, text, ids, pressed in bars:
        side, _, column = filter.split(":", 2)
        values = {"before": good.before, "after": good.after}[side].heads[column]
        inside = [
            j
            for j, value in enumerate(values)
            if value is not None and float(low) <= value < float(high)
        ]
        covered.setdefault((side, column), []).extend(inside)
        assert sorted(ids) == inside and len(ids) < 48  # all of them on the first page
        assert text.endswith(f", {len(inside)} of 60 pairs")
        assert pressed == 1
    assert all(sorted(found) == list(range(60)) for found in covered.values()) and len(covered) == 8
    page.click(f"button.bar[data-filter='{bars[-1][0]}']")  # again: clears
    assert len(page.ids()) == 60
    assert page.js("return document.getElementById('filter').hidden")


def test_views_show_one_two_or_alternate(page: Page, good: Made) -> None:
    def box(side: str) -> dict[str, Any]:
        found: dict[str, Any] = page.js(
            f"const node = document.querySelector('.picture.{side}'); "
            "const style = getComputedStyle(node);"
            "return {left: node.getBoundingClientRect().left, visible: style.visibility, "
            "clip: style.clipPath}"
        )
        return found

    page.open(good.path)
    assert box("before")["left"] == box("after")["left"] and "50%" in box("after")["clip"]
    page.js(
        "const s = document.getElementById('split'); s.value = 20; "
        "s.dispatchEvent(new Event('input'))"
    )
    assert "20%" in box("after")["clip"]
    page.click("button[data-view=side]")
    assert box("before")["left"] < box("after")["left"] and box("after")["clip"] == "none"
    page.click("button[data-view=blink]")
    page.click("#pause")
    assert "Play" in page.text("#pause")
    assert {box("before")["visible"], box("after")["visible"]} == {"visible", "hidden"}
    was = box("after")["visible"]
    page.click("#flip")
    assert box("after")["visible"] != was


def test_nothing_blinks_by_itself_where_less_motion_is_preferred(page: Page, good: Made) -> None:
    """Both clocks are the page's own: setInterval is replaced before it loads, and its function
    called by hand.
    """
    spy = "window.ticks = []; window.setInterval = (tick) => window.ticks.push(tick);"
    script = page.driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": spy})[
        "identifier"
    ]
    moved = {}
    for value in ("reduce", "no-preference"):
        features = [{"name": "prefers-reduced-motion", "value": value}]
        page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        page.open(good.path, "#view=blink")
        phase = "return document.documentElement.dataset.phase"
        was = page.js(phase)
        page.js("window.ticks.forEach(tick => tick())")
        moved[value] = page.js(phase) != was
    page.driver.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", {"identifier": script})
    page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    assert moved == {"reduce": False, "no-preference": True}


# --- the card, the hash, the keyboard -------------------------------------------------------------


def test_the_card_tells_all_of_a_picture(page: Page, good: Made) -> None:
    page.open(good.path)
    page.ids()
    page.click(".pair[data-id='11']")
    card = page.text("#card")
    row = good.after.rows[11]
    assert page.text("#card-title") == row["prompt"] == "thing 5"
    assert "seed\n1" in card and "style\n<b>1</b>" in card and "00011.png" in card
    assert page.text("#command") == f"align-gen sample --prompt {row['prompt']!r} --seed 1"
    cells = page.js(
        "return [...document.querySelectorAll('#card tbody td')].map(node => node.textContent)"
    )
    for k, name in enumerate(["clip", "held:out", "alignment", "measured"]):
        before, after = good.before.heads[name][11], good.after.heads[name][11]
        assert before is not None and after is not None
        shown = [float(text.replace("−", "-").strip("▲▼ ")) for text in cells[3 * k : 3 * k + 3]]
        assert shown == pytest.approx([before, after, after - before], abs=0.006)
    copied = page.js("""
        const button = document.getElementById("copy");
        const changed = new Promise((done) =>
            new MutationObserver(done).observe(button, { childList: true }));
        button.click();
        return changed.then(() => button.textContent);""")
    assert copied in (
        "Copied",
        "Selected",
    )  # Selected: where the browser refuses, the text is ready to be copied


def test_the_hash_restores_the_state_on_load_and_when_it_changes(page: Page, good: Made) -> None:
    page.open(good.path)
    filter = page.js(
        "return [...document.querySelectorAll('[data-filter$=\"held:out\"]')].pop().dataset.filter"
    )
    hash = f"#order=loss&column={quote('held:out')}&view=side&filter={quote(filter)}&card=4"

    def shown() -> list[Any]:
        found: list[Any] = page.js(
            "return [document.getElementById('order').value, "
            "document.getElementById('column').selectedOptions[0].text,"
            "document.documentElement.dataset.show, "
            "document.querySelector('.bar[aria-pressed=true]')?.dataset.filter,"
            "document.getElementById('card').open]"
        )
        return found

    start = ["random", "clip", "slider", None, False]
    assert shown() == start
    page.js(
        "location.hash = arguments[0]; "
        "return new Promise((done) => addEventListener('hashchange', () => done()))",
        hash,
    )
    assert shown() == ["loss", "held:out", "side", filter, True]
    page.open(good.path, hash)
    assert shown() == ["loss", "held:out", "side", filter, True]
    page.open(good.path, "#order=sideways&column=nosuch&view=&filter=after:999:clip&card=-1&%E0%A4")
    assert shown() == start


def test_what_is_clicked_is_in_the_hash(page: Page, good: Made) -> None:
    page.open(good.path)
    page.click("button[data-view=blink]")
    page.js(
        "const s = document.getElementById('order'); s.value = 'gain'; "
        "s.dispatchEvent(new Event('change'))"
    )
    assert page.hash() == "#order=gain&view=blink"
    page.click(".pair")
    best = max(range(60), key=good.change("clip").__getitem__)
    assert page.hash() == f"#order=gain&view=blink&card={best}"
    page.driver.back()  # as a reader expects of what looks like a new page
    assert page.hash() == "#order=gain&view=blink"
    assert not page.js("return document.getElementById('card').open")


def test_the_keyboard_does_it_all(page: Page, good: Made) -> None:
    from selenium.webdriver.common.keys import Keys

    def at() -> int:
        return int(page.js("return Number(document.activeElement.dataset.id)"))

    page.open(good.path)
    ids = page.js(
        "return [...document.querySelectorAll('#grid .pair')].map(node => Number(node.dataset.id))"
    )
    page.press(Keys.ARROW_RIGHT)
    assert at() == ids[0]
    page.press(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, Keys.ARROW_LEFT)
    assert at() == ids[1]
    columns = page.js(
        "const tops = [...document.querySelectorAll('#grid .pair')].map(n => "
        "n.getBoundingClientRect().top);"
        "return tops.filter(top => top === tops[0]).length"
    )
    page.press(Keys.ARROW_DOWN)
    assert columns > 1 and at() == ids[1 + columns]
    page.press(Keys.ARROW_UP)
    assert at() == ids[1]
    page.press(Keys.ENTER)
    assert (
        page.js("return document.getElementById('card').open") and page.hash() == f"#card={ids[1]}"
    )
    page.press(Keys.ARROW_RIGHT)
    assert page.hash() == f"#card={ids[2]}"
    page.press(Keys.ESCAPE)
    assert not page.js("return document.getElementById('card').open") and page.hash() == ""
    assert at() == ids[2]
    for key, view in (("2", "side"), ("3", "blink"), ("1", "slider")):
        page.press(key)
        assert page.js("return document.documentElement.dataset.show") == view
    seen = []
    for _ in range(4):
        page.press("o")
        seen.append(page.js("return document.getElementById('order').value"))
    assert seen == ["gain", "loss", "disagreement", "random"]
    page.press("?")
    assert page.js("return document.getElementById('keys').open") and "next order" in page.text(
        "#keys"
    )
    page.press(Keys.ESCAPE)
    page.js(
        "document.querySelector('button.bar').focus()"
    )  # arrows move among bars there, Enter filters
    page.press(Keys.ARROW_RIGHT, Keys.ENTER)
    pressed = page.js(
        "return [...document.querySelectorAll('button.bar')].findIndex(b => b.ariaPressed "
        "=== 'true')"
    )
    assert pressed == 1
    page.press("c")
    assert page.js("return document.getElementById('filter').hidden")


# --- what must not happen -------------------------------------------------------------------------


def test_a_hostile_prompt_is_shown_as_text_and_does_nothing(page: Page, good: Made) -> None:
    page.open(good.path)
    page.ids()
    page.click(".pair[data-id='6']")
    text = page.js("return document.getElementById('card-title').textContent")
    assert text == HOSTILE == good.after.rows[6]["prompt"]
    for selector, attribute in (("#card img", "alt"), (".pair[data-id='6']", "aria-label")):
        assert HOSTILE in page.js(
            f"return document.querySelector(\"{selector}\").getAttribute('{attribute}')"
        )
    assert HOSTILE in page.js("return document.querySelector('footer').textContent")
    assert HOSTILE in page.js("return document.querySelector('h1').textContent")
    found = page.js("""
        const all = (selector) => [...document.querySelectorAll(selector)];
        const handlers = all("*").filter((node) =>
            node.getAttributeNames().some((name) => name.startsWith("on")));
        return [all("script").length, all("style").length, all("img[src=x], footer img").length,
            handlers.length];""")
    assert found == [2, 1, 0, 0]  # the data, the program and our style; nothing of the prompt's


def test_json_in_the_page_is_inert_and_unchanged() -> None:
    data = {"text": HOSTILE + "\u2029\ud800", "numbers": [1.5, math.nan, -math.inf]}
    block = inert_json(data)
    assert block.isascii() and not set("<>&") & set(block)
    assert json.loads(block) == {"text": data["text"], "numbers": [1.5, None, None]}


def test_the_policy_is_strict_and_names_the_blocks_by_hash(good: Made) -> None:
    page = good.path.read_text("utf-8")
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)
    assert policy
    rules = dict(rule.strip().split(" ", 1) for rule in policy[1].replace("&#39;", "'").split(";"))
    assert rules["default-src"] == "'none'" and rules["img-src"] == "data:"
    assert re.fullmatch(r"'sha256-[\w+/]{43}='", rules["script-src"])
    assert re.fullmatch(r"'sha256-[\w+/]{43}='", rules["style-src"])
    assert "unsafe" not in policy[1]
    assert page.index("Content-Security-Policy") < page.index("<style>") < page.index("<script")
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", page)


# --- pictures, one gallery, curves, layout, the file ----------------------------------------------


def test_an_unreadable_picture_is_a_placeholder_with_the_reason(page: Page, good: Made) -> None:
    page.open(good.path, f"#card={good.broken}")
    assert "not a PNG, JPEG or WebP picture" in page.text("#card .picture.after")
    assert (
        page.js("return document.querySelector('#card .picture.before img').naturalWidth") == 8
    )  # native size
    page.ids()
    assert page.js("return document.querySelectorAll('#grid .missing').length") == 1


def test_large_pictures_are_reduced_small_ones_kept_to_the_pixel(
    page: Page, tmp_path: Path
) -> None:
    Image.new("RGB", (300, 150), "red").save(tmp_path / "a.png")
    Image.new("RGB", (128, 40), "blue").save(tmp_path / "b.png")
    one = ScoresTable(
        [{"file_name": name} for name in ("a.png", "b.png", "c.png")],
        {"score": [1.0, 2.0, None]},
        [None] * 3,
        {},
        {},
        str(tmp_path),
    )
    made = build_report(
        before=None,
        after=one,
        out=tmp_path / "r.html",
        title="t",
        comparison=None,
        optimised=[],
        held_out=[],
    )
    page.open(made)
    sizes = page.js(
        "const pictures = [...document.querySelectorAll('.pair img')];"
        "return Promise.all(pictures.map(p => p.decode().then(() => [p.naturalWidth, "
        "p.naturalHeight])))"
    )
    assert sorted(sizes) == [[128, 40], [128, 64]]
    assert "c.png is not in the gallery" in page.text("#grid .missing")


def test_videos_move(page: Page, tmp_path: Path) -> None:
    """Three frames of growing grey, shown as a picture that a browser plays: WebP of three
    frames.
    """
    video = (torch.arange(3.0) / 4).view(1, 3, 1, 1, 1).expand(-1, -1, 3, 16, 32)
    gallery = write_gallery(tmp_path / "g", video, [{"prompt": "a"}])
    scores = ScoresTable(gallery.rows, {"score": [1.0]}, [None], {}, {}, str(tmp_path / "g"))
    made = build_report(
        before=None,
        after=scores,
        out=tmp_path / "r.html",
        title="t",
        comparison=None,
        optimised=[],
        held_out=[],
    )
    page.open(made)
    size = (
        "const p = document.querySelector('.pair img'); "
        "return p.decode().then(() => [p.naturalWidth, p.naturalHeight])"
    )
    assert page.js(size) == [32, 16]
    source = page.js("return document.querySelector('.pair img').src")
    moving = Image.open(
        io.BytesIO(base64.b64decode(source.removeprefix("data:image/webp;base64,")))
    )
    assert getattr(moving, "n_frames", 1) == 3


def test_one_gallery_has_cards_and_bars_and_no_pairs(
    page: Page, good: Made, tmp_path: Path
) -> None:
    made = build_report(
        before=None,
        after=good.after,
        out=tmp_path / "r.html",
        title="t",
        comparison=None,
        optimised=[],
        held_out=[],
    )
    page.open(made, "#order=high&column=clip")
    clip = [value or 0.0 for value in good.after.heads["clip"]]
    assert page.ids() == sorted(range(60), key=lambda j: -clip[j])
    assert (
        page.js("return document.querySelector('#verdict, .segments, .picture.before, #run')")
        is None
    )
    page.click("button.bar")
    assert "pictures" in page.text("#filter-text") and 0 < len(page.ids()) < 60
    page.click(".pair")
    assert page.js("return document.querySelectorAll('#card tbody td').length") == 4
    page.press("1", "2", "o")
    assert page.js("return document.documentElement.dataset.show") == "single"


def test_one_gallery_shows_the_mean_of_each_column(page: Page, tmp_path: Path) -> None:
    """1, 2 and 6, one of four unread: mean 3, deviation the root of 14 / 2, 2.65 of hundredths."""
    rows = [{"file_name": f"{n}.png"} for n in range(4)]
    errors = [None, None, None, "gone"]
    one = ScoresTable(rows, {"score": [1.0, 2.0, 6.0, None]}, errors, {}, {}, str(tmp_path))
    made = build_report(
        before=None, after=one, out=tmp_path / "r.html", title="t", comparison=None, optimised=[],
        held_out=[],
    )  # fmt: skip
    page.open(made)
    assert page.text("#means h3") == "score" and page.text("#means .figure") == "3.00"
    assert page.text("#means dl").split("\n") == ["std", "2.65", "n", "3 of 4 pictures"]


def test_two_galleries_go_by_their_own_names(page: Page, good: Made, tmp_path: Path) -> None:
    """On the pictures, bars, card and in the notes; and nowhere as before and after."""
    names = ("base <b>", "tuned")
    made = build_report(
        before=good.before,
        after=good.after,
        out=tmp_path / "r.html",
        title="t",
        comparison=good.comparison,
        optimised=[],
        held_out=[],
        names=names,
    )
    page.open(made, "#view=side&card=6")
    sides = page.js("return [...document.querySelectorAll('#card .side')].map(n => n.innerText)")
    heads = page.js("return [...document.querySelectorAll('#card thead th')].map(n => n.innerText)")
    assert sides == list(names) and heads == ["", *names, "change"]
    bars = page.js("return [...document.querySelectorAll('.bars .side')].map(n => n.innerText)")
    assert bars[:2] == list(names)
    assert page.text("#pictures-title") == "base <b> and tuned"
    assert "mean change from base <b> to tuned" in page.text("#verdict .note")
    page.open(made)
    page.click(".bars.before button.bar")
    assert " base <b> from " in page.text("#filter-text")
    shown = page.js("return document.body.innerText")
    assert not re.search(r"\b(before|after)\b", shown, re.IGNORECASE)


def test_pairs_are_those_of_the_comparison(page: Page, tmp_path: Path) -> None:
    """Pictures without prompts, paired on their names, in another order on the other side."""
    columns = {"before": ["a", "b", "c"], "after": ["c", "b", "x"]}
    sides: dict[str, Any] = {}
    for name, letters in columns.items():
        rows = [{"file_name": f"{letter}.png"} for letter in letters]
        heads: dict[str, list[float | None]] = {"score": [float(ord(each)) for each in letters]}
        sides[name] = ScoresTable(rows, heads, [None] * 3, {}, {}, str(tmp_path))
    comparison = compare(sides["before"], sides["after"], on=["file_name"])
    made = build_report(
        **sides,
        out=tmp_path / "r.html",
        title="t",
        comparison=comparison,
        optimised=[],
        held_out=[],
    )
    page.open(made)
    assert sorted(page.ids()) == [0, 1]
    files = page.js("return DATA.items.map(item => [item.before.file, item.after.file])")
    assert sorted(files) == [["b.png", "b.png"], ["c.png", "c.png"]]
    with pytest.raises(ValueError, match="want a comparison beside before"):
        build_report(
            **sides, out=tmp_path / "q.html", title="t", comparison=None, optimised=[], held_out=[]
        )


def test_the_least_sure_pictures_come_first_where_that_is_known(
    page: Page, good: Made, tmp_path: Path
) -> None:
    """Uncertainties fall and rise along the rows; the one that is not known is last. Without any,
    no such order.
    """
    unsure: list[float | None] = [abs(30.5 - row) for row in range(60)]
    unsure[0] = None
    table = replace(good.after, extra={"uncertainty": unsure})
    options: dict[str, Any] = {
        "before": None,
        "title": "t",
        "comparison": None,
        "optimised": [],
        "held_out": [],
    }
    page.open(build_report(after=table, out=tmp_path / "r.html", **options), "#order=unsure")
    known = [value for value in unsure if value is not None]
    found = page.ids()
    assert [unsure[row] for row in found] == [*sorted(known, reverse=True), None]
    page.click(".pair")
    assert "uncertainty" in page.text("#card") and "± 29.5" in page.text("#card")
    page.open(build_report(after=good.after, out=tmp_path / "q.html", **options))
    assert page.js("return document.querySelector('option[value=unsure]')") is None


def test_a_reward_of_negative_weight_rises_by_falling(good: Made) -> None:
    """clip rose by 1: as what was to be lowered, −clip fell by it, and the verdict is what it was
    for a fall.
    """
    turned = towards(good.comparison, ["clip"])
    was, now = good.comparison.columns["clip"], turned.columns["−clip"]
    assert (now.delta, now.ci_low, now.ci_high) == (-was.delta, -was.ci_high, -was.ci_low)
    assert now.win_rate == 1 - was.win_rate and (now.before, now.after) == (-was.before, -was.after)
    said = summary(turned, ["−clip"], HELD_OUT)
    assert said.verdict == "Worse" and "the optimised −clip fell" in said.reason
    again = summary(towards(turned, ["−clip"]), ["−−clip"], HELD_OUT)
    assert again.verdict == summary(good.comparison, ["clip"], HELD_OUT).verdict


def test_a_gallery_that_is_gone_or_empty_of_scores_is_shown_without_pictures(
    page: Page, tmp_path: Path
) -> None:
    lost = ScoresTable(
        [{"file_name": "a.png"}],
        {"score": [None]},
        ["no such file"],
        {},
        {},
        str(tmp_path / "gone"),
    )
    made = build_report(
        before=lost,
        after=lost,
        out=tmp_path / "r.html",
        title="t",
        comparison=Comparison({}, {}, {}, (1, 1), ((0, 0),)),
        optimised=[],
        held_out=[],
    )
    page.open(made)
    assert "no such folder" in page.text("#grid .missing")
    assert page.js("return document.querySelectorAll('button.bar').length") == 0


def test_more_pairs_than_the_limit_are_a_random_choice_that_is_said(
    page: Page, good: Made, tmp_path: Path
) -> None:
    made = build_report(
        before=good.before,
        after=good.after,
        out=tmp_path / "r.html",
        title="t",
        comparison=good.comparison,
        optimised=OPTIMISED,
        held_out=HELD_OUT,
        limit=10,
    )
    page.open(made)
    assert page.text("#status") == "Showing 10 of 10 pairs, order: random; drawn at random from 60"
    assert page.text(".tile .n") == "60 pairs, 30 prompts"


def test_curves_start_and_end_with_the_galleries_and_skip_what_is_no_number(
    page: Page, good: Made
) -> None:
    page.open(good.path)
    label = (
        "return document.querySelector(`[data-name='${arguments[0]}'] "
        "svg`).getAttribute('aria-label')"
    )
    assert (
        page.js(label, "reward/clip")
        == "reward/clip: 0.25 at step 1, 1 at step 4, between 0.25 and 1"
    )
    ends = [good.comparison.columns["clip"].before, good.comparison.columns["clip"].after]
    shown = re.findall(r"([−\d.e]+) at step (\d)", page.js(label, "eval/clip/mean"))
    assert [float(value.replace("−", "-")) for value, _ in shown] == pytest.approx(ends, rel=0.01)
    assert [step for _, step in shown] == ["0", "4"]
    points = page.js(
        "return document.querySelector('[data-name=loss] polyline').getAttribute('points')"
    )
    assert len(points.split()) == 3  # of four steps, one is NaN


@pytest.mark.parametrize("width", [1280, 400])
def test_nothing_is_wider_than_the_window(page: Page, good: Made, width: int) -> None:
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    page.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        for hash in ("", "#view=side", "#card=6", "#view=side&card=6"):
            page.open(good.path, hash)
            page.js("document.querySelectorAll('details').forEach(node => { node.open = true; })")
            wide, inside = page.js("return [document.documentElement.scrollWidth, innerWidth]")
            assert wide <= inside == width
            over = page.js(
                "const c = document.getElementById('card'); return c.scrollWidth - c.clientWidth"
            )
            assert over <= 0
    finally:
        page.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_the_file_appears_whole_or_not_at_all(good: Made, tmp_path: Path) -> None:
    assert [path.name for path in good.path.parent.iterdir()] == ["report.html"]
    (tmp_path / "taken").mkdir()
    with pytest.raises(UserError, match="taken"):
        build_report(
            before=None,
            after=good.after,
            out=tmp_path / "taken",
            title="t",
            comparison=None,
            optimised=[],
            held_out=[],
        )
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_numbers_and_facts_as_they_are_printed() -> None:
    """A hundredth of a spread of 0.02 is 0.0002: four decimals. Zero has no sign, also when
    rounding made it.
    """
    assert (
        digits_of([0.60, 0.62, 0.64]) == 4
        and digits_of([1000.0, 1400.0]) == 0
        and digits_of([]) == 2
    )
    assert [number(v, 2, signed=True) for v in (-0.126, 0.004, -0.004, math.nan)] == [
        "−0.13",
        "0.00",
        "0.00",
        "–",
    ]
    provenance = {"a": {"b": {"c": [1]}, "d": "x"}, "t": "1\n2", "e": {}}
    found = {fact.name: (fact.kind, fact.content) for fact in facts(provenance)}
    assert found == {"a": ("rows", [("b.c", "[1]"), ("d", "x")]), "t": ("long", "1\n2")}


def test_only_a_report_is_written_over(good: Made, tmp_path: Path) -> None:
    """One of ours, under any name that ends so; neither another page nor another kind of file."""
    require_page(tmp_path / "new.html")
    shutil.copy(good.path, tmp_path / "old.htm")
    require_page(tmp_path / "old.htm")
    (tmp_path / "thesis.html").write_text("<!doctype html><p>mine")
    with pytest.raises(UserError, match=r"thesis\.html: is no report of ours"):
        require_page(tmp_path / "thesis.html")
    with pytest.raises(UserError, match=r"b\.png: want a name that ends in \.html or \.htm"):
        require_page(tmp_path / "b.png")
