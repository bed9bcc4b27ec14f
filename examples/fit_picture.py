"""The rasterizer alone: flat Gaussians learn a picture, through gsplat's function on a CPU.

python examples/fit_picture.py photo.jpg
"""

import sys
from pathlib import Path

import torch

from gags.images import read_image, resize_image, write_image
from gags.rasterize import rasterization

WIDTH, HEIGHT, N_GAUSSIANS = 192, 128, 2000

target = resize_image(read_image(Path(sys.argv[1])), WIDTH, HEIGHT).float() / 255
generator = torch.Generator().manual_seed(0)
xy = torch.rand(N_GAUSSIANS, 2, generator=generator) * torch.tensor([WIDTH, HEIGHT]) - torch.tensor([WIDTH, HEIGHT]) / 2
means = torch.cat([xy, torch.full((N_GAUSSIANS, 1), 100.0)], dim=1).requires_grad_()
quats = torch.tensor([1.0, 0, 0, 0]).repeat(N_GAUSSIANS, 1).requires_grad_()
log_scales = torch.full((N_GAUSSIANS, 3), 1.0).requires_grad_()
logits = torch.zeros(N_GAUSSIANS).requires_grad_()
colors = torch.rand(N_GAUSSIANS, 3, generator=generator).requires_grad_()
K = torch.tensor([[[100.0, 0, WIDTH / 2], [0, 100.0, HEIGHT / 2], [0, 0, 1]]])
optimizer = torch.optim.Adam([means, quats, log_scales, logits, colors], lr=0.03)

for step in range(300):
    rendered, _, _ = rasterization(
        means, quats, log_scales.exp(), logits.sigmoid(), colors, torch.eye(4)[None], K, WIDTH, HEIGHT
    )
    loss = (rendered[0] - target).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 50 == 0:
        print(f"step {step}: PSNR {-10 * loss.log10():.1f} dB")
write_image(Path("fitted.png"), (rendered[0].detach().clamp(0, 1) * 255).to(torch.uint8))
