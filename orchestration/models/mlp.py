"""A multi-layer perceptron on flattened images, initialised as He et al. 2015 (arXiv:1502.01852).

No paper is followed beyond that; LeNet-300-100 (LeCun et al. 1998) is `hidden=[300,100]` on 28x28 images.
"""

from __future__ import annotations

from torch import Tensor, nn

from orchestration.models.common import he_init_, require
from orchestration.models.inputs import ImageInput
from orchestration.models.options import Count
from orchestration.models.registry import register


class MLP(nn.Module):
    """Images [B, C, H, W] (or features [B, F]) to logits [B, num_classes]."""

    def __init__(self, features: int, hidden: tuple[int, ...], num_classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for width in hidden:
            layers += [nn.Linear(features, width), nn.ReLU()]
            features = width
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(features, num_classes)
        he_init_(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        logits: Tensor = self.head(self.body(x.flatten(1)))
        return logits


@register("mlp", summary="linear layers and relu on flattened images", inputs=ImageInput(8), small={"hidden": (24, 16)})
def mlp(
    *, num_classes: Count = 10, in_channels: Count = 1, image_size: Count = 8, hidden: tuple[Count, ...] = (256, 128)
) -> nn.Module:
    """Build it; `hidden` holds the widths of the hidden layers."""
    require("mlp", hidden=(len(hidden) > 0, "needs at least one hidden width, for example [256,128]"))
    return MLP(in_channels * image_size * image_size, hidden, num_classes)
