"""`hepattn track`: what it leaves, that it goes on exactly, and what it refuses."""

import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from pytorch_lightning import Callback

import hepattn.cli
from hepattn.data import Event, open_events, read_submission, write_parquet
from hepattn.models.maskformer import MaskFormer
from hepattn.training import filter_cli, load_checkpoint
from hepattn.training import track_cli as cli

from .conftest import toy_event

CONFIGS = Path(hepattn.__file__).parent / "configs"
EAGER = ["--model.network.object_threshold", "0.05", "--model.network.query_threshold", "0.02"]
"""A tracker that has hardly learnt says nothing; one that believes itself less says something."""


def run(tmp_path: Path, version: int = 0) -> Path:
    return tmp_path / "run" / "maskformer" / f"version_{version}"


def weights(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)["state_dict"]


def numbered(event: Event) -> Event:
    """With hit_id, from 1."""
    return replace(event, hits=replace(event.hits, hit_id=np.arange(len(event.hits)) + 1))


def test_fit_then_test_then_predict(toy_tracking, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["fit", "--config", str(toy_tracking), "--trainer.max_steps", "40", *EAGER]) == 0
    out = capsys.readouterr()
    assert "6 events for train, 2 events for validation, 2 events for test" in out.err
    assert "train: the hit filter" in out.err
    assert "% of target hits" in out.err
    assert "test: the hit filter" not in out.err
    folder = run(tmp_path) / "checkpoints"
    assert list(folder.glob("best-step=*-val_efficiency=*.ckpt"))
    columns = set((run(tmp_path) / "metrics.csv").read_text().splitlines()[0].split(","))
    assert {
        "loss",
        "loss_first_hit",
        "loss_objects",
        "loss_focal",
        "loss_dice",
        "queries",
        "queries_per_event",
    } <= columns
    assert {f"val_{name}" for name in ("efficiency", "perfect", "fakes", "duplicates")} <= columns
    assert {"val_efficiency_kept", "val_perfect_kept", "val_fakes_kept", "val_duplicates_kept"} <= columns
    assert not {"loss_iou", "loss_parameters", "loss_routers", "loss_count"} & columns

    last = folder / "last.ckpt"
    saved, loaded = MaskFormer.load(folder / "maskformer.safetensors"), load_checkpoint(last, MaskFormer)
    event = toy_event(99)
    assert np.array_equal(saved.reconstruct(event).hits, loaded.reconstruct(event).hits)

    assert cli.main(["test", "--config", str(toy_tracking), "--ckpt_path", str(last), *EAGER]) == 0
    out = capsys.readouterr()
    assert "target: particles with pT > 0.9 GeV, |eta| < 4, >= 3 hits, all volumes" in out.out
    assert out.out.count("efficiency, double majority") == 2
    report = json.loads((run(tmp_path, 1) / "test.json").read_text())
    assert report["all"]["efficiency"][1] == report["kept"]["efficiency"][1] == 12
    assert report["filter"]["efficiency"][1] == 72
    assert sum(total for _, total in report["against"]["pt"]["double_majority"]) == 12
    assert report["trackml_score"] is None

    with torch.no_grad():
        saved.decoder.mask_bias.add_(4)  # masks that hold something, after so few steps
    saved.save(tmp_path / "sure.safetensors")
    write_parquet(tmp_path / "others" / "a", [numbered(toy_event(i)) for i in (50, 51)])
    write_parquet(tmp_path / "others" / "b", [toy_event(52, truth=False)])
    arguments = ["predict", "--config", str(toy_tracking), "--model.weights", str(tmp_path / "sure.safetensors")]
    assert cli.main([*arguments, "--data.path", str(tmp_path / "others"), "--data.batch_size", "2"]) == 0
    table = pd.read_parquet("tracks.parquet")
    assert list(table.columns) == ["event_id", "track", "hit", "score"]
    events = list(open_events(tmp_path / "others"))  # whose hits stand in another order
    for event in events:
        tracks = saved.reconstruct(event)
        assert len(tracks)
        mine = table[table.event_id == event.event_id]
        assert np.array_equal(mine.hit, tracks.hits)
        assert np.array_equal(mine.track, tracks.owner)
        np.testing.assert_allclose(mine.score, tracks.score[tracks.owner], rtol=1e-5)
    submitted = read_submission("submission.csv", events[:2])
    assert np.array_equal(submitted[50].hits, saved.reconstruct(events[0]).hits)
    assert len(Path("submission.csv").read_text().splitlines()) == 1 + 2 * 72
    assert "1 events without hit_id" in capsys.readouterr().err
    assert not list(tmp_path.glob("*.partial"))
    assert not run(tmp_path, 2).exists()


