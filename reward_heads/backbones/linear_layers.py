"""The five linear layers that two published rewards put on an embedding."""

from collections import OrderedDict

from torch import nn


def linear_layers(width: int) -> nn.Module:
    """width -> 1024 -> 128 -> 64 -> 16 -> 1, as published: a linear map in five factors.

    There are no activations between the layers.
    """
    layers = [nn.Linear(width, 1024), nn.Dropout(0.2), nn.Linear(1024, 128), nn.Dropout(0.2)]
    layers += [nn.Linear(128, 64), nn.Dropout(0.1), nn.Linear(64, 16), nn.Linear(16, 1)]
    return nn.Sequential(OrderedDict(layers=nn.Sequential(*layers))).requires_grad_(False).eval()
