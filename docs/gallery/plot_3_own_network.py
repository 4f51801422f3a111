"""
A network of your own in the framework
======================================

The framework can train any ``nn.Module`` that turns a bracket of exposures into a linear picture. The network is not
changed. This page trains a new network in the framework, and compares it with the same network trained alone.
"""

import copy

import matplotlib.pyplot as plt
import torch
from torch import nn
from torch.utils.data import DataLoader

from skt_components import SemanticKnowledgeTransfer, SyntheticScenes, TimmFeatureExtractor, psnr_mu, tone_map
from skt_components.evaluation import baseline_pictures
from skt_components.framework import BareNetwork

# %%
# The network and the data
# ------------------------
#
# The input has three exposures with six channels each: linear RGB and gamma-coded RGB. The network adds a correction to
# the linear values of the middle exposure.


class TinyHDR(nn.Module):
    """Five convolutions."""

    def __init__(self, width=24):
        super().__init__()
        self.encoder = nn.Conv2d(18, width, 3, padding=1)
        self.body = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=2, dilation=2), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1)
        )
        self.decoder = nn.Conv2d(width, width, 3, padding=1)
        self.last = nn.Conv2d(width, 3, 3, padding=1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, bracket):
        features = torch.relu(self.encoder(bracket.flatten(1, 2)))
        features = torch.relu(features + self.body(features))
        return bracket[:, 1, :3] + self.last(torch.relu(self.decoder(features)))


torch.manual_seed(0)
network = TinyHDR()
training = DataLoader(SyntheticScenes(200, 48), batch_size=4)
validation = [SyntheticScenes(6, 128, split="val")[index] for index in range(6)]

# %%
# In the framework, and alone
# ---------------------------
#
# ``taps="auto"`` chooses three layers of the network and prints them. Their features are compared with the features of
# the teacher. The bank is EfficientNet-Lite0 with the weights of a pip package. Both networks start with the same
# weights and get the same samples.

alone = BareNetwork(copy.deepcopy(network))
framework = SemanticKnowledgeTransfer(network, TimmFeatureExtractor(), taps="auto")


def train(module):
    """Train for 50 steps; return the losses of the network."""
    optimizer, losses = torch.optim.Adam(module.parameters(), lr=2e-3), []
    for sample in training:
        output = module(sample.bracket, sample.target)
        optimizer.zero_grad()
        output.total.backward()
        optimizer.step()
        losses.append(output.terms["org"].item())
    return losses


curves = {"in the framework": train(framework), "alone": train(alone)}
_, axis = plt.subplots(figsize=(6, 3), layout="constrained")
for name, losses in curves.items():
    axis.plot(losses, label=name)
axis.set(xlabel="step", ylabel="L_org", yscale="log")
axis.legend()

# %%
# Results
# -------
#
# Always compare a network with two methods that need no training: the middle exposure as it is, and a classical merge.


@torch.no_grad()
def results(sample):
    """Return pictures (3, H, W) by name."""
    bracket = sample.bracket[None]
    found = baseline_pictures(bracket, sample.exposure_times)
    found |= {"alone": alone.orm(bracket), "in the framework": network(bracket)}
    return {name: picture[0] for name, picture in found.items()}


scores = {}
for sample in validation:
    for name, picture in results(sample).items():
        scores.setdefault(name, []).append(psnr_mu(picture[None], sample.target[None]).item())
for name, values in scores.items():
    print(f"{name:20s} {sum(values) / len(values):5.2f} dB PSNR-mu")

sample = validation[1]
pictures = {**results(sample), "target": sample.target}
_, axes = plt.subplots(1, 5, figsize=(15, 3.4), layout="constrained")
for axis, (name, picture) in zip(axes, pictures.items(), strict=True):
    axis.imshow(tone_map(picture[None].clamp(min=0))[0].permute(1, 2, 0))
    axis.set_title(name)
    axis.axis("off")

# %%
# Fifty steps of a tiny network show only how to use the framework. They do not show how much it gains. This needs
# longer training, several seeds and intervals: see the page "Does it boost?". At the end you use the plain network:

print(list(network.state_dict())[:3], "...", sum(p.numel() for p in network.parameters()), "parameters")