class Stop(Callback):
    """Stops as Ctrl-C does, inside a step."""

    def __init__(self, step: int) -> None:
        self.step = step
        self.sent = False

    def on_train_batch_start(self, trainer, *_):
        if trainer.global_step == self.step - 1 and not self.sent:
            self.sent = True
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize(("stop", "workers", "queries"), [(4, 1, "dynamic"), (2, 0, "learned")])
def test_interrupted_and_resumed_is_the_same_bit_for_bit(toy_tracking, tmp_path, monkeypatch, stop, workers, queries):
    network = "--model.network."
    common = ["fit", "--config", str(toy_tracking), "--data.batch_size", "2", f"{network}queries", queries]
    common += [f"{network}encoder.drop_path", "0.3", f"{network}decoder.num_layers", "2"]
    common += [f"{network}decoder.drop_path", "0.3", f"{network}learned_queries", "8"]
    cli.main(common)
    straight = weights(run(tmp_path) / "checkpoints" / "last.ckpt")

    common += ["--data.workers", str(workers)]
    default = cli.default_callbacks
    with monkeypatch.context() as patch:
        patch.setattr(cli, "default_callbacks", lambda: [*default(), Stop(stop)])
        with pytest.raises(SystemExit):
            cli.main(common)
    checkpoint = run(tmp_path, 1) / "checkpoints" / "interrupted.ckpt"
    assert torch.load(checkpoint, weights_only=True)["global_step"] == stop

    torch.manual_seed(12345)
    cli.main([*common, "--ckpt_path", str(checkpoint), "--seed_everything", "77"])
    resumed = weights(run(tmp_path, 2) / "checkpoints" / "last.ckpt")
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in straight.items())
    logged = [pd.read_csv(run(tmp_path, version) / "metrics.csv") for version in range(3)]
    losses = [dict(table[table.loss.notna()].set_index("step").loss) for table in logged]
    both = losses[1] | losses[2]
    assert {step: losses[0][step] for step in both} == both
    assert set(losses[0]) - set(both) <= {stop - 1}  # the step that was stopped in is done, and not logged


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model.network.decoder.colour", "1"], "colour"),
        (["--model.network.decoder.window", "0"], "window=0"),
        (["--model.network.object_threshold", "2"], "object_threshold is a probability"),
        (["--model.network.queries", "guessed"], "guessed"),
        (["--model.network.filter", "no/such.safetensors"], "no weights at no/such"),
        (["--model.network.filter", "nobody"], "no hit filter 'nobody'"),
        (["--model.loss.weights.dice", "-1"], "dice=-1"),
        (["--model.matcher", "dice"], "matcher is one of scipy, lapx, not 'dice'"),
        (["--model.network.features", "[x, size_u]"], "cluster shapes"),
        (["--model.network.filter", "sample"], "cluster shapes"),
        (["--data.selection.pt_min", "3"], "leave data.features and data.selection out"),
        (["--data.path", "no/such/folder"], "no/such/folder"),
        (["--ckpt_path", "none.ckpt"], "no checkpoint at none.ckpt"),
        (["--trainer.max_steps", "-1", "--trainer.max_epochs", "-1"], "needs an end"),
    ],
)
def test_bad_settings_are_one_sentence_before_any_work(toy_tracking, tmp_path, arguments, words):
    with pytest.raises((ValueError, OSError), match=words) as error:
        cli.main(["fit", "--config", str(toy_tracking), *arguments])
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == [toy_tracking]


def test_bad_keys_in_a_file_are_one_sentence_and_status_2(toy_tracking, tmp_path, capsys):
    config = yaml.safe_load(toy_tracking.read_text())
    config["model"]["network"]["decoder"]["blok"] = 3
    toy_tracking.write_text(yaml.safe_dump(config))
    assert hepattn.cli.main(["track", "fit", "--config", str(toy_tracking)]) == 2
    said = capsys.readouterr().err
    assert "blok" in said
    assert said.count("\n") == 1


