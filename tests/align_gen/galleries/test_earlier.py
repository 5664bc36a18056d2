"""What earlier calls left: columns that stay, scores that are known, files of somebody else's."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor

from align_gen.errors import UserError
from align_gen.galleries.gallery import Gallery, write_gallery
from align_gen.galleries.scoring import score_file
from align_gen.galleries.summary import Summary
from align_gen.galleries.table import ScoresTable
from align_gen.reward_heads import RewardHead


class Times(RewardHead):
    """The mean pixel times a factor; counts the pictures that it is asked for."""

    def __init__(self, factor: float, version: str = "1"):
        self.factor = factor
        self.version = version
        self.asked = 0

    def __call__(self, media: Tensor, prompts: Sequence[str], **context: Any) -> Tensor:
        self.asked += len(media)
        return (media.mean((1, 2, 3)) * 255).round() * self.factor

    def provenance(self) -> dict[str, Any]:
        options = {"factor": self.factor, "version": self.version}
        return super().provenance() | {"options": options}


def levels(folder: Path, *values: int) -> Gallery:
    media = (torch.tensor(values) / 255).view(-1, 1, 1, 1).expand(-1, 3, 4, 4)
    return write_gallery(folder, media, [{"prompt": f"p{v}"} for v in values])


def scored(gallery: Path, **heads: Times) -> Summary:
    rewards = {name: {"name": head} for name, head in heads.items()}
    found = score_file(gallery, rewards, gallery / "scores.parquet")
    assert found is not None
    return found


def table(gallery: Path) -> ScoresTable:
    return ScoresTable.load(gallery / "scores.parquet")


def test_scores_of_another_reward_are_added(tmp_path: Path) -> None:
    """Each column as its own call made it; what is combined is of the last call alone."""
    gallery = levels(tmp_path / "g", 1, 2, 3)
    scored(gallery.folder, one=Times(1))
    found = scored(gallery.folder, two=Times(10))
    assert found.means == {"two": 20.0} and found.kept == {"one": 3}
    both = table(gallery.folder)
    assert both.heads == {"two": [10, 20, 30], "one": [1, 2, 3]}
    assert both.combined == [10, 20, 30]
    assert both.provenance["one"]["options"]["factor"] == 1
    assert both.provenance["two"]["options"]["factor"] == 10
    scored(gallery.folder, three=Times(100), two=Times(10))
    assert table(gallery.folder).heads == {
        "three": [100, 200, 300], "two": [10, 20, 30], "one": [1, 2, 3],
    }  # fmt: skip
    assert table(gallery.folder).combined == [110, 220, 330]


def test_a_column_that_was_kept_is_known(tmp_path: Path) -> None:
    """The first reward again: nothing is computed, and it is what is combined."""
    gallery = levels(tmp_path / "g", 1, 2)
    scored(gallery.folder, one=Times(1))
    scored(gallery.folder, two=Times(10))
    again = Times(1)
    found = scored(gallery.folder, one=again)
    assert again.asked == 0 and found.known == 2
    assert found.lines()[0] == "2 of 2 scores are known from an earlier call"
    assert table(gallery.folder).combined == [1, 2]
    assert table(gallery.folder).heads == {"one": [1, 2], "two": [10, 20]}
    both = [Times(1), Times(10)]
    scored(gallery.folder, one=both[0], two=both[1])
    assert [head.asked for head in both] == [0, 0]
    assert table(gallery.folder).combined == [11, 22]


def test_a_column_stays_for_the_pictures_that_are_the_same(tmp_path: Path) -> None:
    """By content and prompt, wherever they stand; of others there is no score."""
    gallery = levels(tmp_path / "g", 1, 2, 3)
    scored(gallery.folder, one=Times(1))
    rows = [gallery.rows[2], gallery.rows[1] | {"prompt": "new words"}, gallery.rows[0]]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (gallery.folder / "metadata.jsonl").write_text(lines)
    found = scored(gallery.folder, two=Times(10))
    assert table(gallery.folder).heads == {"two": [30, 20, 10], "one": [3, None, 1]}
    assert "kept from earlier calls: one (2 of 3)" in found.lines()

    other = levels(tmp_path / "other", 7)
    (gallery.folder / "scores.parquet").rename(other.folder / "scores.parquet")
    found = scored(other.folder, three=Times(1))
    assert table(other.folder).heads == {"three": [7]}
    assert sum("was of other pictures; it is not kept" in line for line in found.lines()) == 2


def test_a_column_of_another_provenance_is_replaced_and_told(tmp_path: Path) -> None:
    gallery = levels(tmp_path / "g", 1, 2)
    scored(gallery.folder, one=Times(1), two=Times(10))
    found = scored(gallery.folder, one=Times(1, version="2"))
    assert table(gallery.folder).heads == {"one": [1, 2], "two": [10, 20]}
    assert found.known == 0
    assert "column 'one': was scored with another options; it is replaced" in found.lines()


def test_a_kept_column_keeps_its_versions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under another torch, a reward is scored anew; the other's column says the old one."""
    gallery = levels(tmp_path / "g", 1)
    with monkeypatch.context() as patch:
        patch.setattr("align_gen.galleries.chunks.versions", lambda: {"torch": "1"})
        scored(gallery.folder, one=Times(1), two=Times(10))
    again = Times(1)
    scored(gallery.folder, one=again)
    found = table(gallery.folder)
    assert again.asked == 1
    assert found.versions_of("two") == {"torch": "1"} and found.versions != {"torch": "1"}
    # And that one is scored anew when its turn comes.
    other = Times(10)
    scored(gallery.folder, two=other)
    assert other.asked == 1


