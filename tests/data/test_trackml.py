"""The TrackML reader: every way in, exact ids, slow references, and one sentence for every fault."""

import gzip
import math
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hepattn.data import Event, EventFileError, Selection, TrackMLEvents, list_trackml, read_trackml
from hepattn.data.trackml import cluster_angles

from .conftest import make_event

BIG = 2**60
HITS = (
    "hit_id,x,y,z,volume_id,layer_id,module_id\n"
    "1,30.5,0,-1.5,8,2,1\n3,0,70,2,8,4,7\n2,-110,1e-3,3,8,6,9\n7,1,2,3,7,2,1\n"
)
PARTICLES = f"particle_id,vx,vy,vz,px,py,pz,q,nhits\n{BIG + 1},0,0,1,3,4,0,-1,2\n{BIG},0.1,0,2,1,0,1,1,1\n"
TRUTH = (
    "hit_id,particle_id,tx,ty,tz,tpx,tpy,tpz,weight\n"
    f"7,0,0,0,0,0,0,0,0\n2,{BIG},1,2,3,4,5,6,0.5\n1,{BIG + 1},0,0,0,0,0,0,0.25\n3,{BIG + 1},0,0,0,0,0,0,0.25\n"
)
CELLS = "hit_id,ch0,ch1,value\n1,5,9,0.5\n1,6,9,0.25\n1,5,10,0.5\n2,0,0,1\n7,4,4,1\n3,7,2,1\n7,2,4,0.5\n"
DETECTORS = (
    "volume_id,layer_id,module_id,cx,cy,cz,rot_xu,rot_xv,rot_xw,rot_yu,rot_yv,rot_yw,rot_zu,rot_zv,rot_zw,"
    "module_t,module_minhu,module_maxhu,module_hv,pitch_u,pitch_v\n"
    "8,2,1,0,0,0,0,0,1,1,0,0,0,1,0,0.15,8,8,36,0.05,0.05625\n"
    "8,4,7,0,0,0,0,0,1,1,0,0,0,1,0,0.15,8,8,36,0.05,0.05625\n"
    "8,6,9,0,0,0,0,0,1,1,0,0,0,1,0,0.15,8,8,36,0.05,0.05625\n"
    "7,2,1,0,0,0,1,0,0,0,1,0,0,0,1,0.15,8,8,36,0.05,0.05625\n"
)
ALL = {"hits": HITS, "particles": PARTICLES, "truth": TRUTH, "cells": CELLS, "detectors": DETECTORS}


def write(folder: Path, parts: dict[str, str], *, packed: bool = False, event_id: int = 5) -> Path:
    for part, text in parts.items():
        name = "detectors.csv" if part == "detectors" else f"event{event_id:09d}-{part}.csv"
        if packed:
            (folder / f"{name}.gz").write_bytes(gzip.compress(text.encode()))
        else:
            (folder / name).write_text(text)
    return folder


def check_complete(event: Event) -> None:
    hits, particles = event.hits, event.particles
    assert event.event_id == 5
    assert hits.hit_id is not None
    assert hits.hit_id.tolist() == [1, 3, 2, 7]
    np.testing.assert_array_equal(hits.x, np.array([30.5, 0, -110, 1], dtype=np.float32))
    assert hits.module_id.tolist() == [1, 7, 9, 1]
    assert particles is not None
    assert particles.particle_id.tolist() == [BIG + 1, BIG]  # one apart: a float would make them one
    assert particles.charge.tolist() == [-1, 1]
    assert particles.pdg is None
    assert particles.nhits is not None
    assert hits.particle is not None
    assert hits.particle.tolist() == [0, 0, 1, -1]
    assert event.truth is not None
    assert event.truth.weight.tolist() == [0.25, 0.25, 0.5, 0]
    assert event.truth.tpz.tolist() == [0, 0, 6, 0]
    clusters = hits.clusters
    assert clusters is not None
    assert clusters.size_u.tolist() == [2, 1, 1, 3]
    assert clusters.size_v.tolist() == [2, 1, 1, 1]
    assert clusters.cells is not None
    assert clusters.cells.tolist() == [3, 1, 1, 2]
    assert clusters.charge.tolist() == [1.25, 1, 1, 1.5]
    assert event.columns["particles"] == ("particle_id", "vx", "vy", "vz", "px", "py", "pz", "q", "nhits")


