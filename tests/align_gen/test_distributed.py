"""How several processes start: numbers of the environment, and who is waited for."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from align_gen.distributed import processes
from align_gen.errors import UserError

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("WORLD_SIZE", "x"),
        ("WORLD_SIZE", "2.0"),
        ("WORLD_SIZE", "0"),
        ("WORLD_SIZE", "-1"),
        ("WORLD_SIZE", "9" * 5000),
        ("RANK", "2"),
        ("RANK", "-1"),
        ("RANK", "one"),
        ("LOCAL_RANK", "x"),
        ("MASTER_PORT", "70000"),
    ],
)
def test_what_is_no_number_is_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv(name, value)
    with pytest.raises(UserError) as error:
        processes()
    assert str(error.value).startswith(f"{name}='{value[:5]}") and len(str(error.value)) < 150


def test_numbers_of_a_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    assert processes() == (0, 1)
    monkeypatch.setenv("RANK", "1")  # left alone, it means nothing
    assert processes() == (0, 1)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert processes() == (1, 2)


@pytest.mark.slow
@pytest.mark.parametrize(("rank", "others"), [("1", "process 0"), ("0", "1 more of 2 processes")])
def test_a_wait_for_nobody_is_told(tmp_path: Path, rank: str, others: str) -> None:
    """Variables left behind by another launch: one line, within seconds, of score as of a run."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    launch = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "MASTER_PORT": port}
    (tmp_path / "a.png").write_bytes(b"")
    process = subprocess.Popen(
        [sys.executable, "-m", "align_gen", "score", str(tmp_path), "--reward", "jpeg_size"],
        cwd=ROOT,
        env={**os.environ, **launch, "MASTER_ADDR": "127.0.0.1"},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    try:
        told = next(line for line in process.stderr if "waiting" in line)
    finally:
        process.kill()
        process.wait()
        process.stderr.close()
    here = f"(RANK={rank}, WORLD_SIZE=2 in the environment)"
    assert told == f"waiting for {others} at 127.0.0.1:{port} {here}\n"


@pytest.mark.slow
@pytest.mark.parametrize("command", ["score", "finetune"])
def test_a_world_of_no_size_is_one_line(tmp_path: Path, command: str) -> None:
    words = {"score": [str(tmp_path), "--reward", "jpeg_size"], "finetune": ["emoji-sd-prdp"]}
    done = subprocess.run(
        [sys.executable, "-m", "align_gen", command, *words[command], "--out", "x.parquet"],
        cwd=tmp_path,
        env={**os.environ, "WORLD_SIZE": "x", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    told = [line for line in done.stderr.splitlines() if line.startswith("align-gen: ")]
    assert len(told) == 1 and told[0].startswith("align-gen: WORLD_SIZE='x' in the environment")
    assert [*tmp_path.iterdir()] == []
