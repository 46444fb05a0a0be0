"""The command ``potkit``: one file per group of commands."""
