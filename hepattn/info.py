"""What this machine has: versions, device, every kernel and why one is missing, optional accelerators, the simulator.

`hepattn info` prints it for a reader, `hepattn info --json` for a program; `collect()` returns the same record.
"""

import argparse
import importlib.util
import json
import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

import hepattn

PACKAGES = (
    "hepattn",
    "torch",
    "pytorch-lightning",
    "numpy",
    "pandas",
    "pyarrow",
    "scipy",
    "matplotlib",
    "jupyterlab",
    "ipywidgets",
)
"""Distributions whose versions matter for what is seen; the optional ones are listed where they are used."""

ACCELERATORS = {
    "flash-attn (FA2)": ("flash_attn", "flash-attn", "the extra `flash`"),
    "flash-attn (FA3)": (
        "flash_attn_interface",
        "flash-attn-3",
        "flash-attention's `hopper` folder, built on the machine",
    ),
    "flash-attn-4 (FA4)": ("flash_attn.cute", "flash-attn-4", "the extra `fa4`"),
}
"""Name -> (module, distribution, where it comes from)."""

SIMULATOR = {"pyacts": "acts", "pythia8mc": "pythia8mc"}
"""Distribution -> module."""


@dataclass(frozen=True)
class Info:
    """What one machine has.

    In `kernels`, `accelerators` and `simulator`, True (or a version) means *can be used* and a sentence says why not.
    """

    python: str
    platform: str
    versions: dict[str, str | None]
    """Distribution -> version, None where it isn't installed."""
    cpu: str
    cpu_count: int
    torch_threads: int
    cuda: list[str]
    """One entry a GPU: name, memory in GiB, compute capability."""
    device: str
    """Where a model runs unless told otherwise: "cuda" or "cpu"."""
    kernels: dict[str, bool | str]
    accelerators: dict[str, bool | str]
    simulator: dict[str, bool | str]


def installed(distribution: str) -> str | None:
    """The installed version of a distribution, None where there is none."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def cpu_name() -> str:
    """The processor's model name, as the system tells it."""
    listing = Path("/proc/cpuinfo")
    if listing.is_file():
        for line in listing.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def cuda_devices() -> list[str]:
    """Every GPU that torch sees: name, memory, compute capability."""
    out = []
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        found = torch.cuda.get_device_properties(index)
        out.append(
            f"{found.name}, {found.total_memory / 2**30:.0f} GiB, compute capability {found.major}.{found.minor}"
        )
    return out


def has_module(name: str) -> bool:
    """Whether a module could be imported, found without importing it (its parents are imported)."""
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError, OSError, RuntimeError):  # a parent package that is there, but broken
        return False


def accelerators() -> dict[str, bool | str]:
    """Optional fast attention, each True or a version, or why it can't be had."""
    out: dict[str, bool | str] = {}
    for name, (module, distribution, source) in ACCELERATORS.items():
        out[name] = (
            (installed(distribution) or True) if has_module(module) else f"not installed: it comes from {source}"
        )
    out["torch varlen_attn"] = has_module("torch.nn.attention.varlen") or f"torch {torch.__version__} doesn't have it"
    return out


def simulator() -> dict[str, bool | str]:
    """The packages that `hepattn simulate` needs, each its version, or why it can't be had."""
    return {
        name: (installed(name) or True) if has_module(module) else "not installed: it comes from the extra `sim`"
        for name, module in SIMULATOR.items()
    }


def collect() -> Info:
    """Look at this machine. Nothing is compiled and no GPU memory is taken."""
    gpus = cuda_devices()
    device = "cuda" if gpus else "cpu"
    return Info(
        python=platform.python_version(),
        platform=platform.platform(),
        versions={name: installed(name) for name in PACKAGES},
        cpu=cpu_name(),
        cpu_count=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        torch_threads=torch.get_num_threads(),
        cuda=gpus,
        device=device,
        kernels=dict(hepattn.available_backends(device=device)),
        accelerators=accelerators(),
        simulator=simulator(),
    )


def describe(info: Info) -> str:
    """The record as text: one heading a group, one line an entry."""

    def state(value: bool | str | None) -> str:
        return "yes" if value is True else "no" if value in {False, None} else str(value)

    lines = []
    groups: list[tuple[str, dict[str, str]]] = [
        ("versions", {"python": info.python, **{k: state(v) for k, v in info.versions.items()}}),
        (
            "device",
            {
                "system": info.platform,
                "cpu": f"{info.cpu} ({info.cpu_count} usable, torch uses {info.torch_threads})",
                **({f"cuda:{i}": gpu for i, gpu in enumerate(info.cuda)} or {"cuda": "none that torch can see"}),
            },
        ),
        (f"attention kernels on {info.device}", {k: state(v) for k, v in info.kernels.items()}),
        ("optional accelerators", {k: state(v) for k, v in info.accelerators.items()}),
        ("simulator", {k: state(v) for k, v in info.simulator.items()}),
    ]
    width = max(len(name) for _, entries in groups for name in entries)
    for title, entries in groups:
        lines += [title, *(f"  {name:{width}}  {value}" for name, value in entries.items()), ""]
    return "\n".join(lines[:-1])


def main(argv: Sequence[str]) -> int:
    """Run `hepattn info`."""
    parser = argparse.ArgumentParser(
        prog="hepattn info", description="Versions, device, kernels and why one is missing."
    )
    parser.add_argument("--json", action="store_true", help="the same, for a program to read")
    given = parser.parse_args(argv)
    info = collect()
    sys.stdout.write((json.dumps(asdict(info), indent=2) if given.json else describe(info)) + "\n")
    return 0
