"""
Prior fusion and SKAM in a network of your own
==============================================

The modules of the framework are plain ``nn.Module`` objects. This page uses two of them. A fusion block adds a prior to
the features of a small network. An alignment module compares the features of two networks.
"""

import matplotlib.pyplot as plt
import skimage
import torch
from torch import nn
from torch.nn import functional as F

from skt_components import SKAM, PriorFusionBlock

torch.manual_seed(0)
photograph = torch.from_numpy(skimage.data.astronaut().copy()).permute(2, 0, 1)[None] / 255
clean = F.interpolate(photograph, (96, 96), mode="area")
noisy = clean + 0.15 * torch.randn_like(clean)

# %%
# Fusion with a prior
# -------------------
#
# The prior is any map of shape (B, P, H, W), at any resolution: for example features of a frozen network, or depth.
# Here it is the clean picture, reduced to a twelfth of its size. The block computes attention between channels
# (equation 4). So its cost is proportional to the number of pixels, not to the square of this number.

prior = F.avg_pool2d(clean, 12)


class Denoiser(nn.Module):
    """Two convolutions, an optional fusion block with the prior, and two convolutions."""

    def __init__(self, fused):
        super().__init__()
        self.head = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1))
        self.fusion = PriorFusionBlock(16, prior_channels=3) if fused else None
        self.tail = nn.Sequential(nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 3, 3, padding=1))

    def forward(self, picture, prior):
        features = self.head(picture)
        if self.fusion is not None:
            features = self.fusion(features, prior)
        return picture + self.tail(features)


def train(network, steps=150):
    """Train on this one picture with new noise in each step; return the result for ``noisy``."""
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        F.mse_loss(network(clean + 0.15 * torch.randn_like(clean), prior), clean).backward()
        optimizer.step()
    with torch.no_grad():
        return network(noisy, prior)


results = {
    "noisy": noisy,
    "without the prior": train(Denoiser(False)),
    "with the prior": train(Denoiser(True)),
    "clean": clean,
}
_, axes = plt.subplots(1, 4, figsize=(13, 3.6), layout="constrained")
for axis, (name, picture) in zip(axes, results.items(), strict=True):
    error = F.mse_loss(picture, clean).item()
    axis.imshow(picture[0].clamp(0, 1).permute(1, 2, 0))
    axis.set_title(name if error == 0 else f"{name}\nmean squared error {error:.4f}")
    axis.axis("off")

# %%
# Here the prior has no effect. The reason is that the attention is one small matrix between channels for the whole
# picture. So a prior can select channels, but it cannot add information about positions. If a prior must give
# positions, use another method, such as a concatenation.
#
# Alignment of two networks
# -------------------------
#
# SKAM mixes features of a student and a teacher with a random mask. It decodes the mixture and compares the result with
# the features of the teacher (equations 11 and 12). The two features may have different channels and sizes. The loss
# trains the student. The features of the teacher are a constant.

student, teacher = torch.rand(1, 16, 48, 48, requires_grad=True), torch.rand(1, 32, 24, 24)
skam = SKAM(student_channels=16, teacher_channels=32, mask_ratio=0.5)
output = skam(student, teacher)
output.loss.backward()
print("enhanced feature", tuple(output.enhanced.shape), "loss", round(output.loss.item(), 4))
print("share of the latent from the teacher", output.mask.float().mean().item())
print("gradient at the student", student.grad.abs().mean().item() > 0)
