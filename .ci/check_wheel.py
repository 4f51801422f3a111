"""Check the installed package, outside a checkout: import, loss, pretrained networks, every command.

Usage: ENVIRONMENT/bin/python check_wheel.py, in an empty folder
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import cv2
import torch

import skt_components as skt
from skt_components import commands
from skt_components.models import pretrained_names

SKT = Path(sys.executable).with_name("skt")


def run(*arguments: object) -> str:
    """Run the installed command, which must succeed; return what it prints."""
    done = subprocess.run([SKT, *map(str, arguments)], stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout


def main() -> None:
    """Check everything; raise at the first failure."""
    assert Path(skt.__file__).is_relative_to(sys.prefix), skt.__file__
    student, teacher = torch.rand(2, 1, 3, 32, 32).requires_grad_().unbind(0)
    skt.SemanticHistogramLoss()(student, teacher, labels=torch.ones(1, 32, 32).long(), num_regions=2).backward()
    sample = skt.SyntheticScenes(1, 64)[0]
    raw = skt.SyntheticScenes(1, 32, camera=skt.RawCamera())[0]
    for name in pretrained_names():
        network = skt.load_pretrained(name)
        hdr = network((raw if network.in_channels == 4 else sample).bracket[None])
        assert hdr.isfinite().all(), name
    shown = run("networks")
    assert all(name in shown for name in pretrained_names()), shown

    names = [name for group in commands.COMMANDS.values() for name in group]
    assert all(f"  {name} " in run("--help") for name in names)
    for name in names:
        try:
            status: object = commands.main([*name.split(), "--help"])
        except SystemExit as end:
            status = end.code or 0
        assert status == 0, name

    pictures = [f"{index}.png" for index in range(3)]
    for picture, exposure in zip(pictures, sample.bracket[:, 3:], strict=True):
        cv2.imwrite(picture, (exposure.flip(0).permute(1, 2, 0) * 255).round().byte().numpy())
    written = run("reconstruct", *pictures, "--times", "1/60", "1/15", "1/4", "--out", "scene.hdr").split()
    assert all(Path(file).stat().st_size for file in written), written
    assert skt.read_image("scene.hdr").shape == (3, 64, 64)

    run("train", "--eject", "my_train.py")
    run("train", "--dry-run")
    print(f"the wheel of skt_components {skt.__version__} works with torch {torch.__version__}, {len(names)} commands")


if __name__ == "__main__":
    main()
