"""The arrays in which a MADE is inverted, and the views of them that each step works on.

A hidden unit of degree d depends on units of degree <= d only, so the inverse fills the hidden
layers degree by degree. Small products waste the processor, so the degrees go in panels: what a
panel takes from the panels before it is one large product, and only what it takes from itself is
done degree by degree. Arrays and views are made once and serve all blocks and galaxies.
"""

from typing import NamedTuple

import torch
from torch import Tensor

PANEL = 6
"""Dimensions of u to a panel."""


class Layer(NamedTuple):
    """A layer: values = weight (n_new, 1 + n_known) @ known (1 + n_known, n_sample).

    The first row of `known` and `values` holds ones and the first column of `weight` the biases:
    a product that began with the biases would copy them for every sample.

    `values` has one row more than the product, (1 + n_new, n_sample).
    """

    weight: Tensor
    known: Tensor
    values: Tensor


class Products(NamedTuple):
    """Matrix products, one for each step: new = weight @ known, or added to what `new` holds.

    Attributes:
        weight: (n_new, n_known) each; known: (n_known, n_sample) each.
        new: (n_new, n_sample) each.
    """

    weight: list[Tensor]
    known: list[Tensor]
    new: list[Tensor]


class Workspace(NamedTuple):
    """Arrays for one block and one galaxy, and the steps of the inverse on them.

    Attributes:
        weights, biases: of the three hidden layers and the output layer, masked and modulated.
        z, u: (n_u, n_sample) input and output of the inverse; z_rows, u_rows: their rows.
        raw_scale, shift: (n_sample,) of each dimension, the rows of the output layer.
        scale, scale_rows: (n_u, n_sample) scales of the dimensions, and their rows.
        first: the first hidden layer, by degree.
        early: second and third hidden layer and output layer, by panel from the second on, from the
            panels before.
        recent: the same layers from the panel itself: hidden ones by degree, outputs by dimension.
    """

    weights: list[Tensor]
    biases: list[Tensor]
    z: Tensor
    z_rows: list[Tensor]
    u: Tensor
    u_rows: list[Tensor]
    raw_scale: list[Tensor]
    shift: list[Tensor]
    scale: Tensor
    scale_rows: list[Tensor]
    first: Products
    early: list[Products]
    recent: list[Products]


def make_workspace(like: Tensor, ends: list[int], panel: int) -> Workspace:
    """Arrays for base points `like` (n_u, n_sample).

    Args:
        like: gives shape, precision and device.
        ends: hidden units of degree <= d fill the rows before ends[d], d = 0..n_u - 1.
        panel: dimensions of u to a panel.
    """
    n_u = like.shape[0]
    z, scale = torch.empty_like(like), torch.empty_like(like)
    known = _new_rows(like, n_u)
    u, layers = known[1:], [_new_layer(known, ends[-1])]
    for n_new in [ends[-1], ends[-1], 2 * n_u]:
        layers.append(_new_layer(layers[-1].values, n_new))
    out = layers[-1].values[1:]
    of_out = [2 * d for d in range(n_u + 1)]
    return Workspace(
        [layer.weight[:, 1:] for layer in layers],
        [layer.weight[:, 0] for layer in layers],
        z,
        list(z.unbind()),
        u,
        list(u.unbind()),
        list(out[0::2].unbind()),
        list(out[1::2].unbind()),
        scale,
        list(scale.unbind()),
        _by_degree(layers[0], ends),
        [
            _from_earlier_panels(layers[1], ends, ends, panel),
            _from_earlier_panels(layers[2], ends, ends, panel),
            _from_earlier_panels(layers[3], ends, of_out, panel),
        ],
        [
            _from_own_panel(layers[1], ends, ends, panel, 1),
            _from_own_panel(layers[2], ends, ends, panel, 1),
            _from_own_panel(layers[3], ends, of_out, panel, 0),
        ],
    )


def _new_layer(known: Tensor, n_new: int) -> Layer:
    return Layer(known.new_empty((n_new, known.shape[0])), known, _new_rows(known, n_new))


def _new_rows(like: Tensor, n: int) -> Tensor:
    """A row of ones and n rows to be filled, (1 + n, n_sample)."""
    n_sample = like.shape[1]
    # 16 numbers between rows: rows a power of two apart would compete for the same cache lines.
    rows = like.new_empty((1 + n, n_sample + 16))[:, :n_sample]
    rows[0] = 1.0
    return rows


def _by_degree(layer: Layer, ends: list[int]) -> Products:
    """The products of the first hidden layer, whose units of degree d + 1 see u_0..u_d."""
    products = Products([], [], [])
    for d in range(len(ends) - 1):
        low, high = ends[d], ends[d + 1]
        products.weight.append(layer.weight[low:high, : d + 2])
        products.known.append(layer.known[: d + 2])
        products.new.append(layer.values[1 + low : 1 + high])
    return products


def _from_earlier_panels(layer: Layer, ends: list[int], of_new: list[int], panel: int) -> Products:
    """Products by panel from the second on; of_new[d] rows come before dimension d."""
    products = Products([], [], [])
    for start in range(panel, len(ends), panel):
        low, high = of_new[start], of_new[min(start + panel, len(of_new) - 1)]
        products.weight.append(layer.weight[low:high, : 1 + ends[start]])
        products.known.append(layer.known[: 1 + ends[start]])
        products.new.append(layer.values[1 + low : 1 + high])
    return products


def _from_own_panel(
    layer: Layer, ends: list[int], of_new: list[int], panel: int, reach: int
) -> Products:
    """Products by dimension d, of the known rows up to degree d + reach that the panel holds.

    The first panel holds the row of ones, so its products are whole.
    """
    products = Products([], [], [])
    for d in range(len(of_new) - 1):
        low, high = of_new[d], of_new[d + 1]
        begin = 0 if d < panel else 1 + ends[d // panel * panel]
        end = 1 + ends[d + reach]
        products.weight.append(layer.weight[low:high, begin:end])
        products.known.append(layer.known[begin:end])
        products.new.append(layer.values[1 + low : 1 + high])
    return products
