"""The choice of device, dtype and threads."""

from __future__ import annotations

import itertools
import platform
import subprocess
import sys
import time
from collections.abc import Iterator

import psutil
import pytest
import torch

from tunesmith.data.cpu_count import cores
from tunesmith.errors import RecipeError
from tunesmith.models.kernels import float32_products
from tunesmith.models.kernels.float32_products import use_products
from tunesmith.models.loading import device
from tunesmith.models.loading.device import SHAPES, choose_dtype, choose_machine, configure_device, gemm_gflops


@pytest.fixture(autouse=True)
def _one_thread_again() -> object:
    yield
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _measured_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "gemm_gflops", gemm_gflops)


def test_float32_stays_unless_bfloat16_is_a_third_faster() -> None:
    assert choose_dtype("cpu", {"float32": 100.0, "bfloat16": 129.0})[0] == "float32"
    assert choose_dtype("cpu", {"float32": 100.0, "bfloat16": 130.0})[0] == "bfloat16"


def test_the_reason_names_the_measured_ratio() -> None:
    assert "0.4 times" in choose_dtype("cpu", {"float32": 250.0, "bfloat16": 100.0})[1]


def test_a_gpu_computes_in_bfloat16_only_where_it_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for has, dtype in ((True, "bfloat16"), (False, "float32")):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True, has=has: has)
        assert choose_dtype("cuda:1", {"float32": 1.0, "bfloat16": 1.0})[0] == dtype


def test_gflops_are_operations_over_the_best_time() -> None:
    # Every call of this clock is 10 ms later, so each of the two products takes 10 ms:
    # 2 * 2 * 1024 * 576 * 1536 operations in 20 ms are 181.19 billion a second.
    ticks = itertools.count()
    assert len(SHAPES) == 2
    speed = gemm_gflops("cpu", torch.float32, clock=lambda: next(ticks) * 0.01)
    assert speed == pytest.approx(181.19, abs=0.01)


def test_a_precision_that_is_only_imitated_is_not_waited_for() -> None:
    # Each product takes 20 ms, also of 64 rows, so 1,024 rows would take 320 ms: four small ones are all there is.
    ticks = itertools.count()
    speed = gemm_gflops("cpu", torch.bfloat16, clock=lambda: next(ticks) * 0.02)
    assert next(ticks) == 8
    assert speed == pytest.approx(2 * 2 * 1024 * 576 * 1536 / 0.64 / 1e9, rel=1e-6)


def test_float32_is_measured_whole_however_slow_and_the_first_product_is_not_counted() -> None:
    # Of each of the two shapes the first product takes 900 ms and the second 400 ms, which uses the time up.
    ends = itertools.accumulate(itertools.cycle([0.0, 0.9, 0.0, 0.4]))
    speed = gemm_gflops("cpu", torch.float32, clock=lambda: next(ends))
    assert speed == pytest.approx(2 * 2 * 1024 * 576 * 1536 / 0.8 / 1e9, rel=1e-6)


def test_choosing_takes_a_second_or_two_and_says_why() -> None:
    start = time.perf_counter()
    machine = choose_machine(threads=1)
    assert time.perf_counter() - start < 3.0  # room for a busy machine
    assert machine.threads == torch.get_num_threads() == 1
    assert set(machine.gemm_gflops) == {"float32", "bfloat16"}
    assert all(speed > 0 for speed in machine.gemm_gflops.values())
    assert machine.dtype in machine.why
    assert "\n" not in machine.why


