"""Evaluate networks on a data set: ``skt evaluate``, readable from top to bottom."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from skt_components import evaluation
from skt_components.data import PUBLISHED, HDRSample, PublishedDataset, find_dataset, show_exposures, write_image
from skt_components.data.progress import progress_bar
from skt_components.evaluation import EvaluatedNetwork, EvaluationResults, Protocol, ReportScene, SceneSections
from skt_components.files import FolderLock, remove_leftovers
from skt_components.files.names import file_names, printable
from skt_components.ops.checks import check_count
from skt_components.simulation import HDRFolder, SyntheticScenes
from skt_components.training.engine import pick_device

if TYPE_CHECKING:  # type checkers take no computed choices
    ProtocolName = str
else:
    ProtocolName = Literal[tuple(evaluation.PROTOCOLS)]


@dataclass(frozen=True, kw_only=True)
class Networks:
    """The network, and one to compare it with."""

    checkpoint: Path | None = None
    """Weights: a file, or a pretrained network such as ahdrnet-small; not needed for a package.module:callable that
    loads its own."""
    orm: str = "saved"
    """"saved": the network named in the file; a name that skt networks lists; or package.module:callable."""
    official: bool = False
    """The weights are a file of the network's authors, whose channels have another order; --orm saved recognizes which
    of the published networks it is for."""
    against: Path | None = None
    """Weights of a second model, a file or a name, to compare on the same pictures."""
    against_orm: str | None = None
    """Network of the second model; the default is --orm."""
    against_official: bool = False
    """Like --official, for the second model."""
    device: str = "auto"
    """auto, cpu, cuda, ..."""


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """The pictures to evaluate on."""

    data: str = "synthetic"
    """synthetic, hdr-folder, a published data set (kalantari, tel, challenge123, hu, bracketire, bracketire-plus), or a
    .toml file that describes a layout of folders."""
    root: Path | None = None
    """Folder of the data; synthetic needs none."""
    crop: int | None = None
    """Side of the pictures from hdr-folder (default: whole pictures) and synthetic (default: 256)."""
    limit: int | None = None
    """Use only the first pictures; the default for synthetic is 8. Other finished pictures are not counted."""

    @property
    def published(self) -> PublishedDataset:
        """The published data set; simulated brackets have the form of Kalantari17's."""
        return find_dataset("kalantari" if self.simulated else self.data)

    @property
    def simulated(self) -> bool:
        """True if the brackets are simulated."""
        return self.data in ("synthetic", "hdr-folder")


@dataclass(frozen=True, kw_only=True)
class Scores:
    """How the scores are computed."""

    protocol: ProtocolName | None = None
    """Everything between a network and its scores; the default depends on --data."""
    tile: int | None = None
    """Side of overlapping, blended tiles, which replace the protocol's inference; for very large pictures."""
    vdp: bool = False
    """Compute HDR-VDP-2 too, with its visibility maps."""


@dataclass(frozen=True, kw_only=True)
class Results:
    """What is written."""

    out: Path
    """Folder of the results; a folder with other results is rejected."""
    save: Literal["hdr", "exr", "none"] = "hdr"
    """Format of the results, linear RGB with white at 1."""
    scenes: int = 12
    """Number of pictures in the report, two to three megabytes each: those with the lowest first score."""


@dataclass(frozen=True, kw_only=True)
class Options(Networks, Pictures, Scores, Results):
    """All options; on the command line they are in four groups."""


def evaluate(
    results: Results, *, networks: Networks = Networks(), pictures: Pictures = Pictures(), scores: Scores = Scores()
) -> int:
    """Score networks on a data set, and write tables, pictures and a report.

    --out gets metrics.json, metrics.csv, report.html and a folder of pictures for each model. Run the same command
    again to continue after an interruption. Exit status 1: at least one picture could not be evaluated.

    Args:
        results: what is written.
        networks: the network, and one to compare it with.
        pictures: the pictures to evaluate on.
        scores: how the scores are computed.
    """
    options = Options(**vars(results), **vars(networks), **vars(pictures), **vars(scores))
    protocol = choose_protocol(options)
    described = replace(protocol, metrics=(*protocol.metrics, "HDR-VDP-2")) if options.vdp else protocol
    data, all_names, source = build_data(options)
    names, stems = all_names[: options.limit], file_names(all_names)
    models = load_networks(options)
    overlapping = f"instead of the protocol's inference: blended tiles of {options.tile}, a quarter shared"
    description = {
        "models": {model.name: model.identity for model in models} | dict.fromkeys(evaluation.BASELINES),
        "data": {"name": options.data, "root": options.root and options.root.resolve().name, "crop": options.crop},
        "protocol": described.as_dict(),
        "tile": options.tile,
        "notes": [described.describe(), *([overlapping] if options.tile else [])],
    }
    options.out.mkdir(parents=True, exist_ok=True)
    with FolderLock(options.out):  # a second process would replace the scores of this one
        remove_leftovers(options.out)
        found = EvaluationResults(options.out, description, source=source, names=names)
        sections = SceneSections(options.out / "sections", options.scenes)
        for index, name in enumerate(progress_bar(names, "pictures", "picture")):
            if name in found.pictures:
                continue
            try:
                scene = evaluate_picture(data[index], name, stems[name], models, protocol, options)
            except Exception as error:  # the other pictures do not depend on this one
                found.fail(name, error)
                continue
            sections.write(scene, found)
            found.add(name, scene.scores, scene.warnings)
        write_reports(found, sections, options)
    return 1 if found.errors else 0


