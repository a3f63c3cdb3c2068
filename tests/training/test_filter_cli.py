import json
import os
import signal
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from pytorch_lightning import Callback
from torch.utils.data import DataLoader

import hepattn.cli
from hepattn.data import open_events, write_parquet
from hepattn.models.encoder_config import EncoderConfig
from hepattn.models.hit_filter import HitFilter
from hepattn.training import EventDataModule, HitFilterModule, load_checkpoint
from hepattn.training import filter_cli as cli

from .conftest import toy_event


def run(tmp_path: Path, version: int = 0) -> Path:
    return tmp_path / "run" / "hit_filter" / f"version_{version}"


def weights(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)["state_dict"]


def test_fit_then_test_then_predict(toy_config, toy_folder, tmp_path, capsys):
    assert cli.main(["fit", "--config", str(toy_config), "--trainer.max_steps", "60"]) == 0
    out = capsys.readouterr()
    assert "6 events for train, 2 events for validation, 2 events for test" in out.err
    assert "60 steps in" in out.out
    folder = run(tmp_path) / "checkpoints"
    last = folder / "last.ckpt"
    assert list(folder.glob("best-*.ckpt"))
    saved, loaded = HitFilter.load(folder / "hit_filter.safetensors"), load_checkpoint(last)
    event = toy_event(99)
    assert torch.equal(saved.score(event), loaded.score(event))

    assert cli.main(["test", "--config", str(toy_config), "--ckpt_path", str(last)]) == 0
    out = capsys.readouterr()
    assert "pT > 0.9 GeV, |eta| < 4, >= 3 hits, all volumes" in out.out
    report = json.loads((run(tmp_path, 1) / "test.json").read_text())
    assert report["auc"]["value"] > 0.8
    assert report["at"]["threshold 0.1"]["efficiency"][1] == 72

    scores = tmp_path / "scores.parquet"
    arguments = ["predict", "--config", str(toy_config), "--model.weights", str(folder / "hit_filter.safetensors")]
    writer = {"class_path": "hepattn.training.callbacks.ScoreWriter", "init_args": {"path": str(scores)}}
    assert cli.main([*arguments, "--trainer.callbacks", json.dumps([writer])]) == 0
    table = pd.read_parquet(scores)
    assert list(table.columns) == ["event_id", "hit", "score"]
    assert len(table) == 10 * 72
    assert not run(tmp_path, 2).exists()
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["hit_filter"]
    first = torch.tensor(table[table.event_id == 4].score.to_numpy())
    torch.testing.assert_close(first, saved.score(open_events(toy_folder)[4]))


class Stop(Callback):
    """Stops as Ctrl-C does, inside a step."""

    def __init__(self, step: int) -> None:
        self.step = step
        self.sent = False

    def on_train_batch_start(self, trainer, *_):
        if trainer.global_step == self.step - 1 and not self.sent:
            self.sent = True
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize(
    ("stop", "batch_size", "workers", "summed"),
    [(2, 1, 0, 1), (4, 4, 0, 1), (3, 4, 2, 1), (5, 1, 0, 2)],
    ids=["inside a pass", "at its end", "workers, at a validation", "summed gradients"],
)
def test_interrupted_and_resumed_is_the_same_bit_for_bit(
    toy_config, tmp_path, stop, batch_size, workers, summed, monkeypatch
):
    common = [
        "fit",
        "--config",
        str(toy_config),
        "--trainer.max_steps",
        "8",
        "--model.network.encoder.drop_path",
        "0.3",
    ]
    common += ["--data.batch_size", str(batch_size), "--trainer.accumulate_grad_batches", str(summed)]
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
    resumed = torch.load(run(tmp_path, 2) / "checkpoints" / "last.ckpt", weights_only=True)
    assert resumed["global_step"] == 8
    for name, tensor in straight.items():
        assert torch.equal(tensor, resumed["state_dict"][name]), name


def test_last_checkpoint_is_the_last_and_resumes_from_a_validation(toy_config, tmp_path, monkeypatch):
    def worse_and_worse(self):
        self.log("val_auc", 1.0 / (1 + self.global_step))

    monkeypatch.setattr(HitFilterModule, "on_validation_epoch_end", worse_and_worse)
    common = ["fit", "--config", str(toy_config), "--model.network.encoder.drop_path", "0.3"]
    cli.main([*common, "--trainer.max_steps", "8"])
    folder = run(tmp_path) / "checkpoints"
    assert [path.name for path in folder.glob("best-*")] == ["best-step=3-val_auc=0.2500.ckpt"]
    last = torch.load(folder / "last.ckpt", weights_only=True)
    assert last["global_step"] == 8

    (best,) = folder.glob("best-*")
    cli.main([*common, "--trainer.max_steps", "8", "--ckpt_path", str(best), "--seed_everything", "77"])
    resumed = weights(run(tmp_path, 1) / "checkpoints" / "last.ckpt")
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in last["state_dict"].items())


