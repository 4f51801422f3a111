"""What the networks share: brackets, the authors' weights, pretrained folders."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from skt_components.models import AHDRNet
from skt_components.models.upscale import UpscaleHead

SMALL = {"features": 6, "num_layers": 2, "growth": 3}
KEYS = Path(__file__).parent / "keys"


def shapes(state: dict[str, Tensor]) -> dict[str, str]:
    return {name: str(tuple(tensor.shape)) for name, tensor in state.items()}


def official_state() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    lines = (KEYS / "ahdr.tsv").read_text().split("\n")
    rows = [line.split("\t") for line in lines if line]
    return {name: torch.randn(json.loads(f"[{shape[1:-1].rstrip(',')}]"), generator=generator) for name, shape in rows}


# from_official, to_official


def test_to_official_has_the_authors_names_and_shapes():
    wanted = dict(line.split("\t") for line in (KEYS / "ahdr.tsv").read_text().splitlines())
    assert shapes(AHDRNet().to_official()) == wanted
    assert shapes(AHDRNet.from_official(official_state()).to_official()) == wanted


@pytest.mark.parametrize("wrap", [dict, lambda s: {"state_dict": s, "epoch": 3, "optimizer": {"lr": 1}}])
@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("kind", ["memory", "pth", "safetensors"])
def test_the_round_trip_is_the_identity(tmp_path, wrap, prefix, kind):
    state = official_state()
    given = wrap({prefix + name: tensor for name, tensor in state.items()})
    if kind == "safetensors":
        safetensors = pytest.importorskip("safetensors.torch")
        given = {prefix + name: tensor for name, tensor in state.items()}
        safetensors.save_file(given, tmp_path / "w.safetensors")
    if kind == "pth":
        torch.save(given, tmp_path / "w.pth")
    network = AHDRNet.from_official(given if kind == "memory" else tmp_path / f"w.{kind}")
    found = network.to_official()
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], state[name]) for name in state)


def test_the_authors_take_the_ldr_first():
    network = AHDRNet.from_official(official_state())
    weight = official_state()["conv1.weight"]
    assert torch.equal(network.conv1.weight[:, :3], weight[:, 3:])
    assert torch.equal(network.conv1.weight[:, 3:], weight[:, :3])


def test_the_two_layers_that_never_run_are_kept_frozen_or_left_out():
    full, lean = AHDRNet.from_official(official_state()), AHDRNet.from_official(official_state(), unused_layers=False)
    assert sum(p.numel() for p in full.parameters()) == 1_515_139
    assert sum(p.numel() for p in full.parameters() if p.requires_grad) == 1_441_283
    assert sum(p.numel() for p in lean.parameters()) == 1_441_283
    bracket = torch.rand(1, 3, 6, 8, 8)
    assert torch.equal(full(bracket), lean(bracket))
    assert not lean.to_official()["attConv1.weight"].any()


def test_what_does_not_fit_is_rejected_by_name():
    state = official_state()
    state["conv9.weight"] = state.pop("conv2.weight")
    state["conv3.bias"] = torch.zeros(4)
    with pytest.raises(ValueError, match="does not fit") as error:
        AHDRNet.from_official(state)
    for part in ("1 missing: conv2.weight", "1 unexpected: conv9.weight", r"conv3.bias (4,), wanted (3,)"):
        assert part in str(error.value)
    with pytest.raises(ValueError, match="does not fit"):
        AHDRNet.from_official(official_state(), features=32)


@pytest.mark.parametrize("content", [{}, {"epoch": 3}, {"state_dict": [1]}])
def test_what_is_no_state_dict_is_rejected(content):
    with pytest.raises(ValueError, match="the state dict must hold"):
        AHDRNet.from_official(content)


def test_a_missing_file_and_code_are_rejected(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no\.pth"):
        AHDRNet.from_official(tmp_path / "no.pth")
    torch.save({"state_dict": official_state(), "model": AHDRNet(**SMALL)}, tmp_path / "code.pth")
    with pytest.raises(ValueError, match="was rejected"):
        AHDRNet.from_official(tmp_path / "code.pth")


# RAW and x4, our adaptations


def test_packed_raw_reaches_the_network_on_a_scale_of_one_and_gamma_encoded():
    network = AHDRNet(5, 4, 4, reference=0, peak=16, **SMALL)
    bracket = 16 * torch.rand(2, 5, 4, 7, 9)
    frames = network.frames(bracket)
    assert len(frames) == 5
    torch.testing.assert_close(frames[2][:, :4], bracket[:, 2] / 16)
    torch.testing.assert_close(frames[2][:, 4:], (bracket[:, 2] / 16) ** (1 / 2.2))
    bracket[0, 1, 2] = -0.1  # noise around black
    assert network(bracket).isfinite().all()
    assert network(bracket).shape == (2, 4, 7, 9)
    assert network(torch.full_like(bracket, 16.0)).max() <= 16


@pytest.mark.parametrize("options", [{}, {"num_frames": 5, "in_channels": 4, "out_channels": 4, "peak": 16}])
def test_the_x4_head_starts_bilinear_and_learns(options):
    network = AHDRNet(**options, **SMALL, scale=4)
    bracket = torch.rand(1, network.num_frames, network.in_channels, 6, 5)
    out = network(bracket)
    assert out.shape == (1, network.config["out_channels"], 24, 20)
    out.square().sum().backward()
    assert network.upscale.weight.grad.abs().max() > 0
    assert network.upscale.skip.weight.grad.abs().max() > 0


def test_the_x4_head_is_bilinear_plus_shuffle():
    head = UpscaleHead(3, 2).double()
    torch.nn.init.normal_(head.weight)
    body, reference = torch.rand(1, 3, 4, 5).double(), torch.rand(1, 2, 4, 5).double()
    conv = torch.nn.functional.conv2d
    skip = conv(reference, head.skip.weight, head.skip.bias, padding=1)
    larger = torch.nn.Upsample(scale_factor=4, mode="bilinear", align_corners=True)
    x = body
    for pack in (head.upsample1, head.upsample2):
        y = conv(x, pack.upsample_conv.weight, pack.upsample_conv.bias, padding=1)
        y = y.view(1, 3, 2, 2, *y.shape[2:]).permute(0, 1, 4, 2, 5, 3).reshape(1, 3, 2 * y.shape[2], 2 * y.shape[3])
        x = torch.where(y > 0, y, 0.1 * y)
    torch.testing.assert_close(head(body, reference), larger(body + skip) + head.weight * x)


# activation checkpointing


def test_checkpointing_gives_the_same_gradient_and_runs_blocks_again():
    plain = AHDRNet(**SMALL)
    lean = AHDRNet(**SMALL, checkpointing=True)
    lean.load_state_dict(plain.state_dict())
    bracket, runs = torch.rand(1, 3, 6, 12, 10), []
    lean.RDB2.register_forward_pre_hook(lambda *_: runs.append(1))
    for network in (plain, lean):
        network(bracket).square().mean().backward()
    for ours, theirs in zip(lean.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)
    assert len(runs) == 2
    with torch.no_grad():
        lean(bracket)
    lean.eval()(bracket)
    assert len(runs) == 4


# pretrained folders


def test_a_pretrained_folder_gives_the_network_back(tmp_path):
    pytest.importorskip("huggingface_hub")
    network = AHDRNet(**SMALL, peak=2.0, reference=1)
    network.save_pretrained(tmp_path / "net")
    assert {"model.safetensors", "config.json"} <= {file.name for file in (tmp_path / "net").iterdir()}
    twin = AHDRNet.from_pretrained(tmp_path / "net")
    assert type(twin) is AHDRNet
    assert twin.config == network.config
    assert not twin.training
    bracket = torch.rand(1, 3, 6, 8, 8)
    assert torch.equal(twin(bracket), network(bracket))


def test_a_pretrained_folder_of_another_network_is_rejected(tmp_path):
    pytest.importorskip("huggingface_hub")
    AHDRNet(**SMALL).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"features": 12}))
    with pytest.raises((ValueError, RuntimeError), match="size mismatch"):
        AHDRNet.from_pretrained(tmp_path)


def test_pushing_uploads_weights_and_config(tmp_path, monkeypatch):
    hub = pytest.importorskip("huggingface_hub")
    sent: dict[str, object] = {}

    def upload(self, *, repo_id, folder_path, **options):
        sent.update(repo=repo_id, files={file.name for file in Path(folder_path).iterdir()}, **options)
        return "address"

    monkeypatch.setattr(hub.HfApi, "create_repo", lambda self, repo_id, **_: type("Repo", (), {"repo_id": repo_id}))
    monkeypatch.setattr(hub.HfApi, "upload_folder", upload)
    assert AHDRNet(**SMALL).push_to_hub("somebody/ahdrnet", commit_message="first") == "address"
    assert sent["repo"] == "somebody/ahdrnet"
    assert {"model.safetensors", "config.json"} <= sent["files"]
    assert sent["commit_message"] == "first"


def test_without_huggingface_hub_the_extra_is_named(monkeypatch, tmp_path):
    from skt_components.models import network

    network._hub_class.cache_clear()
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match=r"skt-components\[hub\]"):
        AHDRNet(**SMALL).save_pretrained(tmp_path)
    network._hub_class.cache_clear()
