"""PaiNN against its equations evaluated atom by atom in NumPy, and its read-outs."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from potkit import models
from potkit.errors import ConfigError
from potkit.testing import contract


def silu(x):
    return x / (1 + np.exp(-x))


def weights(layer):
    return layer.weight.detach().numpy(), 0.0 if layer.bias is None else layer.bias.detach().numpy()


def linear(layer, x):
    w, b = weights(layer)
    return w @ x + b


def net(sequence, x):
    return linear(sequence[2], silu(linear(sequence[0], x)))


def numpy_painn(backbone, z, pos):
    c, n, width = backbone.cutoff, len(z), backbone.n_features
    s, v = backbone.embedding.element.weight.detach().numpy()[z], np.zeros((n, 3, width))
    k = np.arange(1, 21)
    for message, update in zip(backbone.messages, backbone.updates, strict=True):
        new_s, new_v = s.copy(), v.copy()
        for i in range(n):
            for j in range(n):
                d = np.linalg.norm(pos[j] - pos[i])
                if i == j or d >= c:
                    continue
                basis = np.sqrt(2 / c) * np.sin(k * np.pi * d / c) / d
                x = (
                    net(message.phi, s[j])
                    * linear(message.filter, basis)
                    * 0.5
                    * (1 + np.cos(np.pi * d / c))
                )
                ss, vs, vv = np.split(x, 3)
                new_s[i] += ss  # equation 7
                new_v[i] += v[j] * vv + np.outer((pos[j] - pos[i]) / d, vs)  # equation 8
        s, v = new_s, new_v
        u_weight, v_weight = np.split(weights(update.mix)[0], 2)
        new_s, new_v = s.copy(), v.copy()
        for i in range(n):
            u, w = v[i] @ u_weight.T, v[i] @ v_weight.T
            a_ss, a_sv, a_vv = np.split(
                net(update.net, np.concatenate([s[i], np.sqrt((w**2).sum(0) + 1e-6)])), 3
            )
            new_s[i] += a_ss + a_sv * (u * w).sum(0)  # equation 9
            new_v[i] += a_vv * u  # equation 10
        s, v = new_s, new_v
    return s, v


@pytest.mark.parametrize("hidden", [128, 12])
def test_equals_the_equations_in_numpy(hidden):
    torch.manual_seed(0)
    model = contract.prepared(models.build("painn", "paper", hidden=hidden))
    one = contract.examples(5.0)[0]
    batch = one.batch(dtype=torch.float64)
    with torch.no_grad():
        features = model.backbone(model.graph(batch, batch.pos))
    # frequencies are rounded to float32 when they are made
    s, v = numpy_painn(model.backbone, one.z.astype(int), one.pos)
    np.testing.assert_allclose(features.scalar.numpy(), s, rtol=0, atol=1e-6 * np.abs(s).max())
    np.testing.assert_allclose(features.vector.numpy(), v, rtol=0, atol=1e-6 * np.abs(v).max())
    model.backbone.basis.frequencies = torch.arange(1, 21, dtype=torch.float64) * (np.pi / 5.0)
    with torch.no_grad():
        features = model.backbone(model.graph(batch, batch.pos))
    np.testing.assert_allclose(features.scalar.numpy(), s, rtol=0, atol=1e-11 * np.abs(s).max())
    np.testing.assert_allclose(features.vector.numpy(), v, rtol=0, atol=1e-11 * np.abs(v).max())


@pytest.mark.parametrize(
    "vector, forces", [("gated", "vector"), ("direct", "vector"), ("direct", "gradient")]
)
def test_contract_of_other_read_outs(vector, forces):
    torch.manual_seed(0)
    model = models.build("painn", hidden=16, layers=2, vector=vector, forces=forces)
    checks = ["rotation", "reflection", "supercell", "cutoff_continuity", "finite_differences"]
    report = contract.check_model(model, checks=checks)
    turned = report[report.check.isin(["rotation", "reflection"]) & (report.quantity == "vector")]
    assert turned.passed.all() == (vector == "gated")


def test_options():
    with pytest.raises(
        ConfigError, match="unknown preset 'denoise-paper' of painn; there are paper, small"
    ):
        models.build("painn", "denoise-paper")
    with pytest.raises(ConfigError, match="hidden, layers, radial ≥ 1, got 64, 3, 0"):
        models.build("painn", radial=0)
