"""Workers of the calling thread go home, come back, and change no number."""

import sys
import threading

import pytest
import torch

from hepattn.training import openmp


@pytest.mark.skipif(sys.platform != "linux", reason="GNU's OpenMP is torch's on Linux")
def test_numbers_are_the_same_after_the_workers_went_home() -> None:
    x = torch.arange(4_000_000, dtype=torch.float64)
    before = x.sin()
    assert openmp.release_workers()
    assert openmp.release_workers()  # nobody is there any more
    assert torch.equal(x.sin(), before)


@pytest.mark.skipif(sys.platform != "linux", reason="GNU's OpenMP is torch's on Linux")
def test_another_thread_keeps_its_workers_while_they_work() -> None:
    x = torch.arange(1_000_000, dtype=torch.float64)
    found: list[torch.Tensor] = []

    def work() -> None:
        found.extend(x.sin() for _ in range(50))

    thread = threading.Thread(target=work)
    thread.start()
    while thread.is_alive():
        openmp.release_workers()
    assert len(found) == 50
    assert all(torch.equal(one, found[0]) for one in found)


def test_a_system_with_another_openmp_is_left_alone(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(openmp, "LOADED", tmp_path / "none")
    assert not openmp.release_workers()
    (tmp_path / "maps").write_text("7f00-7f01 r-xp 0 00:00 0 /usr/lib/libomp.so\n")
    monkeypatch.setattr(openmp, "LOADED", tmp_path / "maps")
    assert not openmp.release_workers()
