"""The nequip package as a peer: its own modules, put together to potkit's NequIP and given potkit's
weights.

Its model builders and its trainer are not used: they want a configuration of their own, and their
networks differ from ours in four small ways (one embedding for features and attributes, a first
layer without self-connection, SiLU gates, a linear energy head). The modules those builders chain
are public and have a setting for each: embeddings, spherical harmonics, Bessel functions,
`ConvNetLayer`, `ScalarMLP`. What costs time, tensor products and their sums over neighbours, is the
package's as it stands.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ...models.base import Potential
from ...models.nequip import SCALAR, SIGMOID, SILU, TANH
from ...structures.elements import SYMBOLS
from .base import Peer, edges_of, minus_gradient, package


class NequIPPackage(nn.Module):
    """The chain of nequip's modules on edges that are given: z [N], pos [N, 3] Å, batch [N] ->
    energies [N, 1].
    """

    def __init__(self, model: Potential) -> None:
        super().__init__()
        from e3nn.o3 import Irreps
        from nequip.data import AtomicDataDict as keys
        from nequip.nn import ApplyFactor, ConvNetLayer, ScalarMLP, SequentialGraphNetwork
        from nequip.nn.embedding import (
            BesselEdgeLengthEncoding,
            EdgeLengthNormalizer,
            NodeTypeEmbed,
            PolynomialCutoff,
            SphericalHarmonicEdgeAttrs,
        )

        backbone = model.backbone
        self.keys = keys
        self.edges: Tensor | None = None
        channels, radial = backbone.n_features, len(backbone.basis.frequencies)
        names = ["X", *SYMBOLS[1 : len(backbone.attributes.weight)]]
        chain: dict[str, nn.Module] = {}

        def add(name: str, kind: type, *args: Any, **options: Any) -> None:
            before = {"irreps_in": next(reversed(chain.values())).irreps_out} if chain else {}
            chain[name] = kind(*args, **before, **options)

        add("features", NodeTypeEmbed, type_names=names, num_features=channels)
        add(
            "attributes",
            NodeTypeEmbed,
            type_names=names,
            num_features=backbone.attributes.weight.shape[1],
            set_features=False,
        )
        add("sphere", SphericalHarmonicEdgeAttrs, irreps_edge_sh=backbone.degree)
        add("length", EdgeLengthNormalizer, r_max=backbone.cutoff, type_names=names)
        add("bessel", BesselEdgeLengthEncoding, num_bessels=radial, cutoff=PolynomialCutoff(6))
        add(
            "factor",
            ApplyFactor,
            in_field=keys.EDGE_EMBEDDING_KEY,
            factor=2 * math.pi / backbone.cutoff**2,
        )
        for k, layer in enumerate(backbone.layers):
            name = f"layer{k}"
            convolution = {
                "radial_mlp_depth": 2,
                "radial_mlp_width": layer.radial[0].out_features,
                "use_sc": True,
                "is_first_layer": k == 0,
                "avg_num_neighbors": layer.scale**-2,
                "type_names": names,
            }
            add(
                name,
                ConvNetLayer,
                feature_irreps_hidden=Irreps([(channels, ir) for ir in layer.coupling.irreps_out]),
                convolution_kwargs=convolution,
            )
            chain[name].equivariant_nonlin = _gate(chain[name].equivariant_nonlin)
        add(
            "head",
            ScalarMLP,
            output_dim=1,
            hidden_layers_depth=1,
            hidden_layers_width=channels,
            bias=True,
            out_field=keys.PER_ATOM_ENERGY_KEY,
        )
        self.network = SequentialGraphNetwork(chain)

    def hold(self, edges: Tensor) -> None:
        """Take the edges [2, E] (sender, receiver) of the batch that comes next."""
        self.edges = edges.flip(0)  # theirs are (receiver, sender)

    def forward(self, z: Tensor, pos: Tensor, batch: Tensor) -> Tensor:
        """Energies of the atoms, [N, 1]; ``batch`` is taken as other peers take it, and unused."""
        keys = self.keys
        data = {
            keys.POSITIONS_KEY: pos.double(),  # as the package's data always are
            keys.EDGE_INDEX_KEY: self.edges,
            keys.ATOM_TYPE_KEY: z,
        }
        return self.network(data)[keys.PER_ATOM_ENERGY_KEY]


def _gate(original: nn.Module) -> nn.Module:
    """A gate like ``original`` but with our sigmoid instead of SiLU, and our rounding of the
    constants that keep the variance at 1.
    """
    from e3nn.nn import Gate

    scalars = [torch.tanh if ir.p < 0 else nn.functional.silu for _, ir in original.irreps_scalars]
    gate = Gate(
        original.irreps_scalars,
        scalars,
        original.irreps_gates,
        [torch.sigmoid] * len(original.irreps_gates),
        original.irreps_gated,
    )
    constants = {torch.tanh: TANH, nn.functional.silu: SILU, torch.sigmoid: SIGMOID}
    for part in (gate.act_scalars, gate.act_gates):
        for activation in part.acts:
            activation.cst = constants[activation.f]
    return gate


@torch.no_grad()
def copy_weights(model: Potential, package_model: NequIPPackage) -> None:
    """Copy potkit's weights; their maps divide by the root of the number of inputs, which is
    taken out of the weights.
    """
    backbone, chain = model.backbone, package_model.network
    chain.features.embed_module.weight.copy_(backbone.embedding.element.weight)
    chain.attributes.embed_module.weight.copy_(backbone.attributes.weight)
    for k, layer in enumerate(backbone.layers):
        convolution = getattr(chain, f"layer{k}").conv
        _copy_linear(layer.linear, convolution.linear_1)
        # the package adds the self-connection as it is, ours divides the sum by √2, and leaves
        # alone what has none
        shared = dict.fromkeys(layer.own.linear, 0.5**0.5)
        _copy_linear(layer.collect, convolution.linear_2, shared)
        _copy_self_connection(layer, convolution.sc)
        _copy_radial(layer, convolution, backbone.n_features, backbone.cutoff)
    linears = [part for part in model.energy_head.mlp if isinstance(part, nn.Linear)]
    scalars = [part for part in chain.head.mlp_module.mlp if hasattr(part, "alpha")]
    for source, target in zip(linears, scalars, strict=True):
        target.weight.copy_(source.weight.T / target.alpha)
        target.bias.copy_(source.bias)


def _copy_linear(
    source: nn.Module, target: nn.Module, scales: Mapping[str, float] | None = None
) -> None:
    """Copy an equivariant linear map, times ``scales`` of some irreps."""
    for n, path in enumerate(target.instructions):
        ir = str(target.irreps_out[path.i_out].ir)
        weight = source.linear[ir].weight.T * (scales or {}).get(ir, 1.0)
        target.weight_view_for_instruction(n).copy_(weight / path.path_weight)


def _copy_self_connection(layer: nn.Module, target: nn.Module) -> None:
    for n, path in enumerate(target.instructions):
        ir = target.irreps_out[path.i_out].ir
        view = target.weight_view_for_instruction(n)  # [channels, attributes, out]
        weight = layer.own.linear[str(ir)].weight.T.reshape(view.shape)
        view.copy_(weight * (0.5 * ir.dim) ** 0.5 / path.path_weight)


def _copy_radial(layer: nn.Module, convolution: nn.Module, channels: int, cutoff: float) -> None:
    """Copy the network of the distance, whose outputs weight the paths of the tensor product."""
    # ours has one block of outputs per irrep, theirs is in the order of the paths
    starts = {}
    start = 0
    for ir, size in layer.widths.items():
        starts[ir] = start
        start += size
    product = convolution.tp_scatter.tp
    blocks = []
    for path in product.instructions:
        ir = product.irreps_out[path.i_out].ir
        blocks.append(torch.arange(starts[ir], starts[ir] + channels))
        starts[ir] += channels
    linears = [part for part in layer.radial if isinstance(part, nn.Linear)]
    scalars = [part for part in convolution.edge_mlp.mlp if hasattr(part, "alpha")]
    weights = [linear.weight for linear in linears]
    weights[-1] = weights[-1][torch.cat(blocks).to(weights[-1].device)]
    # their radial functions are 2 sin(kπd/c) / (c d), ours 1.1 √2 sin(kπd/c) / d; envelopes are
    # the same
    factors = [1.1 * cutoff * 0.5**0.5] + [1.0] * (len(weights) - 1)
    for weight, factor, target in zip(weights, factors, scalars, strict=True):
        target.weight.copy_(weight.T / target.alpha * factor)


def peer(model: Potential, device: str) -> Peer | None:
    """The peer for ``potkit bench``, or None where the package is missing. Its vector is −∂E/∂x."""
    if package("nequip.nn") is None:
        return None
    assert model.vector_mode == "gradient"
    assert model.backbone.layers[-1].coupling.irreps_out == (SCALAR,)
    network = NequIPPackage(model)
    copy_weights(model, network)

    def hold(batch: Any) -> None:
        network.hold(edges_of(batch, model.cutoff).edge_index)

    return Peer(
        "nequip",
        network.to(device),
        minus_gradient(hold),
        note="the package's modules on our edges; edge encodings in float64, as there",
        hold=hold,
        periodic=False,  # its edges are given without images
    )
