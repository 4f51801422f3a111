"""Loss weights and run options: the paper's numbers, the checks, and TOML that comes back as it went."""

from __future__ import annotations

import dataclasses
import math
import re
from contextlib import nullcontext
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
import tyro
from hypothesis import given, settings
from hypothesis import strategies as st

from skt_components.framework import LossWeights
from skt_components.modules import DomainTransfer
from skt_components.training import TrainConfig, make_run_folder, parse_options, read_options, write_options
from skt_components.training.run_folder import CHANGEABLE, FIXED, to_toml

OTHER = TrainConfig(
    download=True,
    bank_taps="fast",
    region_source="features",
    data="hdr-folder",
    root=Path('photos of mine/ünï "quoted" \\ back'),
    val_names=("below/a.hdr", "b.exr"),
    camera="raw-x4",
    metadata=True,
    orm="my_package.nets:MyNet",
    taps=("enc.0", "body[1]", "dec[-1]"),
    knowledge_bank="fastsam",
    weights="weights/bank.pth",
    regions=5,
    loss_weights="paper",
    content_weight=0.0,
    color_weight=1e-7,
    alignment_weight=2.0,
    perceptual_weight=1e22,
    perceptual="bank",
    org_rms_weight=0.75,
    init="weights/mine.safetensors",
    init_official=True,
    start="random",
    procedural_share=0.25,
    vary_colors=True,
    pool=100,
    joint=False,
    detach_teacher=True,
    detach_features=False,
    priors_of="target",
    org_perceptual_weight=0.25,
    transfer_start=11,
    transfer_ramp=12,
    teacher_stride=3,
    teacher_domain="rgb",
    steps=7,
    batch_size=2,
    accumulate=2,
    final_lr=1e-6,
    schedule="step",
    warmup_steps=13,
    warmup_lr=1e-7,
    optimizer="adamw",
    weight_decay=0.125,
    clip_grad=0.5,
    ema_decay=0.75,
    seeds=3,
    precision="bf16",
    channels_last=True,
    compile=True,
    checkpointing=True,
    keep=4,
    trackers=("tensorboard", "wandb"),
    spike_factor=20.0,
    crop=48,
    lr=3e-05,
    seed=9,
    device="cpu",
    val_crop=96,
    workers=3,
    log_every=4,
    validate_every=5,
    checkpoint_every=6,
    compare=True,
    val_samples=5,
)


# LossWeights


def test_the_papers_weights_are_the_papers():
    paper = LossWeights.paper()
    assert paper.perceptual_weight == 1e-2  # lambda of eq. 5
    assert paper.content_weight == 1e-3  # lambda_1 of eq. 14
    assert paper.color_weight == 100  # lambda_2 of eq. 14
    assert paper.alignment_weight == 1  # L_feat has no factor in eq. 14


def test_the_recommended_weights_need_no_perceptual_network():
    weights = LossWeights.recommended()
    assert weights.perceptual_weight == 0
    assert sum(dataclasses.astuple(weights)) > 0


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(LossWeights)])
@pytest.mark.parametrize("value", [-1e-9, math.nan, math.inf, -math.inf, "1", None])
def test_rejects_bad_weights(name, value):
    with pytest.raises(ValueError, match=rf"{name} must be a finite number >= 0, got {value!r}"):
        dataclasses.replace(LossWeights.paper(), **{name: value})


def test_weights_cannot_be_changed_in_place():
    with pytest.raises(dataclasses.FrozenInstanceError):
        LossWeights.paper().color_weight = 1.0


# TrainConfig


