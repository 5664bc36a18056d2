"""Prompt lists: what is read, and each mistake with its file and line."""

from pathlib import Path

import pytest

from align_gen import bundled
from align_gen.errors import UserError
from align_gen.galleries.prompts import load_prompts, require_disjoint

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
