"""What people look at: tables and where they come from, figures, 3-D structures, published
numbers.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=[
        "at_scale",
        "audits",
        "blocks",
        "figures",
        "gallery",
        "pages",
        "paper_map",
        "paper_settings",
        "picture_export",
        "provenance",
        "published_numbers",
        "sentences",
        "stored_figures",
        "structures_3d",
        "tables",
        "time_figures",
        "verify",
    ],
    submod_attrs={
        "blocks": ["BENCHES", "fill", "measured", "printed", "settings", "studies"],
        "provenance": ["commit", "hardware", "made_by"],
        "tables": [
            "UNITS",
            "across",
            "curves",
            "effects",
            "markdown",
            "spreads",
            "store",
            "stored",
            "wide",
        ],
    },
)
