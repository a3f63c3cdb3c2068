"""The two packages of the extra `sim`: imported where they are used, named in one sentence where they are missing."""

import importlib
from types import ModuleType

PACKAGES = {"acts": "pyacts", "pythia8mc": "pythia8mc"}
"""Module to import -> package to install."""


def require(module: str) -> ModuleType:
    """The imported `module`, e.g. "acts.examples".

    Raises:
        ImportError: the package is not there; the sentence names it and the command that installs it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = PACKAGES.get(module.partition(".")[0], module)
        raise ImportError(
            f"the simulator needs the package {package}, which can't be imported ({error}): pip install hepattn[sim]"
        ) from error


def available() -> bool:
    """True when both packages can be imported."""
    try:
        for module in PACKAGES:
            require(module)
    except ImportError:
        return False
    return True
