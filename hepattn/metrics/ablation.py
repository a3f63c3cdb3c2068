"""Trainings that differ in one thing: kept as lines of JSON, summed up over seeds."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Literal, Self

import numpy as np
import pandas as pd

from hepattn.data.sample import data_directory

BASELINE = "baseline"
"""The variant from which all others differ in one thing."""

COLUMNS = {
    "AUC": "auc",
    "purity": "purity_98",
    "efficiency": "efficiency_75",
    "retained": "retention_98",
    "steps/s": "steps_per_second",
    "GiB": "gibibytes",
    "parameters": "parameters",
    "count off": "count_error",
}
"""Column of `frame` -> field of `Run`."""
SPREAD = ("AUC", "purity", "efficiency")
"""Columns with their spread over seeds beside them."""

Baseline = Literal["rotary", "not rotary"]
"""Whether the baseline of the trainings that come with the project has rotary encodings."""
SHIPPED: Mapping[Baseline, str] = {
    "rotary": "results/ablation_mu200_rotary.jsonl",
    "not rotary": "results/ablation_mu200_not_rotary.jsonl",
}
"""Of `hepattn.data.data_directory()`: the trainings that come with the project."""

_SIMULATE = "hepattn simulate --events 1056 --pileup 200 --seed 2 --out events/"
_BENCH = "python -m hepattn.bench ablation --events events/ --sector 0.25"
COMMANDS: Mapping[Baseline, tuple[str, str]] = {
    "rotary": (
        _SIMULATE,
        f"{_BENCH} --rotary --steps 3000 --passes 8 --out data/{SHIPPED['rotary']}",
    ),
    "not rotary": (
        _SIMULATE,
        f"{_BENCH} --no-rotary --steps 4500 --passes 12 --out data/{SHIPPED['not rotary']}",
    ),
}
"""How they were made, on two GPUs."""


@dataclass(frozen=True)
class Run:
    """One training and what became of it on held-out events.

    Attributes:
        variant: what differs from the baseline.
        seed: of the first weights, and of what is random in the model.
        steps: of the optimiser.
        parameters: numbers that were learnt.
        auc: area under the ROC curve over all held-out hits.
        purity_98, purity_99: at the threshold that keeps 98 % or 99 % of the target hits.
        retention_98: reconstructable particles that keep three hits at the first of these.
        efficiency_75: share of the target hits that is kept at the loosest threshold with a purity of 75 %; 0 where no
            threshold has it.
        losses: mean training loss in equal parts of the training, first to last.
        steps_per_second: alone on the device; None where it was not timed.
        gibibytes: peak memory on the device; None on a CPU, or where it was not timed.
        count_error: mean of |estimated - true| / true number of reconstructable particles; None without a count.
    """

    variant: str
    seed: int
    steps: int
    parameters: int
    auc: float
    purity_98: float
    purity_99: float
    retention_98: float
    efficiency_75: float
    losses: tuple[float, ...]
    steps_per_second: float | None = None
    gibibytes: float | None = None
    count_error: float | None = None

    def to_json(self) -> str:
        """One line; `from_json` reads it."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, line: str) -> Self:
        """The run that `to_json` wrote.

        Raises:
            ValueError: the line is something else
        """
        try:
            saved = json.loads(line)
            run = cls(**saved | {"losses": tuple(saved["losses"])})
        except (ValueError, TypeError, KeyError) as error:
            names = ", ".join(field.name for field in fields(cls))
            raise ValueError(f"not a run of an ablation, with {names}: {line[:80]}") from error
        return run


def read_runs(path: str | Path) -> list[Run]:
    """All runs of a file, in its order; none where there is no file.

    A last line without an end (a writer was stopped in it) is left out.

    Raises:
        ValueError: a line is something else, with its number
    """
    if not Path(path).is_file():
        return []
    runs = []
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").split("\n")[:-1], start=1):
        try:
            runs.append(Run.from_json(line))
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from error
    return runs


def shipped_runs(baseline: Baseline) -> list[Run]:
    """The trainings that come with the project, made by `COMMANDS[baseline]`.

    Raises:
        FileNotFoundError: they are not there
        ValueError: the file holds something else
    """
    path = data_directory() / SHIPPED[baseline]
    if not path.is_file():
        commands = "; ".join(COMMANDS[baseline])
        raise FileNotFoundError(f"there are no trainings at {path}; on a GPU they are made by: {commands}")
    return read_runs(path)


@dataclass(frozen=True)
class Summary:
    """A number over the seeds of one variant.

    Attributes:
        mean: over seeds; NaN without a run.
        spread: standard deviation over seeds (n - 1), NaN with fewer than two.
        runs: how many.
    """

    mean: float
    spread: float
    runs: int

    @classmethod
    def of(cls, values: Iterable[float | None]) -> Self:
        """Of the values that are there."""
        found = np.array([value for value in values if value is not None], dtype=np.float64)
        mean = float(found.mean()) if len(found) else float("nan")
        return cls(mean, float(found.std(ddof=1)) if len(found) > 1 else float("nan"), len(found))


