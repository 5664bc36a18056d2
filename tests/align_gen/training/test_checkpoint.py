"""Checkpoints: everything comes back, and whatever a kill interrupts, a whole one is named."""

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from diffusers.training_utils import EMAModel
from safetensors.torch import load_file

from align_gen import pipelines
from align_gen.errors import RunFailure, UserError
from align_gen.methods.state import TrainState
from align_gen.training import checkpoint, saved
from tests.kits.states import equal, learn, state_of, values


@pytest.mark.parametrize("ema", [True, False])
def test_going_on_from_a_checkpoint_is_going_on(tmp_path: Path, ema: bool) -> None:
    """Two updates, saved, loaded into a fresh state, two more = four updates; moments and average
    too.
    """
    whole, first, second = state_of(ema=ema), state_of(ema=ema), state_of(ema=ema)
    for _ in range(4):
        learn(whole)
    for _ in range(2):
        learn(first)
    checkpoint.save(first, tmp_path, {"worse": 3})
    assert checkpoint.restore(second, tmp_path)["worse"] == 3
    assert equal(values(second), values(first))
    for _ in range(2):
        learn(second)
    assert equal(values(second), values(whole))


def test_nothing_saved_is_nothing_loaded(tmp_path: Path) -> None:
    state = state_of()
    before = values(state)
    assert checkpoint.restore(state, tmp_path) == {}
    assert equal(values(state), before)


def test_the_two_newest_are_kept(tmp_path: Path) -> None:
    state = state_of()
    for _ in range(4):
        learn(state)
        checkpoint.save(state, tmp_path, {})
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [
        "step-000003",
        "step-000004",
    ]
    assert json.loads((tmp_path / "state.json").read_text())["checkpoint"] == "step-000004"


@pytest.mark.parametrize("kill_at", [1, 2])
def test_a_kill_while_saving_leaves_a_whole_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kill_at: int
) -> None:
    """The first rename brings the folder, the second the pointer, which loading does not need:
    stopped at the first, step 1 is what comes back, at the second step 2. Saving again afterwards
    clears what was left.
    """
    state = state_of()
    learn(state)
    checkpoint.save(state, tmp_path, {})
    known, renames, real = {1: values(state)}, [0], os.replace
    learn(state)
    known[2] = values(state)

    def replace(*names: Any) -> None:
        renames[0] += 1
        if renames[0] == kill_at:
            raise KeyboardInterrupt
        real(*names)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(state, tmp_path, {})
    monkeypatch.undo()
    loaded = state_of()
    checkpoint.restore(loaded, tmp_path)
    assert equal(values(loaded), known[kill_at])
    checkpoint.save(state, tmp_path, {})
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [
        "step-000001",
        "step-000002",
    ]


# --- neighbours -----------------------------------------------------------------------------------


