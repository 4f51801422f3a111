"""Evaluate HDR networks on a data set: the whole evaluation, readable from top to bottom.

python examples/evaluate.py --checkpoint runs/X/orm.safetensors --data hdr-folder --root PHOTOS --out results
python examples/evaluate.py --checkpoint SCTNet.pth --orm sctnet --official --data tel --root SCT --out results
python examples/evaluate.py --checkpoint ours.safetensors --against bare.safetensors --vdp --out results
python examples/evaluate.py --orm my_package.nets:MyNet --data kalantari --root SIG17 --tile 512 --out results

In --out: metrics.json, metrics.csv, report.html and a folder of pictures for each model. The same command again goes on
where the last one stopped. Exit status 1: at least one picture could not be evaluated.
"""

from __future__ import annotations

import hashlib
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
import tyro
from torch import Tensor, nn
from tqdm import tqdm

import skt_components as skt
from skt_components.evaluation.html_report import ReportScene, render_scene, save_report, scene_anchor
from skt_components.evaluation.protocols import Protocol
from skt_components.evaluation.results import EvaluationResults, find_suspicious
from skt_components.evaluation.tiling import tiled_inference
from skt_components.files.digest import file_digest
from skt_components.metrics.hdrvdp2 import hdr_vdp2
from skt_components.metrics.psnr import crop_sides

NETWORKS: dict[str, type[Any]] = {
    "ahdrnet": skt.AHDRNet,
    "hdr-transformer": skt.HDRTransformer,
    "sctnet": skt.SCTNet,
    "tmrnet": skt.TMRNet,
    "tmrnet-plus": skt.TMRNetPlus,
}
PROTOCOLS: dict[str, Protocol] = {
    "kalantari": Protocol.kalantari(),
    "tel": Protocol.tel(),
    "matlab": Protocol.matlab(),
    "bracketire": Protocol.bracketire(),
    "bracketire-plus": Protocol.bracketire_plus(),
    "ntire2024": Protocol.ntire2024(),
    "simulated": Protocol("Simulated brackets", ssim_clip=True),
}
SIMULATED = ("hdr-folder", "synthetic")
Data: TypeAlias = "skt.SyntheticScenes | skt.HDRFolder | skt.Kalantari17 | skt.BracketIRE"
Source: TypeAlias = Callable[[str], "str | None"]


@dataclass(frozen=True)
class Options:
    """What to evaluate, on what, and how."""

    out: Path
    """Folder of the results; one that holds others is refused."""
    checkpoint: Path | None = None
    """Weights; not needed for a package.module:callable that loads its own."""
    orm: str = "saved"
    """"saved": what the file of save_weights says; ahdrnet, hdr-transformer, sctnet, tmrnet, tmrnet-plus; or
    package.module:callable."""
    official: bool = False
    """The weights are those of the network's authors, whose channels have another order."""
    against: Path | None = None
    """A second model's weights, to compare with on the same pictures."""
    against_orm: str | None = None
    """Its network; as --orm where not given."""
    against_official: bool = False
    """As --official, for the second model."""
    data: Literal["kalantari", "tel", "bracketire", "bracketire-plus", "hdr-folder", "synthetic"] = "synthetic"
    root: Path | None = None
    """Folder of the data; for synthetic none."""
    protocol: str | None = None
    """kalantari, tel, matlab, bracketire, bracketire-plus, ntire2024 or simulated; the data set's where not given."""
    crop: int | None = None
    """Side of the pictures from hdr-folder and synthetic; 256 for synthetic, whole ones for hdr-folder."""
    limit: int | None = None
    """Only the first pictures; 8 for synthetic. Others that are finished are not counted."""
    tile: int | None = None
    """Overlapping, blended tiles of this side instead of what the protocol does; for pictures too large."""
    vdp: bool = False
    """HDR-VDP-2 too, with its visibility maps."""
    save: Literal["hdr", "exr", "none"] = "hdr"
    """Format of the results, linear RGB with white at 1."""
    scenes: int = 12
    """Pictures that the report shows, two to three megabytes each: those with the lowest first number."""
    device: str = "auto"


class Model(NamedTuple):
    """A network, how to call it, and what tells it from others."""

    name: str
    network: nn.Module
    forward: Callable[[nn.Module, Tensor], Tensor]
    identity: dict[str, Any]


def check_options(options: Options) -> None:
    """Raise ValueError for numbers out of range, and for a folder that would not be read."""
    for name, least in {"crop": 1, "limit": 1, "tile": 1, "scenes": 0}.items():
        value = getattr(options, name)
        if value is not None and value < least:
            raise ValueError(f"--{name} must be a whole number >= {least}, got {value}")
    if options.data == "synthetic" and options.root is not None:
        raise ValueError(
            "--root is a folder of data, which --data synthetic does not read: choose --data hdr-folder or "
            "kalantari, tel, bracketire, bracketire-plus"
        )