def choose_protocol(options: Options) -> Protocol:
    """Check the options, and return how the scores are computed, without HDR-VDP-2."""
    for name, least in {"crop": 1, "limit": 1, "tile": 1, "scenes": 0}.items():
        if (value := getattr(options, name)) is not None:
            check_count(name, value, least)
    if options.data == "synthetic" and options.root is not None:
        choices = f"hdr-folder or {', '.join(PUBLISHED)}"
        raise ValueError(f"--root is not for --data synthetic, which reads no files: choose --data {choices}")
    usual = "simulated" if options.simulated else options.data
    name = options.protocol or (usual if usual in evaluation.PROTOCOLS else "kalantari")
    protocol, domain = evaluation.PROTOCOLS[name], options.published.layout.domain
    if protocol.domain != domain:
        raise ValueError(f"--protocol {name} needs {protocol.domain} pictures, but --data {options.data} has {domain}")
    return replace(protocol, tile=None) if options.tile else protocol


def build_data(options: Options) -> tuple[Any, list[str], Callable[[str], str | None] | None]:
    """Return the data set, the names of all its pictures, and a function that identifies the files of a picture."""
    if options.data == "synthetic":
        data: Any = SyntheticScenes(options.limit or 8, options.crop or 256, split="val")
        return data, [f"synthetic-val-{index}" for index in range(len(data))], None
    if options.root is None:
        raise ValueError(f"--data {options.data} needs --root, the folder where it is")
    if options.data == "hdr-folder":
        count = None if options.crop is None else options.limit
        data = HDRFolder(options.root, crop=options.crop, split="val", val_fraction=1.0, samples_per_epoch=count)
        files = {path.relative_to(options.root).as_posix(): [path] for path in data.files}
        views = [divmod(index, len(files)) for index in range(len(data))]
        names = [list(files)[file] + (f"-{view}" if options.crop else "") for view, file in views]
    else:
        border = {"border": 0} if options.published.layout.domain == "raw" else {}  # the protocol removes it
        data = options.published(options.root, "test", **border)
        folders = [sorted(f.glob("*.npy")) if data.is_prepared else data.layout.files(f).paths for f in data.folders]
        names, files = data.scenes, dict(zip(data.scenes, folders, strict=True))
    return data, names, partial(evaluation.picture_source, files)


def load_networks(options: Options) -> list[EvaluatedNetwork]:
    """Return the network, and the one to compare it with."""
    asked = [(options.checkpoint, options.orm, options.official)]
    if options.against is not None:
        asked.append((options.against, options.against_orm or options.orm, options.against_official))
    device, form = pick_device(options.device), options.published.layout
    return evaluation.load_networks(asked, domain=form.domain, scale=form.scale, tile=options.tile, device=device)


def evaluate_picture(
    sample: HDRSample, name: str, stem: str, networks: list[EvaluatedNetwork], protocol: Protocol, options: Options
) -> ReportScene:
    """Score every network and the baselines on one bracket; return the scores, and the pictures for the report.

    The results of the networks are written to files named ``stem``.
    """
    metadata = {key: value[None] for key, value in sample.metadata.items()}
    scores: dict[str, dict[str, float]] = {}
    pictures, visibility, warnings = {}, {}, []
    predictions = {model.name: model.reconstruct(sample.bracket[None], protocol) for model in networks}
    predictions |= evaluation.baseline_predictions(sample, protocol, scale=options.published.layout.scale)
    for title, prediction in predictions.items():
        found = protocol.score(prediction, sample.target[None], metadata)
        scores[title] = {metric: float(value) for metric, value in found.items()}
        linear, target = protocol.compared(prediction, sample.target[None], metadata)
        if options.vdp:
            vdp = protocol.hdr_vdp2(linear.to(networks[0].device), target.to(networks[0].device))
            scores[title]["HDR-VDP-2"], visibility[title] = float(vdp.Q), vdp.P_map[0]
        pictures[title] = linear[0]
        if title in evaluation.BASELINES:
            continue
        usual = {"bounded": not options.simulated, "low_light": protocol.domain == "raw"}
        odd = evaluation.find_suspicious(linear[0], target[0], **usual)
        warnings += [f"{title}: {line}" if line.startswith("the prediction") else line for line in odd]
        if options.save != "none":
            file = options.out / title / f"{stem}.{options.save}"
            file.parent.mkdir(exist_ok=True)
            write_image(file, linear[0].clamp(min=0).float(), overwrite=True)
    times = (f"exposure {i}, t = {time:g}" for i, time in enumerate(sample.exposure_times.tolist(), 1))
    exposures = dict(zip(times, show_exposures(sample), strict=True))
    return ReportScene(name, exposures, pictures, target[0], scores, visibility, list(dict.fromkeys(warnings)))


def write_reports(results: EvaluationResults, sections: SceneSections, options: Options) -> None:
    """Write metrics.csv and report.html, and print the table."""
    results.save_csv()
    names = [name for name in results.description["models"] if name not in evaluation.BASELINES]
    title, notes = f"{' against '.join(names)} on {options.data}", results.description["notes"]
    evaluation.save_report(options.out / "report.html", results, sections.read(results), title=title, notes=notes)
    table, count = evaluation.format_summary(results.summary()), len(results.pictures)
    print(printable("\n".join([table, *notes, f"{count} picture{'s' * (count != 1)} -> {options.out}"])))
    for problem in results.problems():
        print(problem, file=sys.stderr)
