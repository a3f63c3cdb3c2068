"""The events that come with the project: made by the simulator, described in `data/README.md`."""

from pathlib import Path

from hepattn.data.parquet import ParquetEvents
from hepattn.data.schema import Event

DEFAULT_SAMPLE = "ttbar_mu0"


def data_directory() -> Path:
    """The folder of sample events and trained weights: `data/` of a checkout, or the copy in the installed package.

    Raises:
        FileNotFoundError: neither is there.
    """
    package = Path(__file__).resolve().parents[1]
    checkout, installed = package.parent / "data", package / "_sample"
    # An unrelated folder called data may lie beside an installed package.
    if checkout.is_dir() and (package.parent / "pyproject.toml").is_file():
        return checkout
    if installed.is_dir():
        return installed
    raise FileNotFoundError(f"the sample events are in neither {checkout} nor {installed}")


def sample_names() -> list[str]:
    """Names of the samples that are there, such as ttbar_mu0 (no pile-up), ttbar_mu40 and ttbar_mu200."""
    return sorted(file.name.removesuffix(".hits.parquet") for file in data_directory().glob("*.hits.parquet"))


def sample_events(name: str = DEFAULT_SAMPLE) -> ParquetEvents:
    """All events of a sample, each read when it is asked for.

    Raises:
        ValueError: there is no such sample.
    """
    names = sample_names()
    if name not in names:
        raise ValueError(f"no sample {name!r}: there are {', '.join(names) or 'none'}")
    return ParquetEvents(data_directory() / name)


def sample_event(name: str = DEFAULT_SAMPLE, index: int = 0) -> Event:
    """One event of a sample; a negative index counts from the end.

    Raises:
        ValueError: there is no such sample.
        IndexError: it has fewer events.
    """
    return sample_events(name)[index]
