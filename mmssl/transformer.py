"""The one transformer: ViT, BERT, CLIP's towers, VideoMAE, DINOv2 and the light decoders are settings of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple, cast

import torch
from jaxtyping import Bool, Float, Int, Int64
from mmssl_kernels import Window, attention, attention_qkvpacked, attention_weights
from torch import Tensor, nn
from torch.nn import functional as F

from mmssl.errors import UserError

Activation = Literal["gelu", "gelu_tanh", "quick_gelu", "swiglu"]
BranchName = Literal["cross", "attn", "mlp"]
BRANCHES: tuple[BranchName, ...] = ("cross", "attn", "mlp")


@dataclass(frozen=True)
class WindowConfig:
    """Attention within windows of a grid: Swin V2's, by cosine (arXiv 2111.09883, section 3.3), as Audio-MAE has it.

    size, shift: rows and columns of a window, and by how much those of every other block are shifted. A position bias
    comes from a network of `hidden` channels on log-spaced offsets. dropout: behind both of its layers while training;
    the authors' 0.1 (facebookresearch/AudioMAE) is left out by default.
    """

    size: tuple[int, int] = (4, 4)
    shift: tuple[int, int] = (2, 0)
    hidden: int = 384
    dropout: float = 0.0


@dataclass(frozen=True)
class TransformerConfig:
    """The settings of a `Transformer`; the defaults are a ViT's.

    dim: width of a token. hidden: width of the MLP, 4 * dim where None. norm_order: "pre" (ViT), "post" (BERT: behind
    the sum) or "res_post" (Swin V2: behind the branch). window: self-attention within windows of a grid of tokens.
    qkv_bias: "query_value" leaves the key without one (VideoMAE, BEiT). activation: "swiglu" gates one half of its
    hidden layer by the other (DINOv2). causal: a token sees itself and those before it (CLIP text). branches: what a
    block does, in this order; "cross" attends to a context (decoders). layer_scale: initial value of a learned scale a
    channel behind each branch. drop_path: probability of skipping a branch, growing linearly with depth. input_norm: a
    norm before the first block (CLIP's ln_pre, BERT's embedding norm). final_norm: a norm after the last, with
    final_norm_eps where that is not norm_eps (transformers' VideoMAE). dropout: of the channels behind each branch and
    behind input_norm, BERT's 0.1 of "hidden dropout"; left out by default. Attention's probabilities are never dropped,
    where BERT drops 0.1 of them, too: the kernels do not hold them.
    """

    dim: int
    depth: int
    heads: int
    hidden: int | None = None
    norm_order: Literal["pre", "post", "res_post"] = "pre"
    norm_eps: float = 1e-6
    qkv_bias: Literal["all", "query_value", "none"] = "all"
    activation: Activation = "gelu"
    causal: bool = False
    branches: tuple[BranchName, ...] = ("attn", "mlp")
    layer_scale: float | None = None
    drop_path: float = 0.0
    input_norm: bool = False
    final_norm: bool = True
    final_norm_eps: float | None = None
    window: WindowConfig | None = None
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.heads < 1 or self.dim % self.heads:
            raise UserError(f"width {self.dim} does not divide into {self.heads} heads")
        for name in ("drop_path", "dropout"):
            if not 0 <= (rate := getattr(self, name)) < 1:
                raise UserError(f"{name} {rate} is a probability below 1")
        if not self.branches or len(set(self.branches)) < len(self.branches) or set(self.branches) - set(BRANCHES):
            raise UserError(f"branches {self.branches}: a block has some of {BRANCHES}, each at most once")

    @property
    def mlp_width(self) -> int:
        return self.hidden or 4 * self.dim


class Packing(NamedTuple):
    """Where sequences lie that are one after the other in one row of tokens, `[S, dim]`.

    offsets: `[B + 1]`, the first token of each, and behind the last one S. longest: the most tokens of a sequence.
    """

    offsets: Int[Tensor, " offsets"]
    longest: int


class Attention(nn.Module):
    """Multi-head self-attention over one packed query-key-value projection."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        dim = config.dim
        self.heads, self.causal = config.heads, config.causal
        self.qkv = nn.Linear(dim, 3 * dim, bias=config.qkv_bias == "all")
        self.query_value_bias = nn.Parameter(torch.zeros(2 * dim)) if config.qkv_bias == "query_value" else None
        self.proj = nn.Linear(dim, dim)

    def packed(self, x: Float[Tensor, "*batch tokens dim"]) -> Float[Tensor, "*batch tokens 3 heads head_dim"]:
        """Queries, keys and values of all heads."""
        bias: Tensor | None = self.qkv.bias
        if self.query_value_bias is not None:
            query, value = self.query_value_bias.chunk(2)
            bias = torch.cat([query, torch.zeros_like(query), value])
        return F.linear(x, self.qkv.weight, bias).unflatten(-1, (3, self.heads, -1))

    def forward(
        self, x: Float[Tensor, "*rows tokens dim"], padding: Bool[Tensor, "batch tokens"] | Packing | None = None
    ) -> Float[Tensor, "*rows tokens dim"]:
        if isinstance(padding, Packing):
            where: dict[str, Any] = {"cu_seqlens": padding.offsets, "max_seqlen": padding.longest}
        else:
            where = {"key_padding": padding}
        return self.proj(attention_qkvpacked(self.packed(x), causal=self.causal, **where).flatten(-2))

    def weights(
        self, x: Float[Tensor, "batch tokens dim"], queries: int
    ) -> Float[Tensor, "batch heads {queries} tokens"]:
        """What the first `queries` tokens attend to, to look at: padding is not left out."""
        q, k, _ = self.packed(x).unbind(2)
        return attention_weights(q[:, :queries], k)


class WindowAttention(nn.Module):
    """Multi-head attention of each window of a grid with itself: cosine similarity over a learned temperature, plus a
    bias of the offset between two tokens (see `WindowConfig`). Windows are neither cut out nor rolled in memory."""

    def __init__(self, config: TransformerConfig, window: WindowConfig, shifted: bool):
        super().__init__()
        dim = config.dim
        self.heads, self.window, self.shift = config.heads, window, window.shift if shifted else (0, 0)
        self.qkv, self.proj = nn.Linear(dim, 3 * dim, bias=config.qkv_bias == "all"), nn.Linear(dim, dim)
        self.temperature = nn.Parameter(torch.ones(config.heads))
        self.offset1, self.offset2 = nn.Linear(2, window.hidden), nn.Linear(window.hidden, config.heads)
        places = torch.cartesian_prod(*(torch.arange(side) for side in window.size)).float()
        apart = places[:, None] - places
        self.register_buffer("offsets", apart.sign() * apart.abs().log1p(), persistent=False)

    def bias(self) -> Float[Tensor, "heads window window"]:
        """The bias of each pair of a window's tokens."""
        drop = partial(F.dropout, p=self.window.dropout, training=self.training)
        return drop(self.offset2(drop(self.offset1(self.offsets).relu()))).permute(2, 0, 1)

    def forward(self, x: Float[Tensor, "batch tokens dim"], grid: tuple[int, int]) -> Float[Tensor, "batch tokens dim"]:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).unbind(2)
        q, k = (F.normalize(each.float(), dim=-1) for each in (q, k))
        q = q / self.temperature.clamp(min=0.01)[:, None]
        window = Window(grid, self.window.size, self.shift)
        return self.proj(
            attention(q.to(v.dtype), k.to(v.dtype), v, window=window, bias=self.bias(), scale=1.0).flatten(2)
        )


