"""The parity matrix, cell by cell. Flex on a CPU compiles a kernel a cell: see `python -m tests.attention.matrix`."""

import pytest
import torch

from hepattn.masks import Window
from hepattn.masks.base import Place
from tests.attention.matrix import KERNELS, Cell, cells, run

NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
GROUPS = sorted({(cell.kernel, cell.dtype, cell.layout) for cell in cells("cpu", ["sdpa", "auto"])})
GPU_GROUPS = sorted({(cell.kernel, cell.dtype, cell.mask) for cell in cells("cuda")})


@pytest.mark.parametrize(("kernel", "dtype", "layout"), GROUPS)
def test_on_a_cpu(kernel: str, dtype: str, layout: str) -> None:
    check([cell for cell in cells("cpu", [kernel]) if (cell.dtype, cell.layout) == (dtype, layout)], may_refuse=False)


@pytest.mark.cuda
@NO_GPU
@pytest.mark.parametrize(("kernel", "dtype", "mask"), GPU_GROUPS)
def test_on_a_gpu(kernel: str, dtype: str, mask: str) -> None:
    torch.set_float32_matmul_precision("highest")
    chosen = [cell for cell in cells("cuda", [kernel]) if (cell.dtype, cell.mask) == (dtype, mask)]
    check(chosen, may_refuse=kernel == "flash")


def check(chosen: list[Cell], *, may_refuse: bool) -> None:
    assert chosen
    for cell in chosen:
        outcome = run(cell)
        assert may_refuse or not outcome.refusal, f"{cell}: {outcome.refusal}"
        assert outcome.worst <= 1, f"{cell}: {outcome}"


def test_the_matrix_is_whole() -> None:
    for device in ("cpu", "cuda"):
        every = list(cells(device))
        assert len(every) == len({str(cell) for cell in every})
        assert {cell.kernel for cell in every} == set(KERNELS)
        assert sum(bool(cell.bias) for cell in every) > 50


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
@pytest.mark.parametrize("mask", ["window, odd", "window, even", "window, wrapped"])
def test_a_wrong_kernel_is_found(monkeypatch: pytest.MonkeyPatch, mask: str, dtype: str) -> None:
    """A kernel whose window is wider by one token on each side must not pass, by its values nor by its gradients."""
    cell = Cell("sdpa", dtype, mask, "one event", "", "cpu")
    assert run(cell).worst <= 1
    right = Window.allowed

    def allowed(self: Window, query: torch.Tensor, key: torch.Tensor, place: Place) -> torch.Tensor:
        return right(Window(self.size - 2, wrap=self.wrap), query, key, place)

    monkeypatch.setattr(Window, "half", property(lambda self: self.size // 2 + 1))
    monkeypatch.setattr(Window, "allowed", allowed)
    wrong = run(cell)
    assert wrong.value > 5
    assert wrong.gradient > 5
