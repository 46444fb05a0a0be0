"""Structures in memory and on disk: the packed store, its files, batches, neighbours, elements,
geometry.

Opening and cutting a store needs NumPy only; torch and PyG are imported by what makes batches.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=["ase_io", "batch", "elements", "geometry", "neighbors", "storage", "store"],
    submod_attrs={
        "batch": ["Batch"],
        "store": [
            "ARRAYS",
            "MAX_Z",
            "PER_ATOM",
            "PER_STRUCTURE",
            "SYMBOLS",
            "Origin",
            "Structures",
            "concatenate",
            "formula",
        ],
    },
)
