"""The gallery shows every operator as it is, and its words do not collide."""

from __future__ import annotations

import itertools
import json

import pytest
import torch

import ste_ops
from ste_ops import __main__ as command
from ste_ops import gallery
from ste_ops.testing import _operators

pytest.importorskip("matplotlib")


@pytest.fixture(scope="module")
def picture():
    return gallery.picture()


# Products of two tensors, which no line shows.
PRODUCTS = {"binary_linear", "binary_conv1d", "binary_conv2d"}


def test_it_shows_every_operator_and_surrogate(picture):
    titles = {axes.get_title().split("(")[0] for axes in picture.axes}
    cases = [case for case in _operators.cases() if case.operator not in PRODUCTS]
    assert titles >= {case.operator for case in cases}
    assert titles >= {case.arguments.split("(")[0] for case in cases if case.operator == "sign"}
    assert len(titles) == len(picture.axes)


def panels():
    return {panel.title.split("(")[0]: panel for group in gallery.groups() for panel in group.panels}


def test_curves_are_those_of_the_operators():
    shown = panels()
    for name in ("sign", "lsq", "magnitude_aware_sign"):
        (x, forward, style), (_, gradient, _) = shown[name].curves[:2]
        assert style is gallery.FORWARD
        assert set(gradient[x.abs() > 1.6].tolist()) == {0.0}
        assert bool((forward[x > 0.5] > 0).all())
    x, of_scale, style = shown["lsq"].curves[2]
    assert style is gallery.PARAMETER
    assert set(of_scale[x < -1.6].tolist()) == {-2.0}
    x, clipped, style = shown["clip_gradient_value"].curves[0]
    assert style is gallery.GRADIENT
    torch.testing.assert_close(clipped, x.clamp(-1, 1))


def test_a_broken_operator_shows(monkeypatch):
    monkeypatch.setattr(ste_ops, "floor", ste_ops.ceil)
    shown = panels()
    torch.testing.assert_close(shown["floor"].curves[0][1], shown["ceil"].curves[0][1])


def test_words_do_not_collide(picture):
    picture.canvas.draw()
    texts = [*picture.texts, *picture.legends[0].get_texts()]
    for axes in picture.axes:
        texts += [axes.title, axes.xaxis.label, *axes.texts, *axes.get_xticklabels(), *axes.get_yticklabels()]
    boxes = [(text.get_text(), text.get_window_extent()) for text in texts if text.get_text() and text.get_visible()]
    assert len(boxes) > 200
    collisions = [(a, b) for (a, one), (b, other) in itertools.combinations(boxes, 2) if one.overlaps(other)]
    assert collisions == []
    width, height = picture.canvas.get_width_height()
    outside = [text for text, box in boxes if min(box.x0, box.y0) < 0 or box.x1 > width or box.y1 > height]
    assert outside == []


def test_the_command_writes_the_picture(picture, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(gallery, "picture", lambda: picture)
    out = tmp_path / "new" / "curves.png"
    command.main(["gallery", "--out", str(out)])
    assert capsys.readouterr().out == f"gallery: {out}\n"
    content = out.read_bytes()
    assert content.startswith(b"\x89PNG\r\n")
    assert len(content) < 400_000
    command.main(["gallery", "--out", str(out), "--json"])
    assert json.loads(capsys.readouterr().out) == {"gallery": str(out)}


def test_missing_matplotlib_is_named(monkeypatch):
    monkeypatch.setattr(gallery.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match=r"matplotlib not installed; .*pip install 'ste_ops\[gallery\]'"):
        command.main(["gallery"])
