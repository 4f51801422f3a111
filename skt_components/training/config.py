"""Weights of the loss terms, and the options of a training run."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal


@dataclass(frozen=True)
class LossWeights:
    """Weights of eqs. 5 and 14: ``L = L_org + content * L_content + color * L_color + alignment * L_feat``.

    A term with weight 0 is not computed.

    Args:
        content_weight: lambda_1 of eq. 14.
        color_weight: lambda_2 of eq. 14, for histograms divided by the pixel count.
        alignment_weight: weight of L_feat, 1 in eq. 14.
        perceptual_weight: lambda of eq. 5, inside L_content.

    Raises:
        ValueError: a weight is negative or not finite.

    Example:
        >>> LossWeights.paper().color_weight
        100.0
    """

    content_weight: float
    color_weight: float
    alignment_weight: float
    perceptual_weight: float

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not isinstance(value, (int, float)) or not 0 <= value < math.inf:
                raise ValueError(f"{field.name} must be a finite number >= 0, got {value!r}")

    @classmethod
    def paper(cls) -> LossWeights:
        """Return the paper's weights literally: lambda = 1e-2, lambda_1 = 1e-3, lambda_2 = 100."""
        return cls(content_weight=1e-3, color_weight=100.0, alignment_weight=1.0, perceptual_weight=1e-2)

    @classmethod
    def recommended(cls) -> LossWeights:
        """Return the default: every transfer term pulls well below L_org; the results page has the evidence."""
        return cls(content_weight=0.1, color_weight=0.01, alignment_weight=1.0, perceptual_weight=0.0)


_PUBLISHED = ("kalantari", "tel", "bracketire", "bracketire-plus")


