"""What the command lines of all trainings share."""

import pytest

from hepattn.training import cli


def test_configs_by_bare_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    packaged = str(cli.CONFIGS / "hit_filter.yaml")
    assert cli.resolve_configs(["fit", "--config", "hit_filter.yaml"]) == ["fit", "--config", packaged]
    assert cli.resolve_configs(["--config=hit_filter.yaml"]) == [f"--config={packaged}"]
    (tmp_path / "hit_filter.yaml").write_text("{}")
    assert cli.resolve_configs(["--config", "hit_filter.yaml"]) == ["--config", "hit_filter.yaml"]
    with pytest.raises(FileNotFoundError, match=r"hit_filter_mu200\.yaml"):
        cli.resolve_configs(["--config", "nothing.yaml"])
