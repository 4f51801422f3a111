"""The plain network in other programs' formats."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import nn

from skt_components.models import AHDRNet, export_onnx, export_program
from skt_components.models import export as export_module

SMALL = {"features": 6, "num_layers": 2, "growth": 3}


def test_a_program_takes_any_batch_and_size_and_survives_a_file(tmp_path):
    network = AHDRNet(**SMALL)
    program = export_program(network)
    torch.export.save(program, tmp_path / "net.pt2")
    loaded = torch.export.load(tmp_path / "net.pt2").module()
    for shape in ((1, 3, 6, 9, 20), (3, 3, 6, 30, 7)):
        bracket = torch.rand(shape)
        torch.testing.assert_close(loaded(bracket), network(bracket), atol=1e-6, rtol=1e-5)
    assert network.training


def test_a_static_program_takes_its_own_size_only():
    program = export_program(AHDRNet(**SMALL), torch.rand(1, 3, 6, 8, 12), dynamic=False).module()
    assert program(torch.rand(1, 3, 6, 8, 12)).shape == (1, 3, 8, 12)
    with pytest.raises((AssertionError, RuntimeError)):
        program(torch.rand(1, 3, 6, 9, 12))


def test_onnx_is_compared_with_pytorch_before_it_is_kept(tmp_path, monkeypatch):
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    network, path = AHDRNet(**SMALL), tmp_path / "net.onnx"
    assert export_onnx(network, path) <= 1e-5
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    bracket = torch.rand(2, 3, 6, 17, 23)
    (found,) = session.run(["hdr"], {"bracket": bracket.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), network(bracket), atol=1e-6, rtol=1e-4)
    before = path.read_bytes()
    monkeypatch.setattr(export_module, "_difference", lambda *_: 0.5)
    with pytest.raises(ValueError, match=r"was not written: onnxruntime differs from PyTorch by 0\.5"):
        export_onnx(Own(), path, torch.rand(2, 3, 6, 12, 16), dynamic=False)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["net.onnx"]


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_package_is_named_with_its_extra(tmp_path, monkeypatch, package):
    pytest.importorskip("onnxscript")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf"needs {package}: pip install \"skt-components\[onnx\]\""):
        export_onnx(AHDRNet(**SMALL), tmp_path / "net.onnx")
    assert not list(tmp_path.iterdir())


def test_sides_that_are_no_multiples_are_rejected(monkeypatch):
    monkeypatch.setattr(AHDRNet, "size_multiple", 8)
    with pytest.raises(ValueError, match=r"multiples of 8, 16 at least, got \(1, 3, 6, 16, 20\)"):
        export_program(AHDRNet(**SMALL), torch.rand(1, 3, 6, 16, 20))


class Own(nn.Module):
    """A network of somebody else's, which halves the picture and doubles it again."""

    def forward(self, bracket):
        half = nn.functional.avg_pool2d(bracket[:, 0, :3], 2)
        return nn.functional.interpolate(half, scale_factor=2.0)


def test_a_network_of_your_own_is_exported_with_a_bracket(tmp_path):
    with pytest.raises(ValueError, match="bracket must be given for Own"):
        export_program(Own())
    bracket = torch.rand(2, 3, 6, 12, 16)
    fixed = export_program(Own(), bracket, dynamic=False).module()
    torch.testing.assert_close(fixed(bracket), Own()(bracket))
    even = Own()
    even.size_multiple = 2
    other = torch.rand(1, 3, 6, 20, 8)
    torch.testing.assert_close(export_program(even, bracket).module()(other), even(other))
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    assert export_onnx(even, tmp_path / "own.onnx", bracket) <= 1e-5


class Pair(Own):
    """The picture is one of two outputs."""

    def forward(self, bracket):
        return {"hdr": super().forward(bracket), "other": bracket}


def take_hdr(network, bracket):
    return network(bracket)["hdr"]


@pytest.mark.parametrize("batch", [1, 2])
def test_the_number_that_sides_must_be_multiples_of_is_found(batch):
    program = export_program(Own(), torch.rand(batch, 3, 6, 16, 24)).module()
    for shape in ((1, 3, 6, 6, 10), (3, 3, 6, 12, 8)):
        other = torch.rand(shape)
        torch.testing.assert_close(program(other), Own()(other))


def test_a_network_for_one_size_alone_says_what_to_do():
    class Fixed(Own):
        def forward(self, bracket):
            return super().forward(bracket) + torch.ones(16, 24)

    with pytest.raises(ValueError, match=r"Fixed cannot be exported for any batch .* dynamic=False .*size_multiple"):
        export_program(Fixed(), torch.rand(2, 3, 6, 16, 24))


def test_the_picture_is_chosen_with_forward_orm():
    bracket = torch.rand(2, 3, 6, 16, 24)
    with pytest.raises(TypeError, match=r"the network must return a tensor .*, got dict: .* forward_orm="):
        export_program(Pair(), bracket)
    program = export_program(Pair(), bracket, forward_orm=take_hdr).module()
    torch.testing.assert_close(program(bracket[:1, ..., :8]), Own()(bracket[:1, ..., :8]))