def test_validation_changes_nothing_in_the_training(toy_config, tmp_path):
    common = ["fit", "--config", str(toy_config), "--model.network.encoder.drop_path", "0.3"]
    cli.main(common)
    cli.main([*common, "--trainer.limit_val_batches", "0"])
    first, second = (weights(run(tmp_path, i) / "checkpoints" / "last.ckpt") for i in (0, 1))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_equal_commands_give_equal_numbers(toy_config, tmp_path):
    for _ in range(2):
        cli.main(["fit", "--config", str(toy_config)])
    first, second = (weights(run(tmp_path, i) / "checkpoints" / "last.ckpt") for i in (0, 1))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model.network.colour", "1"], "colour"),
        (["--model.network.window", "0"], "window must be at least 1"),
        (["--model.network.features", "[x, taste]"], "taste"),
        (["--model.network.features", "[x, size_u]"], "cluster shapes"),
        (["--model.pos_weight", "-1"], "pos_weight"),
        (["--model.optimiser.learning_rate", "0"], "learning_rate"),
        (["--data.path", "no/such/folder"], "no/such/folder"),
        (["--data.validation", "9"], "not enough"),
        (["--data.batch_size", "0"], "batch_size"),
        (["--ckpt_path", "none.ckpt"], "no checkpoint at none.ckpt"),
        (["--trainer.max_steps", "-1", "--trainer.max_epochs", "-1"], "needs an end"),
    ],
)
def test_bad_settings_are_one_sentence_before_any_work(toy_config, tmp_path, arguments, words):
    with pytest.raises((ValueError, OSError), match=words) as error:
        cli.main(["fit", "--config", str(toy_config), *arguments])
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == [toy_config]