class CrossAttention(nn.Module):
    """Multi-head attention from a sequence to a context of the same width."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        dim, bias = config.dim, config.qkv_bias == "all"
        self.heads = config.heads
        self.q = nn.Linear(dim, dim, bias=bias)
        self.kv = nn.Linear(dim, 2 * dim, bias=bias)
        self.proj = nn.Linear(dim, dim)

    def forward(
        self,
        x: Float[Tensor, "batch tokens dim"],
        context: Float[Tensor, "batch context dim"],
        padding: Bool[Tensor, "batch context"] | None = None,
    ) -> Float[Tensor, "batch tokens dim"]:
        q = self.q(x).unflatten(-1, (self.heads, -1))
        k, v = self.kv(context).unflatten(-1, (2, self.heads, -1)).unbind(2)
        return self.proj(attention(q, k, v, key_padding=padding).flatten(2))


class MLP(nn.Module):
    """Two linear layers around an activation."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.activation = config.activation
        gates = 2 if config.activation == "swiglu" else 1
        self.fc1 = nn.Linear(config.dim, gates * config.mlp_width)
        self.fc2 = nn.Linear(config.mlp_width, config.dim)

    def forward(self, x: Float[Tensor, "*rows tokens dim"]) -> Float[Tensor, "*rows tokens dim"]:
        x = self.fc1(x)
        if self.activation == "swiglu":
            gate, value = x.chunk(2, dim=-1)
            return self.fc2(F.silu(gate) * value)
        if self.activation == "quick_gelu":
            return self.fc2(x * torch.sigmoid(1.702 * x))
        return self.fc2(F.gelu(x, approximate="tanh" if self.activation == "gelu_tanh" else "none"))