def choose_protocol(options: Options) -> Protocol:
    """Return how the numbers are made."""
    name = options.protocol or ("simulated" if options.data in SIMULATED else options.data)
    if name not in PROTOCOLS:
        raise ValueError(f"--protocol must be one of {', '.join(PROTOCOLS)}, got {name!r}")
    protocol = PROTOCOLS[name]
    domain = "raw" if options.data.startswith("bracketire") else "srgb"
    if protocol.domain != domain:
        raise ValueError(f"--protocol {name} is for {protocol.domain} pictures, those of {options.data} are {domain}")
    metrics = (*protocol.metrics, *(["HDR-VDP-2"] if options.vdp and "HDR-VDP-2" not in protocol.metrics else []))
    return replace(protocol, metrics=metrics, tile=None if options.tile else protocol.tile)


def build_data(options: Options) -> tuple[Data, list[str], Source | None]:
    """Return the pictures, their names, which are known before the files are read, and what tells their files apart."""
    if options.data == "synthetic":
        data: Data = skt.SyntheticScenes(options.limit or 8, options.crop or 256, split="val")
        return data, [f"synthetic-val-{index}" for index in range(len(data))], None
    if options.root is None:
        raise ValueError(f"--data {options.data} needs --root, the folder where it is")
    if options.data == "hdr-folder":
        count = None if options.crop is None else options.limit
        data = skt.HDRFolder(options.root, crop=options.crop, split="val", val_fraction=1.0, samples_per_epoch=count)
        photos = {path.relative_to(options.root).as_posix(): [path] for path in data.files}
        views = [divmod(index, len(photos)) for index in range(len(data))]
        names = [list(photos)[file] + (f"-{view}" if options.crop else "") for view, file in views]
        return data, names[: options.limit], partial(picture_source, photos, bool(options.crop))
    if options.data.startswith("bracketire"):
        scale = 4 if options.data == "bracketire-plus" else 1
        data = skt.BracketIRE(options.root, "test", scale=scale, border=0)  # borders are the protocol's business
    else:
        data = (skt.Tel23 if options.data == "tel" else skt.Kalantari17)(options.root, "test")
    files = [sorted(f.glob("*.npy")) if data.is_prepared else data.layout.files(f) for f in data.folders]
    scenes = dict(zip(data.scenes, files, strict=True))
    return data, data.scenes[: options.limit], partial(picture_source, scenes, False)


