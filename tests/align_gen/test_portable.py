"""Names without folders: no part of an absolute path but its last name survives."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from align_gen.portable import portable_data, portable_name, portable_text, portable_yaml


@pytest.mark.parametrize(
    ("name", "portable"),
    [
        ("/home/me/models/tiny", "tiny"),
        ("/home/me/my models/tiny sd/", "tiny sd"),
        ("/home/me/r.py:near", "r.py:near"),
        ("file:///home/me/x", "x"),
        ("C:\\Users\\me\\x", "x"),
        ("clip:path=/home/me/clip,goal=a", "clip:path=clip,goal=a"),
        ("[/home/me/a, '/home/me/b']", "[a, 'b']"),
        ("zip::file:///home/me/a.zip", "zip::a.zip"),
        ("datasets:/home/me/ds:train", "datasets:ds:train"),
        ("owner/model", "owner/model"),
        ("models/tiny", "models/tiny"),
        ("https://host/a/b", "https://host/a/b"),
        ("s3://bucket/a", "s3://bucket/a"),
        ("1/2 and 3 / 4 or /or", "1/2 and 3 / 4 or /or"),
        ("", ""),
    ],
)
def test_names(name: str, portable: str) -> None:
    assert portable_name(name) == portable


def test_a_sentence_keeps_its_words() -> None:
    said = "/home/me/g: no such folder; want PNG/JPEG, see '/home/me/x.txt'"
    assert portable_text(said) == "g: no such folder; want PNG/JPEG, see 'x.txt'"


FOLDER = st.text("ab9._-", max_size=6).map(lambda text: f"a{text}Q")


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(FOLDER, min_size=1, max_size=4), st.sampled_from("=,:([{'\" "))
def test_no_folder_survives_wherever_the_path_stands(folders: list[str], mark: str) -> None:
    path = "/" + "/".join(folders) + "/last"
    for text in (path, f"a{mark}{path}", f"a{mark}{path}: b"):
        assert "Q" not in portable_text(text) and "last" in portable_text(text)


def test_data_keeps_its_shape_and_every_key() -> None:
    """Two files of one name are two keys."""
    data = {"/a/r.py:f": 1, "/b/r.py:f": {"p": ["/x/y", 2, None]}, "lr": 1e-4}
    assert portable_data(data) == {"r.py:f": 1, "r.py:f (2)": {"p": ["y", 2, None]}, "lr": 1e-4}
    assert portable_yaml("a: /x/y\nb: [1.0e-05, true]\n") == "a: y\nb:\n- 1.0e-05\n- true\n"
