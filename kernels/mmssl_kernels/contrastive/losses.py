"""Contrastive losses and cross entropies, as formulas over what the tile engine sums.

Rows come normalised where the method normalises them; `scale` is the multiplier of the similarities itself (the inverse
of a temperature), its logarithm the model's business. Logits, statistics and losses are float32 whatever the inputs,
float64 for float64. None of these losses holds more than tiles of the matrix, nor keeps more than its vectors.

group: ranks of `torch.distributed` that hold a part of the batch each, as many rows as they like. The loss is that of
all rows together, the same on every rank, and its gradient is the ranks' number times this rank's share: averaged over
the ranks, as DistributedDataParallel does, it is that of one process with all rows. None: this process alone.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.nn import functional as F

from mmssl_kernels.contrastive.one_pass import loss_in_one_pass
from mmssl_kernels.contrastive.similarity import Kind, check_features, check_labels, exact_dtype, similarity
from mmssl_kernels.frame import checks, op
from mmssl_kernels.frame.dispatch import backend

Scale = Float[Tensor, ""] | float | int
# On a CPU so many logits are cheaper to keep for backward than to make again.
WHOLE = 2**22


def info_nce(
    a: Float[Tensor, "rows dim"],
    b: Float[Tensor, "columns dim"],
    scale: Scale,
    *,
    labels: Int64[Tensor, " rows"] | None = None,
    symmetric: bool = True,
    exclude_self: bool = False,
    queue: Float[Tensor, "queued dim"] | None = None,
    weights: Float[Tensor, " rows"] | None = None,
    group: ProcessGroup | None = None,
) -> Float[Tensor, ""]:
    """InfoNCE: each row of `a` must find its own in `b`, `mean_i -log softmax_j(scale <a_i, b_j>)[labels_i]`.

    labels: which row of `b` belongs to each row of `a`; row i to row i where None. `b` may have more rows than `a`
    (CPC, arXiv 1807.03748; ImageBind, arXiv 2305.05665), several rows of `a` may name one of `b`.
    symmetric: the mean of that and of finding, for each of these pairs, row i of `a` among all of `a` (CLIP, arXiv
    2103.00020, figure 3).
    exclude_self: row i does not see row i of `b`, for a batch compared with itself (see `nt_xent`).
    queue: negatives instead of the other rows of `b` (MoCo, arXiv 1911.05722, algorithm 1): row i chooses among b_i and
    the queue. It serves one direction: pass symmetric=False. To have b's other rows as negatives too, hand in
    `b = torch.cat([b, queue])` and no queue.
    weights: of each row of `a`, none negative; the result is the weighted mean. Nothing to compare gives 0.
    group: see the top of this file. Labels name rows of this rank's `b`, a queue is this rank's own.
    Gradients: a, b, queue, weights, and scale where it is a tensor.

    Raises ValueError naming both shapes where sizes, labels or devices do not fit, TypeError for other dtypes.
    """
    a, b, queue = op.lowered(a), op.lowered(b), queue if queue is None else op.lowered(queue)
    scale = _checked(a, b, scale, labels=labels, queue=queue, weights=weights)
    if queue is not None:
        if symmetric or exclude_self or labels is not None:
            raise ValueError(
                "a queue holds negatives of a's rows only: pass symmetric=False, no labels, no exclude_self"
            )
        checks.shape(tuple(a.shape), "row i of b is the key of row i of a", b=b)
        exact = exact_dtype(a)
        keys = scale * (a.to(exact) * b.to(exact)).sum(1)
        return mean_loss(a, queue, scale, outside=keys, weights=weights, group=group, shared=True)
    if exclude_self and a.shape != b.shape:
        raise ValueError(f"exclude_self compares a batch with itself: {tuple(a.shape)} and {tuple(b.shape)} differ")
    if exclude_self and labels is None:
        raise ValueError("exclude_self leaves out column i of row i: pass labels that name another")
    if labels is None and len(b) < len(a):
        raise ValueError(f"row i of a belongs to row i of b without labels: {tuple(a.shape)} and {tuple(b.shape)}")
    return mean_loss(
        a, b, scale, labels=labels, exclude_self=exclude_self, columns=symmetric, weights=weights, group=group
    )


def nt_xent(
    a: Float[Tensor, "pairs dim"], b: Float[Tensor, "pairs dim"], scale: Scale, *, group: ProcessGroup | None = None
) -> Float[Tensor, ""]:
    """NT-Xent (SimCLR, arXiv 2002.05709, equation 1): two views of each sample; all other rows of both are negatives.

    Each of the 2N rows must find its partner among the 2N - 1 others. Gradients and errors as of `info_nce`.
    """
    checks.shape(tuple(a.shape), "b holds the second view of each row of a", b=b)
    views = torch.cat([op.lowered(a), op.lowered(b)])
    partners = torch.arange(len(views), device=a.device).roll(len(a))
    return info_nce(views, views, scale, labels=partners, symmetric=False, exclude_self=True, group=group)


def siglip_loss(
    a: Float[Tensor, "pairs dim"],
    b: Float[Tensor, "pairs dim"],
    scale: Scale,
    bias: Scale,
    *,
    group: ProcessGroup | None = None,
) -> Float[Tensor, ""]:
    """SigLIP's loss (arXiv 2303.15343, algorithm 1): `-sum_ij log sigmoid(z_ij (scale <a_i, b_j> + bias)) / N`.

    z is 1 where i = j and -1 elsewhere. Gradients: a, b, and scale and bias where they are tensors.
    """
    a, b = op.lowered(a), op.lowered(b)
    scale, shift = _checked(a, b, scale), _scalar("bias", bias, a)
    checks.shape(tuple(a.shape), "row i of b belongs to row i of a", b=b)
    return mean_loss(a, b, scale, shift, kind="sigmoid", group=group)


def linear_cross_entropy(
    x: Float[Tensor, "*tokens dim"],
    weight: Float[Tensor, "classes dim"],
    labels: Int64[Tensor, "*tokens"],
    *,
    bias: Float[Tensor, " classes"] | None = None,
    ignore_index: int = -100,
    weights: Float[Tensor, "*tokens"] | None = None,
    group: ProcessGroup | None = None,
) -> Float[Tensor, ""]:
    """`F.cross_entropy(F.linear(x, weight, bias), labels)` without the logits: heads of BERT, BEiT and the like.

    The mean runs over the labels that are not `ignore_index`, as their `weights` count them (all alike where None);
    without any it is 0. Ignored rows cost what others do: where the positions are known beforehand (masked ones), hand
    in only those. Gradients: x, weight (which may be tied to an embedding), bias.

    Raises ValueError naming both shapes where sizes, labels or devices do not fit, TypeError for other dtypes.
    """
    checks.shape(tuple(x.shape[:-1]), f"x has shape {tuple(x.shape)}", labels=labels, weights=weights)
    x, labels, weight = op.lowered(x).reshape(-1, x.shape[-1]), labels.reshape(-1), op.lowered(weight)
    one = _checked(x, weight, 1.0, names=("x", "weight"), labels=labels, bias=bias)
    counted = (labels != ignore_index).to(exact_dtype(x))
    counted = counted if weights is None else counted * weights.reshape(-1)
    return mean_loss(x, weight, one, bias, labels, ignored=ignore_index, weights=counted, group=group, shared=True)


def mean_loss(
    x: Tensor,
    y: Tensor,
    scale: Tensor,
    bias: Tensor | None = None,
    labels: Tensor | None = None,
    *,
    outside: Tensor | None = None,
    kind: Kind = "softmax",
    exclude_self: bool = False,
    columns: bool = False,
    ignored: int | None = None,
    weights: Tensor | None = None,
    group: ProcessGroup | None = None,
    shared: bool = False,
) -> Tensor:
    """-log likelihood of each row's positive in its row, with `columns` averaged with that in its column; their mean.

    Row i's positive is column i without labels. outside: it is no column, but has this logit. bias `[M]`, or `[]`.
    shared: y is whole on every rank of the group; else each rank has columns that the others' rows see, and bias is
    `[]`.
    """
    own, count, exclude = labels is None, x.shape[0], 0 if exclude_self else None
    if own and outside is None:
        labels = torch.arange(count, device=x.device)
    shift = bias if bias is None else bias.expand(y.shape[0])
    torch_path, of_columns = backend([x]) == "torch", None
    learning = torch.is_grad_enabled() and any(each is not None and each.requires_grad for each in (x, y, scale, bias))
    if group is not None and not shared:
        assert labels is not None
        from mmssl_kernels.contrastive.distributed import similarity_across  # its decorators import the compiler

        sums = similarity_across(
            x, y, scale, bias, labels, kind=kind, exclude_self=exclude_self, columns=columns, group=group
        )
        of_rows, of_columns = differences(sums, None if own else labels, outside, kind)
    elif torch_path and count * y.shape[0] <= WHOLE and not torch.is_autocast_enabled(x.device.type):
        of_rows, of_columns = whole(x, y, scale, bias, labels, own, outside, kind, exclude, columns, ignored)
    elif torch_path and learning and not columns:
        rows = x.new_ones(count, dtype=exact_dtype(x)) if weights is None else weights.to(exact_dtype(x))
        total = loss_in_one_pass(x, y, scale, shift, labels, outside, rows, kind=kind, exclude=exclude, ignored=ignored)
        return mean_of(total, rows.sum(), group)
    else:
        sums = similarity(x, y, scale, shift, labels, kind=kind, exclude=exclude, columns=columns, ignored=ignored)
        of_rows, of_columns = differences(sums, None if own else labels, outside, kind)
    losses = of_rows if of_columns is None else (of_rows + of_columns) / 2
    if weights is None and group is None:
        return losses.mean() if count else losses.sum()
    if weights is None:
        return mean_of(losses.sum(), losses.new_full((), count), group)
    rows = weights.to(losses.dtype)
    weighted = torch.where((rows == 0) & ~losses.isfinite(), 0, losses * rows)  # of an ignored row that is no number
    return mean_of(weighted.sum(), rows.sum(), group)


def differences(
    sums: tuple[Tensor, Tensor, Tensor], labels: Tensor | None, outside: Tensor | None, kind: Kind
) -> tuple[Tensor, Tensor | None]:
    """Of each row's sum and its positive, and of its positive's column's; labels None: column i is row i's."""
    rows, columns, positives = sums
    top, log = rows[:, 0].detach(), rows[:, 1]
    if kind == "sigmoid":
        return log, None
    if outside is not None:
        return -F.logsigmoid((outside - top) - log), None
    if not columns.shape[0]:
        return (top - positives) + log, None
    columns = columns[: rows.shape[0]] if labels is None else columns[labels]
    return (top - positives) + log, (columns[:, 0].detach() - positives) + columns[:, 1]


def whole(
    x: Tensor,
    y: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    labels: Tensor | None,
    own: bool,
    outside: Tensor | None,
    kind: Kind,
    exclude: int | None,
    columns: bool,
    ignored: int | None,
) -> tuple[Tensor, Tensor | None]:
    """The same differences, of logits that are kept: one tile that costs less to keep than to make again."""
    if not own and not torch.compiler.is_compiling():  # values are unknown then; cross_entropy refuses them later
        check_labels(x, y, scale, bias, labels, kind, exclude, columns, ignored)
    exact = exact_dtype(x)
    logits = (x.to(exact) * scale) @ y.to(exact).T
    if bias is not None:
        logits = logits + bias
    if exclude is not None:
        logits.diagonal(exclude).fill_(-torch.inf)
    if outside is not None:
        return -F.logsigmoid(outside - logits.logsumexp(1)), None
    assert labels is not None
    if kind == "sigmoid":
        logits.diagonal().neg_()  # every row's positive is its own
        return F.softplus(logits, threshold=50).sum(1), None  # past which float64 has no digit left for exp(-x)
    nowhere = torch.iinfo(torch.int64).min  # -100, the default, is as wrong as any other
    of_rows = F.cross_entropy(logits, labels, reduction="none", ignore_index=nowhere if ignored is None else ignored)
    if not columns:
        return of_rows, None
    turned = logits[:, : len(x)].T if own else logits.T[labels]
    return of_rows, F.cross_entropy(turned, torch.arange(x.shape[0], device=x.device), reduction="none")


def mean_of(total: Tensor, weight: Tensor, group: ProcessGroup | None) -> Tensor:
    """Over the ranks of the group; 0 where nothing weighs anything."""
    if group is not None:
        from mmssl_kernels.contrastive.distributed import mean_across

        return mean_across(total, weight, group)
    return total / torch.where(weight == 0, 1, weight)


def _scalar(name: str, value: Tensor | float | int, like: Tensor) -> Tensor:
    """As a tensor `[]` beside `like`; filled there, which does not wait for a device."""
    if isinstance(value, Tensor):
        checks.shape((), f"{name} is one number", **{name: value})
        checks.dtype(checks.FLOATS, **{name: value})
        checks.same_device(**{name: value, "a": like})
        return value.to(exact_dtype(like))
    return torch.full((), value, dtype=exact_dtype(like), device=like.device)


def _checked(
    a: Tensor,
    b: Tensor,
    scale: Tensor | float | int,
    *,
    names: tuple[str, str] = ("a", "b"),
    labels: Tensor | None = None,
    bias: Tensor | None = None,
    queue: Tensor | None = None,
    weights: Tensor | None = None,
) -> Tensor:
    """Refuses what does not fit; the scale as a tensor."""
    features = {names[0]: a, names[1]: b, "queue": queue}
    check_features(**features)
    checks.dtype(checks.FLOATS, bias=bias, weights=weights)
    checks.dtype((torch.int64,), labels=labels)
    checks.shape(tuple(a.shape[:1]), f"{names[0]} has shape {tuple(a.shape)}", labels=labels, weights=weights)
    checks.shape(tuple(b.shape[:1]), f"{names[1]} has shape {tuple(b.shape)}", bias=bias)
    tensors = {**features, "labels": labels, "bias": bias, "weights": weights}
    checks.same_device(**tensors)
    return _scalar("scale", scale, a)
