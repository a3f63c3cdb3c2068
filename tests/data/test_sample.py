"""The events that come with the project, and the one door to every source."""

import hashlib
from pathlib import Path

import pytest

from hepattn.data import (
    EventFileError,
    data_directory,
    open_events,
    sample_event,
    sample_events,
    sample_names,
    write_parquet,
)
from hepattn.data import sample as module

from .conftest import make_event


@pytest.fixture
def made_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_parquet(tmp_path / "ttbar_mu0", [make_event(20 + i, seed=i) for i in range(3)])
    write_parquet(tmp_path / "ttbar_mu40", [make_event(99)])
    monkeypatch.setattr(module, "data_directory", lambda: tmp_path)
    return tmp_path


def test_samples_by_name(made_up: Path) -> None:
    assert sample_names() == ["ttbar_mu0", "ttbar_mu40"]
    assert len(sample_event().hits) == 20
    assert len(sample_event("ttbar_mu0", -1).hits) == 22
    assert len(sample_events("ttbar_mu40")) == 1
    with pytest.raises(ValueError, match="no sample 'ttbar': there are ttbar_mu0, ttbar_mu40"):
        sample_event("ttbar")
    with pytest.raises(IndexError, match="event 3 of 3"):
        sample_event(index=3)


def test_open_events_finds_every_source(made_up: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    assert len(open_events("sample")) == 3
    assert len(open_events("sample:ttbar_mu40")) == 1
    assert len(open_events(made_up)) == 4
    assert len(open_events(made_up / "ttbar_mu0")) == 3
    assert len(open_events(str(made_up / "ttbar_mu0.hits.parquet"))) == 3
    folder = tmp_path_factory.mktemp("trackml")
    with pytest.raises(EventFileError, match="no event\\*-hits"):
        open_events(folder)
    (folder / "event000000012-hits.csv").write_text("hit_id,x,y,z,volume_id,layer_id,module_id\n1,30,0,0,8,2,1\n")
    assert open_events(folder).event_ids == [12]
    assert open_events(folder / "event000000012")[0].event_id == 12
    with pytest.raises(FileNotFoundError, match="no such"):
        open_events(folder / "absent")


def test_the_data_folder_is_found() -> None:
    assert (data_directory() / "README.md").is_file()


def test_checksums() -> None:
    sums = data_directory() / "SHA256SUMS"
    lines = sums.read_text().splitlines() if sums.is_file() else []
    listed = {name.strip(): checksum for checksum, name in (line.split(maxsplit=1) for line in lines)}
    there = {path.name for path in data_directory().glob("*.parquet")}
    assert {name for name in listed if name.endswith(".parquet")} == there
    for name, checksum in listed.items():
        assert hashlib.sha256((data_directory() / name).read_bytes()).hexdigest() == checksum, name


def test_every_sample_reads() -> None:
    for name in sample_names():
        event = sample_event(name, -1)
        assert event.particles is not None
        assert event.hits.particle is not None
        assert event.hits.clusters is not None
        assert len(event.hits) > 100