# -- ways in -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("packed", [False, True])
def test_folder_prefix_and_file(tmp_path: Path, packed: bool) -> None:
    write(tmp_path, ALL, packed=packed)
    ending = ".csv.gz" if packed else ".csv"
    for path in (tmp_path, str(tmp_path), tmp_path / "event000000005", tmp_path / f"event000000005-hits{ending}"):
        check_complete(read_trackml(path))
        check_complete(read_trackml(path, 5))
    assert list_trackml(tmp_path) == list_trackml(tmp_path / "event000000005") == [5]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("inside", ["", "train_sample/"])
def test_zip(tmp_path: Path, packed: bool, inside: str) -> None:
    folder = tmp_path / "loose"
    folder.mkdir()
    write(folder, ALL, packed=packed)
    with zipfile.ZipFile(tmp_path / "train.zip", "w") as archive:
        for file in folder.iterdir():
            archive.write(file, inside + file.name)
    check_complete(read_trackml(tmp_path / "train.zip", 5))
    assert list_trackml(tmp_path / "train.zip") == [5]


def test_detectors_beside_in_a_zip_or_given(tmp_path: Path) -> None:
    folder, other = tmp_path / "events", tmp_path / "other"
    folder.mkdir()
    other.mkdir()
    write(folder, {part: text for part, text in ALL.items() if part != "detectors"})
    assert read_trackml(folder).hits.clusters is None
    write(other, {"detectors": DETECTORS})
    check_complete(read_trackml(folder, detectors=other / "detectors.csv"))
    with zipfile.ZipFile(tmp_path / "detectors.zip", "w") as archive:
        archive.writestr("detectors.csv", DETECTORS)
    check_complete(read_trackml(folder))
    assert read_trackml(folder, clusters=False).hits.clusters is None
    with pytest.raises(FileNotFoundError, match="no such file of detector modules"):
        read_trackml(folder, detectors=tmp_path / "absent.csv")


def test_some_parts(tmp_path: Path) -> None:
    write(tmp_path, {"hits": HITS})
    bare = read_trackml(tmp_path)
    assert bare.particles is None
    assert bare.hits.particle is None
    assert bare.truth is None
    write(tmp_path, {"particles": PARTICLES})
    listed = read_trackml(tmp_path)
    assert listed.particles is not None
    assert listed.hits.particle is None
    with pytest.raises(ValueError, match="has no truth on its hits"):
        Selection().particles(listed)
    (tmp_path / "event000000005-particles.csv").unlink()
    write(tmp_path, {"truth": TRUTH})
    told = read_trackml(tmp_path)
    assert told.particles is None
    assert told.hits.particle is not None
    assert told.hits.particle.tolist() == [1, 1, 0, -1]
    write(tmp_path, {"truth": f"hit_id,particle_id\n1,{BIG}\n2,0\n3,0\n7,{BIG + 1}\n", "particles": PARTICLES})
    short = read_trackml(tmp_path)
    assert short.truth is None
    assert short.hits.particle is not None
    assert short.hits.particle.tolist() == [1, -1, -1, 0]


def test_codalab_release(tmp_path: Path) -> None:
    particles = "particle_id,particle_type,vx,vy,vz,px,py,pz,q\n9,-211,0,0,0,1,1,1,-1\n"
    truth = "hit_id,particle_id\n1,9\n2,0\n3,9\n7,9\n"
    event = read_trackml(write(tmp_path, {"hits": HITS, "particles": particles, "truth": truth}))
    assert event.particles is not None
    assert event.particles.pdg is not None
    assert event.particles.pdg.tolist() == [-211]
    assert event.particles.nhits is None
    assert "particle_type" in event.columns["particles"]


def test_line_ends_mark_quotes_blanks_and_more_columns(tmp_path: Path) -> None:
    text = "\ufeff" + HITS.replace("\n", "\r\n").replace("module_id", "module_id,remark").replace(",1\r", ",1,a b\r")
    text = text.replace(",7\r", ",7,\r").replace(",9\r", ',9,"c"\r').replace("1,30.5", "\r\n1, 30.5")
    event = read_trackml(write(tmp_path, {**ALL, "hits": text}))
    check_complete(event)
    assert event.columns["hits"][-1] == "remark"