def test_a_moment_in_which_another_process_works_does_not_choose_the_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs of one recipe differed: bfloat16 was measured while somebody else had the processor."""
    found = {torch.float32: iter([100.0, 90.0, 100.0]), torch.bfloat16: iter([60.0, 60.0, 250.0])}
    monkeypatch.setattr("tunesmith.models.loading.device.gemm_gflops", lambda place, dtype: next(found[dtype]))
    machine = choose_machine(device="cpu", threads=1)
    assert (machine.dtype, machine.gemm_gflops) == ("bfloat16", {"float32": 100.0, "bfloat16": 250.0})


def test_what_the_user_asks_for_is_taken() -> None:
    machine = choose_machine(device="cpu", dtype="bfloat16", threads=2)
    assert (machine.device, machine.dtype, machine.threads) == ("cpu", "bfloat16", 2)


def test_threads_are_the_cores_this_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 1, 2}, raising=False)
    monkeypatch.setattr(psutil, "cpu_count", lambda logical=True: 8)
    assert cores() <= 8
    monkeypatch.setattr(psutil, "cpu_count", lambda logical=True: 2)
    assert cores() == 2


@pytest.fixture
def precision() -> Iterator[None]:
    """Products as in a new process; those of before after the test."""
    before = float32_products._STATE.onednn
    use_products("default")
    yield
    torch.set_float32_matmul_precision("highest")
    float32_products._STATE.onednn = False
    use_products("onednn" if before else "default")


@pytest.mark.usefixtures("precision")
@pytest.mark.parametrize(
    ("seconds", "error", "library"),
    [
        ((0.004, 0.002), 0.1, "onednn"),  # with AMX, oneDNN multiplies in bfloat16
        ((0.004, 0.0035), 0.1, "default"),
        ((0.0, 0.0), 0.1, "default"),  # a clock that is too coarse
        ((0.004, 0.002), 0.0, "default"),  # not exact
    ],
)
def test_float32_is_multiplied_by_the_faster_library_that_is_exact(
    monkeypatch: pytest.MonkeyPatch, seconds: tuple[float, float], error: float, library: str
) -> None:
    elapsed = itertools.accumulate(itertools.cycle([0.0, seconds[0], 0.0, seconds[1]]))
    monkeypatch.setattr(float32_products.time, "thread_time", lambda: next(elapsed))
    monkeypatch.setattr(float32_products, "MAX_ERROR", error)
    torch.set_num_threads(2)
    assert float32_products._faster.__wrapped__() == library
    assert torch.get_num_threads() == 2
    assert torch.get_float32_matmul_precision() == "highest"


@pytest.mark.usefixtures("precision")
def test_few_rows_are_left_to_the_default_library_however_many_threads_have_some() -> None:
    assert use_products("onednn") == "onednn"
    first, second = float32_products.short_pass(1), float32_products.short_pass(8)
    assert float32_products.by_onednn()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert not float32_products.by_onednn()
    assert torch.get_float32_matmul_precision() == "highest"
    second.__exit__(None, None, None)
    with float32_products.short_pass(9):
        assert float32_products.by_onednn()


@pytest.mark.usefixtures("precision")
def test_a_model_that_is_opened_later_keeps_the_library_of_the_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(float32_products, "_faster", lambda: "onednn")
    assert choose_machine(device="cpu", dtype="float32", products="default").products == "default"
    configure_device("cpu")
    assert not float32_products.by_onednn()
    assert choose_machine(device="cpu", dtype="float32", products="auto").products == "onednn"
    configure_device("cpu")
    assert float32_products.by_onednn()


@pytest.mark.usefixtures("precision")
def test_a_precision_that_the_user_has_set_stays() -> None:
    torch.set_float32_matmul_precision("high")
    assert use_products("onednn") == "default"
    assert torch.get_float32_matmul_precision() == "high"


def test_a_precision_of_one_backend_alone_stays() -> None:
    script = """
import torch
torch.backends.mkldnn.matmul.fp32_precision = "bf16"
from tunesmith.models.kernels.float32_products import precision, use_products
print(use_products("onednn"), torch.backends.mkldnn.matmul.fp32_precision, precision())
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ended.stdout.split(maxsplit=2)[:2] == ["default", "bf16"]


@pytest.mark.usefixtures("precision")
def test_both_libraries_have_the_error_of_float32() -> None:
    for library in ("default", use_products("auto")):
        use_products(library)
        for rows in (1, 7, 64, 600):
            left, right = torch.randn(rows, 576), torch.randn(576, 1536)
            exact = left.double() @ right.double()
            assert (left @ right - exact).abs().max() < 4e-6 * exact.abs().max()


@pytest.mark.parametrize("wrong", [{"device": "tpu9"}, {"device": "cuda:99"}, {"dtype": "float8"}, {"threads": -1}])
def test_what_cannot_be_is_refused_in_one_line(wrong: dict[str, object]) -> None:
    with pytest.raises(RecipeError) as caught:
        choose_machine(**wrong)
    assert ";" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told to keep memory")
def test_memory_that_training_frees_is_used_again_without_new_pages_and_returned_in_the_end() -> None:
    script = """
import psutil, resource, torch
from tunesmith.models.loading.device import keep_freed_memory
torch.set_num_threads(1)
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(16 * 1024**2)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
returned = [faults() for _ in range(2)][1]
with keep_freed_memory():
    with keep_freed_memory():
        pass  # only the outermost one ends it
    kept = [faults() for _ in range(2)][1]
    held = psutil.Process().memory_info().rss
print(returned, kept, [faults() for _ in range(2)][1], held, psutil.Process().memory_info().rss)
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    returned, kept, after, held, released = map(int, ended.stdout.split())
    assert kept < 0.01 * returned
    assert after > 0.9 * returned
    assert released < held - 60 * 1024**2


def test_a_device_of_torch_is_its_name():
    assert configure_device(torch.device("cpu"), threads=None) == "cpu"  # type: ignore[arg-type]