@pytest.mark.parametrize("name", ["steps", "batch_size", "log_every", "validate_every", "checkpoint_every", "regions"])
@pytest.mark.parametrize("value", [0, -3])
def test_rejects_counts_below_one(refused, name, value):
    with refused(rf"--{name.replace('_', '-')} must be >= 1, got {value}"):
        TrainConfig(**{name: value})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": 0.0}, r"--lr must be a finite number > 0, got 0.0"),
        ({"lr": math.nan}, r"--lr must be a finite number > 0, got nan"),
        ({"workers": -1}, r"--workers must be a finite number >= 0, got -1"),
        ({"val_crop": 4}, r"--val-crop must be >= 16, got 4"),
        ({"crop": 7}, r"--crop must be >= 8, got 7"),
        ({"seed": -1}, r"--seed must be in \[0, 9223372036854775806\], got -1"),
        ({"seed": 2**63 - 3, "seeds": 3}, r"--seed must be in \[0, 9223372036854775804\], got 9223372036854775805"),
        ({"content_weight": -1.0}, r"--content-weight must be a finite number >= 0, got -1\.0"),
        ({"alignment_weight": math.nan}, r"--alignment-weight must be a finite number >= 0, got nan"),
        ({"loss_weights": "paper"}, r"--loss-weights paper needs features: give --perceptual bank, pretrained or FILE"),
        ({"perceptual_weight": 1.0}, r"--perceptual-weight 1\.0 needs features: give --perceptual"),
        ({"org_perceptual_weight": 1.0}, r"--org-perceptual-weight needs features: give --perceptual"),
        ({"bank_taps": "fast"}, r"--bank-taps fast needs --knowledge-bank fastsam, got --knowledge-bank tf_eff"),
        ({"resume": Path("a"), "out": Path("b")}, r"--resume continues in the folder of the run"),
        ({"data": "hdr-folder"}, r"--data hdr-folder needs --root FOLDER"),
        ({"bare": True, "compare": True}, r"--bare and --compare exclude each other"),
        ({"val_samples": 0}, r"--val-samples must be >= 1, got 0"),
        ({"data": "kalantari"}, r"--data kalantari needs --root FOLDER"),
        ({"data": "lab.toml"}, r"--data lab\.toml needs --root FOLDER"),
        ({"data": "kodak"}, r"--data kodak must be one of synthetic, hdr-folder, kalantari, .* or a \.toml file"),
        ({"data": "bracketire-plus"}, r"--data bracketire-plus needs --root FOLDER"),
        ({"root": Path("x")}, r"--root .*--data synthetic, which reads no files: choose --data hdr-folder or kal"),
        (
            {"data": "kalantari", "root": Path("x"), "camera": "raw"},
            r"--camera raw needs --data synthetic or hdr-folder: --data kalantari has its own",
        ),
        ({"data": "bracketire", "root": Path("x"), "camera": "raw-x4"}, r"--camera raw-x4 .*--data bracketire has"),
        ({"metadata": True}, r"--metadata needs RAW data: --camera raw"),
        ({"data": "tel", "root": Path("x"), "metadata": True}, r"--metadata needs RAW data"),
        ({"val_names": ("a.hdr",)}, r"--val-names needs --data hdr-folder: --data synthetic has its own"),
        ({"camera": "raw-x4", "crop": 62}, r"--crop must be a multiple of 4, .*got 62"),
        ({"data": "bracketire-plus", "root": Path("x"), "val_crop": 66}, r"--val-crop must be a multiple of 4"),
    ],
)
def test_rejects_options_that_do_not_fit(refused, options, message):
    with refused(message):
        TrainConfig(**options)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, ("srgb", 1, 1.0)),
        ({"data": "kalantari", "root": Path("x")}, ("srgb", 1, 1.0)),
        ({"data": "tel", "root": Path("x")}, ("srgb", 1, 1.0)),
        ({"camera": "raw"}, ("raw", 1, 16.0)),
        ({"camera": "raw-x4", "data": "hdr-folder", "root": Path("x")}, ("raw", 4, 16.0)),
        ({"data": "bracketire", "root": Path("x")}, ("raw", 1, 16.0)),
        ({"data": "bracketire-plus", "root": Path("x")}, ("raw", 4, 16.0)),
    ],
)
def test_data_and_camera_give_domain_scale_and_peak(options, expected):
    config = TrainConfig(**options)
    assert (config.domain, config.scale, config.peak) == expected
    assert DomainTransfer(config.domain).peak == config.peak


