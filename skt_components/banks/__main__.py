"""Convert FastSAM's published weights to safetensors.

Example: python -m skt_components.banks convert FastSAM-s.pt FastSAM-s.safetensors
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from skt_components.banks.fastsam_weights import LICENSE_NOTE, convert_checkpoint


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status, 1 if the conversion failed.

    Args:
        arguments: the arguments without the program's name; default: ``sys.argv``.
    """
    parser = argparse.ArgumentParser(prog="python -m skt_components.banks", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    convert = commands.add_parser("convert", help="pickled checkpoint to safetensors, without running code in it")
    convert.add_argument(
        "src", metavar="SRC", help="checkpoint of FastSAM or another YOLOv8 or YOLO11 segmentation network"
    )
    convert.add_argument("dst", metavar="DST", help="the .safetensors file to write")
    convert.add_argument("--overwrite", action="store_true", help="replace DST if it exists")
    options = parser.parse_args(arguments)
    try:
        written = convert_checkpoint(options.src, options.dst, overwrite=options.overwrite)
    except (OSError, ValueError, ImportError) as error:
        print("error: " + " ".join(str(error).split()), file=sys.stderr)
        return 1
    print(f"wrote {written} ({written.stat().st_size / 1e6:.2f} MB). {LICENSE_NOTE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
