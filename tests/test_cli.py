"""The command `hepattn`: dispatch, exit codes, one-sentence errors."""

import subprocess
import sys
import types

import pytest

import hepattn
from hepattn import cli


def room(monkeypatch, main):
    """Put a module with this `main` behind the word `filter`."""
    module = types.ModuleType("room_for_a_test")
    module.main = main  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(cli.COMMANDS, "filter", (module.__name__, "a room for a test"))


def test_the_rooms_own_arguments_reach_it_untouched(monkeypatch):
    seen = []
    room(monkeypatch, lambda argv: seen.append(list(argv)))
    assert cli.main(["filter", "fit", "--config", "a.yaml", "--help", "--", "--traceback"]) == 0
    assert seen == [["fit", "--config", "a.yaml", "--help", "--", "--traceback"]]


def test_the_rooms_exit_code_is_returned(monkeypatch):
    room(monkeypatch, lambda _: 3)
    assert cli.main(["filter"]) == 3


@pytest.mark.parametrize(
    "kind", [ValueError, FileNotFoundError, ModuleNotFoundError, NotImplementedError, hepattn.KernelRefusal]
)
def test_a_users_mistake_is_one_sentence_and_status_2(monkeypatch, capsys, kind):
    def main(argv):
        raise kind("hits.csv has no column\n  hit_id")

    room(monkeypatch, main)
    assert cli.main(["filter"]) == 2
    assert capsys.readouterr() == ("", "hepattn filter: hits.csv has no column hit_id\n")


def test_an_error_without_words_is_named(monkeypatch, capsys):
    def main(argv):
        raise ValueError

    room(monkeypatch, main)
    assert cli.main(["filter"]) == 2
    assert capsys.readouterr().err == "hepattn filter: ValueError\n"


def test_a_fault_of_the_program_keeps_its_traceback(monkeypatch):
    def main(argv):
        raise RuntimeError("shapes differ")

    room(monkeypatch, main)
    with pytest.raises(RuntimeError, match="shapes differ"):
        cli.main(["filter"])


def test_traceback_on_request(monkeypatch):
    def main(argv):
        raise ValueError("nothing there")

    room(monkeypatch, main)
    with pytest.raises(ValueError, match="nothing there"):
        cli.main(["--traceback", "filter"])


def test_interrupt(monkeypatch, capsys):
    def main(argv):
        raise KeyboardInterrupt

    room(monkeypatch, main)
    assert cli.main(["filter"]) == 130
    assert "interrupted" in capsys.readouterr().err


def test_a_missing_room_is_a_sentence(monkeypatch, capsys):
    monkeypatch.setitem(cli.COMMANDS, "filter", ("hepattn.no_such_room", ""))
    assert cli.main(["filter"]) == 2
    assert "hepattn.no_such_room" in capsys.readouterr().err


@pytest.mark.parametrize("argv", [[], ["nonsense"], ["--nonsense"], ["--trace", "info"]])
def test_unreadable_arguments_exit_with_status_2(argv, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(argv)
    assert stop.value.code == 2
    assert "usage: hepattn" in capsys.readouterr().err


def test_help_names_every_command(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["--help"])
    assert stop.value.code == 0
    told = capsys.readouterr().out
    assert all(name in told and what in told for name, (_, what) in cli.COMMANDS.items())


def test_version(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"hepattn {cli.package_version()}\n"


def test_nothing_slow_is_imported_for_the_help():
    code = "import sys, hepattn.cli as c; c.parser().format_help(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize("word", list(cli.COMMANDS))
def test_every_word_has_a_room_with_help(word, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main([word, "--help"])
    assert stop.value.code == 0
    assert capsys.readouterr().out.startswith("usage: ")
