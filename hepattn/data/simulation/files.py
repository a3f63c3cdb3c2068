"""A folder of simulated events: one Parquet pair an event, the recipe beside them, and TrackML files where wanted."""

import json
import os
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np

from hepattn.data.parquet import write_parquet
from hepattn.data.schema import Event
from hepattn.data.simulation.recipe import Recipe

MANIFEST = "manifest.json"
FORMAT = 1


def event_path(out: Path, index: int) -> Path:
    """`OUT/event000000007`; the files beside it end in .hits.parquet and .particles.parquet."""
    return out / f"event{index:09d}"


def finished(out: Path, index: int, *, csv: bool) -> bool:
    """True when the event is on disk: files appear under their names only when whole, the hits last."""
    path = event_path(out, index)
    wanted = [".hits.parquet", ".particles.parquet"] + ([f"-{part}.csv.gz" for part in CSV_PARTS] if csv else [])
    return all(path.with_name(path.name + ending).exists() for ending in wanted)


def write_event(out: Path, event: Event, *, csv: bool) -> None:
    """Write one event; a reader never sees half a file."""
    path = event_path(out, event.event_id)
    if csv:
        write_csv(path, event)
    write_parquet(path, [event])


def versions() -> dict[str, str]:
    """The versions of the packages that an event depends on."""
    found = {}
    for package in ("hepattn", "pyacts", "pythia8mc", "numpy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def open_folder(out: Path, recipe: Recipe) -> None:
    """Make the folder and write what it holds, or check that what is there was made with the same recipe.

    Raises:
        ValueError: there is a file in its place, it holds events of another recipe, or its manifest can't be read.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        file = next(path for path in (out, *out.parents) if path.exists())
        raise ValueError(f"events need a folder, and {file} is a file; take another folder than {out}") from error
    path = out / MANIFEST
    wanted = {"format": FORMAT, "recipe": recipe.as_dict()}
    if path.exists():
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            theirs = {**found["recipe"], "format": found["format"]}
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is not the manifest of a simulation ({error}); take another folder") from error
        ours = {**recipe.as_dict(), "format": FORMAT}
        differ = [
            f"{key} {theirs.get(key)} instead of {ours.get(key)}"
            for key in sorted(ours.keys() | theirs.keys())
            if ours.get(key) != theirs.get(key)
        ]
        if differ:
            raise ValueError(f"{out} holds events of another recipe ({', '.join(differ)}); take another folder")
        return
    if any(out.glob("event*.hits.parquet")):
        raise ValueError(f"{out} holds events but no {MANIFEST} that says how they were made; take another folder")
    draft = path.with_name(f".{MANIFEST}.{os.getpid()}")
    draft.write_text(json.dumps({**wanted, "versions": versions()}, indent=2) + "\n", encoding="utf-8")
    draft.replace(path)


def other_versions(out: Path) -> list[str]:
    """Packages of which the folder was begun with another version than is here, as "numpy 2.3.1 instead of 2.4.0"."""
    theirs = json.loads((out / MANIFEST).read_text(encoding="utf-8")).get("versions", {})
    ours = versions()
    return [
        f"{name} {theirs[name]} instead of {ours[name]}" for name in ours if theirs.get(name, ours[name]) != ours[name]
    ]


CSV_PARTS = ("hits", "particles", "truth")


def write_csv(path: Path, event: Event) -> None:
    """Write TrackML's files `eventNNNNNNNNN-{hits,particles,truth}.csv.gz` (mm, GeV; `particle_id` 0 is noise).

    The truth names the particle of each hit and nothing else; there are no cells.
    """
    import pandas as pd

    hits, particles = event.hits, event.particles
    if particles is None or hits.particle is None:
        raise ValueError(f"event {event.event_id} has no truth to write")
    number = np.arange(1, len(hits) + 1)
    tables = {
        "hits": {
            "hit_id": number,
            **{name: getattr(hits, name) for name in ("x", "y", "z", "volume_id", "layer_id", "module_id")},
        },
        "particles": {
            "particle_id": particles.particle_id,
            **{name: getattr(particles, name) for name in ("vx", "vy", "vz", "px", "py", "pz")},
            "q": particles.charge,
            "nhits": event.hits_per_particle,
            **({} if particles.pdg is None else {"particle_type": particles.pdg}),
        },
        "truth": {"hit_id": number, "particle_id": np.append(particles.particle_id, 0)[hits.particle]},
    }
    for part in CSV_PARTS:
        final = path.with_name(f"{path.name}-{part}.csv.gz")
        draft = path.with_name(f".{final.name}.{os.getpid()}.tmp")
        pd.DataFrame(tables[part]).to_csv(
            draft, index=False, float_format="%.7g", compression={"method": "gzip", "compresslevel": 6, "mtime": 0}
        )
        draft.replace(final)


def clean(out: Path, indices: Iterable[int]) -> None:
    """Remove drafts of these events that ended processes have left."""
    names = tuple(f".{event_path(out, index).name}" for index in indices)
    for draft in out.glob(".event*.tmp"):
        if draft.name.startswith(names):
            draft.unlink(missing_ok=True)
