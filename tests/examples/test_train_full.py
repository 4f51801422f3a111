"""The reference loop as a user runs it."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import tifffile
import torch
from torch import nn

import skt_components as skt
from skt_components import evaluation, training
from skt_components.framework import BareNetwork
from skt_components.models.registry import NETWORKS, bracket_options
from skt_components.training import (
    METRICS,
    TrainConfig,
    build_bank,
    build_data,
    build_losses,
    build_network,
    framework_options,
    parse_options,
)

Train = Callable[[Sequence[object]], None]
EXAMPLES = Path(__file__).parents[2] / "examples"
SMALL = (
    *("--steps", "4", "--batch-size", "2", "--crop", "16", "--log-every", "1", "--checkpoint-every", "2"),
    *("--val-samples", "3", "--val-crop", "48"),
)
# Steps that are logged take three times as long; the first and the last step always are.
QUICK = (*SMALL, "--start", "random", "--val-crop", "16", "--trackers", "--log-every", "100")
NO_BANK = ("--knowledge-bank", "none")
STAGES = ("first", "body.0", "body")
FILES = (
    *("orm.safetensors", "orm-best.safetensors", "config.toml", "metrics.jsonl", "scores.json", "environment.json"),
    *("curves.png", "samples.png", "table.txt", "README.md", "checkpoints", "logs"),
)


@pytest.fixture(autouse=True)
def _strangers(monkeypatch: pytest.MonkeyPatch) -> None:
    """A module that a user wrote."""
    module = ModuleType("strangers")
    module.Stranger = Stranger  # type: ignore[attr-defined]
    module.called_differently = lambda: (Stranger(), lambda net, b: {"hdr": net(b)}["hdr"])  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "strangers", module)


@pytest.fixture(autouse=True)
def _quick_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures take longer than these runs; ``finished``, which is made before, has real ones."""
    monkeypatch.setattr(evaluation, "save_samples", lambda path, rows: Path(path).write_bytes(b"picture"))
    monkeypatch.setattr(evaluation, "save_curves", lambda metrics, path: Path(path).write_bytes(b"picture"))


def build_modules(config: TrainConfig, bracket: torch.Tensor) -> tuple[skt.SemanticKnowledgeTransfer, BareNetwork]:
    """The framework and the bare network of a run with these options."""
    torch.manual_seed(config.seed)
    (network, forward), bank = build_network(config), build_bank(config)
    org_loss, perceptual = build_losses(config, bank)
    bare = BareNetwork(copy.deepcopy(network), org_loss, forward)
    losses = {"orm_loss": org_loss, "perceptual": perceptual, "forward_orm": forward}
    return skt.SemanticKnowledgeTransfer(network, bank, sample=bracket, **losses, **framework_options(config)), bare


def options_of(config: TrainConfig) -> dict:
    """The options of a network for the brackets of a run."""
    return bracket_options(config.domain, scale=config.scale)


def left_in(run: Path) -> set[str]:
    """Names in a run's folder; what the working copy differs in is there only where it does."""
    return {file.name for file in run.iterdir()} - {"git.diff"}


def metrics(run: Path) -> list[dict]:
    """Lines without the speed, which is another each time."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "samples_per_second"} for line in lines]


def state(run: Path, name: str = "framework") -> dict:
    found = skt.training.CheckpointFolder(run / "checkpoints", name).load_newest()
    assert found is not None
    return found


def weights(run: Path, name: str = "framework") -> dict[str, torch.Tensor]:
    return state(run, name)["module"]


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Bit by bit."""
    return one.keys() == other.keys() and all(torch.equal(value, other[key]) for key, value in one.items())


