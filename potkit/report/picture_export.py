"""Static pictures of plotly figures (PNG, SVG) through kaleido, whose browser is kept from ever
stopping a notebook.
"""

from __future__ import annotations

import io
import os
import struct
import threading
import warnings
import zlib
from collections.abc import Callable
from typing import Any

import plotly.graph_objects as go
import plotly.io as pio
import psutil
from PIL import Image

from ..errors import PotkitError

# seconds for one picture; the browser starts in one or two, a picture takes a tenth
PATIENCE = 30.0
ATTEMPTS = 4


_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_HEADER_END = 33  # bytes of a PNG's signature and its first chunk
_SOFTWARE = b"tEXtSoftware\0potkit"
_COMMENT = b"<!-- made by potkit -->\n"


def is_png(picture: bytes) -> bool:
    """Whether these are the bytes of a PNG."""
    return picture.startswith(_SIGNATURE)


def marked(picture: bytes) -> bytes:
    """A PNG or SVG that says potkit made it, so that potkit may replace it later; it looks the
    same.
    """
    if picture_is_marked(picture):
        return picture
    if not is_png(picture):
        return picture.rstrip() + b"\n" + _COMMENT
    # of a chunk's content; its type counts for the checksum only
    length, checksum = len(_SOFTWARE) - 4, zlib.crc32(_SOFTWARE)
    chunk = struct.pack(">I", length) + _SOFTWARE + struct.pack(">I", checksum)
    return picture[:_HEADER_END] + chunk + picture[_HEADER_END:]


def picture_is_marked(picture: bytes) -> bool:
    """Whether `marked` went over a PNG or SVG."""
    if is_png(picture):
        return picture[_HEADER_END + 4 :].startswith(_SOFTWARE)
    return picture.endswith(_COMMENT)


def wanted() -> bool:
    """False where POTKIT_PICTURES=0 switches static pictures off, as the notebook check does: it
    compares numbers.
    """
    return os.environ.get("POTKIT_PICTURES", "1").lower() not in ("0", "off", "no", "false")


def image(chart: go.Figure, scale: float = 2, kind: str = "png") -> bytes:
    """The figure as PNG or SVG. Raises PotkitError where the exporter (kaleido, extra `notebooks`)
    is missing or fails.

    kaleido's browser sometimes hangs at its start when others start beside it; it is then killed
    and started anew.
    """
    for _ in range(ATTEMPTS):
        data, error = _within(PATIENCE, lambda: _export(chart, scale, kind))
        if not isinstance(error, TimeoutError):
            break
    if error is not None:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise PotkitError(
            f"no {kind} of the figure: {reason} (pip install kaleido==0.2.1)"
        ) from error
    return _smaller(data) if kind == "png" else data


def _export(chart: go.Figure, scale: float, kind: str) -> bytes:
    scope = _scope()
    # plotly 6 calls kaleido 0.2 old; the newer one needs an installed Chrome
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        if scope is not None and scope.mathjax is not None:  # setting it starts the browser anew
            # else every start asks a server for it; no label here is set in TeX
            scope.mathjax = None
        return chart.to_image(format=kind, scale=scale)


def _scope() -> Any:
    """kaleido's process wrapper; None where kaleido is not installed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        wrapper = getattr(pio.kaleido, "scope", None)
        return getattr(wrapper, "_scope", wrapper)


def _within(seconds: float, work: Callable[[], Any]) -> tuple[Any, Exception | None]:
    """(result, None) or (None, exception). A TimeoutError means that kaleido's browser did not
    answer and has been killed.
    """
    outcome: list[Any] = []

    def call() -> None:
        try:
            outcome.append((work(), None))
        except Exception as error:
            outcome.append((None, error))

    worker = threading.Thread(target=call, daemon=True)
    worker.start()
    worker.join(seconds)
    if outcome:
        return outcome[0]
    process = getattr(_scope(), "_proc", None)
    if process is not None:
        # the end of its output ends the read that the thread waits in, and frees kaleido's lock
        _kill(process.pid)
    worker.join(10)
    return None, TimeoutError(f"kaleido gave no answer in {seconds:.0f} s")


def _kill(pid: int) -> None:
    """A process and its descendants: kaleido's browser is a grandchild, behind a shell script."""
    try:
        parent = psutil.Process(pid)
        for process in [*parent.children(recursive=True), parent]:
            process.kill()
    except psutil.NoSuchProcess:
        pass


def _smaller(png: bytes) -> bytes:
    """The PNG with a palette of 256 colours: a quarter of the bytes in the repository, no
    difference to the eye.
    """
    picture = Image.open(io.BytesIO(png)).convert("RGB")
    file = io.BytesIO()
    picture.quantize(256, dither=Image.Dither.NONE).save(file, "png", optimize=True)
    return file.getvalue()
