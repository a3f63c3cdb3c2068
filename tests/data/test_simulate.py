"""The simulator: arrays alone where ACTS and Pythia are missing, whole events where they are there."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import fields, replace

import numpy as np
import pytest

import hepattn.cli
from hepattn.data import Event, read_parquet, read_trackml, sample_events, simulate
from hepattn.data.simulation import Recipe, SimulationError, main, simulate_to
from hepattn.data.simulation.detector import READOUT, Modules
from hepattn.data.simulation.files import finished, open_folder
from hepattn.data.simulation.packages import available, require
from hepattn.data.simulation.realism import fluctuating, noise, snap, surviving
from hepattn.data.simulation.worker import Answer, Order, carry_out

needs_packages = pytest.mark.skipif(not available(), reason="pyacts or pythia8mc is missing (the extra sim)")

RADII = {
    (8, 2): 32, (8, 4): 72, (8, 6): 116, (8, 8): 172,
    (13, 2): 260, (13, 4): 360, (13, 6): 500, (13, 8): 660,
    (17, 2): 820, (17, 4): 1020,
}  # fmt: skip


def assert_same(one, other):
    """Two events are equal, bit for bit."""
    assert one.event_id == other.event_id
    for left, right in (
        (one.hits, other.hits),
        (one.hits.clusters, other.hits.clusters),
        (one.particles, other.particles),
    ):
        for item in fields(left):
            a, b = getattr(left, item.name), getattr(right, item.name)
            if isinstance(a, np.ndarray):
                assert a.dtype == b.dtype
                np.testing.assert_array_equal(a, b, err_msg=item.name)


def noise_of(event: Event) -> np.ndarray:
    """(n_hits,) bool, True = noise."""
    assert event.hits.particle is not None
    return np.less(event.hits.particle, 0)


# -- arrays ---------------------------------------------------------------------------------------


def test_a_missing_package_is_named():
    with pytest.raises(ImportError, match=r"no_such_package.*pip install hepattn\[sim\]"):
        require("no_such_package")


def test_hadrons_lose_the_rest_of_their_hits():
    rng = np.random.default_rng(1)
    # 4,000 particles with 10 crossings each, given in a random order; half are pions, half muons.
    particle = np.repeat(np.arange(4000), 10)
    time_of = np.tile(np.arange(10.0), 4000)
    shuffled = rng.permutation(len(particle))
    pdg = np.where(np.arange(4000) % 2 == 0, 211, -13)
    alive = surviving(particle[shuffled], time_of[shuffled], pdg, 0.1, np.random.default_rng(2))
    back = np.empty(len(particle), dtype=bool)
    back[shuffled] = alive
    table = back.reshape(4000, 10)
    assert table[1::2].all(), "muons keep all"
    assert (np.diff(table.astype(int), axis=1) <= 0).all(), "what comes later is lost"
    # Alive at crossing k (from 0) with probability (1 - p)^k.
    expected = 0.9 ** np.arange(10)
    assert np.abs(table[::2].mean(axis=0) - expected).max() < 0.04
    assert surviving(particle[:0], time_of[:0], pdg[:0], 0.1, rng).shape == (0,)


def test_charges_fluctuate_cell_by_cell():
    # against the obvious way: a path of 3.6 cells that begins anywhere in its first one, each cell with its own factor
    rng = np.random.default_rng(4)
    start = rng.random(40_000)[:, None]
    edges = np.arange(6)[None, :]
    inside = np.clip(np.minimum(edges + 1, start + 3.6) - np.maximum(edges, start), 0, None)
    cells = (inside > 0).sum(axis=1)
    slow = (inside * (1 + 0.1 * rng.standard_normal(inside.shape))).sum(axis=1)
    ours = fluctuating(np.full(len(cells), 3.6), cells, 0.1, rng)
    for number in (4, 5):
        one, other = slow[cells == number], ours[cells == number]
        np.testing.assert_allclose(other.mean(), 3.6, rtol=0.005)
        np.testing.assert_allclose(other.std(), one.std(), rtol=0.1)
    single = fluctuating(np.ones(40_000), np.ones(40_000, dtype=int), 0.1, rng)
    np.testing.assert_allclose(single.std(), 0.1, rtol=0.03)
    np.testing.assert_array_equal(fluctuating(single, cells, 0.0, rng), single)
    assert fluctuating(single[:0], cells[:0], 0.1, rng).shape == (0,)


def test_snapping_to_cells():
    pitch = np.full(4, 2.0)
    # one cell: the centres are 1, 3, 5 ...; two cells: the edges 0, 2, 4 ...
    np.testing.assert_allclose(snap(np.array([0.3, 2.4, 0.3, 2.4]), np.array([1, 1, 2, 2]), pitch), [1, 3, 0, 2])


def test_noise_lies_on_its_modules():
    modules = Modules(
        volume_id=np.array([8, 12], dtype=np.int32),
        layer_id=np.array([2, 2], dtype=np.int32),
        module_id=np.array([1, 1], dtype=np.int32),
        centre=np.array([[32.0, 0, 0], [0, 300.0, 1200.0]]),
        rotation=np.array([[[0, 0, 1], [1, 0, 0], [0, 1, 0]], np.eye(3)], dtype=float),
        half_u_low=np.array([8.4, 16.4]),
        half_u_high=np.array([8.4, 24.2]),
        half_v=np.array([36.0, 78.0]),
    )
    hits = noise(modules, 5000.0, np.random.default_rng(3))
    assert abs(len(hits.x) - 10_000) < 500
    barrel = hits.module == 0
    np.testing.assert_allclose(hits.x[barrel], 32.0)
    assert np.abs(hits.y[barrel]).max() < 8.4 + 0.1
    assert np.abs(hits.z[barrel]).max() < 36 + 0.1
    v = hits.y[~barrel] - 300
    half_u = 16.4 + (v + 78) / 156 * 7.8
    assert (np.abs(hits.x[~barrel]) < half_u + 0.2).all()
    assert v.mean() > 3, "the wide end has more"
    assert (hits.size_u >= 1).all()
    np.testing.assert_array_equal(hits.charge[~barrel], (hits.size_u + hits.size_v - 1)[~barrel])
    # Strips are read out as yes or no: places are whole multiples of half a cell.
    halves = hits.x[~barrel] / (READOUT[12].pitch_u / 2)
    np.testing.assert_allclose(halves, np.round(halves), atol=1e-6)


def test_a_recipe_checks_its_numbers():
    with pytest.raises(ValueError, match="pileup"):
        Recipe(pileup=-1)
    with pytest.raises(ValueError, match="nothing to simulate"):
        Recipe(pileup=0, hard="none")
    with pytest.raises(ValueError, match="cell_spread"):
        Recipe(cell_spread=0.5)
    with pytest.raises(ValueError, match="hard"):
        Recipe(hard="higgs")  # type: ignore[arg-type]
    seeds = {Recipe(seed=3).pythia_seed(index) for index in range(5000)}
    assert len(seeds) == 5000
    assert 1 <= min(seeds) <= max(seeds) <= 900_000_000
    assert Recipe(seed=3).pythia_seed(0) != Recipe(seed=4).pythia_seed(0)


def test_a_folder_belongs_to_one_recipe(tmp_path):
    open_folder(tmp_path, Recipe(seed=1))
    open_folder(tmp_path, Recipe(seed=1))
    with pytest.raises(ValueError, match="seed 1 instead of 2"):
        open_folder(tmp_path, Recipe(seed=2))
    (tmp_path / "manifest.json").write_text("{broken", encoding="utf-8")
    with pytest.raises(ValueError, match="not the manifest"):
        open_folder(tmp_path, Recipe(seed=1))
    (tmp_path / "manifest.json").unlink()
    (tmp_path / "event000000000.hits.parquet").touch()
    with pytest.raises(ValueError, match=r"no manifest\.json"):
        open_folder(tmp_path, Recipe(seed=1))


@pytest.mark.parametrize(
    ("option", "words"),
    [
        (["--workers", "0"], "workers must be at least 1, got 0"),
        (["--events", "0"], "events must be at least 1"),
        (["--pileup", "-1"], "pileup must lie between"),
        (["--out", "taken"], "events need a folder, and taken is a file; take another folder than taken"),
        (["--out", "taken/events"], "and taken is a file; take another folder than taken/events"),
    ],
)
def test_a_mistake_is_one_sentence_and_status_2_and_leaves_nothing(tmp_path, monkeypatch, capsys, option, words):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("hepattn.data.simulation.driver.require", lambda _: None)  # as if both were there
    (tmp_path / "taken").write_text("mine")
    assert hepattn.cli.main(["simulate", "--events", "1", "--out", "new", *option]) == 2
    said = capsys.readouterr().err
    assert said.startswith("hepattn simulate: ")
    assert words in said
    assert said.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_a_folder_is_not_made_without_the_packages(tmp_path, monkeypatch):
    def missing(module):
        raise ImportError("the simulator needs the package pyacts")

    monkeypatch.setattr("hepattn.data.simulation.driver.require", missing)
    with pytest.raises(ImportError, match="pyacts"):
        simulate_to(tmp_path / "new", Recipe(), 1)
    assert not (tmp_path / "new").exists()


def test_other_versions_are_said_where_events_are_made_and_do_not_stop_them(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("hepattn.data.simulation.driver.require", lambda _: None)
    monkeypatch.setattr("hepattn.data.simulation.driver.carry_out", lambda _, index: Answer(index))
    assert simulate_to(tmp_path, Recipe(), 1, workers=1) == 1
    assert capsys.readouterr().err == ""
    file = tmp_path / "manifest.json"
    manifest = json.loads(file.read_text())
    manifest["versions"] |= {"pyacts": "1.2.3"}
    file.write_text(json.dumps(manifest))
    assert simulate_to(tmp_path, Recipe(), 1, workers=1) == 1
    said = capsys.readouterr().err
    assert "begun with other versions (pyacts 1.2.3 instead of" in said
    assert said.count("\n") == 1
    monkeypatch.setattr("hepattn.data.simulation.driver.finished", lambda *_, **__: True)
    assert simulate_to(tmp_path, Recipe(), 1, workers=1) == 0
    assert capsys.readouterr().err == "", "nothing is made"


def test_the_samples_are_what_they_should_be():
    light, medium, full = (sample_events(name) for name in ("ttbar_mu0", "ttbar_mu40", "ttbar_mu200"))
    assert (len(light), len(medium), len(full)) == (250, 4, 2)
    for event in (light[0], medium[0], full[0]):
        hits, particles = event.hits, event.particles
        assert particles is not None
        assert set(np.unique(hits.volume_id)) <= {7, 8, 9, 12, 13, 14, 16, 17, 18}
        assert (event.hits_per_particle >= 1).all()
        assert particles.pt.max() > 1
        # one cell in an end-cap: a path of 0.3 mm or little more, with the 10 % of TrackML's cells
        clusters = hits.clusters
        assert clusters is not None
        single = np.isin(hits.volume_id, (7, 9)) & (clusters.size_u == 1) & (clusters.size_v == 1)
        low, middle, high = np.quantile(clusters.charge[single], [0.16, 0.5, 0.84])
        assert abs(middle / 0.3 - 1) < 0.03
        assert 0.08 < (high - low) / (2 * middle) < 0.12
        for (volume, layer), radius in RADII.items():
            here = (hits.volume_id == volume) & (hits.layer_id == layer)
            if here.sum() > 50:
                assert abs(hits.r[here].mean() - radius) < 2
    for event in full:
        assert 80_000 < len(event.hits) < 125_000
        assert 0.12 < noise_of(event).mean() < 0.22
    assert not any(noise_of(event).any() for event in (light[0], medium[0]))


# -- whole events ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def events():
    """Three events without pile-up, made one after the other in this process."""
    return simulate(events=3, pileup=0, seed=11, workers=1)


@needs_packages
def test_an_event(events):
    event = events[0]
    assert [each.event_id for each in events] == [0, 1, 2]
    assert len(event.hits) > 15_000, "18,728 modules with 0.94 noise hits each"
    noise_hits = event.hits.particle < 0
    assert abs(noise_hits.sum() / 18_728 - 0.942) < 0.03
    assert (event.hits_per_particle >= 1).all()
    assert len(np.unique(event.particles.particle_id)) == len(event.particles)
    for (volume, layer), radius in RADII.items():
        here = (event.hits.volume_id == volume) & (event.hits.layer_id == layer) & ~noise_hits
        if here.sum() > 20:
            assert abs(event.hits.r[here].mean() - radius) < 3
    clusters = event.hits.clusters
    assert (clusters.size_u >= 1).all()
    strips = event.hits.volume_id >= 12
    np.testing.assert_array_equal(clusters.charge[strips], (clusters.size_u + clusters.size_v - 1)[strips])
    # A hit lies near the straight continuation of its particle's fast momentum.
    fast = np.flatnonzero((event.particles.pt > 10) & (np.hypot(event.particles.vx, event.particles.vy) < 0.1))
    assert len(fast)
    near = np.isin(event.hits.particle, fast) & (event.hits.r < 200)
    turn = event.hits.phi[near] - event.particles.phi[event.hits.particle[near]]
    assert np.abs(np.angle(np.exp(1j * turn))).max() < 0.03


@needs_packages
def test_an_event_depends_on_seed_and_index_alone(events):
    alone = simulate(events=1, pileup=0, seed=11, workers=1, first=2)
    assert_same(alone[0], events[2])
    other = simulate(events=1, pileup=0, seed=12, workers=1)
    assert len(other[0].hits) != len(events[0].hits)


@needs_packages
@pytest.mark.slow
def test_workers_make_the_same_events(events):
    for one, other in zip(simulate(events=3, pileup=0, seed=11, workers=2), events, strict=True):
        assert_same(one, other)


@needs_packages
def test_the_command_resumes_and_writes_trackml(tmp_path, events, capsys):
    out = tmp_path / "events"
    command = ["--events", "2", "--pileup", "0", "--seed", "11", "--out", str(out), "--workers", "1"]
    assert main([*command, "--csv"]) == 0
    recipe = Recipe(seed=11, pileup=0)
    assert all(finished(out, index, csv=True) for index in (0, 1))
    assert json.loads((out / "manifest.json").read_text(encoding="utf-8"))["recipe"]["seed"] == 11
    before = (out / "event000000001.hits.parquet").stat().st_mtime_ns
    (out / "event000000000.hits.parquet").unlink()
    assert simulate_to(out, recipe, 2, workers=1) == 1, "only the lost one is made again"
    assert (out / "event000000001.hits.parquet").stat().st_mtime_ns == before
    back = read_parquet(out)
    np.testing.assert_array_equal(back[0].hits.particle, events[0].hits.particle)
    np.testing.assert_allclose(back[1].hits.x, events[1].hits.x, atol=0.002)
    csv = read_trackml(out, 1)
    np.testing.assert_allclose(csv.hits.z, events[1].hits.z, rtol=1e-5, atol=1e-3)
    np.testing.assert_array_equal(noise_of(csv), noise_of(events[1]))
    np.testing.assert_array_equal(csv.hits_per_particle, events[1].hits_per_particle)
    assert csv.particles is not None
    np.testing.assert_array_equal(csv.particles.particle_id, events[1].particles.particle_id)
    capsys.readouterr()
    with pytest.raises(ValueError, match="noise True instead of False"):
        main([*command, "--no-noise"])


@needs_packages
def test_a_failed_event_loses_no_other(tmp_path, monkeypatch):
    def fail_on_one(order, index):
        return Answer(index, error="RuntimeError: on purpose") if index == 1 else carry_out(order, index)

    monkeypatch.setattr("hepattn.data.simulation.driver.carry_out", fail_on_one)
    recipe = Recipe(seed=11, pileup=0, noise=False)
    with pytest.raises(SimulationError, match=r"event 1 failed: .*on purpose; 2 events are done"):
        simulate_to(tmp_path, recipe, 3, workers=1)
    assert [finished(tmp_path, index, csv=False) for index in range(3)] == [True, False, True]
    assert carry_out(Order(replace(recipe), out=tmp_path), 1).error is None


@needs_packages
@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL here")
def test_a_killed_worker_is_reported(tmp_path):
    script = (
        "from hepattn.data.simulation import Recipe, simulate_to, SimulationError\n"
        "try:\n"
        f"    simulate_to({str(tmp_path)!r}, Recipe(seed=5, pileup=0, noise=False), 400, workers=2)\n"
        "except SimulationError as error:\n"
        "    print(error)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("*.hits.parquet")) and time.monotonic() < deadline:
        time.sleep(0.1)
    children = subprocess.run(
        ["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True
    ).stdout.split()
    for child in children:
        os.kill(int(child), signal.SIGKILL)
    printed, _ = process.communicate(timeout=60)
    assert "status -9" in printed
    assert "events are done" in printed
    read_parquet(tmp_path)
    assert not list(tmp_path.glob(".*.tmp"))
