"""What a run has learned, to look at: pictures, curves, and one self-contained HTML page."""

from mmssl.report.curves import chart, curves
from mmssl.report.page import Report
from mmssl.report.pictures import (
    attention_maps,
    patch_components,
    side_by_side,
    strips,
    tracks,
)

__all__ = [
    "Report",
    "attention_maps",
    "chart",
    "curves",
    "patch_components",
    "side_by_side",
    "strips",
    "tracks",
]
