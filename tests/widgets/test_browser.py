"""Explorers in JupyterLab, in a browser: one picture that follows fast moves of a slider, and a clean console."""

import re
from typing import Any

import pytest

STOPPED = r"stopped, step (\d+) of (\d+)"
PICTURE = ".jp-OutputArea img.widget-image"


def source(page: Any) -> str:
    return page.locator(PICTURE).first.get_attribute("src")


def wait_for_another(page: Any, old: str) -> str:
    page.wait_for_function(
        f"old => {{ const i = document.querySelector('{PICTURE}'); return i && i.src !== old }}",
        arg=old,
        timeout=60_000,
    )
    return source(page)


def wait_until_idle(page: Any) -> None:
    """Until all cells have run."""
    page.wait_for_function(
        "() => window.jupyterapp.shell.currentWidget.sessionContext.session.kernel.status === 'idle'"
        " && !document.querySelector('.jp-Notebook')?.innerText.includes('[*]')",
        timeout=180_000,
    )


def move_fast(page: Any, label: str, moves: int) -> None:
    """Presses the arrow key on a slider as fast as the browser takes it."""
    handle = page.locator(f".jp-OutputArea .widget-slider:has-text('{label}') .noUi-handle").first
    handle.scroll_into_view_if_needed()
    handle.focus()
    for _ in range(moves):
        handle.press("ArrowRight")


@pytest.mark.parametrize(
    ("notebook", "label", "explorers"),
    [("01_event_and_hits.ipynb", "pT cut", 1), ("03_attention_before_and_after_encoding.ipynb", "query at", 2)],
    ids=["01", "03"],
)
def test_one_picture_an_explorer_follows_fast_moves(lab, notebook, label, explorers):
    page = lab(notebook)
    page.wait_for_selector(PICTURE, timeout=180_000)
    wait_until_idle(page)
    before = source(page)
    move_fast(page, label, 8)
    after = wait_for_another(page, before)
    page.wait_for_timeout(1_000)
    assert page.locator(PICTURE).count() == explorers
    move_fast(page, label, 1)
    wait_for_another(page, source(page))
    assert page.locator(PICTURE).count() == explorers
    assert after != before


def test_a_training_moves_its_picture_and_stops_with_a_checkpoint(lab, server):
    page = lab("08_train_hit_filter.ipynb")
    page.wait_for_selector(PICTURE, timeout=240_000)
    moving = wait_for_another(page, source(page))  # nobody touched anything
    move_fast(page, "threshold", 6)
    wait_for_another(page, moving)
    page.locator(".jp-OutputArea button:has-text('stop')").first.click()
    page.wait_for_function(f"() => /{STOPPED}/.test(document.querySelector('.jp-Notebook').innerText)", timeout=60_000)
    said = re.search(STOPPED, page.locator(".jp-Notebook").inner_text())
    assert said is not None
    step, total = map(int, said.groups())
    assert 0 < step < total  # it was stopped, and did not end by itself
    checkpoints = server[1] / "checkpoints" / "lesson"
    for _ in range(60):
        if list(checkpoints.rglob("*.ckpt")):
            break
        page.wait_for_timeout(500)
    assert list(checkpoints.rglob("*.ckpt"))
    assert page.locator(PICTURE).count() == 1