def test_several_events(tmp_path: Path) -> None:
    for event_id in (21000, 7, 21001):
        write(tmp_path, {"hits": HITS}, event_id=event_id)
    write(tmp_path, {"particles": PARTICLES}, event_id=3)
    assert list_trackml(tmp_path) == [7, 21000, 21001]
    with pytest.raises(EventFileError, match=r"has 3 events \(7, 21000, 21001\): say which one with event_id"):
        read_trackml(tmp_path)
    with pytest.raises(EventFileError, match="no hits file of event 3 in"):
        read_trackml(tmp_path, 3)
    assert read_trackml(tmp_path, 21000).event_id == 21000
    events = TrackMLEvents(tmp_path)
    assert events.event_ids == [7, 21000, 21001]
    assert events[-1].event_id == 21001
    assert [event.event_id for event in events[:2]] == [7, 21000]


# -- against slow references -------------------------------------------------------------------------------------------


def to_csv(folder: Path, event: Event, rng: np.random.Generator) -> None:
    """Every part in its own random order."""
    hits, particles = event.hits, event.particles
    assert particles is not None
    assert event.truth is not None
    assert hits.particle is not None
    ids = np.append(particles.particle_id, 0)[hits.particle]
    truth = {name: getattr(event.truth, name) for name in ("tx", "ty", "tz", "tpx", "tpy", "tpz", "weight")}
    parts = {
        "hits": {name: getattr(hits, name) for name in ("hit_id", "x", "y", "z", "volume_id", "layer_id", "module_id")},
        "particles": {name: getattr(particles, name) for name in ("particle_id", "vx", "vy", "vz", "px", "py", "pz")}
        | {"q": particles.charge, "particle_type": particles.pdg},
        "truth": {"hit_id": hits.hit_id, "particle_id": ids, **truth},
    }
    for part, columns in parts.items():
        frame = pd.DataFrame(columns)
        if part == "truth":
            frame = frame.iloc[rng.permutation(len(frame))]
        frame.to_csv(folder / f"event000000001-{part}.csv", index=False)


@settings(max_examples=20, deadline=None)
@given(n_hits=st.integers(1, 60), n_particles=st.integers(1, 9), seed=st.integers(0, 2**31))
def test_any_event_in_any_order(
    tmp_path_factory: pytest.TempPathFactory, n_hits: int, n_particles: int, seed: int
) -> None:
    folder = tmp_path_factory.mktemp("event")
    rng = np.random.default_rng(seed)
    event = make_event(n_hits, n_particles, seed=seed, clusters=False)
    event = replace(event, hits=replace(event.hits, hit_id=rng.permutation(10 * n_hits)[:n_hits]))
    to_csv(folder, event, rng)
    got = read_trackml(folder)
    for record, names in (
        ("hits", ("x", "y", "z", "volume_id", "layer_id", "module_id", "particle", "hit_id")),
        ("particles", ("px", "py", "pz", "vx", "vy", "vz", "charge", "particle_id", "pdg")),
        ("truth", ("tx", "ty", "tz", "tpx", "tpy", "tpz", "weight")),
    ):
        for name in names:
            want, have = getattr(getattr(event, record), name), getattr(getattr(got, record), name)
            assert have.dtype == want.dtype or name == "hit_id"
            np.testing.assert_array_equal(have, want, err_msg=name)


def test_angles_by_hand() -> None:
    # One cell each way of 0.3 mm in a module 0.3 mm thick: the diagonal of a cube. Turned so that w points along x.
    rotation = np.array([[[0.0, 0, 1], [1, 0, 0], [0, 1, 0]]])
    one = np.ones(1)
    got = cluster_angles(one, one, 0.3 * one, 0.3 * one, 0.3 * one, rotation)
    diagonal = np.arcsinh(1 / np.sqrt(2))
    np.testing.assert_allclose(got["eta_local"], diagonal, rtol=1e-6)
    np.testing.assert_allclose(got["phi_local"], np.pi / 4, rtol=1e-6)
    np.testing.assert_allclose(got["eta_global"], diagonal, rtol=1e-6)
    np.testing.assert_allclose(got["phi_global"], np.pi / 4, rtol=1e-6)
    long = cluster_angles(4 * one, one, 0.1 * one, 0.3 * one, 0.5 * one, rotation)  # (u, v, w) = (0.4, 0.3, 0.5)
    np.testing.assert_allclose(long["eta_local"], np.arcsinh(0.5 / 0.5), rtol=1e-6)
    np.testing.assert_allclose(long["phi_local"], np.arctan2(0.3, 0.4), rtol=1e-6)
    np.testing.assert_allclose(long["phi_global"], np.arctan2(0.4, 0.5), rtol=1e-6)
    np.testing.assert_allclose(long["eta_global"], np.arcsinh(0.3 / np.hypot(0.5, 0.4)), rtol=1e-6)


