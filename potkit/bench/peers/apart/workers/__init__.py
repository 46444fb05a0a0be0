"""The scripts that run inside a peer's own environment: they import numpy, ASE and the peer's
package, never potkit.

``serving.py`` speaks with potkit's process, ``torch_steps.py`` has what peers of torch share, and a
``serve_PEER.py`` builds the peer's network and says what one piece of work is. ``start.py`` runs
one; as scripts they import each other by their plain names.
"""
