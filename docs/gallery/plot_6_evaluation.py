"""
Read an evaluation
==================

This page scores networks with a published protocol, and tests whether the difference between two networks is
significant.
"""

import matplotlib.pyplot as plt
import torch

from skt_components import SyntheticScenes, load_pretrained
from skt_components.evaluation import Protocol, baseline_predictions, paired_summary

# %%
# The protocol
# ------------
#
# A protocol fixes everything that changes a score: the border that is cropped, the tiles, the metrics and their
# versions. This protocol runs the network on whole pictures.

protocol = Protocol.matlab()
print(protocol.describe())

# %%
# Scores of every picture
# -----------------------
#
# Two pretrained networks, the reference exposure and the exposure merge are scored on procedural scenes.

networks = {name: load_pretrained(name) for name in ("ahdrnet-small", "hdr-transformer-small")}
scores = {}
for sample in map(SyntheticScenes(8, 160, split="val").__getitem__, range(8)):
    predictions = baseline_predictions(sample, protocol)
    for name, network in networks.items():
        with torch.no_grad():
            predictions[name] = protocol.infer(network, sample.bracket[None])
    for name, picture in predictions.items():
        found = protocol.score(picture, sample.target[None])
        scores.setdefault(name, []).append(found["PSNR-mu"].item())

for name, values in scores.items():
    print(f"{name:25s} {sum(values) / len(values):5.2f} dB PSNR-mu")

_, axis = plt.subplots(figsize=(8, 3.2), layout="constrained")
for name, values in scores.items():
    axis.plot(values, "o-", label=name)
axis.set(xlabel="picture", ylabel="PSNR-mu [dB]")
axis.legend(fontsize=8)

# %%
# Is the difference more than chance?
# -----------------------------------
#
# Means over eight pictures are not precise, because pictures differ more than networks. The paired difference, picture
# by picture, is more precise. Its interval shows how precise. If the interval contains 0, the difference is not
# significant.

first, second = networks
print(f"{first} over {second}:")
print(paired_summary([torch.tensor(scores[first])], [torch.tensor(scores[second])]))
print(f"{first} over the exposure merge:")
print(paired_summary([torch.tensor(scores[first])], [torch.tensor(scores["exposure merge"])]))

# %%
# ``skt evaluate`` does the same for a whole data set. It writes an HTML report with all pictures, their errors, zooms
# and a sortable table: see the page "Evaluation".