@dataclass(frozen=True)
class TrainConfig:
    """Train an HDR reconstruction network with semantic knowledge transfer."""

    data: Literal["synthetic", "hdr-folder", "kalantari", "tel", "bracketire", "bracketire-plus"] = "synthetic"
    """Procedural scenes (no files), a folder of HDR photographs and panoramas, or a published data set."""
    root: Path | None = None
    """Folder of the data, of a published data set as published or prepared; all but synthetic need it."""
    camera: Literal["srgb", "raw", "raw-x4"] = "srgb"
    """What takes the brackets of synthetic and hdr-folder: three exposures in colour, five dark to light RAW exposures
    in which things move (as BracketIRE), or these at a quarter of the target's size (as BracketIRE+)."""
    metadata: bool = False
    """Render RAW with its white balance and colour matrix for the bank and the teacher; the paper does not."""
    orm: str = "ahdrnet-small"
    """Network: ahdrnet, hdr-transformer, sctnet or tmrnet, each also with -small behind it, made for the data, or
    package.module:callable that returns an nn.Module."""
    taps: tuple[str, ...] = ()
    """Three layers of the network to align; its own fusion_taps when empty."""
    knowledge_bank: str = "tf_efficientnet_lite0"
    """Frozen network that knows about pictures: a model of timm by its name, or fastsam (weights under AGPL-3.0)."""
    weights: str | None = None
    """The bank's weights: a file; for timm also "pretrained" to download. The default bank's come from a pip package;
    fastsam looks for SKT_FASTSAM_WEIGHTS and in its cache."""
    download: bool = False
    """Let fastsam fetch its weights (AGPL-3.0) to its cache if they are missing."""
    bank_taps: Literal["paper", "fast"] = "paper"
    """Layers of fastsam that give the features; fast is a quarter of the work."""
    region_source: Literal["own", "color", "features"] = "own"
    """Regions: fastsam's own masks (other banks have none and take colour), or k-means on colour or on features."""
    regions: int = 8
    """Regions per picture; fastsam's masks have the background beside them."""
    loss_weights: Literal["recommended", "paper"] = "recommended"
    """Weights of the terms; paper needs --perceptual."""
    content_weight: float | None = None
    """Overrides lambda_1 of eq. 14."""
    color_weight: float | None = None
    """Overrides lambda_2 of eq. 14."""
    alignment_weight: float | None = None
    """Overrides the weight of L_feat."""
    perceptual_weight: float | None = None
    """Overrides lambda of eq. 5."""
    perceptual: str | None = None
    """Features of eq. 5's second term: "bank", "pretrained" (VGG19, downloads), or a file of VGG19 weights."""
    steps: int = 300
    """Optimisation steps."""
    batch_size: int = 4
    """Samples per step."""
    crop: int = 64
    """Side of the training crops, in pixels; of RAW in blocks of 2 x 2 of them, as the target has them."""
    lr: float = 1e-3
    """Learning rate of Adam; falls along a cosine to a fiftieth."""
    seed: int = 0
    """Seeds weights, data and masks."""
    val_crop: int = 128
    """Side of the validation pictures, as that of the crops."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, ..."""
    workers: int = 0
    """Processes that load data."""
    out: Path | None = None
    """Run folder, must be new; runs/<data>-<orm>-<time> when not given."""
    log_every: int = 25
    """Steps between lines of metrics.jsonl."""
    validate_every: int = 100
    """Steps between validations."""
    checkpoint_every: int = 100
    """Steps between checkpoints."""
    resume: Path | None = None
    """Run folder to continue, with its own configuration; other options given here override it."""
    compare: bool = False
    """Also train the bare network from the same weights on the same data, and print the paired gain."""
    config: Path | None = None
    """TOML file of these options; those on the command line win."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "crop", "log_every", "validate_every", "checkpoint_every", "regions"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name.replace('_', '-')} must be >= 1, got {getattr(self, name)}")
        if self.val_crop < 16:
            raise ValueError(f"--val-crop must be >= 16, got {self.val_crop}")
        if not 0 < self.lr < math.inf:
            raise ValueError(f"--lr must be a finite number > 0, got {self.lr}")
        if self.workers < 0:
            raise ValueError(f"--workers must be >= 0, got {self.workers}")
        if self.resume is not None and self.out is not None:
            raise ValueError("--resume continues in its own folder: leave --out away")
        self._check_data()

    @property
    def domain(self) -> Literal["srgb", "raw"]:
        """Domain of brackets and targets, as :class:`DomainTransfer` calls it."""
        return "raw" if self.camera != "srgb" or self.data.startswith("bracketire") else "srgb"

    @property
    def scale(self) -> int:
        """How many times as large as its bracket a target is: 1 or 4."""
        return 4 if self.camera == "raw-x4" or self.data == "bracketire-plus" else 1

    @property
    def peak(self) -> float:
        """Linear value of white."""
        return 16.0 if self.domain == "raw" else 1.0

    def _check_data(self) -> None:
        if self.data == "synthetic" and self.root is not None:
            raise ValueError(
                "--root is a folder of data, which --data synthetic does not read: choose --data hdr-folder or "
                + ", ".join(_PUBLISHED)
            )
        if self.data != "synthetic" and self.root is None:
            raise ValueError(f"--data {self.data} needs --root FOLDER")
        if self.data in _PUBLISHED and self.camera != "srgb":
            raise ValueError(
                f"--camera {self.camera} takes pictures of synthetic or hdr-folder: --data {self.data} has its own"
            )
        if self.metadata and self.domain == "srgb":
            raise ValueError("--metadata is that of RAW data: it goes with --camera raw, raw-x4 or --data bracketire")
        for name in ("crop", "val_crop"):
            if getattr(self, name) % self.scale:
                raise ValueError(
                    f"--{name.replace('_', '-')} must be a multiple of 4, the factor between the sizes of bracket and "
                    f"target, got {getattr(self, name)}"
                )


def read_options(path: str | os.PathLike[str]) -> list[str]:
    """Read a TOML file of options as command-line arguments, so that the command line's own checks apply to it.

    Args:
        path: keys are option names with underscores; values are numbers, strings, booleans or lists of them.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not TOML, or holds a table.

    Example:
        >>> read_options("run/config.toml")  # doctest: +SKIP
        ['--steps', '300', '--no-compare']
    """
    try:
        import tomllib
    except ImportError:  # Python 3.10
        import tomli as tomllib  # type: ignore[no-redef, import-not-found, unused-ignore]
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no configuration file at {path}")
    try:
        options = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a TOML file: {error}") from error
    arguments: list[str] = []
    for key, value in options.items():
        flag = key.replace("_", "-")
        if isinstance(value, dict):
            raise ValueError(f"{path}: {key} is a table, expected a plain option")
        if isinstance(value, bool):
            arguments.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            arguments += [f"--{flag}", *map(str, value if isinstance(value, list) else [value])]
    return arguments


def make_run_folder(config: TrainConfig) -> Path:
    """Create the run's folder, or return the one to resume, and write the options into its ``config.toml``.

    Raises:
        FileExistsError: ``config.out`` exists and is not empty.
        FileNotFoundError: ``config.resume`` does not exist.
    """
    if config.resume is not None:
        if not config.resume.is_dir():
            raise FileNotFoundError(f"--resume: no run folder at {config.resume}")
        _write_options(config.resume / "config.toml", asdict(config))
        return config.resume
    name = f"{config.data}-{config.orm.replace(':', '.')}-{time.strftime('%Y%m%d-%H%M%S')}"
    run = config.out if config.out is not None else Path("runs") / name
    if run.exists() and (not run.is_dir() or any(run.iterdir())):
        way_out = f", or --resume {run}" if (run / "config.toml").is_file() else ""
        raise FileExistsError(f"--out {run} exists and is not empty: choose another{way_out}")
    run.mkdir(parents=True, exist_ok=True)
    _write_options(run / "config.toml", asdict(config))
    return run


def _write_options(path: Path, options: Mapping[str, Any]) -> None:
    skipped = ("config", "resume", "out")  # where a run came from, not what it is
    files = {
        key: Path(value) for key in ("weights", "perceptual") if (value := options.get(key)) and Path(value).is_file()
    }
    kept = {key: value for key, value in {**options, **files}.items() if key not in skipped and value is not None}
    lines = [f"{key} = {_toml(value)}" for key, value in kept.items()]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _toml(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        return repr(value)
    # TOML's strings are JSON's, but for surrogate pairs, which must be characters, and DEL, which must not.
    value = value.resolve() if isinstance(value, Path) else value  # a run may be resumed from elsewhere
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
