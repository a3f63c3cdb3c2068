"""The benches run and print both sides; how fast anything is is not tested."""

import json
from collections.abc import Callable

import numpy as np
import torch

from hepattn.bench import experts
from hepattn.bench.__main__ import BENCHES, main
from hepattn.bench.experts import loop
from hepattn.bench.measure import peak_memory, time_all
from hepattn.layers import Experts


def test_without_a_name_it_lists_them(capsys):
    assert main([]) == 0
    assert main(["moon"]) == 2
    printed = capsys.readouterr().out
    assert all(name in printed for name in BENCHES)


def test_masks_prints_both_sides_and_writes_them(capsys, tmp_path):
    path = tmp_path / "masks.json"
    assert main(["masks", "--device", "cpu", "--tokens", "512", "--rounds", "1", "--json", str(path)]) == 0
    printed = capsys.readouterr().out
    rows = json.loads(path.read_text())["rows"]
    assert [row["side"] for row in rows] == ["hepattn, cold", "hepattn, kept", "create_block_mask"]
    assert all(row["side"] in printed and row["milliseconds"] > 0 for row in rows)


def test_experts_prints_every_side_and_writes_them(capsys, tmp_path, monkeypatch):
    def here(work: Callable[..., None], *arguments: object) -> float:  # not in six new processes, ten seconds each
        work(*arguments)
        return 1.0

    monkeypatch.setattr(experts, "peak_memory", here)
    path = tmp_path / "experts.json"
    options = ["--tokens", "64", "--dim", "16", "--experts", "4", "--rounds", "1", "--json", str(path)]
    assert main(["experts", "--device", "cpu", *options]) == 0
    printed = capsys.readouterr().out
    rows = json.loads(path.read_text())["rows"]
    assert [row["side"] for row in rows] == 2 * ["hepattn experts", "dense", "loop over experts"]
    assert all(row["side"] in printed and row["milliseconds"] > 0 and row["megabytes"] == 1 for row in rows)


def test_the_loop_that_experts_are_measured_against_is_the_same_layer():
    torch.manual_seed(0)
    layer, x = Experts(16, experts=4, bias=False), torch.randn(50, 16)
    assert torch.allclose(loop(layer, x), layer(x)[0], atol=1e-5)


def test_sides_take_turns_after_a_warm_up():
    calls: list[str] = []
    times = time_all({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, rounds=2)
    assert calls == ["a", "b", "a", "b", "a", "b"]
    assert set(times) == {"a", "b"}


def fill(megabytes: int) -> float:
    return float(np.ones(megabytes * 2**17).sum())


def test_peak_memory_counts_the_work_alone():
    held = np.ones(100 * 2**17)  # 100 MB of this process
    grown = peak_memory(fill, 64)
    assert grown is not None
    assert 60 < grown < 100
    assert held[0] == 1
