"""
An HDR picture from three exposures
===================================

This page reconstructs an HDR picture from the files of a camera, with a pretrained network of the package.
"""

import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

from skt_components import Camera, SyntheticScenes, load_pretrained, psnr_mu, tone_map, write_image
from skt_components.evaluation import baseline_pictures
from skt_components.reconstruct import read_exposure, reconstruct

# %%
# Three files
# -----------
#
# Usually a camera writes these files. Here they are simulated, so that the ground truth is known. They are three 8-bit
# PNG files of a scene with moving objects, two stops apart.

sample = SyntheticScenes(6, (192, 256), split="val", camera=Camera((1.0, 4.0, 16.0)))[3]
folder = Path(tempfile.mkdtemp())
files = [folder / f"{name}.png" for name in ("dark", "middle", "bright")]
for file, exposure in zip(files, sample.bracket, strict=True):
    values = (255 * exposure[3:]).round().byte()  # gamma-coded
    Image.fromarray(np.ascontiguousarray(values.permute(1, 2, 0).numpy())).save(file)

# %%
# Read and reconstruct
# --------------------
#
# ``read_exposure`` reads the exposure time, the ISO value and the f-number from the file of a camera. These simulated
# files have no such data, so the times are given here. The command line does the same:
#
# .. code-block:: bash
#
#    skt reconstruct dark.png middle.png bright.png \\
#        --times 1 4 16 --transfer gamma2.2 --out scene.hdr

exposures = [read_exposure(file, transfer="gamma2.2") for file in files]
hdr = reconstruct(
    load_pretrained("ahdrnet-small"),
    [exposure.linear for exposure in exposures],
    [1.0, 4.0, 16.0],
    transfer="linear",
    progress=False,
)
write_image(folder / "scene.hdr", hdr)

# %%
# Comparison with methods without training
# ----------------------------------------

pictures = {
    name: picture[0] for name, picture in baseline_pictures(sample.bracket[None], sample.exposure_times).items()
}
pictures |= {"ahdrnet-small": hdr}
for name, picture in pictures.items():
    print(f"{name:20s} {psnr_mu(picture[None], sample.target[None]).item():5.2f} dB PSNR-mu")

_, axes = plt.subplots(2, 4, figsize=(14, 5.6), layout="constrained")
shown = {f"{file.stem} exposure": plt.imread(file) for file in files} | {
    "target": tone_map(sample.target[None])[0].permute(1, 2, 0)
}
shown |= {name: tone_map(picture[None].clamp(min=0))[0].permute(1, 2, 0) for name, picture in pictures.items()}
for axis in axes.flat:
    axis.axis("off")
for axis, (name, picture) in zip(axes.flat, shown.items(), strict=False):
    axis.imshow(picture)
    axis.set_title(name)
