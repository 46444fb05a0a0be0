"""Notebooks: their settings and profiles, running them headlessly, keeping them clean."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=["audit_profiles", "profiles", "runner", "text"],
    submod_attrs={
        "runner": [
            "CHECKED",
            "COMMITTED_PROFILE",
            "PROFILES",
            "Outcome",
            "Settings",
            "check_profile",
            "clean",
            "execute",
            "find",
            "keep",
            "parameters",
            "parse_parameter",
            "read",
            "settings",
            "store",
            "summary",
            "tagged",
        ]
    },
)
