"""A training that is driven from outside: pause, step, stop, live settings, and the numbers of the command line."""

import asyncio
import json
import threading
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from hepattn.data import Event, Hits, Particles, write_parquet
from hepattn.models.encoder import Encoder
from hepattn.models.hit_filter import HitFilter
from hepattn.training import EventDataModule, HitFilterModule, load_checkpoint
from hepattn.training import filter_cli as cli
from hepattn.widgets import TrainingExplorer, learning_curves

LONG = 10_000
"""Steps of a training that is stopped before its end."""


def toy_event(number: int, particles: int = 12) -> Event:
    """Straight tracks of six layers; every other particle is stiff, and small |z| of its hits tells."""
    rng = np.random.default_rng(number)
    phi = rng.uniform(-np.pi, np.pi, particles)
    stiff = np.arange(particles) % 2 == 0
    r, p = np.tile(np.arange(1, 7) * 100.0, particles), np.repeat(np.arange(particles), 6)
    z = rng.normal(0, np.where(stiff, 100.0, 800.0)[p])
    volume = np.where(r < 350, 8, 13).astype(np.int32)
    x, y = (r * np.cos(phi[p])).astype(np.float32), (r * np.sin(phi[p])).astype(np.float32)
    owner, layer = p.astype(np.int32), (r / 50).astype(np.int32)
    hits = Hits(x, y, z.astype(np.float32), volume, layer, owner, particle=owner)
    pt, zero = np.where(stiff, 2.0, 0.3), np.zeros(particles, dtype=np.float32)
    px, py = (pt * np.cos(phi)).astype(np.float32), (pt * np.sin(phi)).astype(np.float32)
    charge = np.ones(particles, dtype=np.int32)
    return Event(hits, Particles(px, py, zero, zero, zero, zero, charge, np.arange(particles) + 1), number, "toy")


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("toy")
    write_parquet(folder / "events" / "toy", [toy_event(i) for i in range(8)])
    settings = {
        "seed_everything": 3,
        "model": {
            "network": {
                "features": ["x", "y", "z", "r"],
                "window": 8,
                "encoder": {"dim": 16, "num_layers": 2, "num_heads": 2},
            },
            "optimiser": {"learning_rate": 5e-3, "warmup_steps": 2},
        },
        "data": {"path": str(folder / "events"), "validation": 2, "test": 2},
        "trainer": {
            "max_steps": 6,
            "val_check_interval": 3,
            "check_val_every_n_epoch": None,
            "num_sanity_val_steps": 0,
            "log_every_n_steps": 1,
            "accelerator": "cpu",
            "devices": 1,
            "default_root_dir": str(folder / "run"),
        },
    }
    path = folder / "toy.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


@pytest.fixture
def make(config, tmp_path, monkeypatch):
    """Explorers of small trainings; their pictures are drawn where a test looks at them (half of the time else)."""
    made = []

    def explorer(*, drawn: bool = False, **options) -> TrainingExplorer:
        one = TrainingExplorer(str(config), folder=tmp_path / "left", **options)
        if not drawn:
            monkeypatch.setattr(one.canvas, "png", lambda _: b"")
        made.append(one)
        return one

    yield explorer
    for one in made:
        one.close()


def until(condition, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.01)


def test_losses_and_weights_are_those_of_the_command_line(make, config, tmp_path, capsys):
    explorer = make(every=0.0)
    explorer.start(paused=True)
    explorer.step(2)
    assert explorer.wait(30)
    explorer.resume()
    assert explorer.wait(30)
    assert (explorer.state, explorer.steps, len(explorer.losses)) == ("finished", 6, 6)
    assert {0, 2, 6} <= {step for step, _ in explorer.aucs}

    off = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]
    cli.main(["fit", "--config", str(config), f"--trainer.default_root_dir={tmp_path}", *off])
    capsys.readouterr()
    folder = tmp_path / "hit_filter" / "version_0"
    logged = pd.read_csv(folder / "metrics.csv")["loss"].dropna()
    np.testing.assert_allclose(explorer.losses, logged, rtol=1e-6)
    ours, theirs = load_checkpoint(explorer.checkpoint_path), load_checkpoint(folder / "checkpoints" / "last.ckpt")
    for name, weights in ours.state_dict().items():
        assert torch.equal(weights, theirs.state_dict()[name]), name


