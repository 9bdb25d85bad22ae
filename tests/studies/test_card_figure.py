"""The figure of a model's card: bars that add up, points where the card has them, no text over another."""

from __future__ import annotations

from pathlib import Path

import pytest

from sextant.studies import card_figure, figures, model_card
from sextant.workloads import models

pyplot = pytest.importorskip("matplotlib.pyplot")
NAMES = [name for name in ("deepseek-v3", "llama-3.1-405b", "deepseek-v2", "engram-27b", "mhc-27b", "janus-pro-7b",
                           "deepseek-vl2") if name in models.catalogue()]  # fmt: skip


@pytest.fixture(autouse=True)
def style():
    with figures.styled():
        yield


@pytest.fixture(scope="module")
def cards() -> dict[str, dict]:
    return {name: model_card.card(name) for name in NAMES}


@pytest.fixture(scope="module")
def pages(cards):
    with figures.styled():
        yield {name: card_figure.model(card) for name, card in cards.items()}
    pyplot.close("all")


@pytest.mark.parametrize("name", NAMES)
def test_bars_are_the_parameters_and_the_hatched_share_is_activated(name: str, cards, pages) -> None:
    card = cards[name]
    bars, _ = pages[name].axes
    solid = [p for p in bars.patches if not p.get_hatch()]
    hatched = [p for p in bars.patches if p.get_hatch()]
    share = card["n_activated_parameters"] / card["n_parameters"]
    for row, label in enumerate(bars.get_yticklabels()):
        widths = [p.get_width() for p in solid if round(p.get_y() + 0.36) == row]
        assert sum(widths) == pytest.approx(1.0)
        used = sum(p.get_width() for p in hatched if round(p.get_y() + 0.36) == row)
        assert used == pytest.approx(0.0 if label.get_text().startswith("activated") else share)


@pytest.mark.parametrize("name", NAMES)
def test_every_phase_has_its_point_and_its_label(name: str, cards, pages) -> None:
    work = cards[name]["work"]
    _, roofline = pages[name].axes
    stars = [(line.get_xdata()[0], line.get_ydata()[0]) for line in roofline.lines if line.get_marker() == "*"]
    wanted = [(p["hbm_bytes_per_token"], p["flops_per_token"]) for p in work["phases"].values()]
    assert stars == wanted
    texts = [text.get_text() for text in roofline.texts if text.get_text()]
    assert [text.partition(":")[0] for text in texts] == [p["label"] for p in work["phases"].values()]
    (ridge,) = [line for line in roofline.lines if len(line.get_xdata()) == 2]
    ratios = [y / x for x, y in zip(ridge.get_xdata(), ridge.get_ydata(), strict=True)]
    assert ratios == pytest.approx([work["ridge_flops_per_byte"]] * 2)


def _drawn_ticks(axes):
    """Labels of the ticks inside the axes; others exist but are not drawn."""
    low, high = sorted(axes.get_ylim())
    return [label for label, y in zip(axes.get_yticklabels(), axes.get_yticks(), strict=True) if low <= y <= high]


@pytest.mark.parametrize("name", NAMES)
def test_no_text_covers_another_or_leaves_the_page(name: str, pages) -> None:
    figure = pages[name]
    figure.canvas.draw()
    page = figure.bbox
    texts = [text for axes in figure.axes for text in [*axes.texts, *axes.get_legend().get_texts(), axes.title,
             axes.xaxis.label, *_drawn_ticks(axes), axes._left_title]]  # fmt: skip
    boxes = {t.get_text(): t.get_window_extent() for t in [*texts, *figure.texts] if t.get_text()}
    for i, (text, box) in enumerate(boxes.items()):
        assert page.x0 <= box.x0 and box.x1 <= page.x1 and box.y1 <= page.y1, text
        for other in list(boxes)[i + 1 :]:
            assert not box.overlaps(boxes[other]), (text, other)


def test_labels_stay_inside_their_panel_and_off_the_points(pages) -> None:
    for figure in pages.values():
        _, roofline = figure.axes
        roofline.figure.canvas.draw()
        panel = roofline.get_window_extent()
        stars = [roofline.transData.transform((line.get_xdata()[0], line.get_ydata()[0]))
                 for line in roofline.lines if line.get_marker() == "*"]  # fmt: skip
        for text in roofline.texts:
            if text.get_text():
                box = text.get_window_extent()
                assert panel.x0 <= box.x0 and box.x1 <= panel.x1 and panel.y0 <= box.y0 and box.y1 <= panel.y1
                assert not any(box.contains(*star) for star in stars)


def test_names_are_drawn_as_they_are_spelt(cards, tmp_path: Path) -> None:
    card = {**cards["deepseek-v2"], "name": "a$x^2$\n<b>\x1b", "changed": ["n_streams=4"]}
    figure = card_figure.model(card)
    assert figure.texts[0].get_text() == "a$x^2$\\n<b>\\x1b (DeepSeek-V2), n_streams=4"
    written = card_figure.draw(card, tmp_path)
    assert [path.name for path in written] == ["model.png", "model.svg"]
    assert (tmp_path / "model.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert b"<b>" not in (tmp_path / "model.svg").read_bytes()


def test_the_same_card_gives_the_same_bytes(cards, tmp_path: Path) -> None:
    first = [path.read_bytes() for path in card_figure.draw(cards["deepseek-v2"], tmp_path)]
    assert [path.read_bytes() for path in card_figure.draw(cards["deepseek-v2"], tmp_path)] == first