def variants(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Runs by variant; the baseline first, the others by falling mean AUC."""
    grouped: dict[str, list[Run]] = {}
    for run in runs:
        grouped.setdefault(run.variant, []).append(run)

    def place(name: str) -> tuple[bool, float]:
        return name != BASELINE, -Summary.of(run.auc for run in grouped[name]).mean

    return {name: grouped[name] for name in sorted(grouped, key=place)}


def pooled_spread(runs: Sequence[Run], quantity: str = "auc") -> float:
    """Standard deviation over seeds, taken as the same in all variants: sqrt(sum of squares / sum of (n - 1)).

    Three seeds alone say little about their own spread; all variants together say it well. NaN where no variant has
    two seeds.
    """
    squares, freedom = 0.0, 0
    for same in variants(runs).values():
        values = np.array([getattr(run, quantity) for run in same], dtype=np.float64)
        squares += float(((values - values.mean()) ** 2).sum())
        freedom += len(values) - 1
    return float(np.sqrt(squares / freedom)) if freedom else float("nan")


def difference(runs: Sequence[Run], variant: str, quantity: str = "auc") -> tuple[float, float]:
    """A variant's mean minus the baseline's, and the standard error of that from the pooled spread.

    Raises:
        KeyError: one of the two has no run
    """
    grouped = variants(runs)
    ours, base = ([getattr(run, quantity) for run in grouped[name]] for name in (variant, BASELINE))
    error = pooled_spread(runs, quantity) * np.sqrt(1 / len(ours) + 1 / len(base))
    return float(np.mean(ours) - np.mean(base)), float(error)


def frame(runs: Sequence[Run]) -> pd.DataFrame:
    """The runs as a table for display, a row a variant: means over seeds; the baseline first, then by falling AUC.

    Returns:
        Columns: seeds, AUC, difference (of AUC, to the baseline's) and its error (from the pooled spread), clear
        (|difference| > 2 errors), purity and retained at 98 % hit efficiency, efficiency at 75 % purity, steps/s, GiB,
        parameters, count off; after AUC, purity and efficiency a column ±, their spread over seeds (`Summary`).
        NaN where something was not measured, and for the baseline's difference to itself; without an error, nothing is
        clear.

    Raises:
        KeyError: the baseline has no run
    """
    rows, grouped = {}, variants(runs)
    if BASELINE not in grouped:
        raise KeyError(f"no run of the {BASELINE}: differences are to it; there is {', '.join(grouped) or 'nothing'}")
    for name, same in grouped.items():
        away, error = (float("nan"),) * 2 if name == BASELINE else difference(runs, name)
        over = {label: Summary.of(getattr(run, key) for run in same) for label, key in COLUMNS.items()}
        row: dict[str, float | bool] = {"seeds": len(same)}
        for label, summary in over.items():
            row[label] = summary.mean
            if label in SPREAD:
                row[f"{label} ±"] = summary.spread
            if label == "AUC":
                row |= {"difference": away, "error": error, "clear": bool(abs(away) > 2 * error)}
        rows[name] = row
    return pd.DataFrame.from_dict(rows, orient="index").astype({"parameters": int})


def table(runs: Sequence[Run]) -> str:
    """The runs as text, a line a variant: mean and spread over seeds."""
    head = f"{'variant':<20}{'seeds':>6}{'AUC':>18}{'purity at 98 %':>18}{'eff. at 75 %':>18}{'retained':>10}"
    lines = [f"{head}{'steps/s':>9}{'parameters':>12}{'GiB':>7}{'count off':>11}"]
    for name, same in variants(runs).items():
        auc, purity, efficiency = (Summary.of(getattr(run, COLUMNS[label]) for run in same) for label in SPREAD)
        retention, speed, memory, count = (
            Summary.of(getattr(run, key) for run in same)
            for key in ("retention_98", "steps_per_second", "gibibytes", "count_error")
        )
        cells = [
            f"{name:<20}{len(same):>6}",
            f"{auc.mean:.4f} ± {auc.spread:.4f}".rjust(18),
            f"{purity.mean:.2%} ± {purity.spread:.2%}".rjust(18),
            f"{efficiency.mean:.2%} ± {efficiency.spread:.2%}".rjust(18),
            f"{retention.mean:.2%}".rjust(10),
            ("-" if not speed.runs else f"{speed.mean:.1f}").rjust(9),
            f"{same[0].parameters:>12,}",
            ("-" if not memory.runs else f"{memory.mean:.2f}").rjust(7),
            ("-" if not count.runs else f"{count.mean:.1%}").rjust(11),
        ]
        lines.append("".join(cells))
    return "\n".join(lines)