def test_pause_step_resume_stop_and_go_on(make):
    explorer = make(steps=LONG)
    explorer.start()
    until(lambda: explorer.steps >= 3)
    explorer.pause()
    assert explorer.wait(20)
    steps = explorer.steps
    time.sleep(0.3)
    assert (explorer.steps, explorer.state) == (steps, "paused")
    assert explorer.aucs[-1][0] == steps  # what is shown belongs to the step at which it waits
    explorer.step()
    assert explorer.wait(20)
    time.sleep(0.2)
    assert explorer.steps == len(explorer.losses) == steps + 1
    with pytest.raises(RuntimeError, match="trains already"):
        explorer.start()
    explorer.resume()
    until(lambda: explorer.steps > steps + 2)
    explorer.stop()
    assert (explorer.running, explorer.state) == (False, "stopped")
    explorer.draw()
    assert str(explorer.checkpoint_path) in explorer.numbers.value
    stopped = explorer.steps

    weights = load_checkpoint(explorer.checkpoint_path).state_dict()
    explorer.begin = "checkpoint"
    explorer.start(paused=True)
    assert explorer.wait(20)
    assert explorer.steps == len(explorer.losses) == stopped
    explorer.stop()
    for name, tensor in load_checkpoint(explorer.checkpoint_path).state_dict().items():
        assert torch.equal(tensor, weights[name])


def test_a_stopped_training_goes_on_as_if_it_had_not_been_stopped(make):
    whole = make()
    whole.start()
    assert whole.wait(30)
    parts = make()
    parts.step(3)
    assert parts.wait(30)
    parts.stop()
    parts.start(resume=True)
    assert parts.wait(30)
    assert parts.losses == whole.losses
    assert parts.auc == whole.auc


def test_the_command_line_goes_on_from_what_stop_leaves(make, config, tmp_path, capsys):
    explorer = make()
    explorer.step(3)
    explorer.wait(20)
    explorer.stop()
    arguments = ["fit", "--config", str(config), f"--trainer.default_root_dir={tmp_path}"]
    arguments += ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]
    assert cli.main([*arguments, "--ckpt_path", str(explorer.checkpoint_path)]) == 0
    assert "3 steps in" in capsys.readouterr().out


