"""The command `hepattn`: one word chooses the room, and that room's own command line does the rest.

```
hepattn info                        versions, device, kernels and why one is missing
hepattn simulate --events 10 ...    make events
hepattn filter fit --config ...     train, test or apply a hit filter
hepattn track fit --config ...      train, test or apply a tracker
```

A mistake of the user's is told in one sentence and exits with status 2. Which exceptions count as one is `USER_ERRORS`;
everything else is a fault of the program and keeps its traceback. `hepattn --traceback ...` shows it for both.
"""

import argparse
import importlib
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version

import hepattn

COMMANDS = {
    "info": ("hepattn.info", "versions, device, kernels and why one is missing"),
    "simulate": ("hepattn.data.simulation", "make events with Pythia and ACTS"),
    "filter": ("hepattn.training.filter_cli", "train, test or apply a hit filter"),
    "track": ("hepattn.training.track_cli", "train, test or apply a tracker"),
}
"""Word -> (module with a `main(argv)`, what it does). A module is imported only when its word is used."""

USER_ERRORS = (ValueError, OSError, ImportError, NotImplementedError)
"""A wrong value or file, an optional package that isn't there, or an option that this release doesn't have.

A kernel's refusal (`hepattn.KernelRefusal`) counts too; it is looked up only when needed, since its room imports torch.
"""


def is_users(error: Exception) -> bool:
    """Whether an error is a mistake of the user's, to be told in one sentence."""
    if isinstance(error, RuntimeError) and "hepattn.attention" in sys.modules:
        return isinstance(error, (hepattn.KernelRefusal, *USER_ERRORS))
    return isinstance(error, USER_ERRORS)


def package_version() -> str:
    """The installed version of hepattn, or "unknown" where it runs without being installed."""
    try:
        return version("hepattn")
    except PackageNotFoundError:
        return "unknown"


def one_sentence(error: BaseException) -> str:
    """What went wrong, on one line: the error's own words, or its kind where it has none."""
    words = " ".join(str(error).split())
    return words or type(error).__name__


def parser() -> argparse.ArgumentParser:
    """The part of the command line in front of a command's own arguments."""
    width = max(map(len, COMMANDS))
    commands = "\n".join(f"  {name:{width}}  {what}" for name, (_, what) in COMMANDS.items())
    out = argparse.ArgumentParser(
        prog="hepattn",
        description="A notebook-first laboratory for attention in particle tracking.",
        epilog=f"commands:\n{commands}\n\n`hepattn COMMAND --help` lists a command's own options.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    out.add_argument("--version", action="version", version=f"hepattn {package_version()}")
    out.add_argument("--traceback", action="store_true", help="show where an error came from")
    out.add_argument("command", choices=list(COMMANDS), metavar="COMMAND", help="one of the commands below")
    out.add_argument("arguments", nargs=argparse.REMAINDER, metavar="...", help="the command's own arguments")
    return out


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: the arguments after the program's name; None takes them from `sys.argv`.

    Returns:
        The exit status: 0 for success, 2 for a mistake of the user's, 130 when interrupted from the keyboard.

    Raises:
        SystemExit: from argparse, for `--help`, `--version` and arguments that can't be read (status 2).
    """
    given = parser().parse_args(argv)
    module = COMMANDS[given.command][0]
    try:
        run: Callable[[Sequence[str]], int | None] = importlib.import_module(module).main
        return run(given.arguments) or 0
    except BrokenPipeError:  # `hepattn info | head`: the reader has seen enough
        sys.stderr.close()
        return 0
    except KeyboardInterrupt:
        sys.stderr.write("\nhepattn: interrupted\n")
        return 130
    except Exception as error:
        if given.traceback or not is_users(error):
            raise
        sys.stderr.write(f"hepattn {given.command}: {one_sentence(error)}\n")
        return 2


if __name__ == "__main__":
    sys.exit(main())