def test_checkpoints_of_others_are_refused_and_a_filter_may_change(
    toy_config, toy_tracking, toy_filter, tmp_path, capsys
):
    config = yaml.safe_load(toy_tracking.read_text())
    network = config["model"]["network"]
    of_filter = {name: network[name] for name in ("features", "window", "encoder")}
    config["model"]["network"] = of_filter
    other = tmp_path / "filter.yaml"
    other.write_text(yaml.safe_dump(config))
    filter_cli.main(["fit", "--config", str(other), "--trainer.max_steps", "1"])
    checkpoint = tmp_path / "run" / "hit_filter" / "version_0" / "checkpoints" / "last.ckpt"
    with pytest.raises(ValueError, match=r"last\.ckpt is no checkpoint of a tracker"):
        cli.main(["fit", "--config", str(toy_tracking), "--ckpt_path", str(checkpoint)])
    with pytest.raises(ValueError, match=r"hit_filter\.safetensors holds no tracker"):
        cli.main(
            [
                "test",
                "--config",
                str(toy_tracking),
                "--model.weights",
                str(checkpoint.with_name("hit_filter.safetensors")),
            ]
        )
    assert not run(tmp_path).exists()

    cli.main(["fit", "--config", str(toy_tracking), "--trainer.max_steps", "1"])
    last = str(run(tmp_path) / "checkpoints" / "last.ckpt")
    with pytest.raises(ValueError, match=r"of another tracker: decoder\.block 4 instead of None$"):
        cli.main(["test", "--config", str(toy_tracking), "--ckpt_path", last, "--model.network.decoder.block", "null"])
    capsys.readouterr()
    cli.main(["test", "--config", str(toy_tracking), "--ckpt_path", last, "--model.network.filter", "null"])
    out = capsys.readouterr()
    assert f"the checkpoint's tracker had filter {toy_filter} instead of None; the latter holds now" in out.err
    assert "no hit filter in front" in out.out
    with pytest.raises(ValueError, match=r"no checkpoint of a hit filter"):
        filter_cli.main(["test", "--config", str(other), "--ckpt_path", last])


def test_testing_random_weights_is_refused(toy_tracking):
    with pytest.raises(ValueError, match="needs a trained tracker"):
        cli.main(["predict", "--config", str(toy_tracking)])


def test_a_filter_that_keeps_nothing_leaves_the_denominators(toy_tracking, tmp_path):
    nothing = ["--model.network.filter_threshold", "0.99"]
    cli.main(["fit", "--config", str(toy_tracking), "--trainer.max_steps", "2", *nothing])
    last = run(tmp_path) / "checkpoints" / "last.ckpt"
    cli.main(["test", "--config", str(toy_tracking), "--ckpt_path", str(last), *nothing])
    report = json.loads((run(tmp_path, 1) / "test.json").read_text())
    assert report["filter"]["kept"] == [0, 144]
    assert report["all"]["efficiency"] == report["kept"]["efficiency"] == [0, 12]
    assert report["all"]["fakes"] == [0, 0]


@pytest.mark.parametrize(
    "names", [["tracking.yaml"], ["tracking_mu200.yaml", "tracking_dense.yaml"]], ids=lambda names: names[0]
)
def test_packaged_configs_run(names, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    configs = [word for name in names for word in ("--config", name)]
    size = ["--model.network.encoder.dim", "16", "--model.network.encoder.num_layers", "1", "--data.limit", "4"]
    size += ["--model.begin_with_filter", "false"]  # which has other sizes
    held = ["--data.validation", "1", "--data.test", "1", "--trainer.fast_dev_run", "2", "--trainer.accelerator", "cpu"]
    if "tracking_mu200.yaml" in names:  # on light events, in front of which the full-size filter would take long
        held += [
            "--data.path",
            "sample",
            "--data.workers",
            "0",
            "--model.compile",
            "false",
            "--trainer.precision",
            "32",
        ]
        held += ["--model.network.filter", "null"]
    assert cli.main(["fit", *configs, *size, *held]) == 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["tracking", "tracking_dense", "tracking_mu200"])
def test_packaged_configs_name_their_commands(name):
    head = (CONFIGS / f"{name}.yaml").read_text().split("seed_everything")[0]
    assert f"{name}.yaml" in head
    assert "hepattn track fit --config tracking" in head


def test_every_switch_of_the_decoder_can_be_set_and_its_losses_are_logged(toy_tracking, tmp_path):
    decoder = "--model.network.decoder."
    switches = {"parameters": "true", "iou": "true", "cls": "1", "update_hits": "4", "gate": "true", "laser": "true"}
    chosen = [word for name, value in switches.items() for word in (decoder + name, value)]
    chosen += ["--model.network.count", "true", "--model.network.encoder.experts", "2"]
    chosen += ["--model.loss.weights.parameters", "0.5", "--model.loss.weights.iou", "0.5"]
    log = ["--trainer.log_every_n_steps", "1", "--trainer.max_steps", "3"]
    cli.main(["fit", "--config", str(toy_tracking), *chosen, *log])
    table = pd.read_csv(run(tmp_path) / "metrics.csv")
    parts = ["first_hit", "objects", "focal", "dice", "iou", "parameters", "routers", "count"]
    losses = table[table.loss.notna()]
    np.testing.assert_allclose(losses[[f"loss_{name}" for name in parts]].sum(axis=1), losses.loss, rtol=1e-5)
    assert (losses[["loss_iou", "loss_parameters", "loss_routers", "loss_count"]] > 0).all(axis=None)
    assert table.count_error.notna().any()
