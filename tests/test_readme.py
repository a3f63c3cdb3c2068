"""What README, CHANGELOG and CITATION say is so."""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from hepattn.bench.__main__ import BENCHES
from hepattn.training.callbacks import ScoreWriter
from hepattn.training.track_writer import TrackWriter

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def left_behind() -> list[str]:
    """What README's commands leave in the folder in which they run."""
    tracks = TrackWriter()
    runs = [f"{kind}/version_0/checkpoints/last.ckpt" for kind in ("hit_filter", "maskformer")]
    runs += [f"{kind}/version_0/test.json" for kind in ("hit_filter", "maskformer")]
    folders = [f"{name}/manifest.json" for name in ("events", *re.findall(r"--out (\w+)", README))]
    return [*runs, *folders, ScoreWriter().path, str(tracks.path), str(tracks.submission), f"{tracks.path}.partial"]


def test_a_checkout_stays_clean_after_the_readmes_commands():
    if subprocess.run(["git", "rev-parse"], cwd=ROOT, capture_output=True, check=False).returncode:
        pytest.skip("not a git checkout")
    names = left_behind()
    assert "my_events/manifest.json" in names
    done = subprocess.run(["git", "check-ignore", *names], cwd=ROOT, capture_output=True, text=True, check=False)
    assert sorted(done.stdout.split()) == sorted(names)
    kept = subprocess.run(["git", "ls-files", "-ci", "--exclude-standard"], cwd=ROOT, capture_output=True, check=True)
    assert kept.stdout == b"", "nothing of the project is ignored"


def test_the_first_calls_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names: dict[str, Any] = {}
    exec(code.replace('sample_event("ttbar_mu200")', "sample_event()"), names)  # a light event, for seconds
    assert not list(tmp_path.iterdir())
    assert len(names["score"]) == len(names["event"].hits)
    assert names["tracks"][0].parameters is not None


def test_pictures_are_described_and_there():
    for words, file in re.findall(r"!\[(.*?)\]\((.*?)\)", README, re.DOTALL):
        assert (ROOT / file).is_file()
        assert len(words.split()) > 10, "says what is to be seen"


def test_links_lead_to_files():
    for target in re.findall(r"\]\(([^)#]+)", README):
        assert target.startswith("https://") or (ROOT / target).exists(), target


def test_every_bench_is_in_the_changes():
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    (line,) = re.findall(r"^- `python -m hepattn\.bench`: (.*(?:\n  .*)*)", changes, re.MULTILINE)
    words = {"attention": "attention on a GPU", "local-cpu": "local attention on a CPU", "masks": "block masks"}
    words |= {"experts": "experts", "simulate": "simulator"}
    assert [name for name in BENCHES if words.get(name, f"`{name}`") not in line] == []


def test_citations_have_what_the_format_asks_for():
    """Citation File Format 1.2.0: these keys of a reference are needed, and authors are persons or entities."""
    cff = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= set(cff)
    assert cff["cff-version"] == "1.2.0"
    for one in [cff, *cff["references"]]:
        assert {"type", "title", "authors"} <= set(one)
        assert all(
            set(author) == {"name"} or {"family-names", "given-names"} == set(author) for author in one["authors"]
        )
        for identifier in one.get("identifiers", []):
            assert identifier["type"] == "doi"
            assert re.fullmatch(r"10\.\d{4,9}/arXiv\.\d{4}\.\d{5}", identifier["value"])
