"""A small convolutional net for scikit-learn's 8x8 digits.

No paper: the plain conv-BN-relu stack of VGG (Simonyan and Zisserman, arXiv:1409.1556) cut down to two stages of
two convolutions, with batch normalisation and global average pooling in place of the fully connected layers.
65,834 parameters at the defaults.
"""

from __future__ import annotations

from torch import Tensor, nn

from orchestration.models.common import he_init_
from orchestration.models.inputs import ImageInput
from orchestration.models.options import Count
from orchestration.models.registry import register


class DigitsCNN(nn.Module):
    """Images [B, C, H, W] to logits [B, num_classes]; any H and W of at least 2."""

    def __init__(self, num_classes: int, in_channels: int, width: int) -> None:
        super().__init__()
        self.stage1 = _stage(in_channels, width)
        self.pool = nn.MaxPool2d(2)
        self.stage2 = _stage(width, 2 * width)
        self.head = nn.Linear(2 * width, num_classes)
        he_init_(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        x = self.stage2(self.pool(self.stage1(x)))
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


def _stage(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
        nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )


@register(
    "digits_cnn", summary="four convolutions for 8x8 digits, 66k parameters", inputs=ImageInput(8), small={"width": 8}
)
def digits_cnn(*, num_classes: Count = 10, in_channels: Count = 1, width: Count = 32) -> nn.Module:
    """Build it; `width` channels in the first stage, twice as many in the second."""
    return DigitsCNN(num_classes, in_channels, width)
