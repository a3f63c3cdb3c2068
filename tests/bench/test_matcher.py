"""The bench of solvers prints every side that is installed, and says what is not; and refuses wrong answers."""

import json

import pytest
import torch

from hepattn.bench import matcher as bench
from hepattn.bench.__main__ import main
from hepattn.models.matcher import Matcher


def run(tmp_path, *options):
    path = tmp_path / "matcher.json"
    sizes = ["--queries", "20", "--targets", "30", "--layers", "2", "--threads", "2", "--rounds", "1"]
    assert main(["matcher", "--device", "cpu", *sizes, *options, "--json", str(path)]) == 0
    return json.loads(path.read_text())["rows"]


def test_prints_every_side_and_writes_them(capsys, tmp_path):
    rows = run(tmp_path)
    printed = capsys.readouterr().out
    works = [f"{kind}, {layers}20 x 30" for kind in bench.KINDS for layers in ("", "2 x ")]
    assert list(dict.fromkeys(row["work"] for row in rows)) == works
    for row in rows:
        assert row["side"] in printed
        assert (row["milliseconds"] is None) == bool(row["note"])
    assert {"scipy, 1 thread", "scipy, 2 threads"} <= {row["side"] for row in rows if row["milliseconds"]}
    assert any(row["side"].startswith("lapx") for row in rows)
    assert any(row["side"] == bench.ON_GPU and "needs --device cuda" in row["note"] for row in rows)


def test_a_side_that_is_wrong_is_not_timed(monkeypatch, tmp_path):
    def diagonal(costs):
        return range(len(costs)), range(len(costs))

    monkeypatch.setattr(
        bench, "sides", lambda *_: ({"scipy, 1 thread": Matcher().match, "first": Matcher(diagonal).match}, {})
    )
    notes = {row["side"]: row["note"] for row in run(tmp_path, "--kinds", "uniform")}
    assert notes["scipy, 1 thread"] == ""
    assert notes["first"].startswith("wrong: total")


def test_batches_of_a_gpu_are_read_like_ours():
    """A stand-in with the interface of the package: more queries than targets, -1 for a query without one."""
    chosen = torch.tensor([[1, -1, 0], [-1, 0, 1]])
    matched = bench.on_gpu(lambda costs: chosen[: len(costs)], [torch.zeros(3, 2)] * 2)
    assert [one.query.tolist() for one in matched] == [[0, 2], [1, 2]]
    assert [one.target.tolist() for one in matched] == [[1, 0], [0, 1]]


@pytest.mark.parametrize("kind", bench.KINDS)
def test_costs_are_finite_and_layers_are_equally_hard(kind):
    costs = bench.make(kind, 25, 12, "cpu")
    assert costs.shape == (25, 12)
    assert costs.isfinite().all()
    totals = [bench.total([one], Matcher().match([one])) for one in bench.like(costs, 3)]
    assert totals == pytest.approx(3 * [bench.total([costs], Matcher().match([costs]))])
    with pytest.raises(SystemExit):
        main(["matcher", "--queries", "1", "2", "--targets", "1"])