@pytest.mark.parametrize(
    "options",
    [
        {"loss_weights": "paper", "perceptual": "bank"},
        {"loss_weights": "paper", "perceptual_weight": 0.0},
        {"perceptual_weight": 1.0, "content_weight": 0.0},
        {"loss_weights": "paper", "bare": True},
        {"seed": 2**63 - 4, "seeds": 3},
        {"steps": 5, "warmup_steps": 9, "transfer_start": 9},  # a trial of a long run
    ],
)
def test_accepts_options_that_fit(options):
    TrainConfig(**options)


@pytest.mark.parametrize("joint", [False, True])
def test_the_weights_of_the_terms_are_the_presets_and_what_overrides_them(joint):
    own = {"color_weight": 0.0, "alignment_weight": 3.0}
    recommended = LossWeights.recommended(joint)
    assert TrainConfig(joint=joint).term_weights == recommended
    assert TrainConfig(joint=joint, **own).term_weights == dataclasses.replace(recommended, **own)
    paper = TrainConfig(joint=joint, loss_weights="paper", perceptual="bank", **own)
    assert paper.term_weights == dataclasses.replace(LossWeights.paper(), **own)


def test_every_option_has_a_help_text_on_the_command_line(capsys):
    with pytest.raises(SystemExit):
        tyro.cli(TrainConfig, args=["--help"])
    shown = capsys.readouterr().out
    for field in dataclasses.fields(TrainConfig):
        assert f"--{field.name.replace('_', '-')}" in shown


def test_files_of_weights_are_found_from_another_folder(tmp_path, monkeypatch):
    (tmp_path / "bank.pt").touch()
    monkeypatch.chdir(tmp_path)
    make_run_folder(TrainConfig(weights="bank.pt", perceptual="bank", out=tmp_path / "run"))
    found = tyro.cli(TrainConfig, args=read_options(tmp_path / "run" / "config.toml"))
    assert (found.weights, found.perceptual) == (str(tmp_path / "bank.pt"), "bank")


def test_every_loss_weight_has_an_override():
    names = {field.name for field in dataclasses.fields(TrainConfig)}
    assert {field.name for field in dataclasses.fields(LossWeights)} <= names
    for preset in get_args(get_type_hints(TrainConfig)["loss_weights"]):
        assert isinstance(getattr(LossWeights, preset)(), LossWeights)


# TOML round trip


@pytest.mark.parametrize("config", [TrainConfig(), OTHER], ids=["defaults", "other"])
def test_the_run_folders_file_gives_the_configuration_back(tmp_path, config):
    run = make_run_folder(dataclasses.replace(config, out=tmp_path / "run"))
    assert run == tmp_path / "run"
    assert [path.name for path in run.iterdir()] == ["config.toml"]
    root = None if config.root is None else config.root.resolve()  # a run may be resumed from another folder
    assert tyro.cli(TrainConfig, args=read_options(run / "config.toml")) == dataclasses.replace(config, root=root)


def test_the_other_configuration_differs_in_every_option():
    skipped = {
        "config",
        "resume",
        "out",
        "dry_run",
        "bare",
        "freeze_orm",
        "exposure_ratios",
    }  # not with compare, not for RAW
    for field in dataclasses.fields(TrainConfig):
        if field.name not in skipped:
            assert getattr(OTHER, field.name) != field.default, field.name


def test_the_help_has_every_option_once_in_groups_with_the_most_used_first(capsys):
    with pytest.raises(SystemExit, match="0"):
        parse_options(["--steps", "5", "--help"])
    shown = capsys.readouterr().out
    flags = re.findall(r"^  --([a-z-]+)", shown, flags=re.MULTILINE)
    names = [field.name.replace("_", "-") for field in dataclasses.fields(TrainConfig)]
    assert sorted(flags) == sorted([*names, "recipe"])
    titles = re.findall(r"^([a-z ]+):$", shown, flags=re.MULTILINE)
    assert titles[0] == "most used"
    assert titles[1:] == ["data", "network", "knowledge bank", "losses", "teacher and routing", "optimization", "run"]
    assert flags.index("steps") < flags.index("exposure-ratios")
    assert "--joint, --no-joint" in shown
    assert "Default: a fiftieth of the first" in " ".join(shown.split())
    assert max(map(len, shown.splitlines())) <= 120


