"""Raw media to batches: sources, decoding, views, and the deterministic loader.

`Loader(open_source(path), TrainView(224), batch_size=64).batches(0, 100)` is the whole of it for training,
`evaluation_batches(source, EvalView(224), batch_size=64)` for evaluation.
"""

from mmssl.data.decode import BrokenSample, decode
from mmssl.data.fashion_mnist import digits_source, fetch_fashion_mnist
from mmssl.data.loader import Ledger, Loader, evaluation_batches
from mmssl.data.source import ArraySource, FolderSource, NoTestPart, Source, Subset, hold_out, open_source, subset
from mmssl.data.views import EvalView, Keys, TrainView, View

__all__ = [
    "ArraySource",
    "BrokenSample",
    "EvalView",
    "FolderSource",
    "Keys",
    "Ledger",
    "Loader",
    "NoTestPart",
    "Source",
    "Subset",
    "TrainView",
    "View",
    "decode",
    "digits_source",
    "evaluation_batches",
    "fetch_fashion_mnist",
    "hold_out",
    "open_source",
    "subset",
]
