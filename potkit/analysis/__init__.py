"""Numbers that describe structures: distributions, the noise scale they bear, local vibrations."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=["distributions", "local_vibrations", "noise_scale"],
    submod_attrs={
        "distributions": [
            "bonds",
            "element_counts",
            "energy_above_minimum",
            "force_norms",
            "pair_distances",
            "radial_distribution",
        ],
        "noise_scale": ["displacements", "explained", "gaussian_test", "propose_sigma"],
    },
)
