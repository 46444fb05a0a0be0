"""Structures in memory and on disk: the packed store, its files, batches, neighbours, elements,
geometry.

Opening and cutting a store needs NumPy only; torch and PyG are imported by what makes batches.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=[
        "arrays",
        "ase_io",
        "batch",
        "element_properties",
        "elements",
        "geometry",
        "neighbors",
        "splits",
        "storage",
        "store",
    ],
    submod_attrs={
        "arrays": ["ARRAYS", "PER_ATOM", "PER_STRUCTURE"],
        "batch": ["Batch"],
        "elements": ["MAX_Z", "SYMBOLS", "composition", "formula"],
        "store": ["Origin", "Structures", "concatenate"],
    },
)