def test_a_learning_rate_reaches_the_optimiser_while_it_trains(make, monkeypatch):
    rates = []
    real = torch.optim.AdamW.step

    def step(self, *args, **kwargs):
        rates.append(self.param_groups[0]["lr"])
        return real(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    explorer = make()
    explorer.step(3)
    explorer.wait(20)
    explorer.learning_rate = 1e-4
    explorer.step(1)
    explorer.wait(20)
    assert rates[2] == pytest.approx(5e-3)  # the peak, after two steps of warm-up
    assert 0 < rates[3] < 1e-4
    assert rates[3] / 1e-4 == pytest.approx(0.7525, abs=1e-3)  # on the cosine of five more steps
    with pytest.raises(ValueError, match=r"between 1e-05 and 0\.1"):
        explorer.learning_rate = 1.0


def test_a_threshold_cuts_kept_scores_again_without_the_model(make, monkeypatch):
    explorer = make(drawn=True)
    explorer.start()
    explorer.wait(30)
    calls = []
    monkeypatch.setattr(HitFilter, "logits", lambda *_: calls.append(1))
    artists = [len(ax.get_children()) for ax in explorer.figure.axes]
    pictures = []
    explorer.threshold = float(np.round(np.quantile(explorer.scores, 0.1), 2))
    low = explorer.numbers.value
    for threshold in (0.2, 0.5, 0.8):
        explorer.threshold = threshold
        pictures.append(bytes(explorer.picture.value))
    assert not calls
    assert len(set(pictures)) == 3
    assert explorer.numbers.value != low
    assert artists == [len(ax.get_children()) for ax in explorer.figure.axes]
    kept = int((explorer.scores >= 0.8).sum())
    assert f"of {kept})" in explorer.numbers.value


def windows(monkeypatch) -> list[int]:
    """Records the window of each pass through an encoder with gradients."""
    seen = []
    real = Encoder.run

    def run(self, *args, **kwargs):
        if self.training:
            seen.append(self.inner_mask.size)
        return real(self, *args, **kwargs)

    monkeypatch.setattr(Encoder, "run", run)
    return seen


def test_a_window_reaches_the_encoder_while_it_trains(make, monkeypatch):
    seen = windows(monkeypatch)
    explorer = make(steps=LONG)
    explorer.start()
    until(lambda: explorer.steps >= 3)
    explorer.window = 16
    until(lambda: 16 in seen)
    explorer.stop()
    change = seen.index(16)
    assert (set(seen[:change]), set(seen[change:])) == ({8}, {16})
    assert load_checkpoint(explorer.checkpoint_path).config.window == 16


def test_a_pt_cut_reaches_targets_and_held_out_events_while_it_trains(make, monkeypatch):
    fractions = []
    real = HitFilterModule.training_step

    def step(self, batch, batch_idx=0):
        fractions.append(float(batch.target.double().mean()))
        return real(self, batch, batch_idx)

    monkeypatch.setattr(HitFilterModule, "training_step", step)
    explorer = make(steps=LONG)
    explorer.start()
    until(lambda: explorer.steps >= 3)
    explorer.pt_min = 0.2
    until(lambda: fractions[-1] == 1.0)  # every particle has more than that, half of them more than 0.9
    explorer.stop()
    change = fractions.index(1.0)
    assert (set(fractions[:change]), set(fractions[change:])) == ({0.5}, {1.0})
    assert load_checkpoint(explorer.checkpoint_path).config.pt_min == 0.2
    explorer.draw()
    assert "pT &gt; 0.2 GeV" in explorer.numbers.value
    assert explorer._held_out.target.all()


def test_a_pt_cut_moved_in_a_pause_is_judged_at_once_and_stays_in_the_checkpoint(make):
    explorer = make()
    explorer.step(2)
    assert explorer.wait(20)
    before, scores = explorer.aucs[-1], explorer.scores
    explorer.pt_min = 2.5  # no particle is wanted
    assert explorer.wait(20)
    assert "pT &gt; 2.5 GeV" in explorer.numbers.value
    np.testing.assert_array_equal(explorer.scores, scores)
    assert explorer.steps == 2
    explorer.pt_min, explorer.window = 0.9, 16
    assert explorer.wait(20)
    assert explorer.aucs[-1][0] == before[0]
    assert not np.array_equal(explorer.scores, scores)  # another window
    explorer.window = 8
    assert explorer.wait(20)
    assert explorer.aucs[-1] == before
    explorer.pt_min = 1.5
    explorer.stop()
    assert load_checkpoint(explorer.checkpoint_path).config.pt_min == 1.5


@pytest.mark.parametrize("workers", [0, 1])
def test_going_on_after_changes_is_exact(make, workers):
    """Also where worker processes have prepared batches with the old cut."""
    whole, parts = (make(every=0.0) for _ in range(2))
    whole._arguments.append(f"--data.workers={workers}")
    whole.step(2)
    assert whole.wait(60)
    whole.window, whole.pt_min = 16, 0.2
    whole.resume()
    assert whole.wait(60)
    parts.step(2)
    assert parts.wait(20)
    parts.window, parts.pt_min = 16, 0.2
    parts.step()
    assert parts.wait(20)
    parts.stop()
    parts.start(resume=True)
    assert parts.wait(30)
    assert parts.losses == whole.losses
    np.testing.assert_array_equal(parts.scores, whole.scores)
    unchanged = make()
    unchanged.start()
    assert unchanged.wait(30)
    assert unchanged.losses[:2] == whole.losses[:2]
    assert unchanged.losses[2] != whole.losses[2]


def test_settings_of_the_next_start(make):
    explorer = make()
    explorer.start()
    explorer.wait(30)
    first = explorer.aucs
    explorer.window, explorer.pt_min, explorer.attention = 16, 0.5, False
    assert "pT &gt; 0.9 GeV" in explorer.numbers.value
    explorer.begin = "checkpoint"
    with pytest.raises(ValueError, match=r"another filter: attention True instead of False"):
        explorer.start()
    explorer.begin = "new"
    explorer.start()
    assert explorer.wait(30)
    config = load_checkpoint(explorer.checkpoint_path).config
    assert (config.window, config.pt_min, config.attention) == (16, 0.5, False)
    assert "pT &gt; 0.5 GeV" in explorer.numbers.value
    np.testing.assert_allclose(explorer._panels.old.get_ydata(), [auc for _, auc in first])


def test_what_was_moved_after_a_stop_holds_when_it_goes_on(make, monkeypatch):
    explorer = make()
    explorer.step(2)
    explorer.wait(20)
    explorer.stop()
    explorer.window, explorer.pt_min = 16, 0.5
    seen = windows(monkeypatch)
    explorer.start(resume=True)
    assert explorer.wait(30)
    assert (set(seen), len(explorer.losses)) == ({16}, 6)
    config = load_checkpoint(explorer.checkpoint_path).config
    assert (config.window, config.pt_min) == (16, 0.5)


def test_what_is_read_is_said_in_ordinary_output(make, capsys):
    make()
    said = capsys.readouterr()
    assert said.out == "4 events for train, 2 events for validation, 2 events for test\n"
    assert said.err == ""


def test_an_error_in_the_thread_is_shown_and_raised(make, monkeypatch):
    def fails(*_):
        raise ArithmeticError("weights <of lead>")

    explorer = make()
    monkeypatch.setattr(HitFilterModule, "training_step", fails)
    explorer.start()
    with pytest.raises(ArithmeticError, match="of lead"):
        explorer.wait(20)
    assert explorer.state == "failed"
    assert "<b>ArithmeticError</b>: weights &lt;of lead&gt;" in explorer.numbers.value
    assert not explorer.checkpoint_path.exists()
    monkeypatch.undo()
    explorer.start()
    assert explorer.wait(30)
    assert explorer.state == "finished"


def test_a_button_that_cannot_do_its_work_says_so(make):
    explorer = make()
    explorer._buttons["pause"].click()
    assert "start it first" in explorer.numbers.value
    explorer.begin = "checkpoint"
    explorer._buttons["start"].click()
    assert "no checkpoint at" in explorer.numbers.value
    assert not explorer.running


def test_closing_ends_the_thread_and_leaves_nothing(make):
    explorer = make(steps=LONG)
    explorer.start()
    until(lambda: explorer.steps >= 1)
    thread = explorer._thread
    explorer.close()
    assert not thread.is_alive()
    assert not explorer.checkpoint_path.exists()
    explorer.close()


def test_the_main_loop_draws_while_it_trains_and_answers(make):
    async def watch() -> tuple[int, set[int], bool]:
        explorer = make(drawn=True, steps=LONG, every=0.1)
        drawn_by = set()
        real = explorer.update

        def update() -> str:
            drawn_by.add(threading.get_ident())
            return real()

        explorer.__dict__["update"] = update
        explorer.start()
        for _ in range(20):
            await asyncio.sleep(0.05)
        training = explorer.running
        explorer.stop()
        await asyncio.sleep(0.3)
        assert "<b>stopped</b>" in explorer.numbers.value
        return explorer.drawings, drawn_by, training

    drawings, drawn_by, training = asyncio.run(watch())
    assert drawings >= 3
    assert drawn_by == {threading.get_ident()}
    assert training  # the loop came round twenty times meanwhile: it is not held for the length of the training


def test_the_view_holds_one_picture_and_the_figure_shows_curves(make):
    explorer = make(drawn=True)
    explorer._repr_mimebundle_()
    assert sum(child is explorer.picture for child in explorer.view.children) == 1
    assert bytes(explorer.picture.value).startswith(b"\x89PNG")
    explorer.start()
    explorer.wait(30)
    loss, auc = learning_curves({"toy": explorer}).axes
    assert np.shape(loss.lines[0].get_xdata()) == (6,)
    assert np.asarray(auc.lines[0].get_ydata())[-1] == explorer.auc
    assert json.loads(json.dumps(explorer.losses)) == explorer.losses  # plain numbers


def test_events_are_shared_and_not_read_again(config, capsys):
    first, second = (EventDataModule(str(config.parent / "events"), validation=2, test=2) for _ in range(2))
    first.read_for(None)
    first.features = ("x", "y")
    first.setup("fit")
    capsys.readouterr()
    second.features = ("x", "y")
    second.share(first)
    second.setup("fit")
    assert capsys.readouterr().err == ""
    assert second.events("validation") is first.events("validation")
