"""The ablation: a small training to its end."""

from pathlib import Path

import numpy as np
import pytest

from hepattn.bench.ablation import main
from hepattn.data import sample_events, write_parquet
from hepattn.metrics.ablation import read_runs


def test_training_is_kept_and_not_run_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    events, out = sample_events("ttbar_mu0"), tmp_path / "runs.jsonl"
    parts = [one.keep(np.abs(one.hits.phi) < 0.5) for one in (events[i] for i in range(8))]
    write_parquet(tmp_path / "events", parts)
    command = ["--events", str(tmp_path / "events"), "--out", str(out), "--variants", "gate", "--workers", "0"]
    small = {"dim": 16, "layers": 1, "heads": 1, "window": 32, "steps": 135, "warmup": 5, "seeds": 1, "held-out": 3}
    command += [word for name, value in small.items() for word in (f"--{name}", str(value))]
    command += ["--sector", "0.5"]
    assert main(command) == 0
    runs = read_runs(out)
    assert [(run.variant, run.seed, run.steps) for run in runs] == [("gate", 1, 135)]
    assert runs[0].steps_per_second
    assert 0 < runs[0].auc < 1
    text = capsys.readouterr().out
    assert "5 events to train on, 3 held out" in text
    assert "135 steps, each on 50% of an event" in text
    assert main(command) == 0
    assert read_runs(out) == runs
    with pytest.raises(SystemExit):
        main([*command[:-1], "0"])
    assert "--sector is a share of a full turn" in capsys.readouterr().err
