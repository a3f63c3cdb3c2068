"""Tracks against lists of sets, parameters against a search along the helix, submissions there and back."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar

from hepattn.data import (
    EventFileError,
    Particles,
    TrackParameters,
    Tracks,
    read_submission,
    sample_event,
    write_submission,
)
from tests.data.conftest import make_event

labelled = st.lists(st.integers(-1, 6), max_size=40).map(lambda labels: np.array(labels, dtype=np.int64))
PERIGEE = ("phi", "d0", "z0")


def particle(px: float, py: float, pz: float, vx: float, vy: float, vz: float, charge: int) -> Particles:
    numbers = {"px": px, "py": py, "pz": pz, "vx": vx, "vy": vy, "vz": vz, "charge": charge, "particle_id": 1}
    return Particles(**{name: np.array([number]) for name, number in numbers.items()})


def searched(one: Particles, field: float) -> dict[str, float]:
    """Perigee by stepping along the helix and refining the best step, in float64; within half a turn of the vertex."""
    px, py, pz, vx, vy, vz = (float(getattr(one, name)[0]) for name in ("px", "py", "pz", "vx", "vy", "vz"))
    omega = -0.299792458e-3 * int(one.charge[0]) * field  # rad of direction a (mm / GeV) of path: p' = omega z x p

    def at(t: float) -> tuple[float, float, float, float, float]:
        # the path is p * t; momentum turns by omega t
        turned = omega * t
        small = abs(turned) < 1e-6
        sine = t * (1 - turned**2 / 6) if small else math.sin(turned) / omega
        cosine = omega * t**2 / 2 if small else (1 - math.cos(turned)) / omega
        x, y = vx + px * sine - py * cosine, vy + py * sine + px * cosine
        qx = px * math.cos(turned) - py * math.sin(turned)
        qy = py * math.cos(turned) + px * math.sin(turned)
        return x, y, vz + pz * t, qx, qy

    def away(t: float) -> float:
        return at(t)[0] ** 2 + at(t)[1] ** 2

    pt = math.hypot(px, py)
    reach = math.pi / abs(omega) if omega else 4 * math.hypot(vx, vy) / pt + 1.0
    steps = np.linspace(-reach, reach, 4001)
    best = steps[np.argmin([away(t) for t in steps])]
    width = steps[1] - steps[0]
    t = minimize_scalar(away, bounds=(best - width, best + width), method="bounded", options={"xatol": 1e-13 * reach}).x
    x, y, z, qx, qy = at(t)
    return {"phi": math.atan2(qy, qx), "d0": (y * qx - x * qy) / pt, "z0": z}


@settings(max_examples=40, deadline=None)
@given(
    st.floats(0.15, 30),
    st.floats(-math.pi, math.pi),
    st.floats(-3, 3),
    st.floats(-60, 60),
    st.floats(-60, 60),
    st.floats(-200, 200),
    st.sampled_from([-2, -1, 0, 1]),
    st.sampled_from([2.0, -1.5, 0.0]),
)
def test_perigee_against_a_search_along_the_helix(pt, phi, cot, vx, vy, vz, charge, field):
    one = particle(pt * math.cos(phi), pt * math.sin(phi), pt * cot, vx, vy, vz, charge)
    got, want = TrackParameters.of(one, field), searched(one, field)
    assert abs(math.remainder(float(got.phi[0]) - want["phi"], 2 * math.pi)) < 2e-4
    # the search finds the minimum of a flat valley: good to the root of what float64 knows
    assert got.d0[0] == pytest.approx(want["d0"], abs=2e-3)
    assert got.z0[0] == pytest.approx(want["z0"], abs=2e-2 + 2e-4 * abs(cot) * 60)
    assert got.charge[0] == charge


def test_the_sign_of_d0_by_hand():
    # it flies along +x above the beam axis, which so lies on its right: d0 > 0; y = d0 cos(phi)
    for charge in (-1, 0, 1):
        got = TrackParameters.of(particle(1, 0, 0.5, 0, 0.25, 3, charge))
        assert got.d0[0] == pytest.approx(0.25, abs=1e-5)
        assert got.phi[0] == pytest.approx(0.0, abs=1e-6)
        assert got.z0[0] == pytest.approx(3.0)
    assert TrackParameters.of(particle(1, 0, 0.5, 0, -0.25, 3, 1)).d0[0] == pytest.approx(-0.25, abs=1e-5)


def test_a_straight_line_by_hand():
    got = TrackParameters.of(particle(3, 4, 10, 6, 9, 0, 0))
    # nearest at 10.8 mm before the vertex: d0 = 9 * 0.6 - 6 * 0.8
    assert got.d0[0] == pytest.approx(0.6, abs=1e-5)
    assert got.z0[0] == pytest.approx(-10.8 * 2, abs=1e-4)
    assert got.pt[0] == 5


def test_a_positive_particle_turns_clockwise():
    # 0.6 GeV in 2 T: radius 1000.7 mm; a quarter of a turn after the perigee at the origin
    radius = 0.6 / (0.299792458e-3 * 2)
    got = TrackParameters.of(particle(0, -0.6, 0.6, radius, -radius, 0, 1))
    assert got.phi[0] == pytest.approx(0.0, abs=1e-6)
    assert got.d0[0] == pytest.approx(0.0, abs=1e-3)
    assert got.z0[0] == pytest.approx(-radius * math.pi / 2, rel=1e-6)


def test_odd_particles_give_finite_parameters():
    radius = 0.6 / (0.299792458e-3 * 2)
    centred = TrackParameters.of(particle(0.6, 0, 0.1, 0, radius, 5, 1))
    assert centred.d0[0] == pytest.approx(radius, rel=1e-5)
    along = [TrackParameters.of(particle(0, 0, 2, 1, 2, 5, charge)) for charge in (0, 1)]
    assert all(np.isfinite(getattr(one, name)).all() for one in along for name in PERIGEE)
    particles = sample_event("ttbar_mu0").particles
    assert particles is not None
    all_of_them = TrackParameters.of(particles)
    prompt = (np.hypot(particles.vx, particles.vy) < 0.1) & (particles.pt > 0.5)
    assert np.abs(all_of_them.d0[prompt]).max() < 0.11
    assert np.abs(all_of_them.z0 - particles.vz)[prompt].max() < 10


@settings(max_examples=60, deadline=None)
@given(labelled)
def test_labels_there_and_back(labels):
    tracks = Tracks.from_labels(labels)
    names = sorted(set(labels.tolist()) - {-1})
    want = [[row for row, label in enumerate(labels) if label == name] for name in names]
    assert [track.hits.tolist() for track in tracks] == want
    assert [tracks[i].hits.tolist() for i in range(len(tracks))] == want
    assert len(tracks) == len(want)
    back = tracks.labels()
    assert [names[label] if label >= 0 else -1 for label in back] == labels.tolist()
    assert [track.hits.tolist() for track in tracks.at_least(3)] == [rows for rows in want if len(rows) >= 3]
    assert [track.hits.tolist() for track in tracks[::-1]] == want[::-1]
    assert np.array_equal(Tracks.from_hits(want, len(labels)).labels(), back)


def test_scores_and_parameters_stay_with_their_tracks():
    parameters = TrackParameters(*(np.arange(3) + 10 * k for k in range(6)))
    tracks = Tracks.from_labels([2, 0, -1, 9, 9], score=[0.1, 0.2, 0.3], parameters=parameters)
    assert [track.hits.tolist() for track in tracks] == [[1], [0], [3, 4]]
    last = tracks[-1]
    assert last.score == pytest.approx(0.3)
    assert last.parameters is not None
    assert last.parameters.eta.tolist() == [12]
    two = tracks.at_least(2)
    assert two.score.tolist() == pytest.approx([0.3])
    assert two.parameters is not None
    assert two.parameters.charge.tolist() == [52]
    with pytest.raises(IndexError):
        tracks[3]


def test_tracks_after_a_filter_are_tracks_of_the_event():
    kept = np.array([False, True, True, False, True])
    found = Tracks.from_hits([[0, 2], [1]], 3)
    whole = found.in_event(kept)
    assert [track.hits.tolist() for track in whole] == [[1, 4], [2]]
    assert whole.num_hits == 5
    with pytest.raises(ValueError, match="3 times True"):
        found.in_event(~kept)
    with pytest.raises(ValueError, match="bool"):
        found.in_event(np.flatnonzero(kept))


@pytest.mark.parametrize(
    ("hits", "lengths", "score", "words"),
    [
        ([0, 1], [1], [1], "sum to the 2 hits"),
        ([0, 1], [3, -1], [1, 1], ">= 0"),
        ([0, 5], [2], [1], "5 hits, got 0 to 5"),
        ([-1, 2], [2], [1], "got -1 to 2"),
        ([0, 1, 3, 3], [2, 2], [1, 1], "track 1 holds hit 3 twice"),
        ([0, 1], [2], [1.5], "score"),
        ([0, 1], [1, 1], [1], "1 values where 2"),
        ([0.5, 1], [2], [1], "integers"),
    ],
)
def test_tracks_are_checked(hits, lengths, score, words):
    with pytest.raises(ValueError, match=words):
        Tracks(np.array(hits), np.array(lengths), np.array(score), 5)


def test_a_shared_hit_has_no_label():
    tracks = Tracks.from_hits([[0, 1], [1, 2]], 3)
    with pytest.raises(ValueError, match="hit 1 lies on 2 tracks"):
        tracks.labels()
    with pytest.raises(ValueError, match="-2"):
        Tracks.from_labels([0, -2])
    with pytest.raises(ValueError, match="integers"):
        Tracks.from_labels([0.0, 1.0])


def test_submissions_there_and_back(tmp_path):
    events = [make_event(30, seed=seed) for seed in (3, 4, 5)]
    rng = np.random.default_rng(0)
    events = [replace(event, hits=event.hits.take(rng.permutation(30))) for event in events]
    events[2] = events[2].keep(np.zeros(30, dtype=bool))
    found = [Tracks.from_labels(rng.integers(-1, 5, len(event.hits))) for event in events]
    file = tmp_path / "submission.csv"
    write_submission(file, zip(events, found, strict=True))
    lines = file.read_text().splitlines()
    assert lines[0] == "event_id,hit_id,track_id"
    assert len(lines) == 61
    rows = [tuple(map(int, line.split(","))) for line in lines[1:]]
    for event, tracks in zip(events, found, strict=True):
        assert event.hits.hit_id is not None
        want = {(event.event_id, int(h), int(t) + 1) for h, t in zip(event.hits.hit_id, tracks.labels(), strict=True)}
        assert want == {row for row in rows if row[0] == event.event_id}
    # the order of rows and of columns means nothing
    file.write_text("\n".join(["track_id,event_id,hit_id"] + [f"{t},{e},{h}" for e, h, t in rows[::-1]]))
    back = read_submission(file, events)
    assert list(back) == [3, 4, 5]
    for tracks, again in zip(found, back.values(), strict=True):
        assert np.array_equal(tracks.labels(), again.labels())


def test_submissions_say_what_is_wrong(tmp_path):
    event, file = make_event(4, seed=1), tmp_path / "submission.csv"
    tracks = Tracks.from_labels([0, 0, -1, 1])
    with pytest.raises(ValueError, match="no hit_id"):
        write_submission(file, [(make_event(4, hit_id=False), tracks)])
    with pytest.raises(ValueError, match="comes twice"):
        write_submission(file, [(event, tracks), (event, tracks)])
    with pytest.raises(ValueError, match="in_event"):
        write_submission(file, [(event, Tracks.from_labels([0]))])
    with pytest.raises(EventFileError, match="no submission"):
        read_submission(tmp_path / "none.csv", [event])
    for text, words in [
        ("event_id,hit_id\n1,1\n", "no submission"),
        ("event_id,hit_id,track_id\n1,1,x\n", "no submission"),
        ("event_id,hit_id,track_id\n2,1,1\n", "no event 1"),
        ("event_id,hit_id,track_id\n1,1,1\n1,2,1\n1,3,1\n", "3 rows, 3 of its hits"),
        ("event_id,hit_id,track_id\n1,1,1\n1,2,1\n1,3,1\n1,3,1\n", "exactly once"),
        ("event_id,hit_id,track_id\n1,1,1\n1,2,1\n1,3,-1\n1,4,1\n", "0 is none"),
        ("event_id,hit_id,track_id\n1,1,1\n1,2,1\n1,3,\n1,4,1\n", "empty fields"),
    ]:
        file.write_text(text)
        with pytest.raises(EventFileError, match=words):
            read_submission(file, [event])
