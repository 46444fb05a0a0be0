"""Notebooks: their settings and profiles, running them headlessly, keeping them clean."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=["audit_profiles", "dynamics_profiles", "profiles", "results", "runner", "text"],
    submod_attrs={
        "results": ["keep_choice", "keep_ensembles", "keep_runs", "keep_simulations", "study"],
        "runner": [
            "CHECKED",
            "COMMITTED_PROFILE",
            "PROFILES",
            "Outcome",
            "Settings",
            "check_profile",
            "clean",
            "command",
            "execute",
            "find",
            "keep",
            "parameters",
            "parse_parameter",
            "read",
            "results_folder",
            "settings",
            "store",
            "summary",
            "tagged",
        ],
    },
)
