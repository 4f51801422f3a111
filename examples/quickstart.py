"""Use the losses on plain tensors: no network, no data, about a second."""

import torch

from skt_components import HistogramLoss, SemanticHistogramLoss

torch.manual_seed(0)
teacher = torch.rand(1, 3, 64, 64)  # any two pictures in [0, 1]
student = (teacher * 0.8 + 0.05).requires_grad_()  # too dark
labels = (torch.arange(64) // 32).expand(1, 64, 64)  # two regions: left and right half

color_loss = SemanticHistogramLoss(bandwidth=1 / 64)  # eq. 10; wide enough to measure a shift of 0.15
optimizer = torch.optim.Adam([student], lr=0.01)
for step in range(101):
    loss = color_loss(student, teacher, labels=labels, num_regions=2)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 25 == 0:
        print(f"step {step:3d}  semantic histogram loss {loss.item():.5f}  mean {student.mean().item():.3f}")
print(f"global histogram loss {HistogramLoss()(student.detach(), teacher).item():.5f}, teacher {teacher.mean():.3f}")
