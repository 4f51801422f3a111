"""
A RAW bracket, from simulation to picture
=========================================

This page simulates five RAW exposures of a moving scene, draws them, and makes HDR pictures from them.
"""

import matplotlib.pyplot as plt
import torch

from skt_components import RawCamera, SyntheticScenes, psnr_mu, tone_map
from skt_components.evaluation import baseline_pictures
from skt_components.models import load_pretrained, pretrained_names
from skt_components.ops import render_raw

# %%
# The camera
# ----------
#
# The exposures go from dark to bright. Each is four times as long as the one before. The dark exposures are noisy. The
# long exposures are blurred by the motion of camera and objects. The sensor has one color filter per pixel. So a
# picture is stored as four channels (red, green, green, blue) of half the size.

camera = RawCamera()
sample = SyntheticScenes(4, 96, split="val", camera=camera)[1]
print("bracket", tuple(sample.bracket.shape), "target", tuple(sample.target.shape))
metadata = sample.metadata  # white balance and color matrix of the camera, to draw its pictures
print("exposure times", [round(time, 3) for time in sample.exposure_times.tolist()])


def show(pictures, columns):
    """Draw RAW pictures (4, H, W): demosaiced, in the colors of the screen, tone-mapped."""
    _, axes = plt.subplots(1, columns, figsize=(3 * columns, 3.2), layout="constrained")
    for axis, (name, raw) in zip(axes, pictures.items(), strict=True):
        axis.imshow(tone_map(render_raw(raw[None].clamp(min=0), **metadata))[0].permute(1, 2, 0))
        axis.set_title(name)
        axis.axis("off")


exposures = {f"exposure {index + 1}": raw for index, raw in enumerate(sample.bracket)}
show(exposures, 5)

# %%
# From five exposures to one picture
# ----------------------------------
#
# This figure shows the reference exposure as it is, a classical merge of all five exposures, networks for RAW, and the
# target.

pictures = baseline_pictures(sample.bracket[None], sample.exposure_times)
for name in pretrained_names():
    network = load_pretrained(name)
    if network.in_channels == 4:  # made for RAW
        with torch.no_grad():
            pictures[name] = network(sample.bracket[None])
for name, picture in pictures.items():
    print(f"{name:20s} {psnr_mu(picture, sample.target[None], peak=16).item():5.2f} dB PSNR-mu")
show({name: picture[0] for name, picture in pictures.items()} | {"target": sample.target}, len(pictures) + 1)
