"""The contract suite: what any network must obey, and the sample structures to hold it to."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=["contract", "sample_structures"],
    submod_attrs={
        "contract": [
            "CHECKS",
            "ONCE",
            "QUANTITIES",
            "STENCIL",
            "SYMMETRIES",
            "TOLERANCES",
            "check_batch_independence",
            "check_cutoff_continuity",
            "check_extensivity",
            "check_finite_differences",
            "check_stress",
            "check_input_not_mutated",
            "check_isolated_atom",
            "check_model",
            "check_periodic_image",
            "check_permutation",
            "check_reflection",
            "check_rotation",
            "check_second_derivatives",
            "check_shapes",
            "check_supercell",
            "check_translation",
            "claimed",
            "evaluate",
            "prepared",
            "random_rotation",
        ],
        "sample_structures": ["examples"],
    },
)
