"""ColorVideoVDP through its package: what goes in, what comes out."""

from __future__ import annotations

import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from skt_components.metrics import color_video_vdp
from skt_components.metrics.cvvdp import _metric


def pair():
    target = torch.rand(2, 3, 48, 64, generator=torch.Generator().manual_seed(0))
    return (target + 0.1 * torch.randn(target.shape, generator=torch.Generator().manual_seed(1))).clamp(0, 1), target


def test_equals_the_package_called_by_hand(agrees_with_original):
    pycvvdp = pytest.importorskip("pycvvdp")
    prediction, target = pair()
    jods = color_video_vdp(prediction, target, luminance=200.0)
    metric = pycvvdp.cvvdp(display_name="standard_hdr_linear", device=torch.device("cpu"))
    for jod, test, reference in zip(jods, prediction, target, strict=True):
        expected, _ = metric.predict(200 * test.permute(1, 2, 0), 200 * reference.permute(1, 2, 0), dim_order="HWC")
        agrees_with_original("ColorVideoVDP", jod.item(), float(expected), abs=1e-5)
    assert jods.dtype == torch.float64
    assert (jods < 9.5).all()


def test_equal_pictures_are_10_and_brighter_displays_show_more():
    pytest.importorskip("pycvvdp")
    prediction, target = pair()
    assert color_video_vdp(target, target, luminance=100.0).tolist() == pytest.approx([10.0, 10.0])
    assert color_video_vdp(target, target, display="standard_4k").tolist() == pytest.approx([10.0, 10.0])
    dark, bright = (color_video_vdp(prediction, target, luminance=value) for value in (0.1, 100.0))
    assert (dark > bright).all()


def test_rejects_bad_input(monkeypatch):
    prediction, target = pair()
    with pytest.raises(ValueError, match="must have the same shape"):
        color_video_vdp(prediction, target[:1])
    with pytest.raises(ValueError, match=r"must be \(B, 3, H, W\)"):
        color_video_vdp(prediction[:, :1], target[:, :1])
    with pytest.raises(ValueError, match="luminance must be a finite number > 0"):
        color_video_vdp(prediction, target, luminance=0.0)
    monkeypatch.setitem(sys.modules, "pycvvdp", None)
    with pytest.raises(ImportError, match=r"skt-components\[cvvdp\]"):
        color_video_vdp(prediction, target, display="not asked for before")


def test_a_display_that_does_not_exist_is_named():
    pytest.importorskip("pycvvdp")
    with pytest.raises(ValueError, match="display must be a display model of the package cvvdp, got 'cinema'"):
        color_video_vdp(*pair(), display="cinema")


class Recorder:
    """Stand-in of the package: its object keeps a picture while it works, as the real one does."""

    class vq_exception(Exception):
        pass

    class cvvdp:
        def __init__(self, **_):
            self.kept = None

        def predict(self, test, reference, dim_order):
            self.kept = test
            time.sleep(0.001)
            return torch.stack([self.kept.mean()]), None


def test_threads_do_not_mix_their_pictures(monkeypatch):
    monkeypatch.setitem(sys.modules, "pycvvdp", Recorder)
    pictures = [torch.full((2, 3, 16, 16), float(level)) for level in range(2, 10)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda x: color_video_vdp(x, x, display="linear stand-in"), pictures))
    _metric.cache_clear()
    assert [jods.tolist() for jods in found] == [[level, level] for level in range(2, 10)]


def test_pictures_of_another_scale_warn(monkeypatch):
    monkeypatch.setitem(sys.modules, "pycvvdp", Recorder)
    _, target = pair()
    with pytest.warns(UserWarning, match="target must be light in cd/m2"):
        color_video_vdp(target, target, display="linear stand-in")
    with pytest.warns(UserWarning, match=r"target must be in \[0, 1\], got values up to 2"):
        color_video_vdp(255 * target, 255 * target, display="encoded stand-in")
    _metric.cache_clear()
