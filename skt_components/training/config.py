"""Options of a training run: their meaning, their checks, and how a file or a command line sets them."""

from __future__ import annotations

import argparse
import difflib
import itertools
import json
import math
import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from skt_components.data.registry import PUBLISHED
from skt_components.data.sample import RAW_PEAK, HDRSample
from skt_components.files.toml import read_toml
from skt_components.framework.loss_weights import LossWeights
from skt_components.training.option_help import flag, format_options

_LEARNING_RATES = {"ahdrnet": 4e-3, "sctnet": 5e-4}  # the best found; others 1e-3
_AT_LEAST = {
    **dict.fromkeys(("steps", "batch_size", "accumulate", "log_every", "validate_every", "checkpoint_every"), 1),
    **dict.fromkeys(("keep", "regions", "seeds", "val_samples", "teacher_stride"), 1),
    "pool": 0,
    **{"crop": 8, "val_crop": 16},
}
_NOT_NEGATIVE = (
    *("workers", "transfer_start", "transfer_ramp", "warmup_steps", "warmup_lr", "weight_decay", "spike_factor"),
    *("org_rms_weight", "org_perceptual_weight", *(field.name for field in fields(LossWeights))),
)


@dataclass(frozen=True)
class TrainConfig:
    """Train an HDR reconstruction network with semantic knowledge transfer."""

    data: str = "synthetic"
    """synthetic: procedural scenes, no files. hdr-folder: a folder of HDR photographs and panoramas. A published data
    set: kalantari, tel, challenge123, hu, bracketire, bracketire-plus. Or a .toml file that describes a layout of
    folders (BracketFolder)."""
    root: Path | None = None
    """Folder of the data; required except for synthetic. A published data set may be as published or prepared."""
    camera: Literal["srgb", "raw", "raw-x4"] = "srgb"
    """Camera for the brackets of synthetic and hdr-folder. srgb: three color exposures. raw: five RAW exposures of a
    moving scene, from dark to bright (as BracketIRE). raw-x4: the same, at a quarter of the size of the target (as
    BracketIRE+)."""
    procedural_share: float = 0.0
    """Share of the training samples of hdr-folder that is replaced by procedural scenes. They add variety if there are
    few photographs."""
    vary_colors: bool = False
    """Change colors and contrast of the training photographs of hdr-folder at random."""
    exposure_ratios: tuple[float, ...] = (4.0,)
    """Ratios of the exposure times of sRGB brackets of synthetic and hdr-folder. Each training sample has one of them;
    validation has 4. Photographers take exposures one to three stops apart: 2, 4 and 8."""
    pool: int = 0
    """Number of training samples of synthetic and hdr-folder that are rendered once and used again in every epoch; 0
    renders each sample again. Use it for RAW brackets, where rendering takes longer than training."""
    metadata: bool = False
    """Render RAW with its white balance and color matrix for the bank and the teacher. The paper does not."""
    orm: str = "ahdrnet-small"
    """Network, made for the data: ahdrnet, hdr-transformer, sctnet or tmrnet, each also with the ending -small. Or
    package.module:callable, which returns an nn.Module."""
    init: str | None = None
    """Initial weights: the name of a pretrained network (ahdrnet-small, ...), or a file with weights of orm."""
    init_official: bool = False
    """The file of init comes from the network's authors, whose channels have another order."""
    freeze_orm: bool = False
    """Keep the initial weights of the network and train only the teacher. If the teacher is not better than the
    network, there is nothing to transfer."""
    start: Literal["fitted", "random"] = "fitted"
    """Initial weights without init. fitted: random weights with a last layer that is fitted to a few training samples,
    so that the first output is a picture. random: random weights alone. Your own network always starts with its own
    weights."""
    taps: tuple[str, ...] = ()
    """Three layers of the network to align. By default its own fusion_taps, or three that are chosen and printed."""
    knowledge_bank: str = "tf_efficientnet_lite0"
    """Frozen network: the name of a timm model, or fastsam (weights under AGPL-3.0). none: a teacher without semantic
    features, and the whole picture as the only region."""
    weights: str | None = None
    """File with the bank's weights. For timm also "pretrained", which downloads them. The weights of the default bank
    come from a pip package. fastsam looks for SKT_FASTSAM_WEIGHTS and in its cache."""
    download: bool = False
    """Let fastsam download missing weights (AGPL-3.0) to its cache."""
    bank_taps: Literal["paper", "fast"] = "paper"
    """Layers of fastsam that give the features. fast is a quarter of the work."""
    region_source: Literal["own", "color", "features"] = "own"
    """own: fastsam's own masks (other banks have none and use color). color, features: k-means on color or on
    features."""
    regions: int = 8
    """Regions per picture. fastsam's masks have the background in addition."""
    loss_weights: Literal["recommended", "paper"] = "recommended"
    """Weights of the loss terms. recommended depends on joint; paper needs perceptual."""
    content_weight: float | None = None
    """Replaces lambda_1 of eq. 14."""
    color_weight: float | None = None
    """Replaces lambda_2 of eq. 14."""
    alignment_weight: float | None = None
    """Replaces the weight of L_feat."""
    perceptual_weight: float | None = None
    """Replaces lambda of eq. 5."""
    perceptual: str | None = None
    """Features for the second term of eq. 5: "bank", "pretrained" (VGG19, a download), or a file of VGG19 weights."""
    org_rms_weight: float = 0.5
    """Weight of the root mean square error of each picture in L_org, also of the bare network. It emphasizes large
    errors."""
    org_perceptual_weight: float = 0.0
    """Weight of a perceptual term in L_org, also of the bare network. It uses the features of perceptual."""
    joint: bool = True
    """Pass gradients of L_spg through the teacher into the network, and gradients of L_content and L_color into the
    teacher. Teacher and network then approach each other."""
    detach_teacher: bool = False
    """Train the teacher with L_spg alone, also with joint. Without joint this is always so."""
    detach_features: bool = True
    """Do not train the teacher with L_feat, which would make its features small."""
    transfer_start: int = 0
    """Number of first steps in which only L_org trains the network, while the teacher learns."""
    transfer_ramp: int = 0
    """Number of steps after these in which the weights of the other terms grow to their full value."""
    teacher_stride: int | None = None
    """Side of a block of pixels that becomes one pixel of the teacher. By default the stages of the teacher are half
    as large as the bracket: 2 for sRGB, 4 for RAW. 1 is the value of the paper, at many times the work."""
    priors_of: Literal["tonemapped", "target"] = "tonemapped"
    """Picture that the bank describes: the output of the network, as in the paper, or the ground truth."""
    teacher_domain: Literal["network", "rgb"] = "network"
    """Domain in which L_spg compares RAW pictures: the values of the sensor, like L_org, or the demosaiced picture."""
    steps: int = 300
    """Optimization steps."""
    batch_size: int = 4
    """Samples per forward pass of each process."""
    accumulate: int = 1
    """Forward passes per step. Their accumulated gradient is the gradient of one large batch."""
    crop: int = 64
    """Side of the training crops in pixels. For RAW in packed pixels, which are blocks of 2 x 2."""
    lr: float | None = None
    """Learning rate. Default: 4e-3 for AHDRNet, 5e-4 for SCTNet, 1e-3 for other networks."""
    final_lr: float | None = None
    """Learning rate at the end. Default: a fiftieth of the first."""
    schedule: Literal["cosine", "step", "constant"] = "cosine"
    """Schedule of the learning rate: cosine to final_lr, one step to it after four fifths of the steps, or constant."""
    warmup_steps: int | None = None
    """Steps in which the learning rate grows from warmup_lr. Default: a tenth of steps, at most 500."""
    warmup_lr: float = 0.0
    """Learning rate of the first warm-up step."""
    optimizer: Literal["adam", "adamw"] = "adam"
    """Adam, or AdamW with decoupled weight decay."""
    weight_decay: float = 0.0
    """Weight decay."""
    clip_grad: float | None = None
    """Largest norm of the gradient. Default: no limit."""
    ema_decay: float = 0.0
    """Decay per step of a moving average of the network's weights, which is validated and saved. 0: no average."""
    seed: int = 0
    """Seed of weights, data and masks."""
    seeds: int = 1
    """Number of trainings, with seed, seed + 1, .... They are reported together."""
    val_names: tuple[str, ...] = ()
    """Validation photographs of hdr-folder, as paths below root. Default: the last fifth by name."""
    val_crop: int = 192
    """Side of the validation pictures, in the unit of crop."""
    val_samples: int = 16
    """Number of validation pictures of synthetic, hdr-folder and bracketire. Other data sets have one for every test
    scene."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, ..."""
    precision: Literal["auto", "fp32", "bf16", "fp16", "fp64"] = "auto"
    """Precision of convolutions and matrix products. Losses are always float32. auto is bf16 on a GPU that supports
    it, else fp32. fp64 applies to everything and is meant for comparisons."""
    channels_last: bool = False
    """Store pictures with the channels last in memory: faster convolutions on most GPUs."""
    compile: bool = False
    """Compile network and teacher with torch.compile: minutes at the start, then faster steps."""
    checkpointing: bool = False
    """Compute the large blocks again in the backward pass: less memory, more time, the same gradient."""
    workers: int = 0
    """Loader processes for each training process."""
    out: Path | None = None
    """Run folder; must be new. Default: runs/<data>-<orm>-<time>."""
    log_every: int = 25
    """Steps between lines of metrics.jsonl."""
    validate_every: int = 100
    """Steps between validations."""
    checkpoint_every: int = 100
    """Steps between checkpoints."""
    keep: int = 2
    """Number of the newest checkpoints to keep, in addition to the best."""
    trackers: tuple[str, ...] = ("tensorboard",)
    """Trackers that also get the numbers: tensorboard, wandb, mlflow, ... of Hugging Face Accelerate."""
    spike_factor: float = 10.0
    """A loss above this factor times the median of the last hundred is reported, and its batch is kept. 0: no check."""
    resume: Path | None = None
    """Run folder to continue, with its own options. Options that you give here replace them."""
    compare: bool = False
    """Also train the bare network from the same weights on the same data, and print the paired gain."""
    bare: bool = False
    """Train only the bare network. The bank still measures the regions of its pictures."""
    config: Path | None = None
    """TOML file of these options. Options on the command line replace them."""
    dry_run: bool = False
    """Do not train. Print parameters, operations and steps, and check that every file exists."""

    def __post_init__(self) -> None:
        for name, least in _AT_LEAST.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} must be >= {least}, got {value}")
        largest = 2**63 - 1 - self.seeds  # the largest seed of a generator
        if not 0 <= self.seed <= largest:
            raise ValueError(f"seed must be in [0, {largest}], got {self.seed}")
        for name in ("lr", "final_lr", "clip_grad"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name} must be a finite number > 0, got {value}")
        for name in _NOT_NEGATIVE:
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise ValueError(f"{name} must be a finite number >= 0, got {value}")
        if not 0 <= self.procedural_share <= 1:
            raise ValueError(f"procedural_share must be in [0, 1], got {self.procedural_share}")
        if self.init_official and self.init is None:
            raise ValueError("init_official needs the authors' file: give `init`")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay must be in [0, 1), got {self.ema_decay}")
        if self.perceptual is None:
            self._check_no_features()
        if self.bank_taps != "paper" and self.knowledge_bank != "fastsam":
            raise ValueError(
                f"bank_taps={self.bank_taps} needs knowledge_bank=fastsam, got knowledge_bank={self.knowledge_bank}"
            )
        if self.final_lr is not None and self.schedule == "constant":
            raise ValueError("final_lr needs a schedule with an end: schedule=constant has none")
        if self.warmup_lr and self.warmup_steps == 0:
            raise ValueError("warmup_lr needs a warm-up: give `warmup_steps`")
        if self.bare and self.compare:
            raise ValueError("`bare` and `compare` exclude each other: give one of them")
        if self.freeze_orm and (self.bare or self.compare):
            name = "bare" if self.bare else "compare"
            raise ValueError(f"freeze_orm trains the teacher alone: it cannot be given with `{name}`")
        if self.resume is not None and self.out is not None:
            raise ValueError(f"resume continues in the folder of the run: it cannot be given with out={self.out}")
        self._check_data()

    @property
    def domain(self) -> Literal["srgb", "raw"]:
        """Domain of brackets and targets, as :class:`DomainTransfer` names it."""
        return "raw" if self.camera != "srgb" or self.data.startswith("bracketire") else "srgb"

    @property
    def scale(self) -> int:
        """Ratio of the sizes of target and bracket: 1 or 4."""
        return 4 if self.camera == "raw-x4" or self.data == "bracketire-plus" else 1

    @property
    def learning_rate(self) -> float:
        """The largest learning rate: ``lr``, or the best found for the network."""
        return self.lr if self.lr is not None else _LEARNING_RATES.get(self.orm.removesuffix("-small"), 1e-3)

    @property
    def warmup(self) -> int:
        """Steps over which the learning rate grows."""
        return min(self.steps // 10, 500) if self.warmup_steps is None else self.warmup_steps

    @property
    def peak(self) -> float:
        """Linear value of white."""
        return RAW_PEAK if self.domain == "raw" else 1.0

    @property
    def term_weights(self) -> LossWeights:
        """Weights of the terms: the preset ``loss_weights``, with single weights replaced."""
        paper = self.loss_weights == "paper"
        preset = LossWeights.paper() if paper else LossWeights.recommended(self.joint)
        given = {field.name: getattr(self, field.name) for field in fields(preset)}
        return replace(preset, **{name: value for name, value in given.items() if value is not None})

    def rendering_metadata(self, sample: HDRSample) -> dict[str, Tensor]:
        """Return the metadata for rendering RAW pictures; nothing without the option ``metadata``, as in the paper."""
        return sample.metadata if self.metadata else {}

    def unreached_options(self) -> list[str]:
        """Return a sentence for each option that has no effect because there are too few steps; it is not an error."""
        effects = {"warmup_steps": f"the learning rate does not reach lr={self.learning_rate:g}"}
        if not self.bare:
            effects["transfer_start"] = "the framework does not train the network"
        values = {name: getattr(self, name) for name in effects}
        late = {name: value for name, value in values.items() if value is not None and value >= self.steps}
        return [f"{name}={value} of steps={self.steps}: {effects[name]}" for name, value in late.items()]

    def _check_no_features(self) -> None:
        weights = self.term_weights
        used = not self.bare and weights.content_weight > 0 and weights.perceptual_weight > 0
        options = {
            "org_perceptual_weight": self.org_perceptual_weight > 0,
            f"perceptual_weight={self.perceptual_weight}": used and self.perceptual_weight is not None,
            "loss_weights=paper": used,
        }
        for option, needed in options.items():
            if needed:
                raise ValueError(f"{option} needs features: give perceptual=bank, pretrained or FILE")

    def _check_data(self) -> None:
        simulated = self.data in ("synthetic", "hdr-folder")
        if not simulated and self.data not in PUBLISHED and Path(self.data).suffix.lower() != ".toml":
            known = ", ".join(("synthetic", "hdr-folder", *PUBLISHED))
            raise ValueError(f"data={self.data} must be one of {known}, or a .toml file that describes a layout")
        if self.data == "synthetic" and self.root is not None:
            raise ValueError(
                "root must not be given with data=synthetic, which reads no files: choose data=hdr-folder or "
                + ", ".join(PUBLISHED)
            )
        if self.data != "synthetic" and self.root is None:
            raise ValueError(f"data={self.data} needs root=FOLDER")
        if not simulated and self.camera != "srgb":
            scenes = "synthetic or hdr-folder"
            raise ValueError(f"camera={self.camera} needs data={scenes}: data={self.data} has its own brackets")
        for name in ("procedural_share", "vary_colors"):
            if getattr(self, name) and self.data != "hdr-folder":
                raise ValueError(f"{name} needs data=hdr-folder, got data={self.data}")
        if self.exposure_ratios != (4.0,) and (not simulated or self.domain == "raw"):
            raise ValueError("exposure_ratios needs sRGB brackets of data=synthetic or hdr-folder")
        if not self.exposure_ratios or not all(1 < ratio < math.inf for ratio in self.exposure_ratios):
            raise ValueError(f"exposure_ratios must be finite numbers > 1, got {self.exposure_ratios}")
        if self.pool and not simulated:
            raise ValueError(f"pool needs data=synthetic or hdr-folder: data={self.data} is read from files")
        if self.val_names and self.data != "hdr-folder":
            raise ValueError(f"val_names needs data=hdr-folder: data={self.data} has its own split")
        if self.metadata and self.domain == "srgb":
            raise ValueError("metadata needs RAW data: camera=raw, camera=raw-x4 or data=bracketire")
        for name in ("crop", "val_crop"):
            if getattr(self, name) % self.scale:
                raise ValueError(
                    f"{name} must be a multiple of 4, the ratio of the sizes of target and bracket, "
                    f"got {getattr(self, name)}"
                )


_DESCRIPTION = (
    "Train an HDR network with semantic knowledge transfer. The TOML file of config may contain the same options, "
    "written with underscores. Options on the command line replace them."
)
RECIPES: dict[str, dict[str, Any]] = {
    "best": {},
    "plain": {"lr": 1e-3, "warmup_steps": 0, "org_rms_weight": 0.0, "start": "random"},
}
"""Options that a recipe replaces: "best" are the defaults, "plain" is Adam at 1e-3, L1, and random weights."""


@dataclass(frozen=True)
class Options(TrainConfig):
    """Hold the options of a command line; errors name the options as they are typed."""

    recipe: Literal["best", "plain"] = "best"
    """Default options. best: the best that were found. plain: lr 1e-3, no warm-up, L1 alone, random weights."""

    def __post_init__(self) -> None:
        try:
            super().__post_init__()
        except ValueError as error:
            raise ValueError(name_options(str(error))) from None


def parse_options(arguments: Sequence[str]) -> TrainConfig:
    """Read the options of a command line, which replace the files of ``resume`` and ``config`` and the defaults.

    Args:
        arguments: without the program's name.

    Raises:
        SystemExit: an option does not exist or is out of its range; the reason is printed.
        FileNotFoundError, ValueError: a file of options is missing or wrong.
    """
    import tyro  # not above: it takes a third of a second

    if {"-h", flag("help")} & set(arguments):
        print(format_options(Options, _DESCRIPTION), end="")
        raise SystemExit(0)
    files = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    files.add_argument(flag("resume"), type=lambda run: Path(run) / "config.toml")
    files.add_argument(flag("config"), type=Path)
    asked = files.parse_known_args(arguments)[0]
    found = [file for file in vars(asked).values() if file is not None]
    given = [*itertools.chain(*map(read_options, found)), *arguments]
    recipe = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    recipe.add_argument(flag("recipe"))
    name = recipe.parse_known_args(given)[0].recipe
    if name is not None and asked.resume is not None:
        raise ValueError(f"{flag('recipe')} gives defaults to a new run: it cannot be given with {flag('resume')}")
    try:  # tyro rejects unknown recipes
        options = tyro.cli(Options, args=[*to_arguments(RECIPES.get(name or "best", {})), *given])
    except SystemExit as end:
        if found and end.code:
            print(f"Options were read from {' and '.join(map(str, found))} and the command line.", file=sys.stderr)
        raise
    return TrainConfig(**{field.name: getattr(options, field.name) for field in fields(TrainConfig)})


def name_options(message: str, names: Iterable[str] = ()) -> str:
    """Return an error message with the names of arguments as options of a command line.

    Replaced are a name that begins the sentence, names in backticks, and names with ``=``.

    Args:
        message: such as "batch_size must be >= 1, got 0".
        names: names of the arguments; None means the fields of :class:`TrainConfig`.

    Example:
        >>> name_options("batch_size must be >= 1, got 0").split()[0] == flag("batch_size")
        True
    """
    names = "|".join(names or (field.name for field in fields(TrainConfig)))
    message = re.sub(
        rf"^({names})(?=:| (?:must|is|are|was|needs|trains|continues)\b)|`({names})`",
        lambda match: flag(match[1] or match[2]),
        message,
    )
    return re.sub(rf"(?<![\w-])({names})=(True\b)?", lambda match: flag(match[1]) + ("" if match[2] else " "), message)


def to_arguments(options: Mapping[str, Any]) -> list[str]:
    """Return options as arguments of a command line."""
    arguments = []
    for key, value in options.items():
        if isinstance(value, bool):
            arguments.append(flag(key) if value else flag(f"no_{key}"))
        else:
            arguments += [flag(key), *map(str, value if isinstance(value, (list, tuple)) else [value])]
    return arguments


def read_options(path: str | os.PathLike[str]) -> list[str]:
    """Read a TOML file of options as command-line arguments, so that the checks of the command line apply to it.

    Args:
        path: keys are option names with underscores; values are numbers, strings, booleans or lists of them.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is not TOML, or holds a table, an unknown name, or another file of options.
    """
    path, options = Path(path), read_toml(path)
    known = [field.name for field in fields(Options)]
    for key, value in options.items():
        if key.replace("-", "_") not in known:
            similar = difflib.get_close_matches(key, known, n=1)
            raise ValueError(f"{path}: no option {key!r}{f', is {similar[0]} meant?' if similar else ''}")
        if isinstance(value, dict):
            raise ValueError(f"{path}: {key} is a table, expected a plain option")
        if key in ("config", "resume"):
            raise ValueError(f"{path}: {key} is an option of the command line alone")
    return to_arguments(options)


def to_toml(value: Any) -> str:
    """Return a value as TOML writes it."""
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(to_toml, value))}]"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        return repr(value)
    # TOML's strings are JSON's, except surrogate pairs, which must be characters, and DEL, which must be escaped.
    value = value.resolve() if isinstance(value, Path) else value  # a run may be resumed from another folder
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
