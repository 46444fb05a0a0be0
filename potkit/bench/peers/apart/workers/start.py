"""Starts a worker: `python start.py serve_PEER`."""

import sys

from serving import serve

if __name__ == "__main__":
    serve(sys.argv[1])