def test_scores_of_another_gallery_are_not_replaced(tmp_path: Path) -> None:
    """Hours of a large reward may be in them; the file stays to the byte."""
    base, other = levels(tmp_path / "base", 1), levels(tmp_path / "other", 2)
    scored(base.folder, one=Times(1))
    file = base.folder / "scores.parquet"
    before = file.read_bytes()
    with pytest.raises(UserError, match=f"holds the scores of {base.folder}; want another --out"):
        score_file(other, {"one": {"name": Times(1)}}, file)
    assert file.read_bytes() == before


def test_an_older_reader_reads_what_is_kept(tmp_path: Path) -> None:
    """The parts that it knows: format, heads, provenance, columns."""
    gallery = levels(tmp_path / "g", 1, 2)
    scored(gallery.folder, one=Times(1))
    scored(gallery.folder, two=Times(10))
    written = pq.read_table(gallery.folder / "scores.parquet")
    about = json.loads(written.schema.metadata[b"align_gen"])
    assert about["format"] == 1 and about["heads"] == ["two", "one"]
    assert about["provenance"].keys() == {"two", "one"}
    assert written["one"].to_pylist() == [1, 2] and written["combined"].to_pylist() == [10, 20]
    for name in ("kept", "unsigned"):
        del about[name]
    old = written.replace_schema_metadata({b"align_gen": json.dumps(about)})
    pq.write_table(old, gallery.folder / "scores.parquet")
    assert table(gallery.folder).heads == {"two": [10, 20], "one": [1, 2]}


# --- files of somebody else's ---------------------------------------------------------------------


def forged(gallery: Path, column: str, *values: float) -> None:
    """Other numbers under the same description, signature and all."""
    path = gallery / "scores.parquet"
    written = pq.read_table(path)
    place = written.schema.get_field_index(column)
    other = written.set_column(place, column, pa.array(values, pa.float64()))
    pq.write_table(other.replace_schema_metadata(written.schema.metadata), path)


def test_forged_scores_are_scored_anew(tmp_path: Path) -> None:
    gallery = levels(tmp_path / "g", 1, 2)
    scored(gallery.folder, one=Times(1))
    forged(gallery.folder, "one", 999, 998)
    found = scored(gallery.folder, one=Times(1))
    assert found.means == {"one": 1.5} and found.known == 0
    assert any("was not written here: scored anew; --trust-scores" in x for x in found.lines())
    assert table(gallery.folder).heads == {"one": [1, 2]}
    assert not any(
        "not written here" in line for line in scored(gallery.folder, one=Times(1)).lines()
    )


def test_scores_of_another_machine_are_taken_where_that_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And are this user's own from then on."""
    gallery = levels(tmp_path / "g", 1, 2)
    out = gallery.folder / "scores.parquet"
    with monkeypatch.context() as patch:
        patch.setenv("ALIGN_GEN_CACHE", str(tmp_path / "theirs"))
        scored(gallery.folder, one=Times(1))
    head = Times(1)
    found = score_file(gallery.folder, {"one": {"name": head}}, out, trust=True)
    assert found is not None and found.known == 2 and head.asked == 0
    assert scored(gallery.folder, one=head).known == 2


def test_kept_columns_of_somebody_elses_never_become_known(tmp_path: Path) -> None:
    """They stay, as they can be read; but another reward's signature does not vouch for them."""
    gallery = levels(tmp_path / "g", 1, 2)
    scored(gallery.folder, one=Times(1))
    forged(gallery.folder, "one", 999, 998)
    scored(gallery.folder, two=Times(10))
    assert table(gallery.folder).heads == {"two": [10, 20], "one": [999, 998]}
    scored(gallery.folder, three=Times(100))
    head = Times(1)
    found = scored(gallery.folder, one=head)
    assert head.asked == 2 and found.known == 0
    assert table(gallery.folder).heads["one"] == [1, 2]
    assert table(gallery.folder).unsigned == []


def test_a_file_without_a_signature_is_scored_anew(tmp_path: Path) -> None:
    """As earlier versions wrote it."""
    gallery = levels(tmp_path / "g", 1, 2)
    scored(gallery.folder, one=Times(1))
    path = gallery.folder / "scores.parquet"
    written = pq.read_table(path)
    about = {b"align_gen": written.schema.metadata[b"align_gen"]}
    pq.write_table(written.replace_schema_metadata(about), path)
    head = Times(1)
    found = scored(gallery.folder, one=head)
    assert head.asked == 2 and any("not written here" in line for line in found.lines())