class Branch(nn.Module):
    """A residual branch: norm, layer, scale, dropout and stochastic depth, in pre- or post-norm order."""

    def __init__(self, layer: nn.Module, config: TransformerConfig, drop_path: float):
        super().__init__()
        self.layer, self.drop_path, self.norm_order = layer, drop_path, config.norm_order
        self.dropout = nn.Dropout(config.dropout)
        self.norm = nn.LayerNorm(config.dim, eps=config.norm_eps)
        scale = config.layer_scale
        self.scale = None if scale is None else nn.Parameter(torch.full((config.dim,), scale))

    def read(self, x: Float[Tensor, "*rows tokens dim"]) -> Float[Tensor, "*rows tokens dim"]:
        """What the layer reads of x."""
        return self.norm(x) if self.norm_order == "pre" else x

    def forward(self, x: Float[Tensor, "*rows tokens dim"], *args: Any) -> Float[Tensor, "*rows tokens dim"]:
        out = self.layer(self.read(x), *args)
        if self.norm_order == "res_post":
            out = self.norm(out)
        if self.scale is not None:
            out = out * self.scale
        out = self.dropout(out)
        if self.drop_path and self.training:
            survives = torch.rand(len(x), 1, 1, device=x.device) >= self.drop_path
            out = out * (survives / (1 - self.drop_path)).to(out.dtype)
        return self.norm(x + out) if self.norm_order == "post" else x + out


class Block(nn.Module):
    """Attention to a context (decoders only), to itself, MLP: a residual branch each, in the config's order."""

    cross: Branch
    attn: Branch
    mlp: Branch

    def __init__(self, config: TransformerConfig, drop_path: float, number: int):
        super().__init__()
        layers: dict[str, Callable[[TransformerConfig], nn.Module]]
        layers = {"cross": CrossAttention, "attn": Attention, "mlp": MLP}
        if config.window is not None:
            layers["attn"] = partial(WindowAttention, window=config.window, shifted=number % 2 == 1)
        self.windowed = config.window is not None
        for name in config.branches:
            self.add_module(name, Branch(layers[name](config), config, drop_path))

    def forward(
        self,
        x: Float[Tensor, "*rows tokens dim"],
        padding: Bool[Tensor, "batch tokens"] | Packing | None = None,
        context: Float[Tensor, "batch context dim"] | None = None,
        context_padding: Bool[Tensor, "batch context"] | None = None,
        grid: tuple[int, int] | None = None,
    ) -> Float[Tensor, "*rows tokens dim"]:
        reads = {"cross": (context, context_padding), "attn": (grid if self.windowed else padding,), "mlp": ()}
        for name, branch in self.named_children():
            x = branch(x, *reads[name])
        return x


def padding_of(
    lengths: Int64[Tensor, " batch"] | None, x: Float[Tensor, "batch tokens dim"]
) -> Bool[Tensor, "batch tokens"] | None:
    """True where a token is padding."""
    return None if lengths is None else torch.arange(x.shape[1], device=x.device) >= lengths[:, None]


class Transformer(nn.Module):
    """A stack of blocks over a sequence of tokens.

    lengths: valid tokens of each sample, padding behind them. Packed: x is `[S, dim]`, the samples' valid tokens one
    after the other, and no padding is there to be multiplied; ValueError where samples would have to be told apart for
    more than self-attention. context: what a decoder's "cross" branches attend to. grid: rows and columns of the
    tokens, all of which must be there, where attention is within windows.
    """

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.config = config
        rates = [config.drop_path * i / max(1, config.depth - 1) for i in range(config.depth)]
        self.input_norm = nn.LayerNorm(config.dim, eps=config.norm_eps) if config.input_norm else nn.Identity()
        self.dropout = nn.Dropout(config.dropout if config.input_norm else 0.0)
        self.blocks = nn.ModuleList(Block(config, rate, number) for number, rate in enumerate(rates))
        eps = config.norm_eps if config.final_norm_eps is None else config.final_norm_eps
        self.final_norm = nn.LayerNorm(config.dim, eps=eps) if config.final_norm else nn.Identity()

    def forward(
        self,
        x: Float[Tensor, "*rows tokens dim"],
        lengths: Int64[Tensor, " batch"] | None = None,
        context: Float[Tensor, "batch context dim"] | None = None,
        context_lengths: Int64[Tensor, " batch"] | None = None,
        grid: tuple[int, int] | None = None,
    ) -> Float[Tensor, "*rows tokens dim"]:
        shape, x = x.shape, self.dropout(self.input_norm(x))
        padding = self._packing(x, lengths) if x.ndim == 2 else padding_of(lengths, x)
        if isinstance(padding, Packing) and len(x) == (count := len(padding.offsets) - 1) * padding.longest:
            # All are of one length: attention of rectangles is faster, on CPUs above all.
            x, padding = x.unflatten(0, (count, padding.longest)), None
        context_padding = None if context is None else padding_of(context_lengths, context)
        for block in self.blocks:
            x = block(x, padding, context, context_padding, grid)
        return self.final_norm(x).reshape(shape)

    def _packing(self, x: Float[Tensor, "tokens dim"], lengths: Int64[Tensor, " batch"] | None) -> Packing:
        config = self.config
        dropping = self.training and config.drop_path > 0
        if lengths is None or dropping or config.window is not None or "cross" in config.branches:
            raise ValueError(
                f"tokens of shape {tuple(x.shape)} are packed: they need lengths, and go with neither drop_path nor "
                "windows nor a context"
            )
        offsets = F.pad(lengths.cumsum(0), (1, 0)).to(torch.int32)
        return Packing(offsets, int(lengths.max()))

    @torch.no_grad()
    def last_attention(
        self, x: Float[Tensor, "batch tokens dim"], queries: int
    ) -> Float[Tensor, "batch heads {queries} tokens"]:
        """The weights of the last block's self-attention, those of the first `queries` tokens."""
        *before, last = cast(list[Block], list(self.blocks))
        x = self.input_norm(x)
        for block in before:
            x = block(x)
        return cast(Attention, last.attn.layer).weights(last.attn.read(x), queries)