def names(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def test_copies_beside_checkpoints_stay_and_are_not_counted(tmp_path: Path) -> None:
    """Names that are near to ours, with a whole checkpoint or anything in them."""
    two_saved(tmp_path)
    folder = tmp_path / "checkpoints"
    copies = ["step-000002.bak", "step-000002.bak2", "step-0000002", "step-000099", "step-000001-x"]
    for name in copies:
        shutil.copytree(folder / "step-000002", folder / name)
    others = ["step-000000-thesis", "step-000000", "step-00001", "STEP-000001", ".step-000002.part"]
    for name in others:
        (folder / name).mkdir()
        (folder / name / "mine.txt").write_text("mine")
    (folder / "step-000007").write_text("a file")
    state = state_of()
    assert checkpoint.restore(state, tmp_path)["worse"] == 2
    for _ in range(3):
        learn(state)
        checkpoint.save(state, tmp_path, {})
    kept = {"step-000004", "step-000005"}
    assert {*names(tmp_path)} == {*copies, *others, "step-000007", *kept}
    assert checkpoint.restore(state_of(), tmp_path)["step"] == 5


def test_steps_of_seven_digits_come_last(tmp_path: Path) -> None:
    """As text, step-1000000 stands before step-999999."""
    state = state_of()
    for state.step in (999_998, 999_999, 1_000_000, 1_000_001):
        checkpoint.save(state, tmp_path, {})
    assert names(tmp_path) == ["step-1000000", "step-1000001"]
    assert checkpoint.restore(state_of(), tmp_path)["step"] == 1_000_001


def test_what_stands_where_a_checkpoint_belongs_is_put_aside(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A user's own folder, twice, and then a checkpoint that was torn: each is kept, and told."""
    state = state_of()
    learn(state)
    folder = tmp_path / "checkpoints"
    for content in ("first", "second"):
        (folder / "step-000001").mkdir(parents=True)
        (folder / "step-000001" / "mine.txt").write_text(content)
        checkpoint.save(state, tmp_path, {})
        assert "step-000001: is no whole checkpoint; kept as step-000001.damaged" in caplog.text
        shutil.rmtree(folder / "step-000001")
    assert (folder / "step-000001.damaged/mine.txt").read_text() == "first"
    assert (folder / "step-000001.damaged2/mine.txt").read_text() == "second"


def test_a_torn_checkpoint_does_not_push_out_a_whole_one(tmp_path: Path) -> None:
    """Step 2 is torn: of step 3 and it, the two newest, one alone could be loaded."""
    two_saved(tmp_path)
    flip(tmp_path / "checkpoints/step-000002/weights.safetensors", 0.5)
    state = state_of()
    checkpoint.restore(state, tmp_path)
    state.step = 3
    checkpoint.save(state, tmp_path, {})
    assert names(tmp_path) == ["step-000001", "step-000002.damaged", "step-000003"]


@pytest.mark.parametrize("kept", ["nothing", "the one before", "half of it"])
def test_a_pointer_that_was_not_written_is_written_again(tmp_path: Path, kept: str) -> None:
    """A kill after the checkpoint and before its pointer: once resumed, nothing tells of it."""
    two_saved(tmp_path)
    pointer = tmp_path / "state.json"
    before = pointer.read_bytes()
    pointer.unlink()
    if kept != "nothing":
        earlier = (tmp_path / "checkpoints" / "step-000001" / saved.PROGRESS).read_bytes()
        pointer.write_bytes(earlier if kept == "the one before" else before[:40])
    checkpoint.restore(state_of(), tmp_path)
    assert pointer.read_bytes() == before


def test_all_files_have_one_mode(tmp_path: Path) -> None:
    """That of any new file."""
    two_saved(tmp_path)
    (tmp_path / "plain").write_text("")
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.stat().st_mode for path in files} == {(tmp_path / "plain").stat().st_mode}


# --- damage ---------------------------------------------------------------------------------------


def flip(file: Path, at: float) -> None:
    """One bit, at a part of the file's length."""
    content = bytearray(file.read_bytes())
    content[int(at * (len(content) - 1))] ^= 1
    file.write_bytes(content)


def cut(file: Path, at: float) -> None:
    file.write_bytes(file.read_bytes()[: int(at * file.stat().st_size)])


def two_saved(run: Path) -> dict[str, Any]:
    """Checkpoints of steps 1 and 2; the values of step 1."""
    state = state_of()
    learn(state)
    checkpoint.save(state, run, {"worse": 1})
    first = values(state)
    learn(state)
    checkpoint.save(state, run, {"worse": 2})
    return first


@pytest.mark.parametrize("harm", [flip, cut])
@pytest.mark.parametrize("at", [0.0, 0.3, 0.99])
@pytest.mark.parametrize(
    "name", ["weights.safetensors", "optimizer.pt", "progress.json", "SHA256SUMS"]
)
def test_a_damaged_checkpoint_is_passed_over(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    harm: Callable[[Path, float], None],
    at: float,
    name: str,
) -> None:
    """One bit flipped, or the end cut off, in any of its files: the one before is loaded, and a
    warning says so.
    """
    first = two_saved(tmp_path)
    harm(tmp_path / "checkpoints/step-000002" / name, at)
    state = state_of()
    assert checkpoint.restore(state, tmp_path)["worse"] == 1
    assert equal(values(state), first)
    assert "step-000002: damaged" in caplog.text and "going back" in caplog.text


@pytest.mark.parametrize(
    "name", ["weights.safetensors", "optimizer.pt", "progress.json", "SHA256SUMS"]
)
def test_a_file_that_is_gone_is_damage(tmp_path: Path, name: str) -> None:
    two_saved(tmp_path)
    (tmp_path / "checkpoints/step-000002" / name).unlink()
    assert checkpoint.restore(state_of(), tmp_path)["worse"] == 1


def test_a_damaged_one_is_replaced_when_its_step_comes_again(tmp_path: Path) -> None:
    two_saved(tmp_path)
    flip(tmp_path / "checkpoints/step-000002/weights.safetensors", 0.5)
    state = state_of()
    checkpoint.restore(state, tmp_path)
    learn(state)
    checkpoint.save(state, tmp_path, {"worse": 2})
    assert checkpoint.restore(state_of(), tmp_path)["worse"] == 2


def test_when_none_is_whole_nothing_is_begun_anew(tmp_path: Path) -> None:
    """Days of work may be behind them: better to say so than to start at step 0 without a word."""
    two_saved(tmp_path)
    for file in tmp_path.glob("checkpoints/*/weights.safetensors"):
        cut(file, 0.5)
    with pytest.raises(UserError, match="none of its checkpoints can be read"):
        checkpoint.restore(state_of(), tmp_path)


def test_the_sums_are_those_of_sha256sum(tmp_path: Path) -> None:
    two_saved(tmp_path)
    done = subprocess.run(
        ["sha256sum", "--strict", "-c", "SHA256SUMS"],
        cwd=tmp_path / "checkpoints/step-000002",
        capture_output=True,
    )
    assert done.returncode == 0 and done.stdout.count(b": OK") == 4


def test_a_full_disk_leaves_the_checkpoints_that_stand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However the failure is worded; and what was half-written does not keep the room."""
    two_saved(tmp_path)
    state = state_of()
    checkpoint.restore(state, tmp_path)
    learn(state)

    def full(*_: Any) -> None:
        raise RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(
        RunFailure, match=r"step-000003: cannot be written \(PytorchStreamWriter failed"
    ):
        checkpoint.save(state, tmp_path, {})
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [
        "step-000001",
        "step-000002",
    ]


# --- formats, and files of others -----------------------------------------------------------------

GOLDEN = Path(__file__).parents[2] / "goldens" / "checkpoint-format-1"


def test_the_first_format_still_loads(tiny_folder: Path) -> None:
    """A committed run of two steps: a LoRA of rank 2 on the tiny Stable Diffusion, with its average
    and its moments.

    It is from before checkpoints had sums of their own. Its tensors are what the optimizer and the
    model get.
    """
    model = pipelines.load(str(tiny_folder))
    model.train_lora(pipelines.LoraOptions(rank=2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    state = TrainState(
        model,
        optimizer,
        Accelerator(cpu=True),
        max_grad_norm=1.0,
        ema=EMAModel(model.parameters(), decay=0.5),
    )
    assert checkpoint.restore(state, GOLDEN)["worse"] == 0
    assert (state.step, state.denoiser_calls, state.ema.optimization_step) == (2, 222, 3)  # type: ignore[union-attr]
    stored = load_file(GOLDEN / "checkpoints/step-000002/weights.safetensors")
    names, parameters = checkpoint.trained(state)
    assert {f"{kind}.{name}" for name in names for kind in ("policy", "ema")} == stored.keys()
    for name, parameter, shadow in zip(names, parameters, state.ema.shadow_params, strict=True):  # type: ignore[union-attr]
        assert torch.equal(parameter, stored[f"policy.{name}"]) and torch.equal(
            shadow, stored[f"ema.{name}"]
        )
    assert {float(each["step"]) for each in optimizer.state.values()} == {3.0}
    assert all(bool(each["exp_avg"].any()) for each in optimizer.state.values())


@pytest.mark.parametrize("early", [True, False])
def test_a_format_of_the_future_is_refused(tmp_path: Path, early: bool) -> None:
    state = state_of()
    checkpoint.save(state, tmp_path, {})
    folder, future = tmp_path / "checkpoints/step-000000", {"format": saved.FORMAT + 1}
    if early:
        for name in ("progress.json", "SHA256SUMS"):
            (folder / name).unlink()
    file = tmp_path / "state.json" if early else folder / "progress.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | future))
    if not early:
        sums = [line.split("  ") for line in (folder / "SHA256SUMS").read_text().splitlines()]
        digests = {
            name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for _, name in sums
        }
        (folder / "SHA256SUMS").write_text(
            "".join(f"{digest}  {name}\n" for name, digest in digests.items())
        )
    with pytest.raises(UserError, match=r"\.json: format 2 is newer than this version reads \(1\)"):
        checkpoint.restore(state, tmp_path)


def test_a_pointer_out_of_the_run_is_not_followed(tmp_path: Path) -> None:
    """A run directory may come from someone else; only folders under checkpoints/ are read."""
    state = state_of()
    learn(state)
    checkpoint.save(state, tmp_path / "run", {})
    shutil.move(tmp_path / "run/checkpoints/step-000001", tmp_path / "elsewhere")
    file = tmp_path / "run/state.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"checkpoint": "../../elsewhere"}))
    assert checkpoint.restore(state_of(), tmp_path / "run") == {}


def test_optimizer_files_run_no_code(tmp_path: Path) -> None:
    """A pickle that would call something, with sums that fit, is refused: only tensors and plain
    values are read.
    """

    class Trap:
        def __reduce__(self) -> Any:
            return (os.mkdir, (str(tmp_path / "sprung"),))

    state = state_of()
    checkpoint.save(state, tmp_path, {})
    folder = tmp_path / "checkpoints/step-000000"
    torch.save(Trap(), folder / "optimizer.pt")
    for name in ("progress.json", "SHA256SUMS"):
        (folder / name).unlink()  # as the first were: nothing to compare with
    with pytest.raises(UserError, match="none of its checkpoints can be read"):
        checkpoint.restore(state, tmp_path)
    assert not (tmp_path / "sprung").exists()


def test_names_do_not_depend_on_wrappers() -> None:
    """What DDP prefixes with "module." has the same name in the file."""
    state = state_of()
    plain, _ = checkpoint.trained(state)
    wrapped = torch.nn.Module()
    wrapped.module = state.model.trainable["denoiser"]
    state.model.trainable["denoiser"] = wrapped
    assert checkpoint.trained(state)[0] == plain == ["denoiser.shift"]
