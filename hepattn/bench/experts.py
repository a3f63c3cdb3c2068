"""Experts against the dense network of the same active width, and against the usual loop over experts.

`python -m hepattn.bench experts [--device cuda]`. Float32 weights and inputs; on a GPU under autocast to bfloat16.
"""

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
import torch._dynamo  # torch loads these 80 MB at the first call of any custom operator: not the layer's memory
from torch import Tensor, nn

from hepattn.bench.attention import milliseconds
from hepattn.bench.measure import Row, peak_memory, report, time_all
from hepattn.layers import Dense, Experts

LOOP = "loop over experts"
COMPILED = ", compiled"
Size = tuple[int, int, int, int, float]
"""Tokens, dim, experts, top_k, ratio."""


def loop(layer: Experts, x: Tensor) -> Tensor:
    """The same layer as it is usually written: one dense network after the other, on the tokens that chose it."""
    weights, chosen, _ = layer.route(x)
    out = torch.zeros_like(x)
    for expert in range(layer.experts):
        token, choice = (chosen == expert).nonzero(as_tuple=True)
        gate, value = (x[token] @ layer.input[expert]).chunk(2, dim=-1)
        found = (nn.functional.silu(gate) * value) @ layer.output[expert]
        out = out.index_add(0, token, (found * weights[token, choice, None]).to(out.dtype))
    return out


def make(side: str, size: Size, device: str, *, grad: bool) -> Callable[[], object]:
    """The work of one side: forward, or forward and the gradients of x and all weights."""
    tokens, dim, experts, top_k, ratio = size
    torch.manual_seed(0)
    x = torch.randn(tokens, dim, device=device, requires_grad=grad)
    name = side.removesuffix(COMPILED)
    layer: nn.Module
    work: Callable[[Tensor], Tensor]
    if name == "dense":
        layer = Dense(dim, ratio=top_k * ratio, bias=False).to(device)
        work = layer
    else:
        layer = mixture = Experts(dim, experts=experts, top_k=top_k, ratio=ratio, bias=False).to(device)
        work = (lambda x: loop(mixture, x)) if name == LOOP else (lambda x: mixture(x)[0])
    if side.endswith(COMPILED):
        work = torch.compile(work, fullgraph=True, dynamic=True)
    leaves, gradient = [x, *layer.parameters()], torch.randn_like(x.detach())

    def run() -> None:
        with torch.set_grad_enabled(grad), torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            out = work(x)
        if grad:
            torch.autograd.grad(out, leaves, gradient.to(out.dtype))

    return run


def once(side: str, size: Size, device: str, grad: bool) -> None:
    """One run, for its memory."""
    make(side, size, device, grad=grad)()


def memory(side: str, size: Size, device: str, work: Callable[[], object], *, grad: bool) -> float | None:
    """Megabytes beyond weights and inputs on a GPU; with them, of a new process, on a CPU."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    return None if side.endswith(COMPILED) else peak_memory(once, side, size, device, grad)  # it would compile anew


def times(work: Mapping[str, Callable[[], object]], device: str, rounds: int) -> dict[str, float]:
    """Median milliseconds of each side."""
    if device == "cuda":
        return {side: milliseconds(run, rounds) for side, run in work.items()}
    return time_all(work, rounds)


def measure(size: Size, device: str, rounds: int, *, compiled: bool) -> Iterator[Row]:
    """Rows of one size: forward, then forward and backward; ours first."""
    sides = ["hepattn experts", "dense", LOOP]
    if compiled:
        sides += [f"hepattn experts{COMPILED}", f"dense{COMPILED}"]
    tokens, dim, experts, top_k, ratio = size
    for grad in (False, True):
        work = {side: make(side, size, device, grad=grad) for side in sides}
        found = times(work, device, rounds)
        what = f"{'forward + backward' if grad else 'forward'}, {tokens:,} x {dim}"
        for side in sides:
            width = top_k * ratio if side.startswith("dense") else ratio
            note = f"ratio {width:g}" if side.startswith("dense") else f"{top_k} of {experts}, ratio {width:g}"
            peak = memory(side, size, device, work[side], grad=grad)
            yield Row(what, side, found[side], found[side] / found[sides[0]], peak, note)


def main(argv: Sequence[str]) -> int:
    """Prints the table."""
    parser = argparse.ArgumentParser(prog="python -m hepattn.bench experts", description=__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--tokens", type=int, nargs="+", default=[57_344])
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--experts", type=int, default=8)
    parser.add_argument("--top-k", type=int, default=2)
    parser.add_argument("--ratio", type=float, default=2.0, help="hidden width of one expert over dim")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--compiled", action="store_true", help="also both sides under torch.compile")
    parser.add_argument("--json", type=Path, help="also write the rows there")
    options = parser.parse_args(argv)
    sizes = [(tokens, options.dim, options.experts, options.top_k, options.ratio) for tokens in options.tokens]
    rows = (row for size in sizes for row in measure(size, options.device, options.rounds, compiled=options.compiled))
    precision = "autocast to bfloat16" if options.device == "cuda" else "float32"
    report(f"A mixture of experts on a {options.device}, {precision}", rows, options.json)
    return 0