def test_where_a_run_came_from_is_not_written(tmp_path):
    make_run_folder(TrainConfig(out=tmp_path / "run", config=tmp_path / "c.toml"))
    text = (tmp_path / "run" / "config.toml").read_text(encoding="utf-8")
    assert {line.split(" = ")[0] for line in text.splitlines()}.isdisjoint({"config", "resume", "out"})


def test_the_command_line_wins_over_the_file(tmp_path):
    (tmp_path / "c.toml").write_text('steps = 5\ncompare = true\nlr = 0.1\ntaps = ["a", "b", "c"]\n', encoding="utf-8")
    options = read_options(tmp_path / "c.toml")
    assert options == ["--steps", "5", "--compare", "--lr", "0.1", "--taps", "a", "b", "c"]
    config = tyro.cli(TrainConfig, args=[*options, "--steps", "9", "--no-compare"])
    assert (config.steps, config.compare, config.lr, config.taps) == (9, False, 0.1, ("a", "b", "c"))


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@settings(max_examples=200, deadline=None)
@given(
    st.one_of(
        TEXT, st.booleans(), st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False), st.lists(TEXT, max_size=3)
    )
)
def test_any_value_survives_toml(value):
    try:
        import tomllib
    except ImportError:
        import tomli as tomllib
    back = tomllib.loads(f"key = {to_toml(value)}")["key"]
    assert back == value
    assert type(back) is type(value)


# make_run_folder


