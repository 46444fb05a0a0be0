"""Data sets: what there is (`names`), getting one by name (`load`), reading any file (`read`)."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=[
        "archives",
        "checks",
        "duplicates",
        "fetch",
        "filters",
        "formal_charges",
        "formats",
        "kinds",
        "published_labels",
        "published_splits",
        "recipes",
        "reading",
        "records",
        "reference_sheet",
        "references",
        "registry",
        "splits",
        "wheel",
    ],
    submod_attrs={"reading": ["read"], "registry": ["load", "names"]},
)
