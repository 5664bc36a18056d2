"""What is built holds what the checkout holds, where it belongs, and importing it costs nothing."""

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import align_gen

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("packages")]

ROOT = Path(__file__).resolve().parent.parent
LINKED = ("pipelines", "reward_heads", "assets")
HEAVY = {
    "torch",
    "torchvision",
    "diffusers",
    "transformers",
    "open_clip",
    "xformers",
    "accelerate",
    "peft",
    "pandas",
}
LANDMARKS = {  # one of every kind, so that an empty listing cannot pass
    "align_gen/__init__.py",
    "align_gen/cli.py",
    "align_gen/py.typed",
    "align_gen/pipelines/base.py",
    "align_gen/reward_heads/heads/clip.py",
    "align_gen/recipes/emoji-sd-prdp.yaml",
    "align_gen/report/templates/report.html.j2",
    "align_gen/assets/prompts/emoji-train.jsonl",
    "align_gen/assets/models/emoji-sd/model_index.json",
    "align_gen/assets/models/emoji-clip/open_clip_config.json",
    "align_gen/assets/models/emoji-heldout-clip/open_clip_config.json",
    "align_gen/assets/models/emoji-hps/open_clip_config.json",
}


def in_checkout() -> set[str]:
    """Files of align_gen and of the three folders it links to, named as they are installed."""
    command = [
        "git",
        "ls-files",
        "--cached",
        "--others",
        "--exclude-standard",
        "align_gen",
        *LINKED,
    ]
    listed = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    files = [name for name in listed if (ROOT / name).is_file()]
    return {name if name.startswith("align_gen/") else f"align_gen/{name}" for name in files}


def build(kind: str, source: Path, folder: Path) -> Path:
    command = [sys.executable, "-m", "hatchling", "build", "-t", kind, "-d", str(folder)]
    subprocess.run(command, cwd=source, check=True, capture_output=True)
    (built,) = folder.iterdir()
    return built


def installed_names(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        return [name for name in archive.namelist() if ".dist-info/" not in name]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("wheel", ROOT, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("sdist", ROOT, tmp_path_factory.mktemp("sdist"))


def test_wheel_holds_every_file_once_and_under_align_gen(wheel: Path) -> None:
    names = installed_names(wheel)
    assert len(names) == len(set(names))
    assert set(names) == in_checkout()
    assert set(names) >= LANDMARKS


def test_wheel_declares_the_command_and_carries_the_notices(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (entry_points,) = [
            name for name in archive.namelist() if name.endswith(".dist-info/entry_points.txt")
        ]
        info = entry_points.rpartition("/")[0]
        assert "align-gen = align_gen.cli:main" in archive.read(entry_points).decode()
        metadata = archive.read(f"{info}/METADATA").decode()
        notices = {name for name in archive.namelist() if name.startswith(f"{info}/licenses/")}
    assert f"\nVersion: {align_gen.__version__}\n" in metadata
    assert notices == {f"{info}/licenses/LICENSE", f"{info}/licenses/THIRD_PARTY_NOTICES.md"}


def test_sdist_makes_the_same_wheel(sdist: Path, wheel: Path, tmp_path: Path) -> None:
    with tarfile.open(sdist) as archive:
        links = {
            member.name: member.linkname for member in archive if member.issym() or member.islnk()
        }
        assert all(
            "/assets/models/emoji-video/" in name and "emoji-sd/" in link
            for name, link in links.items()
        )
        archive.extractall(tmp_path / "source", filter="data")
    (source,) = (tmp_path / "source").iterdir()
    assert not (source / "pipelines").exists()
    assert sorted(installed_names(build("wheel", source, tmp_path / "again"))) == sorted(
        installed_names(wheel)
    )


@pytest.mark.parametrize(
    "code",
    ["import align_gen", "import align_gen.pipelines, align_gen.reward_heads, align_gen.cli"],
)
def test_import_is_cheap_and_silent(code: str) -> None:
    look = f"{code}; import sys; print(*sorted({HEAVY!r} & set(sys.modules)), end='')"
    done = subprocess.run(
        [sys.executable, "-c", look], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert (done.stdout, done.stderr) == ("", "")


def test_every_lazy_name_resolves_and_a_miss_lists_them() -> None:
    public = set(align_gen.__all__) - {"__version__"}
    assert public == {"Recipe", "finetune", "sample", "score", "compare", "guidance"}
    assert all(getattr(align_gen, name) is not None for name in public)
    assert public <= set(dir(align_gen))
    with pytest.raises(AttributeError, match=r"has no 'finetun'; have .*'finetune'"):
        _ = align_gen.finetun


@pytest.mark.parametrize(
    "first",
    [
        "import align_gen.galleries.comparison",
        "from align_gen.galleries.comparison import compare",
        "pass",
    ],
)
def test_compare_is_the_function_whatever_is_imported_first(first: str) -> None:
    look = "for _ in range(2): assert align_gen.compare.__class__.__name__ == 'function'"
    code = f"{first}\nimport align_gen\n{look}"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
