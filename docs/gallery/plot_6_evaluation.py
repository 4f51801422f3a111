"""
Read an evaluation
==================

Score networks as the published data sets do, and read what the difference between two of them is worth.
"""

import matplotlib.pyplot as plt
import torch

from skt_components import SyntheticScenes, load_pretrained
from skt_components.evaluation import Protocol, baseline_predictions, paired_summary

# %%
# The protocol
# ------------
#
# A protocol says everything that changes a score: the border that is cut, the tiles, the metrics and their versions.
# This one runs the network on whole pictures.

protocol = Protocol.matlab()
print(protocol.describe())

# %%
# Scores of every picture
# -----------------------
#
# Two pretrained networks on procedural scenes, beside the reference exposure and the exposure merge.

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
# Means of eight pictures say little: pictures differ more than networks do. The paired difference, picture by picture,
# says more, and its interval says how much. An interval that holds 0 shows nothing.

first, second = networks
print(f"{first} over {second}:")
print(paired_summary([torch.tensor(scores[first])], [torch.tensor(scores[second])]))
print(f"{first} over the exposure merge:")
print(paired_summary([torch.tensor(scores[first])], [torch.tensor(scores["exposure merge"])]))

# %%
# ``skt evaluate`` does the same for a whole data set and writes an HTML report with all pictures, their
# errors, zooms and a table that can be sorted: see the page "Evaluation".
