"""Why a hub repository could not be had, by the hub client's real errors: a server on this machine
that answers as the hub does, a port where nobody listens, and HF_HUB_OFFLINE.
"""

import logging
import socket
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from types import ModuleType

import pytest

from align_gen import pipelines
from align_gen.pipelines import hub as sampling_hub
from align_gen.reward_heads import load
from align_gen.reward_heads.backbones import hub as reward_hub

ROOT = Path(__file__).resolve().parents[2]
ANSWERS = {
    "gated": (401, {"X-Error-Code": "GatedRepo"}),
    "missing": (404, {"X-Error-Code": "RepoNotFound"}),
    "no-file": (404, {"X-Error-Code": "EntryNotFound"}),
    "no-revision": (404, {"X-Error-Code": "RevisionNotFound"}),
    "down": (503, {}),
    "forbidden": (403, {}),
}


class Answers(BaseHTTPRequestHandler):
    """Answers by the repository's name."""

    def do_HEAD(self) -> None:
        status, headers = ANSWERS[self.path.split("/")[2]]
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    do_GET = do_HEAD

    def log_message(self, *args: object) -> None:
        pass


def ask_at(monkeypatch: pytest.MonkeyPatch, endpoint: str, cache: Path) -> None:
    constants = "huggingface_hub.constants"
    template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(f"{constants}.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(f"{constants}.ENDPOINT", endpoint)
    monkeypatch.setattr(f"{constants}.HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(f"{constants}.HF_HUB_CACHE", str(cache))


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), Answers) as http:
        thread = Thread(target=http.serve_forever, daemon=True)
        thread.start()
        endpoint = f"http://127.0.0.1:{http.server_port}"
        ask_at(monkeypatch, endpoint, tmp_path)
        yield endpoint
        http.shutdown()


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """A port at which nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{free.getsockname()[1]}"
    ask_at(monkeypatch, endpoint, tmp_path)
    return endpoint


HUBS = pytest.mark.parametrize("hub", [sampling_hub, reward_hub], ids=["pipelines", "reward_heads"])


@pytest.mark.slow
@HUBS
@pytest.mark.parametrize(
    ("repository", "said"),
    [
        (
            "gated",
            "gated: accept the licence on the model's page, {endpoint}/a/gated, then hf auth",
        ),
        (
            "missing",
            "no such folder, and no such repository on the hub; a private one wants hf auth",
        ),
        ("no-file", "the repository has no weights.bin"),
        ("no-revision", "no such revision; see {endpoint}/a/no-revision/tree/main"),
        ("down", "the hub answered 503"),
        ("forbidden", "the hub answered 403; want hf auth login"),
    ],
)
def test_what_the_hub_answers(hub: ModuleType, server: str, repository: str, said: str) -> None:
    start = time.monotonic()
    with pytest.raises(ValueError, match=f"^a/{repository}: ") as error:
        hub.download(f"a/{repository}", "weights.bin")
    assert said.format(endpoint=server) in str(error.value)
    assert "\n" not in str(error.value)
    assert time.monotonic() - start < 5


@HUBS
def test_no_network(hub: ModuleType, nobody: str) -> None:
    start = time.monotonic()
    for ask in (lambda: hub.download("a/b", "weights.bin"), lambda: hub.reach("a/b")):
        with pytest.raises(ValueError, match=f"^a/b: no such folder, and no network: {nobody}"):
            ask()
    assert time.monotonic() - start < 5


@HUBS
def test_offline(hub: ModuleType, nobody: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for ask in (lambda: hub.download("a/b", "weights.bin"), lambda: hub.reach("a/b")):
        with pytest.raises(ValueError, match=r"^a/b: no such folder, and HF_HUB_OFFLINE is set"):
            ask()


@pytest.mark.slow
@HUBS
def test_a_repository_without_the_file_is_reached(hub: ModuleType, server: str) -> None:
    hub.reach("a/no-file")
    with pytest.raises(ValueError, match="a/missing: no such folder, and no such repository"):
        hub.reach("a/missing")


@HUBS
def test_what_is_in_the_cache_is_not_asked_for(
    hub: ModuleType, nobody: str, tmp_path: Path
) -> None:
    folder = tmp_path / "models--a--b"
    (folder / "snapshots" / "1").mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("1")
    (folder / "snapshots" / "1" / "weights.bin").write_bytes(b"here")
    hub.reach("a/b")
    assert hub.download("a/b", "weights.bin").read_bytes() == b"here"


@HUBS
def test_any_other_error_is_quoted_in_one_line(hub: ModuleType) -> None:
    said = hub.why_not("a/b", "weights.bin", RuntimeError("first\nsecond"))
    assert said == "a/b: the hub gave no weights.bin (RuntimeError: first second)"


def test_both_packages_have_the_same_file() -> None:
    first, second = (ROOT / name for name in ("pipelines/hub.py", "reward_heads/backbones/hub.py"))
    assert first.read_bytes() == second.read_bytes()


# --- through the doors ----------------------------------------------------------------------------


def test_a_pipeline_without_a_network(nobody: str) -> None:
    with pytest.raises(ValueError, match=r"^a/b: no such folder, and no network"):
        pipelines.load("a/b")


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("aesthetic", {}),
        ("clip", {"path": "hf-hub:a/b"}),
        ("clip", {"path": "ViT-H-14", "pretrained": "laion2b_s32b_b79k"}),
        ("hps", {}),
        ("image_reward", {}),
        ("pick_score", {}),
        ("siglip", {}),
    ],
)
def test_a_reward_without_a_network(
    nobody: str, name: str, options: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    """In seconds, in one line, and without a word of the libraries'."""
    handlers = list(logging.getLogger().handlers)
    start = time.monotonic()
    with pytest.raises(ValueError, match=f"^reward '{name}': .*no network: {nobody}") as error:
        load(name, **options)
    assert "\n" not in str(error.value)
    assert time.monotonic() - start < 20  # most of it the import of the library
    assert logging.getLogger().handlers == handlers
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
