"""The start of a run: its data, its network, and the recipe."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from skt_components import SemanticKnowledgeTransfer, load_pretrained, save_weights
from skt_components.banks import EmptyBank
from skt_components.data import MixedSamples, SamplePool, write_image
from skt_components.models import NETWORKS
from skt_components.simulation import HDRFolder, SyntheticScenes
from skt_components.training import (
    RECIPES,
    TrainConfig,
    build_data,
    build_network,
    build_optimizer,
    framework_options,
    learning_rate,
    parse_options,
    start_network,
)


def weights_of(config: TrainConfig) -> dict[str, torch.Tensor]:
    torch.manual_seed(config.seed)
    network, _ = build_network(config)
    start_network(config, network, build_data(config).training)
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


# the recipe


def test_the_default_is_the_best_recipe_and_plain_replaces_it() -> None:
    best, plain = parse_options([]), parse_options(["--recipe", "plain"])
    assert best == TrainConfig()
    assert (best.learning_rate, best.warmup, best.org_rms_weight, best.start) == (4e-3, 30, 0.5, "fitted")
    assert (plain.learning_rate, plain.warmup, plain.org_rms_weight, plain.start) == (1e-3, 0, 0.0, "random")
    assert plain == TrainConfig(**RECIPES["plain"])


def test_what_is_given_beside_a_recipe_wins_on_the_command_line_and_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text('recipe = "plain"\nwarmup_steps = 7\n', encoding="utf-8")
    config = parse_options(["--config", str(file), "--lr", "0.5"])
    assert (config.learning_rate, config.warmup, config.org_rms_weight) == (0.5, 7, 0.0)
    assert parse_options(["--config", str(file), "--recipe", "best"]).org_rms_weight == 0.5


@pytest.mark.parametrize(
    ("orm", "rate"),
    [("ahdrnet", 4e-3), ("hdr-transformer-small", 1e-3), ("sctnet-small", 5e-4), ("tmrnet", 1e-3), ("mine:Net", 1e-3)],
)
def test_the_learning_rate_depends_on_the_network_unless_it_is_given(orm: str, rate: float) -> None:
    config = TrainConfig(orm=orm, steps=100)
    assert learning_rate(config, 10) == pytest.approx(rate)
    assert learning_rate(config, 5) == pytest.approx(rate / 2)
    assert learning_rate(config, 100) == pytest.approx(rate / 50)
    assert learning_rate(TrainConfig(orm=orm, lr=0.25, warmup_steps=0), 0) == 0.25


def test_the_warm_up_is_a_tenth_of_the_steps_and_at_most_500() -> None:
    assert [TrainConfig(steps=steps).warmup for steps in (5, 300, 5000, 90000)] == [0, 30, 500, 500]


# where the weights come from


def test_a_fitted_start_changes_the_last_layer_and_a_random_one_nothing() -> None:
    options = {"crop": 16, "val_crop": 16}
    fitted, random = (weights_of(TrainConfig(start=start, **options)) for start in ("fitted", "random"))  # type: ignore[arg-type]
    torch.manual_seed(0)
    plain, _ = build_network(TrainConfig())
    assert all(torch.equal(tensor, random[name]) for name, tensor in plain.state_dict().items())
    assert not torch.equal(fitted["conv3.weight"], random["conv3.weight"])
    assert torch.equal(fitted["conv1.weight"], random["conv1.weight"])


def test_init_takes_pretrained_weights_by_name_or_a_file(tmp_path: Path) -> None:
    trained = load_pretrained("ahdrnet-small")
    named = weights_of(TrainConfig(init="ahdrnet-small"))
    save_weights(tmp_path / "mine.safetensors", trained)
    filed = weights_of(TrainConfig(init=str(tmp_path / "mine.safetensors")))
    for name, tensor in trained.state_dict().items():
        assert torch.equal(named[name], tensor)
        assert torch.equal(filed[name], tensor)


def test_init_takes_the_authors_file(tmp_path: Path) -> None:
    network = NETWORKS["ahdrnet-small"]()
    torch.save(network.to_official(), tmp_path / "authors.pth")  # type: ignore[operator]
    found = weights_of(TrainConfig(init=str(tmp_path / "authors.pth"), init_official=True))
    assert all(torch.equal(tensor, found[name]) for name, tensor in network.state_dict().items())


def test_init_for_another_network_is_rejected() -> None:
    with pytest.raises(ValueError, match="init=ahdrnet-small is a AHDRNet"):
        weights_of(TrainConfig(orm="sctnet-small", init="ahdrnet-small"))
    with pytest.raises(ValueError, match="init_official needs the authors' file: give `init`"):
        TrainConfig(init_official=True)


def test_a_frozen_network_stays_as_it_is_while_the_teacher_learns() -> None:
    config = TrainConfig(freeze_orm=True, init="ahdrnet-small", content_weight=0, color_weight=0, alignment_weight=0)
    network, _ = build_network(config)
    start_network(config, network, [])  # type: ignore[arg-type]
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    framework = SemanticKnowledgeTransfer(network, EmptyBank(), **framework_options(config))
    optimizer = build_optimizer(config, framework)
    for _ in range(2):
        framework(torch.rand(1, 3, 6, 16, 16), torch.rand(1, 3, 16, 16)).total.backward()
        optimizer.step()
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert any(parameter.grad.count_nonzero() for parameter in framework.spgrm.parameters())  # type: ignore[union-attr]
    for name in ("bare", "compare"):
        with pytest.raises(ValueError, match=f"it cannot be given with `{name}`"):
            TrainConfig(freeze_orm=True, **{name: True})  # type: ignore[arg-type]


def test_the_routing_of_the_losses_is_an_option() -> None:
    def routing(**options: bool) -> tuple[bool, bool]:
        found = framework_options(TrainConfig(**options))  # type: ignore[arg-type]
        return found["joint"], found["detach_teacher"]

    assert routing() == (True, False)
    assert routing(joint=False) == (False, True)
    assert routing(detach_teacher=True) == (True, True)
    assert framework_options(TrainConfig(priors_of="target"))["priors_of"] == "target"


# data


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    for name in "abcde":
        picture = torch.rand(3, 64, 96, generator=torch.Generator().manual_seed(ord(name)))
        write_image(tmp_path / f"{name}.hdr", picture)
    return tmp_path


def test_photographs_can_be_mixed_with_procedural_scenes(photographs: Path) -> None:
    config = TrainConfig(data="hdr-folder", root=photographs, crop=16, val_crop=16, procedural_share=0.25)
    training = build_data(config).training
    assert isinstance(training, MixedSamples)
    names = [training[(epoch, 0)].name for epoch in range(200)]
    assert 0.15 < sum(name.startswith("synthetic") for name in names) / 200 < 0.35
    plain = TrainConfig(data="hdr-folder", root=photographs, crop=16, val_crop=16)
    assert isinstance(build_data(plain).training, HDRFolder)


@pytest.mark.parametrize("name", ["a.hdr", "e.hdr"])  # of training and of validation
def test_a_bad_photograph_is_found_before_training_begins(photographs: Path, name: str) -> None:
    config = TrainConfig(data="hdr-folder", root=photographs, crop=16, val_crop=16)
    (photographs / name).unlink()
    write_image(photographs / name, torch.zeros(3, 64, 96))
    with pytest.raises(ValueError, match=f"{name}: the picture is black"):
        build_data(config)


def test_a_pool_renders_samples_once(photographs: Path) -> None:
    training = build_data(TrainConfig(crop=16, val_crop=16, pool=3)).training
    assert isinstance(training, SamplePool)
    assert len({training[(epoch, index)].name for epoch in range(4) for index in range(10)}) == 3
    assert isinstance(build_data(TrainConfig()).training, SyntheticScenes)


def test_varied_colors_change_training_samples_alone(photographs: Path) -> None:
    plain, varied = (
        build_data(TrainConfig(data="hdr-folder", root=photographs, crop=16, val_crop=16, vary_colors=vary))
        for vary in (False, True)
    )
    assert torch.equal(plain.validation[0].target, varied.validation[0].target)
    assert not torch.equal(plain.training[(0, 0)].target, varied.training[(0, 0)].target)
    assert torch.equal(varied.training[(0, 0)].target, varied.training[(0, 0)].target)
    assert varied.training[(0, 0)].target.min() >= 0


def test_training_samples_have_one_of_the_exposure_ratios_and_validation_has_four(photographs: Path) -> None:
    for data in ({}, {"data": "hdr-folder", "root": photographs, "procedural_share": 0.5}):
        config = TrainConfig(crop=16, val_crop=16, exposure_ratios=(2.0, 8.0), **data)  # type: ignore[arg-type]
        made = build_data(config)
        times = {tuple(made.training[(epoch, 0)].exposure_times.tolist()) for epoch in range(40)}
        assert times == {(1.0, 2.0, 4.0), (1.0, 8.0, 64.0)}
        assert made.validation[0].exposure_times.tolist() == [1.0, 4.0, 16.0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"exposure_ratios": (1.0,)}, r"exposure_ratios must be finite numbers > 1, got \(1.0,\)"),
        ({"exposure_ratios": ()}, "exposure_ratios must be finite numbers > 1"),
        ({"exposure_ratios": (2.0,), "camera": "raw"}, "exposure_ratios needs sRGB brackets"),
        ({"procedural_share": 1.5}, r"procedural_share must be in \[0, 1\], got 1.5"),
        ({"procedural_share": 0.5}, "procedural_share needs data=hdr-folder, got data=synthetic"),
        ({"vary_colors": True}, "vary_colors needs data=hdr-folder"),
        ({"pool": -1}, "pool must be >= 0"),
        ({"pool": 5, "data": "tel", "root": Path("tel")}, "pool needs data=synthetic or hdr-folder"),
    ],
)
def test_options_that_have_no_effect_are_rejected(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainConfig(**options)


def test_a_described_layout_gives_the_data_of_a_run(tmp_path: Path) -> None:
    description, root = tmp_path / "lab.toml", tmp_path / "root"
    lines = [
        'name = "lab"',
        'train = "a"',
        'test = "b"',
        'frames = ["{scene}_0.tif", "{scene}_1.tif", "{scene}_2.tif"]',
    ]
    lines += ['label = "{scene}.npy"', "exposures = [0, 2, 4]"]
    description.write_text("\n".join(lines))
    for split in ("a", "b"):
        (root / split).mkdir(parents=True)
        for number in range(3):
            write_image(root / split / f"x_{number}.tif", torch.full((3, 40, 40), 0.2 * (1 + number)))
        write_image(root / split / "x.npy", torch.full((3, 40, 40), 0.5))
    config = TrainConfig(data=str(description), root=root, crop=32, val_crop=40)
    data = build_data(config)
    assert (data.training[0].bracket.shape, len(data.validation)) == ((3, 6, 32, 32), 1)
    assert data.validation[0].target.shape == (3, 40, 40)
    description.write_text("\n".join(lines).replace(', "{scene}_2.tif"', "").replace(", 4]", "]"))
    with pytest.raises(ValueError, match=r"data must have 3 exposures, .*lab\.toml has 2"):
        build_data(config)
