"""What the command lines of all trainings share."""

import os
from pathlib import Path

import pytest
import torch

import hepattn.cli
from hepattn.training import cli, filter_cli, track_cli


@pytest.fixture(params=["filter", "track"])
def task(request) -> tuple[str, Path]:
    """A task and a file for its `--config`."""
    return request.param, request.getfixturevalue({"filter": "toy_config", "track": "toy_tracking"}[request.param])


def test_configs_by_bare_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    packaged = str(cli.CONFIGS / "hit_filter.yaml")
    assert cli.resolve_configs(["fit", "--config", "hit_filter.yaml"]) == ["fit", "--config", packaged]
    assert cli.resolve_configs(["--config=hit_filter.yaml"]) == [f"--config={packaged}"]
    (tmp_path / "hit_filter.yaml").write_text("{}")
    assert cli.resolve_configs(["--config", "hit_filter.yaml"]) == ["--config", "hit_filter.yaml"]
    with pytest.raises(FileNotFoundError, match=r"hit_filter_mu200\.yaml"):
        cli.resolve_configs(["--config", "nothing.yaml"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--trainer.devices", "2"], "is not distributed: set --trainer.devices 1"),
        (["--trainer.num_nodes", "3"], "ask for 3 devices"),
        (["--trainer.accelerator", "cuda"], "CUDAAccelerator"),
        (["--trainer.fast_dev_run", "-3"], "fast_dev_run"),
        (["--trainer.gradient_clip_algorithm", "bogus"], "bogus"),
        (["--trainer.val_check_interval", "0"], "val_check_interval is a number of steps >= 1 .* not 0"),
        (["--trainer.val_check_interval", "-2"], "invalid value -2 for val_check_interval"),
        (["--trainer.precision", "banana"], r"trainer\.precision takes 64, 32, .* or null, not banana$"),
        (["--data.selection.volumes", "banana"], r"data\.selection\.volumes takes .* or null, not banana$"),
        (["--model.backend", "flash"], "model.backend flash can't be used on cpu: .*; auto takes what is there"),
        (["--model.backend", "flex"], "model.backend flex can't be used on cpu: no backward on CPU"),
        (["--ckpt_path", "last"], r"--ckpt_path last: no run in .*run/(hit_filter|maskformer) has left a last\.ckpt"),
        (["--ckpt_path", "best"], "--ckpt_path takes a file, or the word last, not best"),
    ],
)
def test_what_cannot_train_is_one_sentence_and_status_2_before_any_work(task, tmp_path, capsys, arguments, words):
    if arguments[-1] == "cuda" and torch.cuda.is_available():
        pytest.skip("here it can")
    name, config = task
    with pytest.raises(ValueError, match=words) as error:  # noqa: PT012  (an OSError is the same to the user)
        try:
            {"filter": filter_cli, "track": track_cli}[name].main(["fit", "--config", str(config), *arguments])
        except FileNotFoundError as missing:
            raise ValueError(str(missing)) from missing
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == [config]
    capsys.readouterr()
    assert hepattn.cli.main([name, "fit", "--config", str(config), *arguments]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_the_last_checkpoint_is_the_newest_runs_and_other_words_are_refused_before_events_are_read(
    task, tmp_path, capsys
):
    name, config = task
    main = {"filter": filter_cli, "track": track_cli}[name].main
    common = ["--config", str(config), "--trainer.limit_val_batches", "0"]
    for steps in ("1", "2"):
        assert main(["fit", *common, "--trainer.max_steps", steps]) == 0
    runs = tmp_path / "run" / {"filter": "hit_filter", "track": "maskformer"}[name]
    first, second = (runs / f"version_{i}" / "checkpoints" / "last.ckpt" for i in (0, 1))
    assert f"checkpoint in {second}\n" in capsys.readouterr().out

    os.utime(first, (1, 1))  # version_1 is the newer one, however fast the disk's clock
    assert main(["fit", *common, "--trainer.max_steps", "3", "--ckpt_path", "last"]) == 0
    assert f"the last checkpoint is {second}\n" in capsys.readouterr().err
    third = torch.load(runs / "version_2" / "checkpoints" / "last.ckpt", weights_only=True)
    assert third["global_step"] == 3
    assert third["loops"]["fit_loop"]["epoch_loop.batch_progress"]["total"]["ready"] == 3

    stopped = second.with_name("interrupted.ckpt")  # Ctrl-C left it after the last validation
    stopped.write_bytes(second.read_bytes())
    os.utime(stopped, (2**31, 2**31))
    assert main(["test", "--config", str(config), "--ckpt_path", "last"]) == 0
    assert f"the last checkpoint is {stopped}\n" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"takes a file, such as .*interrupted\.ckpt, or the word last, not best"):
        main(["test", "--config", str(config), "--ckpt_path", "best"])
    assert "events" not in capsys.readouterr().err