def test_real_complete_event(trackml: Path) -> None:
    event = read_trackml(trackml, 1)
    hits, particles, clusters = event.hits, event.particles, event.hits.clusters
    assert particles is not None
    assert clusters is not None
    assert clusters.cells is not None
    assert hits.particle is not None
    assert (len(hits), len(particles), clusters.cells.sum()) == (5527, 548, 18564)
    np.testing.assert_array_equal(event.hits_per_particle, particles.nhits)
    assert particles.pdg is not None
    # 17 % of the hits of a full event are noise, this one is reduced
    assert 0.1 < (hits.particle < 0).mean() < 0.2

    # The particle of each hit, and the cluster of some, the slow way.
    frame = {part: pd.read_csv(trackml / f"event000000001-{part}.csv.gz") for part in ("truth", "cells", "hits")}
    by_hit = dict(zip(frame["truth"]["hit_id"], frame["truth"]["particle_id"], strict=True))
    assert hits.hit_id is not None
    for hit_id, row in zip(hits.hit_id.tolist(), hits.particle.tolist(), strict=True):
        assert by_hit[hit_id] == (0 if row < 0 else particles.particle_id[row])
    detectors = pd.read_csv(trackml / "detectors.csv.gz").set_index(["volume_id", "layer_id", "module_id"])
    modules: Any = detectors.loc
    for index in range(0, len(hits), 40):
        cells = frame["cells"][frame["cells"]["hit_id"] == hits.hit_id[index]]
        module = modules[hits.volume_id[index], hits.layer_id[index], hits.module_id[index]]
        u = (cells["ch0"].max() - cells["ch0"].min() + 1) * module["pitch_u"]
        v = (cells["ch1"].max() - cells["ch1"].min() + 1) * module["pitch_v"]
        w = 2 * module["module_t"]
        x, y, z = (module[f"rot_{a}u"] * u + module[f"rot_{a}v"] * v + module[f"rot_{a}w"] * w for a in "xyz")
        eta = -math.log(math.tan(0.5 * math.acos(z / math.sqrt(x * x + y * y + z * z))))
        eta_local = -math.log(math.tan(0.5 * math.acos(w / math.sqrt(u * u + v * v + w * w))))
        assert clusters.eta_local[index] == pytest.approx(eta_local, rel=1e-4, abs=1e-5)
        assert clusters.phi_local[index] == pytest.approx(math.atan2(v, u), rel=1e-5)
        assert clusters.eta_global[index] == pytest.approx(eta, rel=1e-4, abs=1e-5)
        assert clusters.phi_global[index] == pytest.approx(math.atan2(y, x), rel=1e-5, abs=1e-5)
        assert clusters.charge[index] == pytest.approx(cells["value"].sum(), rel=1e-5)
        assert clusters.cells[index] == len(cells)


@pytest.mark.parametrize("event_id", [1001, 1003])
def test_real_full_size_events_without_truth(trackml: Path, event_id: int) -> None:
    event = read_trackml(trackml, event_id)
    assert 92_500 < len(event.hits) < 110_500
    assert set(np.unique(event.hits.volume_id)) == {7, 8, 9, 12, 13, 14, 16, 17, 18}
    assert event.hits.particle is None
    assert event.particles is not None
    assert event.particles.nhits is not None
    assert (event.particles.particle_id > 2**52).all()
    assert event.hits.r.min() > 25


# -- faults ------------------------------------------------------------------------------------------------------------


def swap(part: str, old: str, new: str) -> dict[str, str]:
    assert old in ALL[part]
    return {**ALL, part: ALL[part].replace(old, new, 1)}