def told(config: TransformerConfig, module: nn.Module) -> str:
    """Sizes of a transformer, and the parameters of the module that holds it, for its `repr`."""
    millions = sum(parameter.numel() for parameter in module.parameters()) / 1e6
    return f"{config.dim} wide, {config.depth} blocks, {config.heads} heads, {millions:.1f} M parameters"


def xavier_init(module: nn.Module) -> None:
    """MAE's initialisation: linear layers Xavier-uniform with zero bias, norms one and zero (facebookresearch/mae)."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
    _zero_biases(module)


def apart_init(module: nn.Module) -> None:
    """`xavier_init`, but queries, keys and values each as a layer of their own, though they lie in one (MoCo v3's;
    EPFL-VILAB/MultiMAE, `_init_weights`)."""
    xavier_init(module)
    for layer in module.modules():
        for name, parts in (("qkv", 3), ("kv", 2)):
            if isinstance(layer, (Attention, CrossAttention)) and hasattr(layer, name):
                for weight in getattr(layer, name).weight.detach().chunk(parts):
                    nn.init.xavier_uniform_(weight)


def bert_init(module: nn.Module) -> None:
    """BERT's initialisation: linear layers normal with deviation 0.02, cut at twice that, and zero bias
    (google-research/bert, `create_initializer`)."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.trunc_normal_(layer.weight, std=0.02, a=-0.04, b=0.04)
    _zero_biases(module)


def openai_vision_init(transformer: Transformer) -> None:
    """PyTorch's own initialisation, which CLIP's image encoder keeps: that of `nn.MultiheadAttention` and `nn.Linear`
    (openai/CLIP, `VisionTransformer`)."""
    for block in transformer.blocks:
        for layer in block.modules():
            if isinstance(layer, nn.Linear):
                layer.reset_parameters()
        attention = block.get_submodule("attn.layer")
        nn.init.xavier_uniform_(attention.get_parameter("qkv.weight"))
        _zero_biases(attention)


def openai_text_init(transformer: Transformer) -> None:
    """That of CLIP's text encoder: what is added to the residual stream is smaller the deeper it is (openai/CLIP,
    `initialize_parameters`)."""
    dim, depth = transformer.config.dim, transformer.config.depth
    added = dim**-0.5 * (2 * depth) ** -0.5
    openai_vision_init(transformer)
    normal_init(transformer, {"attn.layer.qkv.weight": dim**-0.5, "attn.layer.proj.weight": added})
    normal_init(transformer, {"mlp.layer.fc1.weight": (2 * dim) ** -0.5, "mlp.layer.fc2.weight": added})


def normal_init(module: nn.Module, deviations: Mapping[str, float]) -> None:
    """Draw what learns, and whose name ends so, from normal distributions of these deviations."""
    for name, parameter in module.named_parameters():
        for ending, deviation in deviations.items():
            if parameter.requires_grad and name.endswith(ending):
                nn.init.normal_(parameter, std=deviation)


def _zero_biases(module: nn.Module) -> None:
    for layer in module.modules():
        if isinstance(layer, nn.Linear) and layer.bias is not None:
            nn.init.zeros_(layer.bias)
