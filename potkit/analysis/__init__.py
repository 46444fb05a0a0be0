"""Numbers that describe structures: distributions, the noise scale they bear, local
vibrations, what becomes of them in a simulation; and where a model errs on them.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=["distributions", "dynamics", "error_breakdown", "local_vibrations", "noise_scale"],
    submod_attrs={
        "distributions": [
            "bonds",
            "element_counts",
            "energy_above_minimum",
            "force_norms",
            "pair_distances",
            "radial_distribution",
        ],
        "dynamics": ["BondWatch", "drift"],
        "error_breakdown": ["breakdown", "centred", "energy_errors", "labels_by_geometry"],
        "noise_scale": ["displacements", "explained", "gaussian_test", "propose_sigma"],
    },
)
