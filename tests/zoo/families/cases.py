"""Graph cases: small nets that each hold one way of joining, sharing, normalizing or reshaping channels."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.geta_core.graph.nets import Net, image_net, parameter
from tests.zoo.family import Family, Kind, images

Build = Callable[[], nn.Module]


def conv(channels: int, out: int, kernel: int = 3, **more: Any) -> nn.Conv2d:
    return nn.Conv2d(channels, out, kernel, padding=kernel // 2, **more)


def normalized_twice() -> nn.Module:
    """Batch normalization before and after an addition, each with its own statistics."""
    return image_net(
        lambda net, x: net.after(torch.relu(net.before(x)) + net.conv(x)),
        before=nn.BatchNorm2d(6),
        after=nn.BatchNorm2d(6),
        conv=conv(6, 6),
    )


def concat_of_branches() -> nn.Module:
    """Two branches and their input in one concatenation, normalized as a whole."""
    return image_net(
        lambda net, x: net.norm(torch.cat([net.left(x), x, net.right(x)], dim=1)),
        out=18,
        left=conv(6, 8),
        right=conv(6, 4, 1),
        norm=nn.BatchNorm2d(18),
    )


def concat_then_add() -> nn.Module:
    """What is added to a concatenation is tied to parts of several tensors."""
    return image_net(
        lambda net, x: torch.cat([net.left(x), net.right(x)], dim=1) + net.whole(x),
        out=10,
        left=conv(6, 4),
        right=conv(6, 6),
        whole=conv(6, 10, 1),
    )


def concat_of_concat() -> nn.Module:
    """A dense block written by hand, with the transition after it."""

    def body(net: Any, x: Tensor) -> Tensor:
        y = torch.cat([x, net.one(torch.relu(x))], dim=1)
        y = torch.cat([y, net.two(torch.relu(y))], dim=1)
        return F.avg_pool2d(net.leave(torch.relu(net.norm(y))), 2)

    return image_net(body, out=8, one=conv(6, 4), two=conv(10, 4), norm=nn.BatchNorm2d(14), leave=conv(14, 8, 1))


def transposed_instance_norm() -> nn.Module:
    """A transposed convolution, then instance normalization with its own parameters."""
    return image_net(
        lambda net, x: torch.relu(net.norm(net.up(x))),
        out=8,
        up=nn.ConvTranspose2d(6, 8, 4, stride=2, padding=1),
        norm=nn.InstanceNorm2d(8, affine=True),
    )


def transposed_instance_norm_skip() -> nn.Module:
    """The same with running statistics, and a skip that is added after resizing."""
    return image_net(
        lambda net, x: net.norm(net.up(x)) + F.interpolate(net.skip(x), scale_factor=2.0),
        out=8,
        up=nn.ConvTranspose2d(6, 8, 2, stride=2, groups=2),
        norm=nn.InstanceNorm2d(8, affine=True, track_running_stats=True),
        skip=conv(6, 8, 1),
    )


def instance_norm_residual() -> nn.Module:
    """The residual block of style transfer: padding by reflection, instance normalization without parameters."""
    return image_net(
        lambda net, x: x + net.norm(net.two(F.pad(torch.relu(net.norm(net.one(x))), (1,) * 4, mode="reflect"))),
        one=conv(6, 6),
        two=nn.Conv2d(6, 6, 3),
        norm=nn.InstanceNorm2d(6),
    )


def group_norm() -> nn.Module:
    """Group normalization between two convolutions."""
    return image_net(
        lambda net, x: torch.relu(net.norm(net.conv(x))), out=12, conv=conv(6, 12), norm=nn.GroupNorm(4, 12)
    )


def group_norm_residual() -> nn.Module:
    """Groups of a normalization on both sides of an addition."""
    return image_net(
        lambda net, x: net.two(torch.relu(net.conv(net.one(x)))) + x,
        width=12,
        conv=conv(12, 12),
        one=nn.GroupNorm(3, 12),
        two=nn.GroupNorm(6, 12),
    )


def group_norm_of_concat() -> nn.Module:
    """One group of the normalization spans the border between two concatenated tensors."""
    return image_net(
        lambda net, x: net.norm(torch.cat([net.left(x), net.right(x)], dim=1)),
        out=12,
        left=conv(6, 4),
        right=conv(6, 8),
        norm=nn.GroupNorm(2, 12),
    )


def group_norm_per_channel() -> nn.Module:
    """One group per channel, and one group for all."""
    return image_net(
        lambda net, x: net.all(net.mix(torch.relu(net.each(net.conv(x))))),
        out=8,
        conv=conv(6, 8),
        each=nn.GroupNorm(8, 8),
        mix=conv(8, 8, 1),
        all=nn.GroupNorm(1, 8),
    )


def grouped_convolution() -> nn.Module:
    """A grouped convolution between pointwise ones, with a depthwise one beside it."""
    return image_net(
        lambda net, x: net.grouped(torch.relu(net.enter(x))) + net.depthwise(net.beside(x)),
        out=12,
        enter=conv(6, 12, 1),
        grouped=conv(12, 12, 3, groups=3),
        beside=conv(6, 12, 1),
        depthwise=conv(12, 12, 3, groups=12),
    )


def channel_shuffle() -> nn.Module:
    """Half of the channels pass a branch; then all are shuffled."""

    def body(net: Any, x: Tensor) -> Tensor:
        left, right = x.chunk(2, dim=1)
        y = torch.cat([left, net.branch(right)], dim=1)
        rows, channels, height, width = y.shape
        return y.view(rows, 2, channels // 2, height, width).transpose(1, 2).reshape(rows, channels, height, width)

    branch = nn.Sequential(conv(4, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), conv(4, 4, 3, groups=4))
    return image_net(body, width=8, branch=branch)


def squeeze_excite() -> nn.Module:
    """A gate per channel from the pooled tensor."""
    return image_net(
        lambda net, x: (
            net.conv(x) * torch.sigmoid(net.up(torch.relu(net.down(net.conv(x).mean((2, 3), keepdim=True)))))
        ),
        out=12,
        conv=conv(6, 12),
        down=conv(12, 4, 1),
        up=conv(4, 12, 1),
    )


def shared_convolution() -> nn.Module:
    """One convolution applied three times in a row."""
    return image_net(
        lambda net, x: torch.relu(net.shared(torch.relu(net.shared(torch.relu(net.shared(x)))))), shared=conv(6, 6)
    )


def shared_head() -> nn.Module:
    """One head on two scales, as detectors have it."""
    return image_net(
        lambda net, x: (
            net.head_of_two(torch.relu(net.fine(x))).mean((2, 3), keepdim=True)
            + net.head_of_two(torch.relu(net.coarse(F.max_pool2d(x, 2)))).mean((2, 3), keepdim=True)
        ),
        out=8,
        fine=conv(6, 10),
        coarse=conv(6, 10),
        head_of_two=conv(10, 8),
    )


def tied_transpose() -> nn.Module:
    """An autoencoder whose decoder is the transpose of its encoder."""
    return Net(
        lambda net, x: F.linear(torch.relu(net.encoder(x)), net.encoder.weight.t(), net.bias),
        encoder=nn.Linear(8, 12),
        bias=parameter(8),
    )


def tiny_unet() -> nn.Module:
    """Two levels, transposed convolutions, concatenated skips."""

    def body(net: Any, x: Tensor) -> Tensor:
        first = torch.relu(net.down1(x))
        second = torch.relu(net.down2(F.max_pool2d(first, 2)))
        return torch.relu(net.join(torch.cat([net.up(second), first], dim=1)))

    return image_net(
        body,
        out=8,
        down1=conv(6, 8),
        down2=conv(8, 12),
        up=nn.ConvTranspose2d(12, 8, 2, stride=2),
        join=conv(16, 8),
    )


def pixel_shuffles() -> nn.Module:
    """Depth to space and back."""
    return image_net(
        lambda net, x: net.low(F.pixel_unshuffle(torch.relu(net.high(F.pixel_shuffle(net.enter(x), 2))), 2)),
        out=8,
        enter=conv(6, 16, 1),
        high=conv(4, 4),
        low=conv(16, 8, 1),
    )


def enlarged() -> nn.Module:
    """Coarse features, enlarged by bicubic interpolation, beside the fine ones."""

    def body(net: Any, x: Tensor) -> Tensor:
        fine = torch.relu(net.fine(x))
        coarse = torch.relu(net.coarse(F.avg_pool2d(fine, 2)))
        return torch.relu(net.join(torch.concatenate([F.interpolate(coarse, scale_factor=2, mode="bicubic"), fine], 1)))

    return image_net(body, out=8, fine=conv(6, 8), coarse=conv(8, 12), join=conv(20, 8))


def unfolded_patches() -> nn.Module:
    """A convolution written as unfold and a matrix product, folded back."""

    def body(net: Any, x: Tensor) -> Tensor:
        patches = F.unfold(torch.relu(net.enter(x)), 2, stride=2).transpose(1, 2)
        mixed = net.back(torch.relu(net.mix(patches))).transpose(1, 2)
        return F.fold(mixed, (8, 8), 2, stride=2)

    return image_net(body, out=6, enter=conv(6, 5), mix=nn.Linear(20, 10), back=nn.Linear(10, 24))


def in_place() -> nn.Module:
    """Activations and additions in place."""

    def body(net: Any, x: Tensor) -> Tensor:
        y = net.one(x)
        y += net.two(x)
        return F.relu_(y.mul_(2.0))

    return image_net(body, out=8, one=conv(6, 8), two=conv(6, 8, 1))


def parallel_sum() -> nn.Module:
    """RepVGG in training: a 3x3, a 1x1 and an identity branch, each normalized, added."""
    return image_net(
        lambda net, x: torch.relu(net.n3(net.c3(x)) + net.n1(net.c1(x)) + net.n0(x)),
        c3=conv(6, 6),
        c1=conv(6, 6, 1),
        n3=nn.BatchNorm2d(6),
        n1=nn.BatchNorm2d(6),
        n0=nn.BatchNorm2d(6),
    )


def volumes() -> nn.Module:
    """Three-dimensional convolutions and pooling."""
    return nn.Sequential(
        nn.Conv3d(1, 8, 3, padding=1),
        nn.BatchNorm3d(8),
        nn.ReLU(),
        nn.MaxPool3d(2),
        nn.Conv3d(8, 6, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool3d(1),
        nn.Flatten(),
        nn.Linear(6, 4),
    )


def signals() -> nn.Module:
    """Dilated one-dimensional convolutions with gates, as in WaveNet."""

    def body(net: Any, x: Tensor) -> Tensor:
        x, skips = net.stem(x), []
        for dilation, gate, out in zip((1, 2), net.gates, net.outs, strict=True):
            value, control = gate(F.pad(x, (dilation, 0))).chunk(2, dim=1)
            y = torch.tanh(value) * torch.sigmoid(control)
            skips.append(y)
            x = x + out(y)
        return net.head(torch.relu(torch.stack(skips).sum(0))).mean(2)

    gates = nn.ModuleList(nn.Conv1d(8, 12, 2, dilation=dilation) for dilation in (1, 2))
    outs = nn.ModuleList(nn.Conv1d(6, 8, 1) for _ in range(2))
    return Net(body, stem=nn.Conv1d(2, 8, 1), gates=gates, outs=outs, head=nn.Conv1d(6, 4, 1))


def volume(batch: int, length: int | None) -> Tensor:
    return torch.randn(batch, 1, 8, 8, 8)


def signal(batch: int, length: int | None) -> Tensor:
    return torch.randn(batch, 2, 16)


def vector(batch: int, length: int | None) -> Tensor:
    return torch.randn(batch, 8)


IMAGES: dict[str, Build] = {
    "batchnorm_add": normalized_twice,
    "concat_branches": concat_of_branches,
    "concat_add": concat_then_add,
    "concat_dense": concat_of_concat,
    "convtranspose_instancenorm": transposed_instance_norm,
    "convtranspose_instancenorm_skip": transposed_instance_norm_skip,
    "instancenorm_residual": instance_norm_residual,
    "groupnorm": group_norm,
    "groupnorm_residual": group_norm_residual,
    "groupnorm_concat": group_norm_of_concat,
    "groupnorm_extremes": group_norm_per_channel,
    "groupconv": grouped_convolution,
    "channel_shuffle": channel_shuffle,
    "squeeze_excite": squeeze_excite,
    "weight_share_chain": shared_convolution,
    "weight_share_scales": shared_head,
    "tiny_unet": tiny_unet,
    "pixel_shuffle": pixel_shuffles,
    "enlarged": enlarged,
    "unfold": unfolded_patches,
    "in_place": in_place,
    "reparameterized": parallel_sum,
}
OTHERS: dict[str, tuple[Build, Callable[[int, int | None], Any], Kind]] = {
    "weight_share_transpose": (tied_transpose, vector, "other"),
    "conv3d": (volumes, volume, "cnn"),
    "conv1d_gated": (signals, signal, "cnn"),
}


def families() -> Iterator[Family]:
    """Every case on images, volumes and signals."""
    for name, build in IMAGES.items():
        yield Family(f"case/{name}", build, images(8), "cnn")
    for name, (build, inputs, kind) in OTHERS.items():
        yield Family(f"case/{name}", build, inputs, kind)
