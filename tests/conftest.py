"""What every test shares: one thread, no Hub, and two tiny models made once."""

from __future__ import annotations

import os
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

# The libraries read this when they are imported, so it stands before any of them.
os.environ["HF_HUB_OFFLINE"] = "1"
# One list of fonts for all tests: commands keep it in their cache, and some tests have caches of their own.
os.environ.setdefault("MPLCONFIGDIR", str(Path.home() / ".cache" / "matplotlib"))
# `from tests.tiny import ...` also where pytest is started by its own script.
sys.path.insert(0, str(Path(__file__).parent.parent))

import torch

from tests.tiny import tiny_decoder, tiny_encoder
from tunesmith.models.kernels.float32_products import use_products
from tunesmith.models.loading import device
from tunesmith.models.loading.device import gemm_gflops

torch.set_num_threads(1)


# Where tests go through a whole story, from rows to report: `make test-fast` leaves them to `make test`.
WHOLE = (
    "bench/",
    "pipelines/",
    "cli/",
    "golden/",
    "web/",
    "techniques/test_grid.py",
    "inference/test_engine.py",
    "test_imports.py",
)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--share`."""
    text = "of the tests that are marked long, run the Kth of N shares; those of a function are in one share"
    parser.addoption("--share", default="", metavar="K/N", help=text)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark the tests of WHOLE, skip those that need a GPU where there is none, and drop other shares of long tests.

    The first case of a long test that has several is not long, so that some case of it always runs; in a file that is
    marked as a whole it is.
    """
    here = Path(__file__).parent
    share = config.getoption("--share")
    number, shares = map(int, share.split("/")) if share else (0, 1)
    seen: set[str] = set()
    for item in items:
        function = item.nodeid.partition("[")[0]
        if function != item.nodeid and function not in seen and not item.get_closest_marker("slow"):
            seen.add(function)
            item.own_markers = [mark for mark in item.own_markers if mark.name != "long"]
    if share:
        crc = {item: zlib.crc32(item.nodeid.partition("[")[0].encode()) for item in items}
        config.hook.pytest_deselected(items=[item for item in items if crc[item] % shares != number])
        items[:] = [item for item in items if crc[item] % shares == number]
    for item in items:
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a GPU"))
        if str(item.path.relative_to(here)).startswith(WHOLE):
            item.add_marker("whole")


@pytest.fixture(scope="session", autouse=True)
def one_core() -> Iterator[None]:
    """Models that are opened take one thread: more are slower here, and sum in another order."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tunesmith.models.loading.device.cores", lambda: 1)
        yield


@pytest.fixture(scope="session", autouse=True)
def speed_measured_once() -> Iterator[None]:
    """The CPU's speed is measured once: as in other processes, so that `auto` selects the same precision in both."""
    speeds: dict[torch.dtype, float] = {}

    def known(name: str, dtype: torch.dtype) -> float:
        if name != "cpu":
            return gemm_gflops(name, dtype)
        if dtype not in speeds:
            speeds[dtype] = max(gemm_gflops(name, dtype) for _ in range(device.ROUNDS))
        return speeds[dtype]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(device, "gemm_gflops", known)
        yield


@pytest.fixture(scope="session", autouse=True)
def own_history(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Timings and certificates of test runs do not reach the user's cache, which would spoil later runs."""
    cache = tmp_path_factory.mktemp("history")
    with pytest.MonkeyPatch.context() as patch:
        for module in ("pipelines.plan.history", "models.certificate"):
            patch.setattr(f"tunesmith.{module}.cache_dir", lambda: Path(os.environ.get("TUNESMITH_CACHE", cache)))
        yield


@pytest.fixture(scope="session", autouse=True)
def every_answer_is_computed() -> Iterator[None]:
    """Tests compute what they look at; those of kept answers have a file of their own (`kept`)."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tunesmith.models.kept_answers.cache_dir", lambda: Path(os.devnull))
        yield


@pytest.fixture(scope="session", autouse=True)
def no_challenges() -> Iterator[None]:
    """Runs of tests keep no challenge, which takes longer than they do; those of `verify` make their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tunesmith.pipelines.tune.tune.challenge_of_run", lambda *_, **__: None)
        yield


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of the kept answers of a test, which need not exist yet."""
    monkeypatch.setattr("tunesmith.models.kept_answers.cache_dir", lambda: tmp_path / "answers")
    return tmp_path / "answers" / "answers.db"


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """One thread and torch's own products again, whatever a test's own machine was."""
    use_products("default")
    yield
    torch.set_num_threads(1)
    use_products("default")


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a random decoder with a ChatML template, as SmolLM2 has."""
    return tiny_decoder(tmp_path_factory.mktemp("tiny") / "llama")


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a random encoder."""
    return tiny_encoder(tmp_path_factory.mktemp("tiny") / "bert")