def photographs(folder: Path) -> Path:
    """Two small flat HDR photographs with structure and a range of 1000."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    for name in ("a", "b", "c"):
        y, x = np.mgrid[0:160, 0:200]
        base = np.exp(np.sin(x / 9 + rng.uniform(0, 6)) + np.cos(y / 7) + 3 * (rng.random((160, 200)) > 0.98))
        picture = torch.from_numpy(np.stack([base, base * 0.8, base * 0.5]).astype(np.float32))
        skt.write_image(folder / f"{name}.hdr", picture)
    return folder


# --- the main job


@pytest.fixture(scope="module")
def finished(train: Train, make_once: Callable[[str, Callable[[Path], None]], Path]) -> tuple[Path, str]:
    """Folder and output of a finished run, with real pictures."""
    draw = evaluation.save_samples

    def make(folder: Path) -> None:
        with pytest.MonkeyPatch.context() as patch, open(folder / "shown.txt", "w", encoding="utf-8") as shown:
            patch.setattr(evaluation, "save_samples", lambda path, rows: draw(path, rows[:1]))  # each takes long
            with redirect_stdout(shown):
                train([*SMALL, "--validate-every", "2", "--out", str(folder / "run")])

    folder = make_once("finished", make)
    return folder / "run", (folder / "shown.txt").read_text(encoding="utf-8")


def test_leaves_everything_in_its_run_folder(finished: tuple[Path, str]) -> None:
    run, shown = finished
    assert left_in(run) == {*FILES, "samples"}
    assert [path.name for path in (run / "samples").iterdir()] == ["orm-00000002.png"]
    assert all((run / name).stat().st_size > 0 for name in FILES)
    assert (run / "samples.png").stat().st_size > 10_000
    titles = ["reference exposure", "exposure merge", "ORM before", "ORM after", "SPGRM (teacher)"]
    assert [title for title in titles if f"\n{title} " in f"\n{shown}"] == titles
    assert "exposure merge" in (run / "README.md").read_text()
    free = [line for line in metrics(run) if "baselines" in line]
    assert [list(line["baselines"]) for line in free] == [titles[:2]]
    steps = [line for line in metrics(run) if "terms" in line]
    assert [line["step"] for line in steps] == [0, 1, 2, 3]
    assert set(steps[-1]["terms"]) == {"org", "content", "color", "alignment", "spgrm"}
    assert set(steps[-1]["gradients"]["picture"]) == {"org", "content", "color", "alignment", "spgrm"}


def test_tensorboard_has_the_numbers_of_the_log(finished: tuple[Path, str]) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run, _ = finished
    events = EventAccumulator(str(run / "logs" / "skt_components"))
    events.Reload()
    tags = set(events.Tags()["scalars"])
    assert {"framework/terms/org", "framework/gradients/parameters/alignment/norm", "framework/lr"} <= tags
    assert "framework/validation/ORM/PSNR-mu" in tags
    logged = [event.value for event in events.Scalars("framework/terms/org")]
    assert logged == pytest.approx([line["terms"]["org"] for line in metrics(run) if "terms" in line], rel=1e-6)


def test_the_saved_network_is_the_plain_network(finished: tuple[Path, str]) -> None:
    run, _ = finished
    network = NETWORKS["ahdrnet-small"]()
    skt.load_weights(run / "orm.safetensors", network)
    inside = {k.removeprefix("orm."): v for k, v in weights(run).items() if k.startswith("orm.")}
    assert inside.keys() == network.state_dict().keys()
    assert all(torch.equal(inside[k], v) for k, v in network.state_dict().items())


def test_training_learns(train: Train, tmp_path: Path) -> None:
    run = tmp_path / "run"
    options = ["--steps", "40", "--crop", "32", "--recipe", "plain", "--checkpoint-every", "100"]
    train([*QUICK, *NO_BANK, *options, "--val-crop", "48", "--out", str(run)])
    lines = metrics(run)
    losses = [line["terms"]["org"] for line in lines if "terms" in line]
    scores = [line["validation"]["ORM"]["PSNR-mu"] for line in lines if "validation" in line]
    assert losses[-1] < 0.5 * losses[0]
    assert scores[-1] > scores[0] + 3


def test_compare_trains_the_bare_network_from_the_same_start(
    train: Train, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    run = tmp_path / "run"
    off = ["--no-joint", "--content-weight", "0", "--color-weight", "0", "--alignment-weight", "0"]
    train([*QUICK, *off, "--steps", "2", "--compare", "--out", str(run)])
    # Without a transfer term the framework leaves the network's training exactly as it is.
    bare, ours = weights(run, "bare"), weights(run)
    assert all(torch.equal(value, ours[key]) for key, value in bare.items())
    assert "paired gain over 1 seed and 3 pictures: +0.000 dB" in capsys.readouterr().out
    alone = tmp_path / "alone"
    train([*QUICK, "--steps", "2", "--bare", "--out", str(alone)])
    assert same(weights(alone, "bare"), bare)
    found, before = (json.loads((folder / "scores.json").read_text()) for folder in (alone, run))
    assert found == {"bare": before["bare"]}
    assert not (alone / "orm.safetensors").exists()
    assert "without the framework" in (alone / "README.md").read_text()
    assert "Not finished" not in (run / "README.md").read_text() + (alone / "README.md").read_text()
    assert 'load_model("bare.safetensors")' in (alone / "README.md").read_text()


def test_a_bare_run_asks_for_no_features_of_terms_that_it_has_not() -> None:
    bracket = torch.rand(1, 3, 6, 32, 32)
    plain, paper = (
        build_modules(TrainConfig(bare=bare, **options), bracket)[1].state_dict()
        for bare, options in ((False, {}), (True, {"loss_weights": "paper"}))
    )
    assert all(torch.equal(value, paper[key]) for key, value in plain.items())


def test_options_that_come_too_late_are_named(train: Train, capsys: pytest.CaptureFixture) -> None:
    late = ["--steps", "5", "--warmup-steps", "5", "--transfer-start", "9"]
    train([*QUICK, *NO_BANK, "--dry-run", *late])
    assert capsys.readouterr().err.splitlines() == [
        "--warmup-steps 5 of --steps 5: the learning rate does not reach --lr 0.004",
        "--transfer-start 9 of --steps 5: the framework does not train the network",
    ]
    assert parse_options([*late, "--steps", "10"]).unreached_options() == []


def test_the_root_mean_square_joins_l_org_of_both() -> None:
    config = TrainConfig(org_rms_weight=0.5, camera="raw", device="cpu", trackers=())
    bracket, target = torch.rand(1, 5, 4, 32, 32), 16 * torch.rand(1, 4, 32, 32)
    framework, bare = build_modules(config, bracket)
    torch.testing.assert_close(bare(bracket, target).total, framework(bracket, target).terms["org"])
    hdr = bare.orm(bracket)
    wanted = skt.mu_l1_loss(hdr, target, peak=16.0) + 0.5 * skt.losses.mu_rms_loss(hdr, target, peak=16.0)
    torch.testing.assert_close(bare(bracket, target).total, wanted)


@pytest.mark.parametrize(
    ("options", "passes"),
    [
        ([], {"spgrm": True, "content": True, "alignment": False}),
        (["--no-detach-features"], {"spgrm": True, "content": True, "alignment": True}),
        (["--no-joint", "--no-detach-features"], {"spgrm": False, "content": False, "alignment": False}),
    ],
)
def test_options_decide_which_gradients_pass(options: list[str], passes: dict[str, bool]) -> None:
    config = parse_options([*options, "--device", "cpu", "--trackers"])
    bracket, target = torch.rand(1, 3, 6, 32, 32), torch.rand(1, 3, 32, 32)
    framework, _ = build_modules(config, bracket)
    torch.nn.init.normal_(framework.spgrm.tail.weight, std=0.1)  # which starts at zero, and lets nothing through
    terms = framework(bracket, target).terms
    network, teacher = next(framework.orm.parameters()), next(framework.spgrm.stages.parameters())
    for term, where in {"spgrm": network, "content": teacher, "alignment": teacher}.items():
        (gradient,) = torch.autograd.grad(terms[term], where, retain_graph=True, allow_unused=True)
        assert (gradient is not None and bool(gradient.any())) == passes[term], term


def test_ctrl_c_saves_and_the_log_has_no_doubles(
    train: Train, finished: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (whole, _), run = finished, tmp_path / "run"
    color, calls = skt.SemanticHistogramLoss.forward, []

    def interrupted(self: nn.Module, *args: object, **kwargs: object) -> torch.Tensor:
        calls.append(1)
        if len(calls) == 3:  # in the middle of a step
            signal.raise_signal(signal.SIGINT)
        return color(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(skt.SemanticHistogramLoss, "forward", interrupted)
        with pytest.raises(SystemExit, match="130"):
            train([*SMALL, "--validate-every", "2", "--checkpoint-every", "100", "--out", str(run)])
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert re.fullmatch(rf"train_full.py: stopped after 3 steps; continue with --resume {run}", last)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"run": "framework", "step": 3, "te')  # as a killed run leaves it
    train(["--resume", str(run), "--checkpoint-every", "2"])
    assert same(weights(run), weights(whole))
    assert metrics(run) == metrics(whole)
    assert (run / "config.toml").read_text() == (whole / "config.toml").read_text()


def test_ctrl_c_before_the_first_step_is_one_line(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "build_data", interrupted)
    with pytest.raises(SystemExit, match="130"):
        train([*QUICK, "--out", str(tmp_path / "run")])
    assert capsys.readouterr().err == "train_full.py: interrupted\n"
    assert not (tmp_path / "run").exists()


def test_a_network_with_a_call_of_its_own(train: Train, tmp_path: Path) -> None:
    run = tmp_path / "run"
    options = [*QUICK, *NO_BANK, "--steps", "2", "--orm", "strangers:called_differently", "--taps", *STAGES]
    train([*options, "--compare", "--out", str(run)])
    skt.load_weights(run / "orm.safetensors", Stranger())


def test_configuration_file_and_command_line(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text('steps = 7\nlr = 1e-3\ncompare = true\ntaps = ["RDB1", "RDB2", "RDB3"]\n')
    config = parse_options(["--config", str(file), "--steps", "9"])
    assert (config.steps, config.lr, config.compare, config.taps) == (9, 1e-3, True, ("RDB1", "RDB2", "RDB3"))


def test_options_keep_their_names() -> None:
    names = {field.name for field in dataclasses.fields(TrainConfig)}
    stable = "data root orm knowledge_bank weights taps steps batch_size crop seed device out checkpoint_every"
    assert names >= {*stable.split(), "resume", "compare", "config"}


class Stranger(nn.Module):
    """A network that knows nothing of this library."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(18, 12, 3, padding=1)
        self.body = nn.Sequential(nn.Conv2d(12, 12, 3, padding=1), nn.BatchNorm2d(12), nn.Conv2d(12, 12, 1))
        self.last = nn.Conv2d(12, 3, 1)

    def forward(self, bracket: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(self.last(self.body(torch.relu(self.first(bracket.flatten(1, 2))))))


@pytest.mark.parametrize("name", ["hdr-transformer-small", "sctnet-small", "tmrnet-small"])
def test_every_network_of_ours_trains_by_name_and_what_is_validated_is_saved(
    train: Train, tmp_path: Path, name: str
) -> None:
    run = tmp_path / "run"
    train([*QUICK, *NO_BANK, "--steps", "1", "--ema-decay", "0.9", "--orm", name, "--out", str(run)])
    network = skt.load_model(run / "orm.safetensors")
    expected = NETWORKS[name](**options_of(TrainConfig()))
    assert network.state_dict().keys() == expected.state_dict().keys()
    pictures = skt.SyntheticScenes(3, 16, split="val")
    with torch.no_grad():
        scores = [float(skt.psnr_mu(network(p.bracket[None]), p.target[None], peak=1.0)) for p in pictures]
    wanted = json.loads((run / "scores.json").read_text())["framework"]["ORM"]["PSNR-mu"]
    assert scores == pytest.approx(wanted, rel=1e-5)


def test_a_folder_of_photographs(train: Train, tmp_path: Path) -> None:
    run, root = tmp_path / "run", photographs(tmp_path / "photos")
    train([*QUICK, *NO_BANK, "--data", "hdr-folder", "--root", str(root), "--val-crop", "96", "--out", str(run)])
    assert (left_in(run), len(json.loads((run / "scores.json").read_text())["framework"]["ORM"]["PSNR-mu"])) == (
        set(FILES) - {"logs"},
        3,
    )
    first = skt.HDRFolder(root, split="all").files[0].name
    config = parse_options(["--data", "hdr-folder", "--root", str(root), "--val-names", first, "--val-crop", "96"])
    train, held_out = build_data(config)
    assert [path.name for path in held_out.files] == [first]
    assert first not in [path.name for path in train.files]


@pytest.mark.slow
def test_real_photographs_improve(train: Train, tmp_path: Path, hdri_dir: Path) -> None:
    run = tmp_path / "run"
    options = ["--recipe", "plain", "--steps", "40", "--crop", "32", "--val-crop", "64", "--checkpoint-every", "100"]
    train([*QUICK, *NO_BANK, *options, "--data", "hdr-folder", "--root", str(hdri_dir), "--out", str(run)])
    lines = metrics(run)
    scores = [line["validation"]["ORM"]["PSNR-mu"] for line in lines if "validation" in line]
    losses = [line["terms"]["org"] for line in lines if "terms" in line]
    assert scores[-1] > scores[0] + 3
    assert losses[-1] < losses[0]


# --- the table


def fabricated(folder: Path, pictures: int, validation: object, **options: object) -> str:
    """The table of two seeds, whose framework is 1 and 2 dB better than the bare network."""
    (folder / "metrics.jsonl").write_text(json.dumps({"validation": {"ORM": dict.fromkeys(METRICS, 20.0)}}) + "\n")
    results = []
    for gain in (1.0, 2.0):
        scores = {name: torch.full((pictures,), 30.0, dtype=torch.float64) for name in METRICS}
        better = {name: values + gain for name, values in scores.items()}
        results.append({"framework": {"ORM": better, "SPGRM": better}, "bare": {"ORM": scores}})
    return training.results_table(TrainConfig(compare=True, **options), [folder, folder], results, validation)


def test_one_validation_picture_gives_a_gain_without_an_interval(tmp_path: Path) -> None:
    text = fabricated(tmp_path, 1, skt.SyntheticScenes(1, 16, split="val"))
    assert text.splitlines()[-1] == "paired gain over 1 picture: +1.500 dB PSNR-mu; an interval needs two pictures"
    assert "bare ORM after" in text


@pytest.mark.parametrize(
    ("pictures", "said"),
    [(16, "16 views of 2 photographs"), (1, "1 view of 1 photograph"), (2, "2 views of 2 photographs")],
)
def test_views_are_counted_by_photograph(tmp_path: Path, pictures: int, said: str) -> None:
    root = photographs(tmp_path / "photos")
    data = skt.HDRFolder(root, crop=16, split="val", val_names=["a.hdr", "b.hdr"])
    text = fabricated(tmp_path, pictures, data, data="hdr-folder", root=root)
    assert text.endswith(f" ({said})")
    assert ("95 % interval" in text) == (pictures > 1)


# --- RAW and the published data sets


@pytest.mark.parametrize(("camera", "scale"), [("raw", 1), ("raw-x4", 4)])
@pytest.mark.parametrize("name", ["ahdrnet-small", "hdr-transformer-small", "sctnet-small", "tmrnet-small"])
def test_every_network_of_ours_takes_raw_brackets(name: str, camera: str, scale: int) -> None:
    options = options_of(TrainConfig(camera=camera))
    network, forward = skt.models.load_network(name, NETWORKS, **options)
    hdr = forward(network, torch.rand(1, 5, 4, 8, 12) * torch.tensor([16 / 4**i for i in range(5)]).view(1, 5, 1, 1, 1))
    assert hdr.shape == (1, 4, 8 * scale, 12 * scale)
    assert (network.reference, network.peak) == (0, 16.0)


def test_raw_brackets_train_end_to_end_and_resume(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, told = tmp_path / "run", []
    step = skt.SemanticKnowledgeTransfer.forward

    def watched(self: nn.Module, *args: torch.Tensor, metadata: dict, **kwargs: object) -> skt.StepOutput:
        told.append(set(metadata))
        return step(self, *args, metadata=metadata, **kwargs)

    monkeypatch.setattr(skt.SemanticKnowledgeTransfer, "forward", watched)
    train([*QUICK, "--camera", "raw", "--steps", "1", "--metadata", "--out", str(run)])
    assert left_in(run) == set(FILES) - {"logs"}
    network = skt.load_model(run / "orm.safetensors")
    assert (network.config["in_channels"], network.peak) == (4, 16.0)
    before = weights(run)
    train(["--resume", str(run), "--steps", "2"])
    config = parse_options(["--resume", str(run)])
    assert (config.camera, config.metadata, config.steps) == ("raw", True, 2)
    assert any(not torch.equal(value, before[key]) for key, value in weights(run).items())
    assert all(keys == {"white_balance", "color_matrix"} for keys in told)
    steps = [line for line in metrics(run) if "terms" in line]
    assert [line["step"] for line in steps] == [0, 1]
    assert all(np.isfinite(list(line["terms"].values())).all() for line in steps)


def test_metadata_is_for_those_who_ask() -> None:
    sample = skt.SyntheticScenes(1, 8, camera=skt.RawCamera())[0]
    plain, asked = TrainConfig(camera="raw"), TrainConfig(camera="raw", metadata=True)
    assert plain.rendering_metadata(sample) == {}
    told = asked.rendering_metadata(sample)
    assert torch.equal(told["white_balance"], sample.metadata["white_balance"])
    assert torch.equal(told["color_matrix"], sample.metadata["color_matrix"])


def test_raw_is_scored_against_its_peak() -> None:
    target = torch.rand(2, 4, 16, 16) * 16
    samples = [skt.HDRSample(torch.zeros(5, 4, 16, 16), torch.ones(5), t, "a", "raw") for t in target]

    class Known(nn.Module):
        def reconstruct(self, bracket: torch.Tensor, **_: object) -> tuple[torch.Tensor, None]:
            return target + 0.16, None

    config = TrainConfig(camera="raw", device="cpu", trackers=())
    framework = build_modules(config, samples[0].bracket[None])[0]
    validator = training.Validator(config, training.Engine(config), framework, samples)
    scores = validator.score(Known(), nn.Identity())["ORM"]
    assert 0 < scores["region distance"].max() < 0.1
    torch.testing.assert_close(scores["PSNR-L"], torch.full((2,), 40.0, dtype=torch.float64), atol=1e-4, rtol=0)
    literal = (torch.log1p(5000 * (target + 0.16) / 16) - torch.log1p(5000 * target / 16)) / np.log(5001)
    expected = -10 * literal.double().square().mean((1, 2, 3)).log10()
    torch.testing.assert_close(scores["PSNR-mu"], expected, atol=1e-3, rtol=0)


def published(root: Path, data: str) -> Path:
    """Two scenes to train on and two to test, in the published layout."""
    rng = np.random.default_rng(0)
    for split in ("Train", "Test"):
        for scene in ("001", "002"):
            if data.startswith("bracketire"):
                folder = root / split / scene / "000010"
                inputs = folder / "x4" if data.endswith("plus") else folder
                size = (24, 28) if data.endswith("plus") else (60, 64)
                inputs.mkdir(parents=True)
                for time in (1, 4, 16, 64, 256):
                    np.save(inputs / f"raw_{time}.npy", rng.integers(0, 1024, (*size, 4), dtype=np.uint16))
                label = 4 if data.endswith("plus") else 1
                np.save(folder / "raw_gt.npy", rng.uniform(0, 2, (size[0] * label, size[1] * label, 4)))
                colors = {"rgb2cam": np.eye(3), "cam2rgb": np.eye(3), "rgb_gain": 1.0, "red_gain": 2.0}
                np.save(folder / "metadata.npy", {**colors, "blue_gain": 1.6}, allow_pickle=True)
            else:
                folder = root / split.replace("Train", "Training") / scene
                folder.mkdir(parents=True)
                for frame in (1, 2, 3):
                    picture = rng.integers(0, 65536, (40, 48, 3), dtype=np.uint16)
                    tifffile.imwrite(folder / f"input_{frame}.tif", picture)
                (folder / "exposure.txt").write_text("0.0\n2.0\n4.0\n")
                skt.write_image(folder / "HDRImg.hdr", torch.rand(3, 40, 48) * 0.9)
    return root


@pytest.mark.parametrize(
    ("data", "bracket", "target"),
    [
        ("kalantari", (3, 6, 32, 32), (3, 32, 32)),
        ("tel", (3, 6, 32, 32), (3, 32, 32)),
        ("bracketire", (5, 4, 32, 32), (4, 32, 32)),
        ("bracketire-plus", (5, 4, 8, 8), (4, 32, 32)),
    ],
)
def test_published_data_sets_train_on_crops_of_one_split_and_validate_on_the_other(
    tmp_path: Path, data: str, bracket: tuple, target: tuple
) -> None:
    root = published(tmp_path / "data", data)
    config = TrainConfig(data=data, root=root, crop=32, val_crop=16, batch_size=2)  # type: ignore[arg-type]
    train, validation = build_data(config)
    assert (train.split, len(train), train.augment) == ("train", 200, "dihedral")
    windows = 16 if config.domain == "raw" else 2  # of the two test scenes one each, or as many as the frames allow
    assert (validation.split, len(validation), validation.augment) == ("test", windows, "none")
    batch = next(skt.training.training_batches(train, skt.training.SamplePositions(len(train), 2, seed=0)))
    assert (batch.bracket.shape, batch.target.shape) == ((2, *bracket), (2, *target))
    assert list(batch.domain) == [config.domain] * 2
    assert set(batch.metadata) == ({"white_balance", "color_matrix"} if config.domain == "raw" else set())
    assert validation[0].target.shape == (target[0], 16, 16)
    network, forward = skt.models.load_network("ahdrnet-small", NETWORKS, **options_of(config))
    assert forward(network, batch.bracket).shape == batch.target.shape


def test_a_published_data_set_trains(train: Train, tmp_path: Path) -> None:
    root = published(tmp_path / "data", "bracketire-plus")
    options = ["--data", "bracketire-plus", "--root", str(root), "--crop", "32", "--steps", "1"]
    train([*QUICK, *NO_BANK, *options, "--out", str(tmp_path / "run")])
    assert left_in(tmp_path / "run") == set(FILES) - {"logs"}


# --- failures


def test_a_nan_stops_the_run_and_keeps_the_checkpoint(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    color = skt.SemanticHistogramLoss.forward

    def poisoned(self: nn.Module, *args: object, **kwargs: object) -> torch.Tensor:
        count["calls"] += 1
        return color(self, *args, **kwargs) * (float("nan") if count["calls"] > 7 else 1.0)

    count = {"calls": 0}
    monkeypatch.setattr(skt.SemanticHistogramLoss, "forward", poisoned)
    with pytest.raises(SystemExit, match=r"NaN or infinity in color at step \d"):
        train([*QUICK, "--steps", "20", "--validate-every", "100", "--out", str(run)])
    assert re.search(r"\*\*Not finished\*\*: framework \d of 20 steps\.", (run / "README.md").read_text())
    good = weights(run)
    assert all(value.isfinite().all() for value in good.values() if value.is_floating_point())


def test_a_broken_input_is_named(train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    item = skt.SyntheticScenes.__getitem__

    def broken(self: skt.SyntheticScenes, index: int | tuple[int, int]) -> skt.HDRSample:
        sample = item(self, index)
        sample.bracket[0, 0, 0, 0] = float("inf") if self.split == "train" else 0.0
        return sample

    monkeypatch.setattr(skt.SyntheticScenes, "__getitem__", broken)
    with pytest.raises(SystemExit, match="the bracket"):
        train([*QUICK, *NO_BANK, "--out", str(tmp_path / "run")])


def test_nothing_is_written_over(train: Train, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "mine.txt").write_text("precious")
    with pytest.raises(SystemExit, match="is not empty"):
        train([*QUICK, *NO_BANK, "--out", str(run)])
    assert [file.name for file in run.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--orm", "nonsense"], "the network must be one of"),
        (["--orm", "nonsense:Net"], "nonsense:Net does not give a network"),
        (["--orm", "math:nothing"], "math:nothing does not give a network"),
        (["--orm", "math:pow"], "math:pow does not give a network"),
        (["--orm", "os:getcwd"], "must return an nn.Module"),
        (["--device", "warp"], "no device 'warp'"),
        (["--weights", "missing.pth"], "missing.pth"),
        (["--knowledge-bank", "fastsam", "--weights", "missing.pt"], "missing.pt"),
        (["--knowledge-bank", "no_such_net"], "name must be a timm model"),
        (["--config", "missing.toml"], "missing.toml"),
        (["--resume", "missing"], "missing"),
        (["--data", "hdr-folder", "--root", "missing"], "missing"),
        (["--data", "kalantari", "--root", "missing"], "missing"),
        (["--data", "bracketire-plus", "--root", "missing"], "missing"),
        (["--taps", "RDB1", "RDB2"], "taps must name 3"),
        (["--taps", "RDB1", "RDB2", "RDB9"], "RDB9"),
    ],
)
def test_mistakes_are_explained(train: Train, tmp_path: Path, arguments: list[str], message: str) -> None:
    with pytest.raises(SystemExit, match=message):
        train([*QUICK, *arguments, "--out", str(tmp_path / "run")])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", "0"], "--steps must be >= 1, got 0"),
        (["--steps", "many"], "many"),
        (["--data", "hdr-folder"], "needs --root"),
        (["--root", "."], "--data hdr-folder"),
        (["--stepz", "4"], "--stepz"),
        (["--data", "kodak"], "kodak"),
        (["--data", "bracketire"], "--data bracketire needs --root"),
        (["--data", "tel", "--root", ".", "--camera", "raw"], "--data tel has its own"),
        (["--metadata"], "--metadata needs RAW data"),
        (["--content-weight", "-1"], "--content-weight must be a finite number >= 0, got -1"),
        (["--loss-weights", "paper"], "--loss-weights paper needs features: give --perceptual"),
        (["--seed", "99999999999999999999"], "--seed must be in [0, "),
    ],
)
def test_options_out_of_range_are_rejected(capsys: pytest.CaptureFixture, arguments: list[str], message: str) -> None:
    with pytest.raises(SystemExit) as stop:
        parse_options(arguments)
    assert stop.value.code == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_an_unknown_option_is_named_by_the_script(train: Train, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as end:
        train(["--stepz", "4"])
    assert end.value.code == 2
    assert "--stepz" in capsys.readouterr().err


def test_fastsam_as_the_bank(train: Train, tmp_path: Path, fastsam_file: Path) -> None:
    options = ["--knowledge-bank", "fastsam", "--weights", str(fastsam_file), "--bank-taps", "fast", "--regions", "3"]
    train([*QUICK, *options, "--steps", "2", "--out", str(tmp_path / "run")])
    assert left_in(tmp_path / "run") == set(FILES) - {"logs"}
    assert not any("bank" in name or "network" in name for name in weights(tmp_path / "run"))
    first, *_, last = (line["terms"] for line in metrics(tmp_path / "run") if "terms" in line)
    assert first != last
    assert all(value == value for value in last.values())


@pytest.fixture
def fastsam_file(tmp_path: Path) -> Path:
    """Random weights of FastSAM-s, as convert_checkpoint writes real ones."""
    path = tmp_path / "FastSAM-s.safetensors"
    skt.save_weights(path, skt.FastSAMFeatureExtractor("random", layers="fast").network.network)
    return path


def test_missing_fastsam_weights_end_the_command_at_once_with_the_way_out(tmp_path: Path) -> None:
    code = "import runpy, sys; sys.argv = sys.argv[1:]\n"
    code += "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
    code += "finally: print({'accelerate', 'timm', 'matplotlib'} & sys.modules.keys())"
    command = [sys.executable, "-c", code, str(EXAMPLES / "train_full.py"), "--knowledge-bank", "fastsam"]
    empty = {**os.environ, "TORCH_HOME": str(tmp_path / "nowhere"), "SKT_FASTSAM_WEIGHTS": ""}
    done = subprocess.run(command, cwd=tmp_path, env=empty, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    for part in ("train_full.py: no weights of FastSAM-s", "github.com/ultralytics", "--download", "AGPL-3.0"):
        assert part in done.stderr
    assert done.stdout == "set()\n"  # nothing that takes long to import
    assert list(tmp_path.iterdir()) == []
