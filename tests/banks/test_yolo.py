"""YOLO11 checkpoints, and model objects of ultralytics, as banks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from skt_components import FastSAMFeatureExtractor
from skt_components.banks.fastsam_weights import convert_checkpoint, load_fastsam_state, make_network
from skt_components.banks.yolo11_architecture import YOLO11Seg, YOLO11SegConfig


@pytest.fixture(scope="module")
def reference(yolo11n: Path) -> dict:
    return torch.load(yolo11n / "reference.pt", weights_only=True)


def lively(network: YOLO11Seg) -> YOLO11Seg:
    """Return the network with statistics that no default hides."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.1, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    return network.eval()


# matches_reference


@pytest.mark.usefixtures("one_thread")
def test_layers_and_masks_of_yolo11_equal_those_of_ultralytics(yolo11n, reference):
    path = yolo11n / "yolo11n-seg.pt"
    network = make_network(load_fastsam_state(path), str(path))
    assert isinstance(network, YOLO11Seg)
    with torch.no_grad():
        found = network.run_layers(reference["pictures"], list(reference["taps"]))
    for layer, wanted in reference["taps"].items():
        assert wanted.std() > 0.1
        torch.testing.assert_close(found[layer], wanted, rtol=1e-5, atol=1e-5 * float(wanted.abs().max()))
    bank = FastSAMFeatureExtractor(path, layers="fast", max_regions=300, overlap=True)
    priors = bank(reference["pictures"])
    counts = [len(wanted["masks"]) for wanted in reference["predictions"]]
    assert priors.valid[:, 1:].sum(1).tolist() == counts
    assert max(counts) > 90
    for masks, valid, wanted in zip(priors.masks[:, 1:], priors.valid[:, 1:], reference["predictions"], strict=True):
        if len(wanted["masks"]):
            ours, theirs = masks[valid].flatten(1).float(), wanted["masks"].flatten(1).float()
            common = theirs @ ours.T
            overlap = (common / (theirs.sum(1)[:, None] + ours.sum(1) - common)).amax(0)
            assert overlap.mean() > 0.999


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("kind", ["object", "network", "fused"])
def test_a_live_model_gives_what_its_file_gives(yolo11n, reference, kind):
    path = yolo11n / "yolo11n-seg.pt"
    live = make_network(reference["live"][kind], kind)
    filed = make_network(load_fastsam_state(path), str(path))
    with torch.no_grad():
        layers = [network.run_layers(reference["pictures"][:1], [6, 22]) for network in (live, filed)]
    for layer, found in layers[0].items():
        scale = float(layers[1][layer].abs().max())
        torch.testing.assert_close(found, layers[1][layer], rtol=1e-4, atol=1e-4 * scale if kind == "fused" else 0)


# sizes and options


def test_the_published_sizes_follow_from_the_shapes():
    sizes = {"n": YOLO11SegConfig(), "m": YOLO11SegConfig(64, 512, 1, True, 16, 80, 32, 256, (64, 256, 64))}
    parameters = {"n": 2_876_848, "m": 22_420_896}
    for size, config in sizes.items():
        with torch.device("meta"):
            network = YOLO11Seg(config)
        assert YOLO11SegConfig.from_shapes(network.state_dict()) == config
        assert sum(p.numel() for p in network.parameters()) == parameters[size]


@pytest.mark.parametrize("layer", sorted(YOLO11Seg.strides))
def test_strides_and_channels_are_as_stated(layer):
    network = YOLO11Seg(YOLO11SegConfig(width=8, deepest=64)).eval()
    feature = network.run_layers(torch.rand(1, 3, 64, 96), [layer])[layer]
    stride = network.strides[layer]
    assert feature.shape == (1, network.channels(layer), 64 // stride, 96 // stride)


@pytest.mark.parametrize(("layers", "channels"), [("paper", (256, 128, 64, 64)), ("fast", (128, 128, 64, 16))])
def test_a_network_object_is_a_bank_of_pictures_of_any_size(layers, channels):
    network = lively(YOLO11Seg(YOLO11SegConfig()))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    bank = FastSAMFeatureExtractor(network, layers=layers, max_regions=4)
    assert bank.channels == channels
    priors = bank(torch.rand(1, 3, 50, 70))
    assert [tuple(f.shape[1:]) for f in priors.features] == [
        (c, -(-50 // s), -(-70 // s)) for c, s in zip(channels, bank.reduction, strict=True)
    ]
    assert priors.masks.shape == (1, 5, 50, 70)
    assert next(network.parameters()).requires_grad  # a copy is frozen, not the object
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


def test_the_file_is_converted_and_gives_the_same(yolo11n, tmp_path):
    path = yolo11n / "yolo11n-seg.pt"
    converted = convert_checkpoint(path, tmp_path / "yolo.safetensors")
    banks = [FastSAMFeatureExtractor(file, layers="fast") for file in (path, converted)]
    assert banks[0].fingerprint == banks[1].fingerprint


def test_what_is_no_such_network_is_rejected(tmp_path):
    with pytest.raises(TypeError, match="weights must be a path, a name or a model of ultralytics, got int"):
        FastSAMFeatureExtractor(3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="the Conv2d is not a YOLOv8 segmentation network"):
        FastSAMFeatureExtractor(nn.Conv2d(3, 3, 1))
    state = YOLO11Seg(YOLO11SegConfig(width=8, deepest=64)).state_dict()
    del state["model.23.cv4.0.2.weight"]
    with pytest.raises(ValueError, match=r"file is not a YOLO11 segmentation network: .*cv4.0.2.weight' is missing"):
        make_network(state, "file")
