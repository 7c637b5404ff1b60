"""ResNet-20 with the weights of $MMTRANSFER_SHARED: an encoder of one's own, as a plug-in.

Named by `resnet20:ResNet20?directory=DIR` where this folder is on the path.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from mmtransfer import Features
from mmtransfer.encoders.base import Encoder
from mmtransfer.encoders.pixels import SquareCollate

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Block(nn.Module):
    """Two convolutions; the shortcut of a wider block has no weights (option A of the paper)."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.stride, self.added = after // before, (after - before) // 2
        self.conv1 = nn.Conv2d(before, after, 3, self.stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x[:, :, :: self.stride, :: self.stride]
        shortcut = F.pad(shortcut, (0, 0, 0, 0, self.added, self.added))
        return F.relu(shortcut + self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))


class ResNet20(Encoder):
    """ResNet-20 for pictures of 32 pixels, trained on CIFAR-10 (He et al., CVPR 2016)."""

    modality = "image"
    pretrained = True
    width = 64

    def __init__(self, directory: str) -> None:
        super().__init__()
        self.directory = directory
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        for number, (before, after) in enumerate(((16, 16), (16, 32), (32, 64)), start=1):
            blocks = Block(before, after), Block(after, after), Block(after, after)
            setattr(self, f"layer{number}", nn.Sequential(*blocks))
        self.register_buffer("mean", torch.tensor(MEAN)[:, None, None], persistent=False)
        self.register_buffer("deviation", torch.tensor(DEVIATION)[:, None, None], persistent=False)
        self.collate = SquareCollate(32, 3)
        weights = load_file(Path(directory) / "model.safetensors")
        body = {name: t for name, t in weights.items() if not name.startswith("linear.")}
        missing, unknown = self.load_state_dict(body, strict=False)
        missing = [name for name in missing if not name.endswith("num_batches_tracked")]
        if missing or unknown:
            raise ValueError(f"{directory} is no ResNet-20: {missing + unknown} do not fit")

    def forward(self, pixels: Tensor) -> Features:
        """pixels (B, 3, 32, 32) in [-1, 1] -> tokens (B, 1, 64)."""
        x = ((pixels + 1) / 2 - self.mean) / self.deviation
        x = F.relu(self.bn1(self.conv1(x)))
        for layer in (self.layer1, self.layer2, self.layer3):
            x = layer(x)
        tokens = x.mean((2, 3))[:, None]
        return Features(tokens, torch.ones(tokens.shape[:2], dtype=torch.bool, device=x.device))
