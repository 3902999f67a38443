"""matplotlib for pictures in files: it opens no window, whatever display there is.

Import it where something is drawn, so that what is only measured needs no matplotlib.
"""

from __future__ import annotations

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

__all__ = ["pyplot"]