@pytest.mark.parametrize("words", ["model: [1\n", "data: {pth: x}\n", "hello\n", ""])
def test_a_bad_file_is_one_sentence_and_status_2(tmp_path, monkeypatch, capsys, words):
    monkeypatch.chdir(tmp_path)
    Path("bad.yaml").write_text(words)
    assert hepattn.cli.main(["filter", "fit", "--config", "bad.yaml", "--trainer.fast_dev_run", "1"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["bad.yaml"]


@pytest.mark.parametrize("command", ["fit", "test", "predict"])
def test_a_file_that_is_no_checkpoint(toy_config, tmp_path, command):
    other = tmp_path / "other.ckpt"
    for write in (lambda: other.write_text("junk"), lambda: torch.save({"state_dict": {}}, other)):
        write()
        with pytest.raises(ValueError, match=r"other\.ckpt is no checkpoint of a hit filter"):
            cli.main([command, "--config", str(toy_config), "--ckpt_path", str(other)])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("events", "advice"), [(2, ("1", "0")), (3, ("1", "1"))])
def test_too_few_events_and_the_advice_works(toy_config, toy_folder, events, advice):
    common = ["fit", "--config", str(toy_config), "--trainer.fast_dev_run", "1", "--data.limit", str(events)]
    with pytest.raises(ValueError, match=f"--data.validation {advice[0]} --data.test {advice[1]}$"):
        cli.main(common)
    assert cli.main([*common, "--data.validation", advice[0], "--data.test", advice[1]]) == 0


def test_bad_keys_in_a_file(toy_config):
    config = yaml.safe_load(toy_config.read_text())
    config["model"]["network"]["windw"] = 3
    toy_config.write_text(yaml.safe_dump(config))
    with pytest.raises(ValueError, match="windw"):
        cli.main(["fit", "--config", str(toy_config)])


def test_testing_random_weights_is_refused(toy_config):
    for command in ("test", "predict", "validate"):
        with pytest.raises(ValueError, match="needs a trained filter"):
            cli.main([command, "--config", str(toy_config)])


def test_checkpoint_of_another_filter(toy_config, tmp_path):
    cli.main(["fit", "--config", str(toy_config)])
    last = run(tmp_path) / "checkpoints" / "last.ckpt"
    with pytest.raises(ValueError, match="window 8 instead of 4"):
        cli.main(["test", "--config", str(toy_config), "--ckpt_path", str(last), "--model.network.window", "4"])
    assert not run(tmp_path, 1).exists()
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        load_checkpoint(tmp_path / "none.ckpt")


PACKAGED = [["hit_filter.yaml"], *(["hit_filter.yaml", f"hit_filter_{name}.yaml"] for name in ("mlp", "encodings"))]


@pytest.mark.parametrize("names", PACKAGED)
def test_packaged_configs_run(names, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    configs = [word for name in names for word in ("--config", name)]
    size = ["--model.network.encoder.dim", "16", "--model.network.encoder.num_layers", "1", "--data.limit", "4"]
    held = ["--data.validation", "1", "--data.test", "1", "--trainer.fast_dev_run", "2", "--trainer.accelerator", "cpu"]
    cli.main(["fit", *configs, *size, *held])
    assert list(tmp_path.iterdir()) == []


def test_packaged_full_size_config_runs_small(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_parquet(tmp_path / "toy", [toy_event(i) for i in range(3)])
    size = [
        "--model.network.encoder.dim",
        "16",
        "--model.network.encoder.num_layers",
        "1",
        "--model.network.window",
        "16",
    ]
    size += ["--model.network.features", "[x, y, z, r]"]
    rest = ["--data.path", "toy", "--data.validation", "1", "--data.test", "1", "--data.workers", "0"]
    cpu = ["--trainer.accelerator", "cpu", "--model.compile", "false", "--trainer.fast_dev_run", "2"]
    cli.main(["fit", "--config", "hit_filter_mu200.yaml", *size, *rest, *cpu])


def test_unusable_events_are_left_out_and_named(tmp_path, capsys):
    write_parquet(tmp_path / "a", [toy_event(1, truth=False)])
    write_parquet(tmp_path / "b", [toy_event(0), toy_event(2), toy_event(3)])
    data = EventDataModule(str(tmp_path), validation=1, test=1, features=("x",))
    data.setup("fit")
    said = capsys.readouterr().err
    assert "left out 1 of 4 events" in said
    assert "event 1" in said
    assert "no truth" in said
    batches = [data.train_dataloader(), data.val_dataloader(), data.test_dataloader()]
    assert [len(loader) for loader in batches] == [1, 1, 1]
    assert next(iter(data.test_dataloader())).event_ids == (3,)


def test_one_event_serves_all_and_says_so(tmp_path, capsys):
    write_parquet(tmp_path / "one", [toy_event(0)])
    data = EventDataModule(str(tmp_path), features=("x",))
    data.setup("fit")
    assert "by heart" in capsys.readouterr().err
    assert isinstance(data.val_dataloader(), DataLoader)


def test_no_usable_event(tmp_path):
    write_parquet(tmp_path / "none", [toy_event(0, truth=False)])
    with pytest.raises(ValueError, match=r"can be used: .*no truth"):
        EventDataModule(str(tmp_path), features=("x",)).setup("fit")


def test_real_trackml_events(tmp_path, capsys):
    folder = Path(__file__).resolve().parents[3] / "shared" / "trackml"
    if not folder.is_dir():
        pytest.skip("no real TrackML files in ../shared/trackml")
    size = [
        "--model.network.encoder.dim",
        "16",
        "--model.network.encoder.num_layers",
        "1",
        "--trainer.fast_dev_run",
        "1",
    ]
    cli.main(["fit", "--config", "hit_filter.yaml", *size, "--data.path", str(folder), "--trainer.accelerator", "cpu"])
    said = capsys.readouterr().err
    assert "event 1001, 1003" in said
    assert "one usable event" in said


def test_step_can_be_driven_from_outside(toy_folder):
    data = EventDataModule(str(toy_folder), features=("x", "y", "z"))
    data.setup("fit")
    from hepattn.models.hit_filter import HitFilterConfig
    from hepattn.training import OptimiserConfig, make_optimiser, make_schedule

    torch.manual_seed(0)
    network = HitFilterConfig(features=("x", "y", "z"), window=8, encoder=EncoderConfig(16, 1, 2))
    module = HitFilterModule(network)
    module.log = lambda *_, **__: None  # type: ignore[method-assign]
    config = OptimiserConfig(learning_rate=1e-2, warmup_steps=2)
    optimiser = make_optimiser(module.model, config)
    schedule = make_schedule(optimiser, config, 40)
    losses = []
    for _, batch in zip(range(40), data.train_dataloader(), strict=False):
        loss = module.training_step(batch)
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        schedule.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])


def test_every_switch_of_the_encoder_can_be_set_and_router_losses_are_logged(toy_config, tmp_path):
    encoder = "--model.network.encoder."
    switches = {"experts": "3", "registers": "2", "cls": "1", "laser": "true", "hybrid_norm": "true", "gate": "true"}
    chosen = [word for name, value in switches.items() for word in (encoder + name, value)]
    chosen += ["--model.network.count", "true", "--model.network.rotary", "true"]
    log = ["--trainer.log_every_n_steps", "1", "--model.router_weights.balance", "0.5", "--model.count_weight", "0.5"]
    cli.main(["fit", "--config", str(toy_config), *chosen, *log, "--trainer.max_steps", "3"])
    columns = (run(tmp_path) / "metrics.csv").read_text().splitlines()[0].split(",")
    assert {"loss", "router_balance", "router_z", "count_loss", "count_error"} <= set(columns)


@pytest.mark.parametrize(
    ("option", "words"),
    [
        (["--model.network.encoder.colour", "1"], "colour"),
        (["--model.network.encoder.num_layers", "1", "--model.network.encoder.value_residual", "true"], "leave it out"),
        (["--model.network.encoder.registers", "40"], "some hit sees no register"),
    ],
)
def test_unknown_and_conflicting_switches_end_early(toy_config, capsys, option, words):
    with pytest.raises((SystemExit, ValueError)) as caught:
        cli.main(["fit", "--config", str(toy_config), *option])
    assert words in capsys.readouterr().err + str(caught.value)