def test_an_existing_run_is_rejected_and_left_alone(refused, tmp_path):
    (tmp_path / "kept.txt").write_text("mine")
    with refused(r"--out .* exists and is not empty: choose another$", FileExistsError):
        make_run_folder(TrainConfig(out=tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["kept.txt"]
    with pytest.raises(FileExistsError, match=r"kept\.txt exists"):
        make_run_folder(TrainConfig(out=tmp_path / "kept.txt"))
    run = make_run_folder(TrainConfig(out=tmp_path / "run"))
    with refused(r"choose another, or --resume .*run", FileExistsError):
        make_run_folder(TrainConfig(out=run))


def test_an_empty_folder_is_used_and_parents_are_made(tmp_path):
    assert make_run_folder(TrainConfig(out=tmp_path)) == tmp_path
    deep = tmp_path / "a" / "b"
    assert make_run_folder(TrainConfig(out=deep)) == deep
    assert (deep / "config.toml").is_file()


def test_the_default_name_says_what_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = make_run_folder(TrainConfig(orm="package.module:Net"))
    assert run.parent == Path("runs")
    assert run.name.startswith("synthetic-package.module.Net-")
    assert (tmp_path / run / "config.toml").is_file()


def test_resuming_returns_the_folder_as_it_is_or_says_that_there_is_none(refused, tmp_path):
    run = make_run_folder(TrainConfig(out=tmp_path / "run", steps=5))
    assert make_run_folder(TrainConfig(resume=run, steps=9)) == run
    assert "steps = 5" in (run / "config.toml").read_text()
    write_options(run, TrainConfig(resume=run, steps=9))
    assert "steps = 9" in (run / "config.toml").read_text()
    assert [path.name for path in run.iterdir()] == ["config.toml"]
    with refused(r"--resume: no run folder at .*none", FileNotFoundError):
        make_run_folder(TrainConfig(resume=tmp_path / "none"))


def test_every_option_is_kept_or_applied_on_resume():
    names = [*FIXED, *CHANGEABLE, "config", "resume", "out", "dry_run"]
    assert sorted(names) == sorted(field.name for field in dataclasses.fields(TrainConfig))


@pytest.mark.parametrize("key", [*FIXED, *CHANGEABLE])
def test_another_run_is_not_resumed_and_other_options_may_change(monkeypatch, refused, tmp_path, key):
    monkeypatch.setattr(TrainConfig, "__post_init__", lambda self: None)  # one option is changed alone
    run = make_run_folder(TrainConfig(out=tmp_path / "run"))
    value = {"bare": True, "freeze_orm": True, "exposure_ratios": (2.0, 4.0)}.get(key, getattr(OTHER, key))
    with refused(rf"--resume: {key} was .* now, which is another run: start one") if key in FIXED else nullcontext():
        make_run_folder(TrainConfig(resume=run, **{key: value}))


def test_options_that_an_edited_file_spells_in_another_way_are_compared(refused, tmp_path):
    run = make_run_folder(TrainConfig(out=tmp_path / "run"))
    path = run / "config.toml"
    path.write_text(path.read_text().replace("val_crop", "val-crop"))
    with refused("--resume: val_crop was 192 and is 96 now"):
        make_run_folder(TrainConfig(resume=run, val_crop=96))


def test_a_run_whose_options_are_lost_does_not_become_another(tmp_path):
    run = make_run_folder(TrainConfig(out=tmp_path / "run"))
    (run / "config.toml").write_text("")
    with pytest.raises(ValueError, match=r"config\.toml has no options, so it is not the file of a run"):
        make_run_folder(TrainConfig(resume=run))


def test_mistakes_in_the_file_of_a_run_name_it(tmp_path, capsys):
    run = make_run_folder(TrainConfig(out=tmp_path / "run"))
    path = run / "config.toml"
    text = path.read_text()
    for wrong in ("steps = 0", 'steps = "many"', "steps = [1, 2]"):
        path.write_text(text.replace("steps = 300", wrong))
        with pytest.raises(SystemExit):
            parse_options(["--resume", str(run)])
        assert "run/config.toml and the command line" in capsys.readouterr().err
    path.write_text(text + 'resume = "elsewhere"\n')
    with pytest.raises(ValueError, match=r"config\.toml: resume is an option of the command line alone"):
        parse_options(["--resume", str(run)])
    path.write_text(text)
    with pytest.raises(ValueError, match="--recipe gives defaults to a new run: it cannot be given with --resume"):
        parse_options(["--resume", str(run), "--recipe", "plain"])


def test_a_folder_whose_run_was_killed_before_it_had_options_is_used(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / ".lock").write_text("process 1")
    (run / f".config.toml.{'0' * 32}.toml").write_text("ste")
    assert make_run_folder(TrainConfig(out=run)) == run
    assert (run / "config.toml").is_file()


def test_options_are_written_whole_or_not_at_all(tmp_path, monkeypatch):
    run = make_run_folder(TrainConfig(out=tmp_path / "run"))
    before = (run / "config.toml").read_text()

    def full(self, *args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space left"):
        write_options(run, TrainConfig(steps=9))
    assert (run / "config.toml").read_text() == before
    assert [path.name for path in run.iterdir()] == ["config.toml"]


# read_options


def test_bad_files_are_named(tmp_path):
    path = tmp_path / "bad.toml"
    with pytest.raises(FileNotFoundError, match=r"no configuration file at .*bad\.toml"):
        read_options(path)
    path.write_text("steps = = 3", encoding="utf-8")
    with pytest.raises(ValueError, match=r"bad\.toml is not a TOML file: .*line 1"):
        read_options(path)
    path.write_bytes(b'name = "\xff\xfe"')
    with pytest.raises(ValueError, match=r"bad\.toml is not a TOML file"):
        read_options(path)
    path.write_text("[steps]\nsteps = 3", encoding="utf-8")
    with pytest.raises(ValueError, match=r"bad\.toml: steps is a table, expected a plain option"):
        read_options(path)


def test_a_misspelt_option_is_named_with_its_file(tmp_path):
    (tmp_path / "c.toml").write_text("stepz = 3", encoding="utf-8")
    with pytest.raises(ValueError, match=r"c\.toml: no option 'stepz', is steps meant\?"):
        read_options(tmp_path / "c.toml")
    (tmp_path / "c.toml").write_text("batch-size = 3", encoding="utf-8")
    assert read_options(tmp_path / "c.toml") == ["--batch-size", "3"]
