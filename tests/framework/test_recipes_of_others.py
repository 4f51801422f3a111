"""The recipes of the pages "Networks of others" and "Loops of others" run as they stand."""

from __future__ import annotations

import itertools
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from skt_components import AHDRNet, EmptyBank, HDRSample, SyntheticScenes, load_weights

DOCS = Path(__file__).parents[2] / "docs"


def recipe(page: str, title: str) -> str:
    """Return the code below a heading, at most 40 lines."""
    section = (DOCS / page).read_text(encoding="utf-8").split(f"\n## {title}")[1].split("\n## ")[0]
    (code,) = re.findall(r"```python\n(.*?)```", section, flags=re.S)
    assert len(code.strip().splitlines()) <= 40
    return code


def run(page: str, title: str, **names: Any) -> dict[str, Any]:
    """Run a recipe with these names in scope; return its scope."""
    exec(compile(recipe(page, title), f"{page}: {title}", "exec"), names)
    return names


def install(monkeypatch: pytest.MonkeyPatch, name: str, **values: Any) -> None:
    """Let ``from name import value`` find stand-ins of packages that are not here."""
    parts = name.split(".")
    for length in range(1, len(parts) + 1):
        monkeypatch.setitem(sys.modules, ".".join(parts[:length]), ModuleType(parts[length - 1]))
    for key, value in values.items():
        setattr(sys.modules[name], key, value)


# networks


class SAFNet(nn.Module):
    """The authors' signature, result, and the names of the tapped layers."""

    def __init__(self) -> None:
        super().__init__()
        self.refinenet = nn.ModuleDict(
            {f"resblock{i}": nn.Conv2d(18 if i == 1 else 9, 9, 3, 1, 1) for i in range(1, 6)}
        )
        self.refinenet["conv3"] = nn.Conv2d(9, 3, 3, 1, 1)

    def forward(
        self, img0_c: Tensor, img1_c: Tensor, img2_c: Tensor, scale_factor: float = 0.5, refine: bool = True
    ) -> Any:
        merged = (img0_c[:, :3] + img1_c[:, :3] + img2_c[:, :3]) / 3
        features = torch.cat([img0_c, img1_c, img2_c], 1)
        for i in range(1, 6):
            features = self.refinenet[f"resblock{i}"](features).relu()
        return merged, (merged + self.refinenet["conv3"](features)).clamp(0, 1)


class AFUNet(nn.Sequential):
    """A network of all exposures at once."""

    def __init__(self, in_chans: int) -> None:
        widths = [in_chans, 9, 9, 9, 3]
        super().__init__(*(nn.Conv2d(a, b, 3, 1, 1) for a, b in itertools.pairwise(widths)), nn.Sigmoid())


@pytest.mark.parametrize(
    ("title", "package"),
    [
        ("SAFNet", None),
        ("AFUNet", None),
        ("NAFNet", "spandrel"),
        ("Restormer", "spandrel_extra_arches"),
        ("A U-Net of segmentation_models_pytorch", "segmentation_models_pytorch"),
        ("A network of torchvision that returns a dict", "torchvision"),
    ],
)
def test_a_network_of_others_trains_as_it_is(title, package, monkeypatch):
    if package is None:
        install(monkeypatch, f"models.{title}", **{title: globals()[title]})
    else:
        pytest.importorskip(package)
    names = run("networks-of-others.md", title, bank=EmptyBank())
    framework, (call,) = names["framework"], [value for name, value in names.items() if name.startswith("call_")]
    keys = list(framework.orm.state_dict())
    bracket, target = torch.rand(2, 3, 6, 64, 64), torch.rand(2, 3, 64, 64)
    output = framework(bracket, target)
    output.terms["alignment"].backward()
    aligned = [name for name, p in framework.orm.named_parameters() if p.grad is not None and p.grad.abs().max() > 0]
    assert aligned  # the tapped layers are in the graph
    framework.orm.eval()
    with torch.no_grad():
        assert call(framework.orm, bracket).shape == target.shape
    assert list(framework.orm.state_dict()) == keys


# loops


def make_data(count: int) -> SyntheticScenes:
    return SyntheticScenes(count, 16, seed=1)


def make_network() -> AHDRNet:
    return AHDRNet(features=8, num_layers=1, growth=4)


def check_saved(network: AHDRNet, before: Tensor) -> None:
    """The file holds the trained network, whose weights changed."""
    loaded = make_network()
    load_weights("network.safetensors", loaded)
    assert torch.equal(loaded.conv1.weight, network.conv1.weight.cpu())
    assert not torch.equal(loaded.conv1.weight, before)


@pytest.mark.filterwarnings("ignore")
def test_lightning_trains_the_framework_and_saves_the_network(tmp_path, monkeypatch):
    lightning = pytest.importorskip("pytorch_lightning")
    monkeypatch.chdir(tmp_path)
    make = lightning.Trainer
    quiet = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    monkeypatch.setattr(lightning, "Trainer", lambda **options: make(**options, **quiet, enable_model_summary=False))
    network, loaders = make_network(), [DataLoader(make_data(4), batch_size=2) for _ in range(2)]
    before = network.conv1.weight.detach().clone()
    names = run(
        "loops-of-others.md",
        "PyTorch Lightning",
        network=network,
        bank=EmptyBank(),
        train_loader=loaders[0],
        val_loader=loaders[1],
    )
    logged = names["trainer"].logged_metrics
    assert {"org", "color", "alignment", "spgrm", "psnr_mu"} <= set(logged)
    assert names["trainer"].global_step == 2
    check_saved(network, before)


def test_plain_ddp_trains_the_framework_and_saves_the_network(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MASTER_PORT", "0")
    init = torch.distributed.init_process_group
    store = f"file://{tmp_path}/store"
    monkeypatch.setattr(
        torch.distributed, "init_process_group", lambda: init("gloo", init_method=store, rank=0, world_size=1)
    )
    network = make_network()
    before = network.conv1.weight.detach().clone()
    names = run("loops-of-others.md", "Plain DistributedDataParallel")
    names["train"](network, EmptyBank(), make_data(4), epochs=2, batch_size=2)
    assert not torch.distributed.is_initialized()
    check_saved(network, before)


class SRModel:
    """What the recipe uses of BasicSR's class of this name."""

    def __init__(self, network: nn.Module, sample: HDRSample) -> None:
        self.net_g, self.lq, self.gt = network, sample.bracket, sample.target
        self.init_training_settings()

    def init_training_settings(self) -> None:
        self.cri_pix = nn.L1Loss()
        self.optimizer_g = torch.optim.Adam(self.net_g.parameters(), lr=1e-3)

    def reduce_loss_dict(self, losses: dict[str, Tensor]) -> dict[str, float]:
        return {name: float(loss) for name, loss in losses.items()}


def test_a_loop_of_basicsr_takes_the_histogram_loss_alone(monkeypatch):
    install(monkeypatch, "basicsr.models.sr_model", SRModel=SRModel)
    names = run("loops-of-others.md", "BasicSR: only one more loss")
    sample = next(iter(DataLoader(make_data(2), batch_size=2)))
    model = names["HDRModel"](make_network(), sample)
    first = None
    for step in range(8):
        model.optimize_parameters(step)
        first = first or model.log_dict
    assert model.log_dict["l_color"] < first["l_color"]
    assert model.log_dict["l_pix"] > 0
