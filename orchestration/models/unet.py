"""U-Net for segmentation (Ronneberger et al., arXiv:1505.04597).

Differs: convolutions are padded, so that the output has the input's side and nothing is cropped, and each is followed
by batch normalisation, as in most later implementations. 31,037,698 parameters for 2 classes at the defaults.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from geta_core.errors import GetaError
from orchestration.models.common import he_init_
from orchestration.models.inputs import ImageInput
from orchestration.models.options import Count
from orchestration.models.registry import register


class DoubleConv(nn.Sequential):
    """Twice: 3x3 convolution, batch normalisation, relu."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(
            nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
        )


class UNet(nn.Module):
    """Images [B, C, H, W] to logits per pixel [B, num_classes, H, W]; 2 ** depth must divide H and W."""

    def __init__(self, num_classes: int, in_channels: int, width: int, depth: int) -> None:
        super().__init__()
        widths = [width * 2**level for level in range(depth + 1)]
        self.down = nn.ModuleList(
            DoubleConv(inputs, outputs) for inputs, outputs in zip([in_channels, *widths], widths, strict=False)
        )
        self.pool = nn.MaxPool2d(2)
        self.up = nn.ModuleList(nn.ConvTranspose2d(2 * w, w, 2, stride=2) for w in reversed(widths[:-1]))
        self.merge = nn.ModuleList(DoubleConv(2 * w, w) for w in reversed(widths[:-1]))
        self.head = nn.Conv2d(width, num_classes, 1)
        he_init_(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of every pixel."""
        side = 2 ** len(self.up)
        if x.shape[2] % side or x.shape[3] % side:
            raise GetaError(
                f"unet of depth {len(self.up)} needs images whose sides are multiples of {side}, "
                f"got {x.shape[2]} x {x.shape[3]}; pad the images or choose a smaller model.depth"
            )
        skips: list[Tensor] = []
        for level, block in enumerate(self.down):
            x = block(x if level == 0 else self.pool(x))
            skips.append(x)
        skips.pop()
        for up, merge in zip(self.up, self.merge, strict=True):
            x = merge(torch.cat([skips.pop(), up(x)], dim=1))
        logits: Tensor = self.head(x)
        return logits


@register(
    "unet",
    summary="U-Net, encoder and decoder with skip concatenation; logits per pixel",
    inputs=ImageInput(64, small=16),
    small={"width": 4, "depth": 2},
)
def unet(*, num_classes: Count = 2, in_channels: Count = 3, width: Count = 64, depth: Count = 4) -> nn.Module:
    """Build it; `depth` halvings of the side, `width` channels at the top."""
    return UNet(num_classes, in_channels, width, depth)
