"""Two commands on one target at once: is the end one of the two orders, or was one refused?

    python scripts/two_at_once.py [--offsets 20] [--model emoji-sd] [--only score,score]

The first command is paused before its n-th file operation, the second one runs to its end, and the
first one goes on; for n from 1 to --offsets, spread over all of its operations. Then the target
must be what the two commands make of it one after the other, in one of the two orders; where one of
them was refused, what the other makes alone. What is neither is printed, and the exit code is 1.
"""

import argparse
import hashlib
import json
import logging
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from align_gen import compare, finetune, sample, score
from align_gen.cli import main as align_gen
from align_gen.galleries.gallery import write_gallery
from align_gen.opening import open_model
from align_gen.report import page

LOADED = (compare, finetune, sample, score, page, open_model)
MOVES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree", "os.truncate")
DONE, REFUSED = 0, 2
WAITS = "waiting for process"
# Names that a kill leaves: none may stand here afterwards.
LEFT = re.compile(r"\..+\.(part|old|parts|lock)|\.lock")
CLOCK = re.compile(rb'"seconds": [0-9.]+')


@dataclass(frozen=True)
class Command:
    """A command line on the files of a folder; ``{here}`` and ``{model}`` are filled in."""

    name: str
    words: tuple[str, ...]

    def run(self, here: Path, model: str) -> None:
        words = [word.format(here=here, model=model) for word in self.words]
        sys.argv = ["align-gen", *words]
        align_gen()


def on(target: str, *pairs: tuple[str, str]) -> tuple[str, tuple[Command, ...]]:
    return target, tuple(Command(name, tuple(line.split())) for name, line in pairs)


DRAW = "sample {model} --size 16x16 --steps 2 --out {here}/gallery --overwrite --prompts {here}"
TARGETS = dict(
    [
        on(
            "gallery",
            ("score", "score {here}/gallery --reward jpeg_size"),
            ("score by another", "score {here}/gallery --reward mean_hue:hue=120"),
            ("sample", DRAW + "/two.txt"),
            ("sample others", DRAW + "/three.txt"),
            ("pairs", "pairs {here}/gallery --column sharpness --out {here}/pairs.parquet"),
            ("report", "report {here}/gallery --out {here}/page.html"),
        ),
        on(
            "run",
            ("finetune", "finetune {here}/recipe.yaml --out {here}/run"),
            ("finetune longer", "finetune {here}/recipe.yaml --out {here}/run --set run.steps=3"),
            ("score", "score {here}/run/before --reward sharpness"),
            ("report", "report {here}/run"),
        ),
    ]
)


