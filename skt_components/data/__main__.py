"""Check, prepare, preview and simulate data sets.

Examples:
  python -m skt_components.data verify kalantari SIG17
  python -m skt_components.data verify hdr-folder PHOTOS --crop 256
  python -m skt_components.data verify my-lab.toml PHOTOS
  python -m skt_components.data prepare kalantari SIG17 SIG17-PREPARED
  python -m skt_components.data preview bracketire BRACKETIRE preview.png
  python -m skt_components.data simulate bracketire SIMULATED --photos PHOTOS
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from skt_components.data.dataset import SampleDataset
from skt_components.data.prepare import prepare
from skt_components.data.preview import save_contact_sheet
from skt_components.data.registry import PUBLISHED, find_dataset
from skt_components.data.scene_layout import SPLITS
from skt_components.data.verify import verify
from skt_components.files.names import printable
from skt_components.simulation.camera import Camera, RawCamera
from skt_components.simulation.export import LAYOUTS, simulate_dataset
from skt_components.simulation.hdr_folder import HDRFolder, verify_hdr_folder
from skt_components.simulation.sequences import HDRSequences
from skt_components.simulation.synthetic import SyntheticScenes

_FOLDER = "hdr-folder"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status: 1 after an error or if verify found problems.

    Args:
        arguments: without the program's name; None: the arguments of the process.
    """
    options = _parser().parse_args(arguments)
    try:
        return options.run(options)
    except (OSError, ValueError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped" + options.resumes * "; the same command goes on where it was", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("python -m skt_components.data", description=__doc__, formatter_class=form)
    commands = parser.add_subparsers(required=True)

    def command(
        name: str, run: Callable[[argparse.Namespace], int], text: str, resumes: bool = False, others: Any = ()
    ) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text)
        added.set_defaults(run=run, resumes=resumes)
        layouts = f"{', '.join([*PUBLISHED, *others])}, or a .toml file that describes a layout"
        added.add_argument("dataset", help=layouts if run != _simulate else ", ".join(LAYOUTS))
        return added

    reading = "read every file once; list by path what is missing or broken"
    checking = command("verify", _verify, reading, others=[_FOLDER])
    checking.add_argument("root", type=Path, help="folder of the data set, as published or as prepared")
    checking.add_argument("--crop", type=int, help=f"side of the crops to come, which pictures of {_FOLDER} must hold")
    preparing = command(
        "prepare", _prepare, "store uncompressed in strips, from which random crops are fast", resumes=True
    )
    preparing.add_argument("root", type=Path, help="folder of the data set as published")
    preparing.add_argument("out", type=Path, help="folder to write; an earlier run goes on")
    preparing.add_argument("--half", action="store_true", help="labels as float16 even where digits are lost")
    looking = command("preview", _preview, "draw exposures and targets of some scenes")
    looking.add_argument("root", type=Path, help="folder of the data set, as published or as prepared")
    looking.add_argument("picture", type=Path, help="picture to write")
    looking.add_argument("--split", choices=("train", "test"), default="train")
    looking.add_argument("--scenes", type=int, default=4, help="how many, evenly from the list (default 4)")
    looking.add_argument("--crop", type=int, help="side of random crops instead of whole scenes")
    looking.add_argument("--overwrite", action="store_true", help="replace the picture if it exists")
    simulating = command(
        "simulate", _simulate, "write brackets of your HDR photographs, or of procedural scenes", resumes=True
    )
    simulating.add_argument("out", type=Path, help="folder to write; an earlier run goes on")
    simulating.add_argument("--photos", type=Path, help=".hdr and .exr pictures; without it procedural scenes")
    simulating.add_argument("--sequences", type=Path, help="folders of .exr frames, one a sequence, instead of photos")
    simulating.add_argument("--train", type=int, default=16, help="training scenes (default 16)")
    simulating.add_argument("--test", type=int, default=4, help="test scenes (default 4)")
    simulating.add_argument("--height", type=int, default=256, help="of the targets, packed for RAW (default 256)")
    simulating.add_argument("--width", type=int, default=384, help="of the targets, packed for RAW (default 384)")
    simulating.add_argument("--seed", type=int, default=0)
    return parser


def _verify(options: argparse.Namespace) -> int:
    if options.dataset == _FOLDER:
        found = verify_hdr_folder(options.root, crop=options.crop)
    elif options.crop is not None:
        raise ValueError(f"--crop is for {_FOLDER}, got it with {options.dataset}")
    else:
        found = verify(options.dataset, options.root)
    print(printable(str(found)))
    return 1 if found.problems else 0


def _prepare(options: argparse.Namespace) -> int:
    out = prepare(options.dataset, options.root, options.out, half=options.half)
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    print(printable(f"{out}: {size / 1e9:.2f} GB; give it as root in place of {options.root}"))
    return 0


def _preview(options: argparse.Namespace) -> int:
    if options.picture.exists() and not options.overwrite:
        raise FileExistsError(f"{options.picture} exists; --overwrite replaces it")
    data = find_dataset(options.dataset)(options.root, options.split, options.crop)
    if options.scenes < 1:
        raise ValueError(f"--scenes must be >= 1, got {options.scenes}")
    count = min(options.scenes, len(data))
    samples = [data[i * len(data) // count] for i in range(count)]
    save_contact_sheet(options.picture, samples, overwrite=True)
    print(printable(f"wrote {options.picture}: {', '.join(sample.name for sample in samples)}"))
    return 0


def _simulate(options: argparse.Namespace) -> int:
    if options.sequences is not None and options.photos is not None:
        raise ValueError("--photos and --sequences exclude each other")
    scale = 4 if options.dataset == "bracketire-plus" else 1
    camera = RawCamera(scale=scale) if options.dataset.startswith("bracketire") else Camera(bits=16)
    size, shared = (options.height, options.width), {"camera": camera, "seed": options.seed}
    train: SampleDataset
    test: SampleDataset
    if options.sequences is not None:
        sequences = partial(HDRSequences, options.sequences, crop=size, val_fraction=0.2, **shared)
        train = sequences(samples_per_epoch=options.train)
        test = sequences(samples_per_epoch=options.test, split="val")
    elif options.photos is None:
        train = SyntheticScenes(options.train, size, **shared)
        test = SyntheticScenes(options.test, size, split="val", **shared)
    else:
        photos = partial(HDRFolder, options.photos, crop=size, val_fraction=0.2, **shared)  # split by photograph
        train = photos(samples_per_epoch=options.train)
        test = photos(samples_per_epoch=options.test, split="val")
    simulate_dataset(options.dataset, options.out, train, test)
    layout = PUBLISHED[options.dataset].layout
    held = [f"{len(layout.list_scenes(options.out, split))} {split}" for split in SPLITS]
    print(printable(f"{options.out} holds {' and '.join(held)} scenes in the layout of {options.dataset}"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
