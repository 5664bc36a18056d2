"""Prompt lists: what is read, and each mistake with its file and line."""

import os
from pathlib import Path
from typing import Any

import pytest

from align_gen import bundled
from align_gen.errors import UserError
from align_gen.galleries.prompts import check_row, load_prompts, require_disjoint

PAIRS = [("emoji-train", "emoji-heldout"), ("animals-train", "animals-heldout")]


def test_text_lists_in_file_order_without_duplicates(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("a dog\n\n  a cat \na dog\nän Ässchen\n", encoding="utf-8")
    assert load_prompts(tmp_path / "list.txt") == [
        {"prompt": p} for p in ("a dog", "a cat", "än Ässchen")
    ]


def test_windows_text(tmp_path: Path) -> None:
    """Line ends of two characters, and the mark that Notepad puts in front, belong to no prompt."""
    (tmp_path / "list.txt").write_bytes("\ufeffa dog\r\na cat\r\n".encode())
    assert [row["prompt"] for row in load_prompts(tmp_path / "list.txt")] == ["a dog", "a cat"]


def test_json_lines_keep_their_columns(tmp_path: Path) -> None:
    (tmp_path / "list.jsonl").write_text(
        '{"prompt": "a dog", "group": "animals"}\n\n{"prompt": "a\u2028b"}\n', "utf-8"
    )
    assert load_prompts(tmp_path / "list.jsonl") == [
        {"prompt": "a dog", "group": "animals"},
        {"prompt": "a\u2028b"},
    ]


@pytest.mark.parametrize(("train", "held_out"), PAIRS)
def test_bundled_lists_load_and_do_not_overlap(train: str, held_out: str) -> None:
    assert {train, held_out} <= set(bundled.prompts())
    rows = load_prompts(train), load_prompts(held_out)
    assert min(map(len, rows)) >= 16
    require_disjoint(*rows)
    with pytest.raises(UserError, match="overlap"):
        require_disjoint(*rows[:1], rows[0][:1])


def test_the_demo_measures_at_least_64_prompts() -> None:
    assert len(load_prompts("emoji-heldout")) >= 64


def test_overlap_is_seen_through_case_and_spaces() -> None:
    with pytest.raises(
        UserError,
        match=r"prompts\.train and prompts\.eval overlap in 1 prompts, the first: 'a red dog'",
    ):
        require_disjoint([{"prompt": "A  red dog"}, {"prompt": "x"}], [{"prompt": "a Red dog "}])


@pytest.mark.parametrize(
    ("name", "content", "pattern"),
    [
        ("empty.txt", b"", r"empty\.txt: no prompts"),
        ("blank.txt", b"\n  \n", r"blank\.txt: no prompts"),
        ("empty.jsonl", b"\n", r"empty\.jsonl: no prompts"),
        ("torn.jsonl", b'{"prompt": "a"}\n{"prompt": ', r"torn\.jsonl line 2: not JSON"),
        ("list.jsonl", b'["a"]', r'list\.jsonl line 1: want an object with a "prompt"'),
        ("number.jsonl", b'{"prompt": 3}', r"number\.jsonl line 1"),
        ("none.jsonl", b'{"text": "a"}', r"none\.jsonl line 1"),
        ("blank.jsonl", b'{"prompt": " "}', r"blank\.jsonl line 1"),
        ("picture.txt", b"\x89PNG\r\n\x1a\n\xff\xfe\x00", r"picture\.txt"),
        ("deep.jsonl", b"[" * 100_000, r"deep\.jsonl line 1: not JSON"),
        ("half.jsonl", b'{"prompt": "a", "note": "\\ud800"}', r"line 1: column 'note' cannot be"),
        ("half.jsonl", b'{"prompt": "\\ud800"}', r"line 1: column 'prompt' cannot be"),
        ("half.jsonl", b'{"prompt": "a", "\\udfff": 1}', r"line 1: column '\\udfff' cannot be"),
        (
            "kept.jsonl",
            b'{"prompt": "a", "error": "x"}',
            r"line 1: column 'error': the name",
        ),
        ("kept.jsonl", b'{"prompt": "a", "sha256": "x"}', r"column 'sha256': the name is kept"),
        ("kept.jsonl", b'{"prompt": "a", "combined": 1}', r"column 'combined': the name is kept"),
        ("kept.csv", b"prompt,uncertainty\na,1\n", r"line 2: column 'uncertainty': the name is"),
        ("seed.jsonl", b'{"prompt": "a", "seed": 18446744073709551616}', r"line 1: seed: want"),
        ("seed.csv", b"prompt,seed\na,-1\n", r"line 2: seed: want a whole number"),
        ("list.json", b'["a cat", "a dog"]', r"list\.json: want \.jsonl"),
        ("list.json", b"", r"list\.json: want \.jsonl"),
        (
            "list.yaml",
            b"- a cat\n",
            r"list\.yaml: want .* as \.txt, \.jsonl or \.csv",
        ),
        ("list", b"a cat\n", r"list: want a list of prompts as"),
        (
            "table.csv",
            b"words,group\na cat,pets\n",
            r"'prompt' or 'text'; it has words, group",
        ),
        ("table.csv", b"prompt\na cat, a dog\n", r"line 2: has 2 cells, want 1"),
        ("table.csv", b"", r"want a column"),
        ("table.csv", b"prompt\n", r"no prompts in it"),
        ("table.csv", b"prompt,group\n,pets\n", r"table\.csv line 2: want"),
        ("table.csv", b"prompt\n\xff\n", r"not UTF-8"),
        ("comments.txt", b"# a list\n#\n", r"no prompts in it"),
    ],
)
def test_a_mistake_names_file_and_line(
    tmp_path: Path, name: str, content: bytes, pattern: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=pattern) as error:
        load_prompts(tmp_path / name)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("source", ["nowhere.txt", "emoji-trian", "", "/"])
def test_no_such_list_names_what_exists(source: str) -> None:
    with pytest.raises(UserError, match=r"no such file.*'emoji-train'"):
        load_prompts(source)


def test_a_table_has_its_prompts_in_a_column(tmp_path: Path) -> None:
    """Of a spreadsheet: a mark in front, line ends of two characters, commas in quotes."""
    table = 'group,prompt,seed\r\npets,"a cat, ""big""",3\r\npets,"two\nlines",\r\n\r\n'
    (tmp_path / "list.csv").write_bytes(b"\xef\xbb\xbf" + table.encode())
    assert load_prompts(tmp_path / "list.csv") == [
        {"prompt": 'a cat, "big"', "group": "pets", "seed": 3},
        {"prompt": "two\nlines", "group": "pets"},
    ]
    (tmp_path / "text.CSV").write_text("text\na cat\na cat\na dog\n")
    assert load_prompts(tmp_path / "text.CSV") == [{"prompt": "a cat"}, {"prompt": "a dog"}]


def test_comments_of_a_text_are_no_prompts(tmp_path: Path) -> None:
    """A heading has a space after its mark; what is written #1 is a prompt."""
    (tmp_path / "list.txt").write_text("# pets\na cat\n  # more\n#1 dad mug\na # sign\n#\n")
    rows = load_prompts(tmp_path / "list.txt")
    assert [row["prompt"] for row in rows] == ["a cat", "#1 dad mug", "a # sign"]


def test_only_a_regular_file_is_a_list(tmp_path: Path) -> None:
    """The environment is none, under its own name or as a link; a pipe would never end."""
    with pytest.raises(UserError, match="want a list of prompts as"):
        load_prompts("/proc/self/environ")
    for suffix in ("txt", "jsonl", "csv"):
        (tmp_path / f"link.{suffix}").symlink_to("/proc/self/environ")
        with pytest.raises(UserError, match=r"no prompts in it|want a column"):
            load_prompts(tmp_path / f"link.{suffix}")
        os.mkfifo(tmp_path / f"pipe.{suffix}")
        with pytest.raises(UserError, match="is a device or a pipe"):
            load_prompts(tmp_path / f"pipe.{suffix}")
        os.truncate(_made(tmp_path / f"sparse.{suffix}"), 2**40)
        with pytest.raises(UserError, match="is larger than"):
            load_prompts(tmp_path / f"sparse.{suffix}")


def _made(path: Path) -> Path:
    path.touch()
    return path


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"prompt": 3}, "row 0: want an object"),
        ({"prompt": "a", "error": 1}, "row 0: column 'error'"),
        ({"prompt": "a", "note": "\ud800"}, "row 0: column 'note'"),
        ({"prompt": "a", "note": Path()}, "row 0: column 'note'"),
        ({"prompt": "a", "seed": 2**64}, "row 0: seed"),
        ({"prompt": "a", "seed": True}, "row 0: seed"),
    ],
)
def test_a_row_that_could_not_be_written_is_refused(row: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        check_row(row, "row 0")
