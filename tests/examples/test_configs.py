"""The experiments as files: each is a valid run, and its numbers are the paper's or the authors'."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from pathlib import Path

import pytest

from skt_components.models.registry import NETWORKS as MAKERS
from skt_components.models.registry import bracket_options
from skt_components.training import TrainConfig, parse_options

try:
    import tomllib
except ImportError:  # Python 3.10
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
FILES = {path.stem: path for path in sorted((ROOT / "examples" / "configs").glob("*.toml"))}
NETWORKS, DATA = ("ahdrnet", "hdr-transformer", "tmrnet"), ("kalantari", "tel", "bracketire", "bracketire-plus")
PAPER = {f"{network}-{data}": (network, data) for network, data in itertools.product(NETWORKS, DATA)}
ABLATIONS = {
    "ablation-without-content": {"content_weight": 0.0},
    "ablation-without-color": {"color_weight": 0.0},
    "ablation-without-skam": {"alignment_weight": 0.0},
    "ablation-without-fastsam": {"knowledge_bank": "none"},
    "ablation-hrnet": {"knowledge_bank": "hrnet_w48", "weights": "pretrained"},
}
OFFICIAL = {
    "official-ahdrnet": {"lr": 1e-4, "final_lr": 1e-5, "schedule": "step", "batch_size": 8, "crop": 256},
    "official-hdr-transformer": {"lr": 2e-4, "batch_size": 16, "steps": 100 * 1425, "seed": 443},
    "official-sctnet": {"lr": 2e-4, "batch_size": 22, "steps": 100 * 1512},
    "official-tmrnet": {"lr": 1e-4, "final_lr": 1e-6, "schedule": "cosine", "batch_size": 8, "steps": 400 * 500}
    | {"optimizer": "adamw", "weight_decay": 0.01, "warmup_lr": 1e-5, "warmup_steps": 5 * 500, "crop": 128},
}
CPU = ("cpu-ahdrnet", "cpu-hdr-transformer", "cpu-tmrnet", "cpu-raw")
CROPS = {"kalantari": 128, "tel": 128, "bracketire": 128, "bracketire-plus": 4 * 64}
# Samples of 100 epochs of 308 crops of each scene, and of 400 epochs of 500 batches of 8.
SAMPLES = {"kalantari": 100 * 74 * 308, "tel": 100 * 108 * 308}
SAMPLES |= dict.fromkeys(("bracketire", "bracketire-plus"), 400 * 500 * 8)


@functools.cache
def read(name: str) -> TrainConfig:
    """The options as the loop gets them, with a folder where the user has to give one."""
    root = [] if 'data = "synthetic"' in FILES[name].read_text(encoding="utf-8") else ["--root", "FOLDER"]
    return dataclasses.replace(parse_options(["--config", str(FILES[name]), *root]), config=None)


def test_every_experiment_has_its_file_and_no_file_is_unknown() -> None:
    assert set(FILES) == {*PAPER, *ABLATIONS, *OFFICIAL, *CPU}


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_a_valid_run_of_a_network_that_exists(name: str) -> None:
    config = read(name)
    assert config.orm in MAKERS
    written = tomllib.loads(FILES[name].read_text(encoding="utf-8"))
    for key, value in written.items():  # nothing is lost or changed on its way through the command line
        assert key == "recipe" or getattr(config, key) == value
    assert "root" not in written
    assert config.dry_run is False


@pytest.mark.parametrize("name", FILES)
def test_a_file_says_how_to_run_it(name: str) -> None:
    text = FILES[name].read_text(encoding="utf-8")
    assert f"--config examples/configs/{name}.toml" in text
    assert ("# root is yours to give: --root FOLDER" in text) == (read(name).data != "synthetic")
    assert all(len(line) <= 120 for line in text.splitlines())


@pytest.mark.parametrize("name", PAPER)
def test_the_main_runs_have_the_papers_numbers(name: str) -> None:
    config = read(name)
    assert (config.orm, config.data) == PAPER[name]
    assert (config.optimizer, config.lr, config.batch_size, config.weight_decay) == ("adam", 2e-4, 16, 0.0)
    assert (config.schedule, config.warmup_steps, config.accumulate) == ("constant", 0, 1)
    assert (config.knowledge_bank, config.bank_taps, config.region_source) == ("fastsam", "paper", "own")
    assert config.crop == CROPS[config.data]
    assert config.steps == math.ceil(SAMPLES[config.data] / (16 * 4))  # on four GPUs
    assert config.loss_weights == "recommended"
    assert "--loss-weights paper --perceptual pretrained" in FILES[name].read_text(encoding="utf-8")


@pytest.mark.parametrize("name", PAPER)
def test_only_hdr_transformer_on_srgb_has_features_in_its_own_loss(name: str) -> None:
    config = read(name)
    has = config.orm == "hdr-transformer" and config.domain == "srgb"
    assert (config.org_perceptual_weight, config.perceptual) == ((0.01, "pretrained") if has else (0.0, None))


@pytest.mark.parametrize("name", ABLATIONS)
def test_an_ablation_differs_from_its_parent_in_what_it_is_about_alone(name: str) -> None:
    ours, parent = dataclasses.asdict(read(name)), dataclasses.asdict(read("ahdrnet-tel"))
    assert {key: value for key, value in ours.items() if value != parent[key]} == ABLATIONS[name]


@pytest.mark.parametrize("name", OFFICIAL)
def test_the_official_runs_have_their_authors_numbers(name: str) -> None:
    config = read(name)
    known = {"optimizer": "adam", "weight_decay": 0.0, "warmup_steps": 0, "crop": 128, "schedule": "constant"}
    known |= {"orm": name.removeprefix("official-"), "compare": True, "accumulate": 1} | OFFICIAL[name]
    assert {key: getattr(config, key) for key in known} == known
    has = config.orm in ("hdr-transformer", "sctnet")
    assert (config.org_perceptual_weight, config.perceptual) == ((0.01, "pretrained") if has else (0.0, None))
    assert "# Not reproduced:" in FILES[name].read_text(encoding="utf-8")


def test_the_official_networks_are_those_of_the_facts() -> None:
    for name in OFFICIAL:
        MAKERS[read(name).orm](
            **bracket_options(read(name).domain, scale=read(name).scale)
        )  # full size, for the data of its run


@pytest.mark.parametrize("name", CPU)
def test_the_small_runs_need_no_files_and_little_time(name: str) -> None:
    config = read(name)
    assert (config.data, config.root, config.device, config.weights) == ("synthetic", None, "cpu", None)
    assert config.orm.endswith("-small")
    assert config.steps * config.batch_size * config.crop**2 <= 200 * 4 * 64**2


def test_the_table_of_experiments_names_every_file() -> None:
    page = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    assert [name for name in FILES if f"`{name}.toml`" not in page] == []