FAULTS = {
    "missing column": (
        swap("hits", "module_id", "module"),
        r"-hits.csv has no column module_id: row 1 names hit_id, x",
    ),
    "column twice": (swap("hits", "hit_id,x,y", "hit_id,x,x,y"), r"-hits.csv names column x twice in row 1"),
    "NaN": (swap("hits", "0,70,2", "0,nan,2"), r"-hits.csv, column y, row 3: nan is not a finite number"),
    "infinity": (swap("hits", "0,70,2", "0,70,-inf"), r"-hits.csv, column z, row 3: -inf is not a finite number"),
    "too large": (swap("hits", "0,70,2", "0,1e39,2"), r"-hits.csv, column y, row 3: 1e\+39 is not a finite number"),
    "text": (swap("hits", "-110", "left"), r"-hits.csv, column x, row 4: 'left' is not a number"),
    "nothing": (swap("hits", "-110", ""), r"-hits.csv, column x, row 4: '' is not a number"),
    "fraction": (swap("hits", "8,6,9", "8,6.5,9"), r"-hits.csv, column layer_id, row 4: '6.5' is not a whole number"),
    "float id": (
        swap("truth", str(BIG), "1.15e18"),
        r"-truth.csv, column particle_id, row 3: '1.15e18' is not a whole",
    ),
    "large id": (
        swap("truth", str(BIG), str(2**64)),
        r"-truth.csv, column particle_id, row 3: 18446744073709551616 is out of",
    ),
    "large volume": (
        swap("hits", "8,6,9", f"{2**31},6,9"),
        r"-hits.csv, column volume_id, row 4: 2147483648 is out of range",
    ),
    "short row": (swap("hits", "8,6,9", "8,6"), r"-hits.csv, column module_id, row 4: 6 values where the header has 7"),
    "long row": (swap("hits", "8,6,9", "8,6,9,1"), r"-hits.csv, row 4: 8 values where the header has 7"),
    "hit twice": (swap("hits", "\n2,", "\n1,"), r"-hits.csv, column hit_id, row 4: 1 is there twice"),
    "no hits": ({**ALL, "hits": HITS.split("\n", maxsplit=1)[0] + "\n"}, r"-hits.csv has no hits: only a header"),
    "empty file": ({**ALL, "hits": ""}, r"-hits.csv is empty: row 1 should name the columns hit_id"),
    "truth of no hit": (
        swap("truth", "\n3,", "\n4,"),
        r"-truth.csv, column hit_id, row 5: hit 4 is not in event000000005-hits",
    ),
    "truth twice": (swap("truth", "\n3,", "\n1,"), r"-truth.csv, column hit_id, row 5: 1 is there twice"),
    "hit without truth": (
        {**ALL, "truth": TRUTH.rsplit("\n", 2)[0] + "\n"},
        r"-hits.csv, column hit_id, row 3: hit 3 is not in event000000005-truth",
    ),
    "unknown particle": (
        swap("truth", f"2,{BIG}", f"2,{BIG - 1}"),
        rf"-truth.csv, column particle_id, row 3: particle {BIG - 1} is not in event000000005-particles",
    ),
    "particle twice": (
        swap("particles", f"\n{BIG},", f"\n{BIG + 1},"),
        r"-particles.csv, column particle_id, row 3: .* twice",
    ),
    "particle 0": (swap("particles", f"\n{BIG},", "\n0,"), r"-particles.csv, column particle_id, row 3: 0 means noise"),
    "cell of no hit": (
        swap("cells", "\n3,", "\n30,"),
        r"-cells.csv, column hit_id, row 7: hit 30 is not in event000000005-hits",
    ),
    "hit without cell": (
        swap("cells", "\n3,", "\n1,"),
        r"-hits.csv, column hit_id, row 3: hit 3 has no cell in event000000005",
    ),
    "unknown module": (
        swap("hits", "8,6,9", "8,6,10"),
        r"-hits.csv, column module_id, row 4: no module 8/6/10 .* in detectors.csv",
    ),
    "negative module": (swap("hits", "8,6,9", "8,6,-9"), r"-hits.csv, column module_id, row 4: -9 is out of range"),
    "detectors": (
        swap("detectors", "0.05625", "wide"),
        r"detectors.csv, column pitch_v, row 2: 'wide' is not a number",
    ),
    "blank line": (swap("hits", "\n2,-110", "\n\n2,nan"), r"-hits.csv, column x, row 5: nan is not a finite number"),
}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_one_sentence_with_file_column_and_row(tmp_path: Path, fault: str, packed: bool) -> None:
    parts, message = FAULTS[fault]
    write(tmp_path, parts, packed=packed)
    with pytest.raises(EventFileError, match=message.replace(".csv", r"\.csv\.gz", 1) if packed else message) as caught:
        read_trackml(tmp_path)
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_cut_and_broken_archives(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = "".join(f"{i},{x},{y},0,8,2,1\n" for i, (x, y) in enumerate(rng.normal(size=(3000, 2)).tolist()))
    write(tmp_path, {"hits": HITS.split("\n", maxsplit=1)[0] + "\n" + rows}, packed=True)
    file = tmp_path / "event000000005-hits.csv.gz"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(EventFileError, match=r"hits.csv.gz is cut short: the gzip stream ends after row 1\d\d\d"):
        read_trackml(tmp_path)
    file.write_bytes(whole[:-5])
    with pytest.raises(EventFileError, match=r"hits.csv.gz is cut short"):
        read_trackml(tmp_path)
    file.write_bytes(whole[:5000] + bytes(100) + whole[5100:])
    with pytest.raises(EventFileError, match=r"hits.csv.gz is not a whole gzip file, it breaks"):
        read_trackml(tmp_path)
    file.write_bytes(HITS.encode())
    with pytest.raises(EventFileError, match=r"hits.csv.gz is not a whole gzip file"):
        read_trackml(tmp_path)
    file.write_bytes(b"")
    with pytest.raises(EventFileError, match=r"hits.csv.gz is empty"):
        read_trackml(tmp_path)
    file.write_bytes(gzip.compress(HITS[:60].encode()) + gzip.compress(HITS[60:].encode()))
    assert len(read_trackml(tmp_path).hits) == 4

    with zipfile.ZipFile(tmp_path / "train.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("event000000005-hits.csv", HITS.split("\n", maxsplit=1)[0] + "\n" + rows)
    packed = (tmp_path / "train.zip").read_bytes()
    (tmp_path / "train.zip").write_bytes(packed[:5000] + bytes(100) + packed[5100:])
    with pytest.raises(EventFileError, match=r"train.zip/event000000005-hits.csv can't be unpacked"):
        read_trackml(tmp_path / "train.zip")
    (tmp_path / "train.zip").write_bytes(packed[:5000])
    with pytest.raises(EventFileError, match=r"train.zip is not a whole zip file"):
        read_trackml(tmp_path / "train.zip")


def test_wrong_paths(tmp_path: Path) -> None:
    with pytest.raises(EventFileError, match=r"no event\*-hits.csv or event\*-hits.csv.gz in"):
        read_trackml(tmp_path)
    with pytest.raises(FileNotFoundError, match="no such folder, zip or prefix"):
        read_trackml(tmp_path / "absent")
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(EventFileError, match="is neither a folder, a zip, nor a file"):
        read_trackml(tmp_path / "notes.txt")
    with pytest.raises(EventFileError, match="no event"):
        read_trackml(tmp_path / "event000000009")
    write(tmp_path, ALL)
    with pytest.raises(EventFileError, match="no hits file of event 9"):
        read_trackml(tmp_path / "event000000009")


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    part=st.sampled_from(sorted(ALL)),
    place=st.floats(0, 1, exclude_max=True),
    new=st.one_of(
        st.binary(max_size=3), st.sampled_from([b",", b"\n", b'"', b"-", b"e", b"", b"9" * 30, b"\r", b"0x1"])
    ),
    cut=st.integers(0, 3),
)
def test_a_changed_byte_never_gives_anything_but_a_sentence(
    tmp_path: Path, part: str, place: float, new: bytes, cut: int
) -> None:
    write(tmp_path, ALL)
    file = tmp_path / ("detectors.csv" if part == "detectors" else f"event000000005-{part}.csv")
    raw = ALL[part].encode()
    at = int(place * len(raw))
    file.write_bytes(raw[:at] + new + raw[at + cut :])
    sentence = ""
    try:
        event = read_trackml(tmp_path)
    except EventFileError as error:
        sentence = str(error)
    if sentence:
        assert "\n" not in sentence
        assert file.name in sentence or "event000000005" in sentence
    else:
        assert np.isfinite(event.hits.x).all()
