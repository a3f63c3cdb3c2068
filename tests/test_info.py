"""`hepattn info`: what it tells and that it needs nothing that may be missing."""

import json

import pytest
import torch

import hepattn
from hepattn import cli, info


@pytest.fixture(scope="module")
def found():
    return info.collect()


def test_versions_and_device(found):
    assert found.versions["torch"] == torch.__version__
    assert found.versions["hepattn"] == cli.package_version()
    assert found.device == ("cuda" if torch.cuda.is_available() else "cpu")
    assert len(found.cuda) == torch.cuda.device_count()
    assert found.cpu
    assert found.cpu_count >= 1
    assert found.torch_threads == torch.get_num_threads()


def test_every_kernel_is_there_with_a_reason_if_missing(found):
    assert found.kernels == hepattn.available_backends(device=found.device)
    assert set(found.kernels) >= {"sdpa", "flex", "flash"}
    assert found.kernels["sdpa"] is True
    assert all(value is True or (isinstance(value, str) and len(value) > 10) for value in found.kernels.values())


def test_missing_packages_come_with_a_reason(found):
    for value in [*found.accelerators.values(), *found.simulator.values()]:
        assert value is True or (isinstance(value, str) and value)


def test_a_missing_distribution_is_none():
    assert info.installed("no-such-distribution") is None


@pytest.mark.parametrize("name", ["no_such_module", "no_such_module.part", "torch.no_such_part"])
def test_a_missing_module_is_found_missing(name):
    assert not info.has_module(name)


def test_text_names_everything(found):
    text = info.describe(found)
    names = [*found.versions, *found.kernels, *found.accelerators, *found.simulator, found.cpu, *found.cuda]
    assert all(name in text for name in names)
    assert all(value in text for value in found.kernels.values() if isinstance(value, str))


def test_commands(capsys, found):
    assert cli.main(["info"]) == 0
    assert capsys.readouterr().out == info.describe(found) + "\n"
    assert cli.main(["info", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["kernels"] == found.kernels
    assert record["versions"] == found.versions


def test_a_wrong_option_exits_with_status_2(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["info", "--xml"])
    assert stop.value.code == 2
    assert "usage: hepattn info" in capsys.readouterr().err
