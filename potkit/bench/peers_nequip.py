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
from typing import Any

import torch
from torch import Tensor, nn

from ..models.base import Potential
from ..models.nequip import SCALAR, SIGMOID, SILU, TANH
from ..structures.elements import SYMBOLS
from .peers import Peer, edges_of, minus_gradient, package


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

        ours, self.keys, self.edges = model.backbone, keys, None
        channels, radial = ours.n_features, len(ours.basis.frequencies)
        names = ["X", *SYMBOLS[1 : len(ours.attributes.weight)]]
        chain: dict[str, nn.Module] = {}

        def add(name: str, kind: type, *args: Any, **options: Any) -> None:
            before = {"irreps_in": next(reversed(chain.values())).irreps_out} if chain else {}
            chain[name] = kind(*args, **before, **options)

        add("features", NodeTypeEmbed, type_names=names, num_features=channels)
        add(
            "attributes",
            NodeTypeEmbed,
            type_names=names,
            num_features=ours.attributes.weight.shape[1],
            set_features=False,
        )
        add("sphere", SphericalHarmonicEdgeAttrs, irreps_edge_sh=ours.degree)
        add("length", EdgeLengthNormalizer, r_max=ours.cutoff, type_names=names)
        add("bessel", BesselEdgeLengthEncoding, num_bessels=radial, cutoff=PolynomialCutoff(6))
        add(
            "factor",
            ApplyFactor,
            in_field=keys.EDGE_EMBEDDING_KEY,
            factor=2 * math.pi / ours.cutoff**2,
        )
        for k, layer in enumerate(ours.layers):
            kinds = Irreps([(channels, ir) for ir in layer.coupling.irreps_out])
            convolution = {
                "radial_mlp_depth": 2,
                "radial_mlp_width": layer.radial[0].out_features,
                "use_sc": True,
                "is_first_layer": k == 0,
                "avg_num_neighbors": layer.scale**-2,
                "type_names": names,
            }
            add(
                f"layer{k}",
                ConvNetLayer,
                feature_irreps_hidden=kinds,
                convolution_kwargs=convolution,
            )
            chain[f"layer{k}"].equivariant_nonlin = _gate(chain[f"layer{k}"].equivariant_nonlin)
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
        keys = self.keys
        # float64, as its data always are
        data = {
            keys.POSITIONS_KEY: pos.double(),
            keys.EDGE_INDEX_KEY: self.edges,
            keys.ATOM_TYPE_KEY: z,
        }
        return self.network(data)[keys.PER_ATOM_ENERGY_KEY]


def _gate(theirs: nn.Module) -> nn.Module:
    """A gate like ``theirs`` but with our sigmoid instead of SiLU, and our rounding of the
    constants that keep the variance at 1.
    """
    from e3nn.nn import Gate

    scalars = [torch.tanh if ir.p < 0 else nn.functional.silu for _, ir in theirs.irreps_scalars]
    gate = Gate(
        theirs.irreps_scalars,
        scalars,
        theirs.irreps_gates,
        [torch.sigmoid] * len(theirs.irreps_gates),
        theirs.irreps_gated,
    )
    constants = {torch.tanh: TANH, nn.functional.silu: SILU, torch.sigmoid: SIGMOID}
    for part in (gate.act_scalars, gate.act_gates):
        for activation in part.acts:
            activation.cst = constants[activation.f]
    return gate


def copy_weights(model: Potential, theirs: NequIPPackage) -> None:
    """Copy potkit's weights; their maps divide by the root of the number of inputs, which is
    taken out of the weights.
    """
    ours, chain = model.backbone, theirs.network
    with torch.no_grad():
        chain.features.embed_module.weight.copy_(ours.embedding.element.weight)
        chain.attributes.embed_module.weight.copy_(ours.attributes.weight)
        for k, layer in enumerate(ours.layers):
            convolution = getattr(chain, f"layer{k}").conv
            _fill_linear(convolution.linear_1, layer.linear)
            # theirs adds the self-connection as it is, ours divides the sum by √2, and leaves alone
            # what has none
            _fill_linear(
                convolution.linear_2, layer.collect, dict.fromkeys(layer.own.linear, 0.5**0.5)
            )
            for n, path in enumerate(convolution.sc.instructions):
                ir = convolution.sc.irreps_out[path.i_out].ir
                view = convolution.sc.weight_view_for_instruction(n)  # [channels, attributes, out]
                view.copy_(
                    layer.own.linear[str(ir)].weight.T.reshape(view.shape)
                    * (0.5 * ir.dim) ** 0.5
                    / path.path_weight
                )
            # ours has one block of outputs per irrep, theirs is in the order of the paths
            width, starts, at = ours.n_features, {}, 0
            for ir, size in layer.widths.items():
                starts[ir], at = at, at + size
            order = []
            for path in convolution.tp_scatter.tp.instructions:
                ir = convolution.tp_scatter.tp.irreps_out[path.i_out].ir
                order.append(torch.arange(starts[ir], starts[ir] + width))
                starts[ir] += width
            linears = [m for m in layer.radial if isinstance(m, nn.Linear)]
            scalars = [m for m in convolution.edge_mlp.mlp if hasattr(m, "alpha")]
            for n, (a, b) in enumerate(zip(linears, scalars)):
                weight = (
                    a.weight[torch.cat(order).to(a.weight.device)]
                    if n == len(linears) - 1
                    else a.weight
                )
                # their radial functions are 2 sin(kπd/c) / (c d), ours 1.1 √2 sin(kπd/c) / d;
                # envelopes are the same
                b.weight.copy_(
                    weight.T / b.alpha * (1.1 * ours.cutoff * 0.5**0.5 if n == 0 else 1.0)
                )
        heads = [m for m in model.energy_head.mlp if isinstance(m, nn.Linear)]
        for a, b in zip(heads, (m for m in chain.head.mlp_module.mlp if hasattr(m, "alpha"))):
            b.weight.copy_(a.weight.T / b.alpha)
            b.bias.copy_(a.bias)


def _fill_linear(theirs: nn.Module, ours: nn.Module, scales: dict[str, float] = {}) -> None:
    for n, path in enumerate(theirs.instructions):
        ir = str(theirs.irreps_out[path.i_out].ir)
        theirs.weight_view_for_instruction(n).copy_(
            ours.linear[ir].weight.T * scales.get(ir, 1.0) / path.path_weight
        )


def nequip(model: Potential, device: str) -> Peer | None:
    """The peer for ``potkit bench``, or None where the package is missing. Its vector is −∂E/∂x."""
    if package("nequip.nn") is None:
        return None
    assert model.vector_mode == "gradient" and model.backbone.layers[-1].coupling.irreps_out == (
        SCALAR,
    )
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
    )