def prepare(target: str, here: Path, model: str) -> None:
    """Make what the commands find: a scored gallery, or a run that is half done."""
    here.mkdir()
    (here / "two.txt").write_text("a cat\na red car\n")
    (here / "three.txt").write_text("a dog\na tree\nan apple\n")
    if target == "gallery":
        levels = torch.linspace(0.2, 0.8, 6).view(6, 1, 1, 1).expand(6, 3, 16, 16).clone()
        levels[:, 1, :8] *= 0.5
        rows = [{"prompt": f"p{i // 2}", "seed": i % 2, "made": {"model": "x"}} for i in range(6)]
        write_gallery(here / "gallery", levels, rows)
        Command("", ("score", "{here}/gallery", "--reward", "sharpness")).run(here, model)
        return
    recipe = {
        "model": {"path": model, "lora": {"rank": 2}},
        "method": {"name": "raft", "images_per_prompt": 2, "prompts_per_step": 1},
        "prompts": {"train": str(here / "two.txt"), "eval": str(here / "three.txt")},
        "rewards": {"jpeg_size": 1.0},
        "sampling": {"num_inference_steps": 2, "height": 16, "width": 16},
        "evaluate": {"num_inference_steps": 2, "seeds": [0]},
        "run": {"steps": 2, "save_every": 1},
    }
    (here / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    Command(
        "", ("finetune", "{here}/recipe.yaml", "--out", "{here}/run", "--set", "run.steps=1")
    ).run(here, model)


# --- processes ------------------------------------------------------------------------------------


class Child:
    """A command in a fork, paused before its ``pause``-th file operation below ``here``."""

    def __init__(self, work: Callable[[], None], here: Path, pause: int, log_file: Path):
        self.log_file = log_file
        ours, theirs = os.pipe()
        wait, self._go = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(ours)
            status = 1
            try:
                _quiet(log_file)
                count = _pause(here, pause, theirs, wait)
                work()
                status = 0
            except SystemExit as stop:
                status = int(stop.code or 0)
            finally:
                log_file.with_suffix(".count").write_text(str(count[0]))
                os._exit(status)
        os.close(theirs)
        # A byte when it pauses, nothing when it ends before.
        self.paused = bool(pause) and os.read(ours, 1) == b"p"
        os.close(ours)
        os.close(wait)

    def go_on(self) -> None:
        if self.paused:
            os.write(self._go, b"g")

    def ended(self) -> int | None:
        """The exit status; None while it runs."""
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        return os.waitstatus_to_exitcode(status) if pid else None

    def wait(self) -> int:
        os.close(self._go)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    @property
    def waits(self) -> bool:
        """Whether it waits for the lock of another process."""
        return self.log_file.is_file() and WAITS in self.log_file.read_text(errors="replace")


def _quiet(log_file: Path) -> None:
    """Send what the command prints to a file."""
    descriptor = os.open(log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    logging.getLogger("align_gen").addHandler(logging.StreamHandler())


def _pause(here: Path, number: int, tell: int, wait: int) -> list[int]:
    """Stop before the ``number``-th file operation until a byte comes; returns their count."""
    count = [0]

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        opens = event == "open" and bool((arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR))
        if (opens or event in MOVES) and str(here) + os.sep in str(arguments[0]):
            count[0] += 1
            if count[0] == number:
                os.write(tell, b"p")
                os.read(wait, 1)

    sys.addaudithook(audit)
    return count


def both(
    first: Command, second: Command, here: Path, model: str, pause: int
) -> tuple[int, int] | None:
    """Run the second while the first is paused; both exit codes, or None if it never paused."""
    a = Child(lambda: first.run(here, model), here, pause, here.with_suffix(".a.log"))
    if not a.paused:
        a.wait()
        return None
    b = Child(lambda: second.run(here, model), here, 0, here.with_suffix(".b.log"))
    while (status := b.ended()) is None and not b.waits:
        time.sleep(0.005)
    a.go_on()
    done = a.wait()
    return done, b.wait() if status is None else status


def alone(commands: Sequence[Command], here: Path, model: str) -> tuple[int, bool]:
    """Run commands one after the other, each in a fork.

    Returns:
        How often the first one touched a file, and whether all of them did their work: what one
        leaves may be nothing that the next can work on.
    """
    for number, command in enumerate(commands):
        log_file = here.with_suffix(f".{number}.log")
        child = Child(lambda command=command: command.run(here, model), here, 0, log_file)  # type: ignore[misc]
        status = child.wait()
        if status not in (DONE, REFUSED) or (status and number == 0):
            raise RuntimeError(f"{command.name} alone: {log_file.read_text()}")
    return int(here.with_suffix(".0.count").read_text()), status == DONE


# --- the law --------------------------------------------------------------------------------------


def contents(here: Path) -> dict[str, str]:
    """A digest of every file; of scores and metrics, of what they say."""
    found = {}
    for path in sorted(here.rglob("*")):
        name = str(path.relative_to(here))
        if LEFT.fullmatch(path.name):
            found[name] = "left behind"
        elif path.is_file() and path.name not in ("page.html", "report.html", "SHA256SUMS"):
            found[name] = hashlib.sha256(_said(path, here)).hexdigest()[:12]
        elif path.is_file():
            found[name] = "is there"
    return found


def _said(path: Path, here: Path) -> bytes:
    if path.suffix == ".parquet":
        import pyarrow.parquet as pq

        table = pq.read_table(path)
        return json.dumps([sorted(table.column_names), table.num_rows]).encode() + repr(
            [sorted((key, repr(value)) for key, value in row.items()) for row in table.to_pylist()]
        ).encode().replace(str(here).encode(), b"")
    if path.suffix in (".safetensors", ".pt"):
        if path.suffix == ".pt":
            return repr(torch.load(path, weights_only=True)).encode()
        from safetensors.torch import load_file

        return repr(sorted((k, v.tolist()) for k, v in load_file(path).items())).encode()
    return CLOCK.sub(b"", path.read_bytes()).replace(str(here).encode(), b"")


def trial(
    target: str, first: Command, second: Command, work: Path, model: str, offsets: int
) -> tuple[int, list[str]]:
    """Pause the first command at each offset; the number of trials, and what went wrong."""
    start = work / "start"
    if not start.exists():
        prepare_alone(target, start, model)

    operations = 0

    def after(*commands: Command) -> list[dict[str, str]]:
        """What commands in this order leave; nothing, where they cannot both do their work."""
        nonlocal operations
        here = work / "alone"
        shutil.copytree(start, here)
        operations, done = alone(commands, here, model)
        found = contents(here)
        shutil.rmtree(here)
        return [found] if done else []

    orders = {
        (DONE, DONE): after(second, first) + after(first, second),
        (REFUSED, DONE): after(second),
        (DONE, REFUSED): after(first),
    }
    # Spread over all operations of the first command, which ran last.
    places = sorted({1 + operations * number // offsets for number in range(offsets)})
    wrong, number = [], 0
    for offset in places:
        here = work / "both"
        shutil.copytree(start, here)
        codes = both(first, second, here, model, offset)
        found = contents(here)
        shutil.rmtree(here)
        if codes is None:
            continue
        number += 1
        if found not in orders.get(codes, []):
            nearest = min(orders.get(codes) or [{}], key=lambda order: len(differing(order, found)))
            logs = "".join(here.with_suffix(f".{x}.log").read_text()[-300:] for x in "ab")
            wrong.append(
                f"{first.name}, paused at {offset}, and {second.name}: exit {codes}; "
                f"{differing(nearest, found)}\n{logs}"
            )
        for log_file in work.glob("both.*.log"):
            log_file.unlink()
    return number, wrong


def differing(a: dict[str, str], b: dict[str, str]) -> list[str]:
    return sorted(name for name in {*a, *b} if a.get(name) != b.get(name))


def prepare_alone(target: str, start: Path, model: str) -> None:
    """``prepare`` in a fork, as commands change what is global."""
    log_file = start.with_suffix(".log")
    child = Child(lambda: prepare(target, start, model), start, 0, log_file)
    if child.wait():
        raise RuntimeError(f"{target} cannot be prepared: {log_file.read_text()}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--offsets", type=int, default=20)
    parser.add_argument("--model", default="emoji-sd")
    parser.add_argument("--only", help="two names of commands, with a comma")
    args = parser.parse_args()
    wanted = None if args.only is None else tuple(args.only.split(","))

    torch.set_num_threads(1)
    # What every fork would import for itself.
    open_model(args.model)
    trials, wrong = 0, []
    for target, commands in TARGETS.items():
        work = Path(tempfile.mkdtemp(prefix="two-at-once-"))
        for first in commands:
            for second in commands:
                if wanted in (None, (first.name, second.name)):
                    number, found = trial(target, first, second, work, args.model, args.offsets)
                    trials += number
                    wrong += found
                    print(f"{target}: {first.name} + {second.name}: {number}, wrong {len(found)}")
                    print("".join(f"  {line}\n" for line in found), end="", flush=True)
        shutil.rmtree(work)
    print(f"{trials} trials, {len(wrong)} wrong")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