def picture_source(files: Mapping[str, Sequence[Path]], viewed: bool, name: str) -> str | None:
    """Return size and digest of a picture's files: of their names, sizes and middles, for raw files are of one size."""
    found, total, digest = files.get(name.rpartition("-")[0] if viewed else name), 0, hashlib.sha256()
    if found is None:
        return None
    for path in found:
        size = path.stat().st_size if path.is_file() else 0
        digest.update(f"{path.name} {size} ".encode())
        total += size
        if size:
            with path.open("rb") as file:
                file.seek(size // 2)
                digest.update(file.read(4096))
    return f"{total} bytes {digest.hexdigest()[:16]}"


def load_model(name: str, checkpoint: Path | None, orm: str, official: bool, data: str) -> Model:
    """Make a network with its weights: ours, its authors', or a stranger's."""
    bracket: dict[str, Any] = {}
    if data.startswith("bracketire"):
        bracket = {"num_frames": 5, "in_channels": 4, "out_channels": 4, "reference": 0, "peak": 16.0}
        if data == "bracketire-plus" and not orm.startswith("tmrnet"):
            bracket["scale"] = 4
    if checkpoint is None and (orm in NETWORKS or orm == "saved"):
        raise ValueError(f"--orm {orm} needs --checkpoint, its weights")
    identity = {"orm": orm, "official": official, "checkpoint": None if checkpoint is None else checkpoint.name}
    identity["sha256"] = None if checkpoint is None else file_digest(checkpoint)
    forward: Callable[[nn.Module, Tensor], Tensor] = lambda network, tiles: network(tiles)  # noqa: E731
    if official:
        if orm not in NETWORKS:
            raise ValueError(f"--official needs --orm, one of {', '.join(NETWORKS)}, got {orm!r}")
        network: nn.Module = NETWORKS[orm].from_official(checkpoint, **bracket)
    elif orm == "saved":
        assert checkpoint is not None
        network = skt.load_model(checkpoint)
    else:
        network, forward = skt.models.load_network(orm, NETWORKS, **bracket)
        if checkpoint is not None:
            skt.load_weights(checkpoint, network)
    if checkpoint is None:  # a change of its code cannot be known
        identity |= {"network": type(network).__name__, "sha256": state_digest(network)}
    if ":" not in orm:  # a stranger's may call ours with what it likes
        check_network(network, name, data)
    return Model(name, network.eval(), forward, identity)


def state_digest(network: nn.Module) -> str:
    """Return the SHA-256 of a network's weights, by name."""
    digest = hashlib.sha256()
    for name, tensor in network.state_dict().items():
        if isinstance(tensor, Tensor):  # not what get_extra_state returns
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def check_network(network: nn.Module, name: str, data: str) -> None:
    """Raise ValueError for one of ours that was made for other brackets, as no picture could be evaluated."""
    if not isinstance(network, skt.models.ReconstructionNetwork):
        return
    plus = isinstance(network, skt.TMRNetPlus) or network.config.get("scale") == 4
    made = (network.num_frames, network.in_channels, 4 if plus else 1)
    wanted = (5, 4, 4 if data == "bracketire-plus" else 1) if data.startswith("bracketire") else (3, 6, 1)
    if made != wanted:
        ours, theirs = ("{} exposures of {} channels, scale {}".format(*numbers) for numbers in (made, wanted))
        raise ValueError(f"the network of {name} is for {ours}; those of --data {data} are {theirs}")


def load_models(options: Options, device: torch.device) -> list[Model]:
    """Return the model, and the one to compare it with; they are called as their files, numbered if alike.

    Raises ValueError for tiles that one of them cannot take.
    """
    asked = [(options.checkpoint, options.orm, options.official)]
    if options.against is not None:
        asked.append((options.against, options.against_orm or options.orm, options.against_official))
    names = [orm.rpartition(":")[2] if file is None else file.stem for file, orm, _ in asked]
    if len(set(names)) < len(names):
        names = [f"{name}-{number}" for number, name in enumerate(names, 1)]
    models = [load_model(name, *model, options.data) for name, model in zip(names, asked, strict=True)]
    for model in models:
        multiple, tile = size_multiple(model), options.tile
        least = multiple if multiple < 4 else 2 * multiple  # a quarter is shared
        if tile is not None and (tile % multiple or tile < least):
            raise ValueError(f"--tile must be a multiple of {multiple} >= {least} for {model.name}, got {tile}")
        model.network.to(device)
    return models


def size_multiple(model: Model) -> int:
    """Return what the sides of the network's tiles have to be multiples of."""
    return max(getattr(model.network, "size_multiple", 1), 1)


def reconstruct(model: Model, bracket: Tensor, protocol: Protocol, tile: int | None, device: torch.device) -> Tensor:
    """Run a network as the protocol says, or on overlapping tiles."""

    def run(tiles: Tensor) -> Tensor:
        return model.forward(model.network, tiles.to(device)).float()

    if tile is None:
        return protocol.infer(run, bracket)
    options: dict[str, Any] = {"tile": tile, "overlap": tile // 4, "size_multiple": size_multiple(model)}
    return protocol.infer(partial(tiled_inference, run, progress=False, **options), bracket)


def compared(protocol: Protocol, prediction: Tensor, target: Tensor, metadata: Mapping[str, Tensor]) -> list[Tensor]:
    """Return prediction and target as linear RGB with white at 1, cropped as the protocol compares them."""
    shown = [protocol.render(picture, metadata) for picture in (prediction, target)]
    wanted = crop_sides(shown[1], protocol.crop)
    return [shown[0] if shown[0].shape == wanted.shape else crop_sides(shown[0], protocol.crop), wanted]


def evaluate_picture(
    sample: skt.HDRSample, name: str, models: list[Model], protocol: Protocol, options: Options, device: torch.device
) -> ReportScene:
    """Run every model on one bracket; return its numbers, and the pictures for the report."""
    metadata = {key: value[None] for key, value in sample.metadata.items()}
    target, quick = (
        sample.target[None],
        replace(protocol, metrics=tuple(m for m in protocol.metrics if m != "HDR-VDP-2")),
    )
    scores: dict[str, dict[str, float]] = {}
    pictures, visibility, warnings = {}, {}, []
    for model in models:
        prediction = reconstruct(model, sample.bracket[None], protocol, options.tile, device)
        if bad := prediction.numel() - int(prediction.isfinite().sum()):
            raise ValueError(f"{model.name}: {bad} of {prediction.numel()} predicted values are infinite or NaN")
        found = {metric: float(value) for metric, value in quick.score(prediction, target, metadata).items()}
        linear, wanted = compared(protocol, prediction, target, metadata)
        if options.vdp:
            settings = {"color_encoding": protocol.vdp_encoding, "pixels_per_degree": protocol.vdp_pixels_per_degree}
            seen = hdr_vdp2(linear.to(device), wanted.to(device), **settings)  # type: ignore[arg-type]
            found["HDR-VDP-2"], visibility[model.name] = float(seen.Q), seen.P_map[0]
        scores[model.name], pictures[model.name] = found, linear[0]
        usual = {"bounded": options.data not in SIMULATED, "low_light": protocol.domain == "raw"}
        odd = find_suspicious(linear[0], wanted[0], **usual)
        warnings += [f"{model.name}: {line}" if line.startswith("the prediction") else line for line in odd]
        if options.save != "none":
            file = options.out / model.name / f"{name.replace('/', '-')}.{options.save}"
            file.parent.mkdir(exist_ok=True)
            skt.write_image(file, linear[0].clamp(min=0).float(), overwrite=True)
    times = (f"exposure {i}, t = {time:g}" for i, time in enumerate(sample.exposure_times.tolist(), 1))
    exposures = dict(zip(times, skt.data.show_exposures(sample), strict=True))
    return ReportScene(name, exposures, pictures, wanted[0], scores, visibility, list(dict.fromkeys(warnings)))


def keep_worst(results: EvaluationResults, sections: Path, count: int) -> dict[str, str]:
    """Delete the sections of all pictures that count but the worst, and return the sections of these."""
    model, metric = results.columns()[0]
    worst = sorted(results.pictures, key=lambda name: results.pictures[name][model][metric])[:count]
    files = {name: sections / f"{scene_anchor(name)}.html" for name in results.pictures}
    for name in files.keys() - set(worst):
        files[name].unlink(missing_ok=True)
    return {name: file.read_text(encoding="utf-8") for name, file in files.items() if file.is_file()}


def write_reports(results: EvaluationResults, sections: Path, options: Options, notes: list[str]) -> None:
    """Write metrics.csv and report.html, and print the table."""
    results.save_csv()
    shown = keep_worst(results, sections, options.scenes) if results.pictures else {}
    title = f"{' against '.join(results.description['models'])} on {options.data}"
    save_report(options.out / "report.html", results, shown, title=title, notes=notes)
    rows: dict[str, dict[str, float]] = {}
    for model, row in results.summary().items():
        rows[model] = {metric: value.mean for metric, value in row.items()}
        known = {metric: value for metric, value in row.items() if not math.isnan(value.low)}  # a dash for the others
        rows[f"{model}, 95% low"] = {metric: value.low for metric, value in known.items()}
        rows[f"{model}, 95% high"] = {metric: value.high for metric, value in known.items()}
    print(skt.evaluation.format_table(rows), *notes, f"{len(results.pictures)} pictures -> {options.out}", sep="\n")
    for name, lines in results.warnings.items():
        print(*(f"warning, {name}: {line}" for line in lines), sep="\n", file=sys.stderr)
    for name, why in results.errors.items():
        print(f"not evaluated, {name}: {why}", file=sys.stderr)


def main(arguments: list[str]) -> int:
    """Evaluate picture by picture, keeping each; return the exit status."""
    options = tyro.cli(Options, args=arguments, description=__doc__)
    check_options(options)
    device, protocol = skt.training.pick_device(options.device), choose_protocol(options)
    data, names, source = build_data(options)
    models = load_models(options, device)
    overlapping = f"instead of the protocol's inference: blended tiles of {options.tile}, a quarter shared"
    notes = [protocol.describe(), *([overlapping] if options.tile else [])]
    description = {
        "models": {model.name: model.identity for model in models},
        "data": {"name": options.data, "root": options.root and options.root.resolve().name, "crop": options.crop},
        "protocol": protocol.as_dict(),
        "tile": options.tile,
        "notes": notes,
    }
    results = EvaluationResults(options.out, description, source=source, names=names)
    sections = options.out / "sections"  # of the report, so that a run that goes on has those of finished pictures
    sections.mkdir(exist_ok=True)
    for index, name in enumerate(tqdm(names, "pictures", disable=None)):
        if name in results.pictures:
            continue
        try:
            scene = evaluate_picture(data[index], name, models, protocol, options, device)
        except Exception as error:  # of this picture, whatever a network raises; the others can do without it
            results.fail(name, error)
            continue
        if options.scenes > 0:
            (sections / f"{scene_anchor(name)}.html").write_text(render_scene(scene), encoding="utf-8")
        results.add(name, scene.scores, scene.warnings)
        keep_worst(results, sections, options.scenes)
    write_reports(results, sections, options, notes)
    return 1 if results.errors else 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except (OSError, ValueError, ImportError) as error:
        sys.exit(f"evaluate.py: {error}")
    except KeyboardInterrupt:
        print("evaluate.py: interrupted; the same command goes on", file=sys.stderr)
        sys.exit(130)
