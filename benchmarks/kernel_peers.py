"""What the kernels' benchmark runs: each op, what others write in its place, and the least that either must do.

mmssl's side takes the raw uint8 pixels and normalises in the op. Peers take floating-point pixels that the user's data
pipeline normalised before the clock starts (float32; for the embedding in the dtype of its weights), except where a
side's name says "from uint8". Positions are constant tables, as in MAE and VideoMAE, and get no gradient on any side.
MAE's authors and their followers predict every patch and mask the loss; mmssl and VideoMAE predict the hidden ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any, Literal

import mmssl_kernels as kernels
import torch
from torch import Tensor, nn
from torch.nn import functional as F

OURS = "mmssl"
CONVOLVE = "convolve all, gather (MAE)"
PATCHIFY = "patchify all, square, mask (MAE)"
VENDOR = "floor: vendor's product, patches gathered before"
COMPILED = "MAE's, torch.compile"


@dataclass(frozen=True)
class Setting:
    """Where, in what and how large. batch: pictures; a clip counts as `Shape.pictures` of them."""

    device: torch.device
    dtype: torch.dtype
    batch: int
    compile: bool = False


@dataclass(frozen=True)
class Side:
    """One way of computing a case, on one set of inputs.

    leaves: what gets a gradient. upstream: the gradient of the output, None for a loss. results: of the output and the
    leaves' gradients, what all sides must agree on, in mmssl's layout.
    """

    forward: Callable[[], Tensor]
    leaves: list[Tensor]
    upstream: Tensor | None
    results: Callable[..., dict[str, Tensor]]


@dataclass(frozen=True)
class Work:
    """The fewest bytes moved, every input read once and every output written once, and FLOP; without small vectors."""

    bytes: int
    flop: int = 0


Sides = dict[str, Callable[[], Side]]


class Case:
    """One op at one shape, on one set of inputs."""

    text: str
    setting: Setting

    def sides(self) -> Sides:
        """Their makers by name, mmssl's first."""
        raise NotImplementedError

    def work(self) -> tuple[Work, Work]:
        """Of forward and of backward."""
        raise NotImplementedError


@dataclass(frozen=True)
class Shape:
    """What a masked autoencoder sees. dim: the encoder's width. width: the decoder's. prefix: its class tokens."""

    name: str
    size: tuple[int, ...]
    patch: tuple[int, ...]
    kept: int
    dim: int
    width: int
    prefix: int
    norm: Literal["patch", "channel"]
    pictures: int = 1

    @property
    def patches(self) -> int:
        return math.prod(self.size) // math.prod(self.patch)

    @property
    def values(self) -> int:
        return 3 * math.prod(self.patch)


SHAPES = (
    Shape("ViT-B/16, 224 px, 75 % masked", (224, 224), (16, 16), 49, 768, 512, 1, "patch"),
    Shape("VideoMAE-B, 16 x 224 px, 90 % masked", (16, 224, 224), (2, 16, 16), 160, 768, 384, 0, "channel", pictures=8),
)


class MaskedPatch(Case):
    """What the three ops have in common: pixels, and which patches are visible. The methods of an op are its sides."""

    def __init__(self, shape: Shape, setting: Setting, seed: int = 0):
        self.shape, self.setting, self.patch = shape, setting, shape.patch
        self.batch = max(1, setting.batch // shape.pictures)
        self.text = f"{shape.name}, batch {self.batch}"
        self.generator = torch.Generator(setting.device).manual_seed(seed)
        noise = torch.rand(self.batch, shape.patches, device=setting.device, generator=self.generator)
        keep, hide = noise.argsort(1).tensor_split([shape.kept], 1)
        self.keep, self.hide = keep.sort(1).values, hide.sort(1).values
        self.is_hidden = torch.ones_like(noise, dtype=torch.bool).scatter(1, self.keep, False)

    def normal(self, *size: int, scale: float = 1.0) -> Tensor:
        values = torch.randn(size, device=self.setting.device, generator=self.generator)
        return (scale * values).to(self.setting.dtype)

    @cached_property
    def pixels(self) -> Tensor:
        size = (self.batch, 3, *self.shape.size)
        return torch.randint(256, size, dtype=torch.uint8, device=self.setting.device, generator=self.generator)

    @cached_property
    def statistics(self) -> tuple[Tensor, Tensor]:
        """ImageNet's mean and deviation; transformers' VideoMAE knows no others."""
        mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
        return torch.tensor(mean, device=self.setting.device), torch.tensor(std, device=self.setting.device)

    def normalized(self) -> Tensor:
        """All pixels as a data pipeline hands them out, float32."""
        mean, std = (values.view(-1, *(1 for _ in self.patch)) for values in self.statistics)
        return (self.pixels / 255 - mean) / std


def leaf(tensor: Tensor) -> Tensor:
    return tensor.detach().clone().requires_grad_()


def selected(values: Tensor, index: Tensor) -> Tensor:
    return values.gather(1, index.unsqueeze(-1).expand(-1, -1, values.shape[-1]))


def selected_as_authors(values: Tensor, index: Tensor) -> Tensor:
    """The same; MAE's authors write the index out for every value."""
    return torch.gather(values, 1, index.unsqueeze(-1).repeat(1, 1, values.shape[-1]))


class Embed(MaskedPatch):
    """Patches to tokens of the visible ones."""

    def __init__(self, shape: Shape, setting: Setting, seed: int = 0):
        super().__init__(shape, setting, seed)
        self.weight = self.normal(shape.dim, shape.values, scale=shape.values**-0.5)
        self.bias, self.position = self.normal(shape.dim), self.normal(shape.patches, shape.dim)
        self.upstream = self.normal(self.batch, shape.kept, shape.dim)

    def work(self) -> tuple[Work, Work]:
        patches = self.keep.numel()
        flop, pixels = 2 * patches * self.weight.numel(), patches * self.shape.values
        weight, tokens, table = (each.nbytes for each in (self.weight, self.upstream, self.position))
        return Work(pixels + weight + table + tokens, flop), Work(pixels + tokens + weight, flop)

    def sides(self) -> Sides:
        sides = {OURS: self.ours, CONVOLVE: self.convolve, "convolve all, gather, from uint8": self.convolve_uint8}
        picture, transformers = len(self.patch) == 2, find_spec("transformers")
        if picture and find_spec("timm"):
            sides["timm's PatchEmbed, gather"] = self.timm
        if picture and transformers:
            sides["transformers' ViTMAEEmbeddings"] = self.vit_mae
        if not picture and transformers:
            sides["transformers' VideoMAEEmbeddings"] = self.video_mae
        return sides | {"linear on all, gather": self.linear, VENDOR: self.vendor}

    def side(self, forward: Callable[[], Tensor], weight: Tensor, bias: Tensor) -> Side:
        def results(tokens: Tensor, weight: Tensor, bias: Tensor) -> dict[str, Tensor]:
            return {"tokens": tokens, "weight's gradient": as_matrix(weight), "bias's gradient": bias}

        return Side(forward, [weight, bias], self.upstream, results)

    def given(self) -> Tensor:
        return self.normalized().to(self.setting.dtype)

    def kernel(self) -> Tensor:
        """The weight as a convolution has it."""
        return self.weight.unflatten(1, (*self.patch, 3)).movedim(-1, 1).contiguous()

    def ours(self) -> Side:
        weight, bias, pixels, (mean, std) = leaf(self.weight), leaf(self.bias), self.pixels, self.statistics
        op = partial(kernels.masked_patch_embed, patch=self.patch, mean=mean, std=std)
        return self.side(lambda: op(pixels, weight, bias, self.position, self.keep), weight, bias)

    def convolve(self) -> Side:
        pixels = self.given()
        return self.convolution(lambda: pixels)

    def convolve_uint8(self) -> Side:
        self.given()  # draws the pixels before the clock starts
        return self.convolution(self.given)

    def convolution(self, pixels: Callable[[], Tensor]) -> Side:
        weight, bias = leaf(self.kernel()), leaf(self.bias)
        convolve = F.conv2d if len(self.patch) == 2 else F.conv3d

        def forward() -> Tensor:
            tokens = convolve(pixels(), weight, bias, stride=self.patch).flatten(2).transpose(1, 2)
            return selected_as_authors(tokens + self.position, self.keep)

        return self.side(forward, weight, bias)

    def filled(self, module: nn.Module, projection: nn.Module) -> tuple[Tensor, Tensor]:
        """Put the parameters into someone's module."""
        module.to(self.setting.device, self.setting.dtype)
        weight, bias = projection.get_parameter("weight"), projection.get_parameter("bias")
        weight.data, bias.data = self.kernel(), self.bias.clone()
        return weight, bias

    def timm(self) -> Side:
        from timm.layers import PatchEmbed

        module, pixels = PatchEmbed(self.shape.size[0], self.patch[0], 3, self.shape.dim), self.given()
        filled = self.filled(module, module.proj)
        return self.side(lambda: selected(module(pixels) + self.position, self.keep), *filled)

    def vit_mae(self) -> Side:
        """It sorts the noise twice and puts a class token first; this noise makes it keep the same patches."""
        from transformers import ViTMAEConfig
        from transformers.models.vit_mae.modeling_vit_mae import ViTMAEEmbeddings

        (size, _), (patch, _), count = self.shape.size, self.patch, self.shape.patches
        config = ViTMAEConfig(image_size=size, patch_size=patch, hidden_size=self.shape.dim, mask_ratio=0.75)
        module, pixels = ViTMAEEmbeddings(config), self.given()
        filled = self.filled(module, module.patch_embeddings.projection)
        module.position_embeddings.data[:, 1:] = self.position
        noise = torch.arange(count, device=pixels.device) + count * self.is_hidden.float()
        side, upstream = self.side(lambda: module(pixels, noise=noise)[0], *filled), F.pad(self.upstream, (0, 0, 1, 0))

        def results(tokens: Tensor, weight: Tensor, bias: Tensor, _: Tensor) -> dict[str, Tensor]:
            return side.results(tokens[:, 1:], weight, bias)

        return Side(side.forward, [*side.leaves, module.cls_token], upstream, results)

    def video_mae(self) -> Side:
        from transformers import VideoMAEConfig
        from transformers.models.videomae.modeling_videomae import VideoMAEEmbeddings

        module = VideoMAEEmbeddings(VideoMAEConfig(hidden_size=self.shape.dim))
        filled = self.filled(module, module.patch_embeddings.projection)
        module.position_embeddings = self.position[None]
        pixels = self.given().transpose(1, 2).contiguous()
        return self.side(lambda: module(pixels, self.is_hidden), *filled)

    def linear(self) -> Side:
        weight, bias, pixels = leaf(self.weight), leaf(self.bias), self.given()

        def forward() -> Tensor:
            return selected(F.linear(kernels.patchify(pixels, self.patch), weight, bias) + self.position, self.keep)

        return self.side(forward, weight, bias)

    def vendor(self) -> Side:
        """No peer: it neither gathers nor normalises nor adds positions."""
        weight, bias = leaf(self.weight), leaf(self.bias)
        patches = kernels.normalized_patches(self.pixels, self.keep, self.patch, *self.statistics).to(weight.dtype)
        side = self.side(lambda: F.linear(patches, weight, bias), weight, bias)
        places = self.position[self.keep]
        return Side(side.forward, side.leaves, side.upstream, lambda out, *rest: side.results(out + places, *rest))


def as_matrix(weight: Tensor) -> Tensor:
    """A convolution's `[dim, channels, *patch]` in the order of `patchify`."""
    return weight if weight.ndim == 2 else weight.movedim(1, -1).flatten(1)


class Restore(MaskedPatch):
    """Visible tokens to the decoder's whole sequence."""

    def __init__(self, shape: Shape, setting: Setting, seed: int = 0):
        super().__init__(shape, setting, seed)
        self.tokens = self.normal(self.batch, shape.prefix + shape.kept, shape.width)
        self.mask_token, self.position = (
            self.normal(shape.width),
            self.normal(shape.prefix + shape.patches, shape.width),
        )
        self.upstream = self.normal(self.batch, *self.position.shape)
        self.ids_restore = torch.cat([self.keep, self.hide], 1).argsort(1)

    def work(self) -> tuple[Work, Work]:
        tokens, table, sequence = (each.nbytes for each in (self.tokens, self.position, self.upstream))
        return Work(tokens + table + sequence), Work(sequence + tokens)

    def sides(self) -> Sides:
        ways = {OURS: self.ours, "cat, gather, add (MAE)": self.cat_gather, "scatter, cat, add": self.scatter}
        return {name: partial(self.side, way) for name, way in ways.items()}

    def side(self, restored: Callable[[Tensor, Tensor], Tensor]) -> Side:
        tokens, mask_token = leaf(self.tokens), leaf(self.mask_token)

        def results(sequence: Tensor, tokens: Tensor, mask_token: Tensor) -> dict[str, Tensor]:
            return {"sequence": sequence, "tokens' gradient": tokens, "mask token's gradient": mask_token}

        return Side(lambda: restored(tokens, mask_token), [tokens, mask_token], self.upstream, results)

    def ours(self, tokens: Tensor, mask_token: Tensor) -> Tensor:
        return kernels.restore_tokens(tokens, self.keep, mask_token, self.position, prefix=self.shape.prefix)

    def cat_gather(self, tokens: Tensor, mask_token: Tensor) -> Tensor:
        prefix, hidden = self.shape.prefix, self.hide.shape[1]
        both = torch.cat([tokens[:, prefix:], mask_token.repeat(self.batch, hidden, 1)], 1)
        full = selected_as_authors(both, self.ids_restore)
        return (torch.cat([tokens[:, :prefix], full], 1) if prefix else full) + self.position

    def scatter(self, tokens: Tensor, mask_token: Tensor) -> Tensor:
        prefix, width = self.shape.prefix, self.shape.width
        filler = mask_token.expand(self.batch, self.shape.patches, width)
        full = filler.scatter(1, self.keep.unsqueeze(-1).expand(-1, -1, width), tokens[:, prefix:])
        return (torch.cat([tokens[:, :prefix], full], 1) if prefix else full) + self.position


class Loss(MaskedPatch):
    """Predictions against the hidden patches, each standardised."""

    def work(self) -> tuple[Work, Work]:
        pixels = self.hide.numel() * self.shape.values
        prediction = self.setting.dtype.itemsize * pixels
        return Work(prediction + pixels), Work(2 * prediction + pixels)

    def sides(self) -> Sides:
        if len(self.patch) == 3:
            return {OURS: self.ours, "patchify all, select, MSELoss (transformers' VideoMAE)": self.video_mae}
        sides = {OURS: self.ours, PATCHIFY: lambda: self.of_all(self.authors())}
        if find_spec("transformers"):
            sides["transformers' ViTMAEForPreTraining, loss alone"] = self.vit_mae
        if self.setting.compile:
            sides[COMPILED] = lambda: self.of_all(torch.compile(self.authors()))
        return sides

    def predictions(self) -> Tensor:
        generator = torch.Generator(self.setting.device).manual_seed(self.generator.initial_seed() + 1)
        size = (self.batch, self.shape.patches, self.shape.values)
        return torch.randn(size, device=self.setting.device, generator=generator).to(self.setting.dtype)

    def of_all(self, loss: Callable[[Tensor], Tensor]) -> Side:
        """A loss that takes predictions of every patch."""
        prediction = self.predictions().requires_grad_()

        def results(loss: Tensor, prediction: Tensor) -> dict[str, Tensor]:
            return {"loss": loss, "prediction's gradient": selected(prediction, self.hide)}

        return Side(lambda: loss(prediction), [prediction], None, results)

    def of_hidden(self, loss: Callable[[Tensor], Tensor]) -> Side:
        """A loss that takes predictions of the hidden patches."""
        prediction = leaf(selected(self.predictions(), self.hide))

        def results(loss: Tensor, prediction: Tensor) -> dict[str, Tensor]:
            return {"loss": loss, "prediction's gradient": prediction}

        return Side(lambda: loss(prediction), [prediction], None, results)

    def ours(self) -> Side:
        pixels, (mean, std) = self.pixels, self.statistics
        op = partial(kernels.masked_patch_mse, patch=self.patch, mean=mean, std=std, target_norm=self.shape.norm)
        return self.of_hidden(lambda prediction: op(prediction, pixels, self.hide))

    def authors(self) -> Callable[[Tensor], Tensor]:
        """facebookresearch/mae, models_mae.py: patchify and forward_loss."""
        images, mask, p = self.normalized(), self.is_hidden.float(), self.patch[0]
        h = w = self.shape.size[0] // p

        def loss(prediction: Tensor) -> Tensor:
            target = torch.einsum("nchpwq->nhwpqc", images.reshape(len(images), 3, h, p, w, p))
            target = target.reshape(len(images), h * w, p**2 * 3)
            mean = target.mean(dim=-1, keepdim=True)
            var = target.var(dim=-1, keepdim=True)
            target = (target - mean) / (var + 1.0e-6) ** 0.5
            errors = ((prediction - target) ** 2).mean(dim=-1)
            return (errors * mask).sum() / mask.sum()

        return loss

    def vit_mae(self) -> Side:
        """The model's own forward; encoder and decoder are replaced by what they would answer."""
        from transformers import ViTMAEConfig, ViTMAEForPreTraining

        tiny: dict[str, Any] = dict.fromkeys(("hidden_size", "intermediate_size"), 8)
        tiny |= dict.fromkeys(("num_hidden_layers", "num_attention_heads"), 1)
        tiny |= {f"decoder_{name}": value for name, value in tiny.items()}
        config = ViTMAEConfig(image_size=self.shape.size[0], patch_size=self.patch[0], norm_pix_loss=True, **tiny)
        model: Any = ViTMAEForPreTraining(config)
        images, unused = self.normalized(), ("last_hidden_state", "ids_restore", "hidden_states", "attentions")
        model.vit = Answer(mask=self.is_hidden.float(), **dict.fromkeys(unused))

        def loss(prediction: Tensor) -> Tensor:
            model.decoder = Answer(logits=prediction)
            return model(images).loss

        return self.of_all(loss)

    def video_mae(self) -> Side:
        """transformers' VideoMAEForPreTraining, the end of its forward."""
        frames, mask, (mean, std) = self.normalized().transpose(1, 2).contiguous(), self.is_hidden, self.statistics
        (tube, p, _), batch = self.patch, self.batch
        t, h, w = (size // side for size, side in zip(self.shape.size, self.patch, strict=True))

        @torch.no_grad()
        def labels() -> Tensor:
            pixels = frames * std[:, None, None] + mean[:, None, None]
            pixels = pixels.view(batch, t, tube, 3, h, p, w, p).permute(0, 1, 4, 6, 2, 5, 7, 3).contiguous()
            pixels = pixels.view(batch, t * h * w, tube * p * p, 3)
            pixels = (pixels - pixels.mean(dim=-2, keepdim=True)) / (
                pixels.var(dim=-2, unbiased=True, keepdim=True).sqrt() + 1e-6
            )
            patches = pixels.view(batch, t * h * w, tube * p * p * 3)
            return patches[mask].reshape(batch, -1, patches.shape[-1])

        return self.of_hidden(lambda prediction: F.mse_loss(prediction, labels()))


class Answer(nn.Module):
    """A module that answers the same to everything."""

    def __init__(self, **fields: Any):
        super().__init__()
        self.answer = SimpleNamespace(**fields)

    def forward(self, *_: Any, **__: Any) -> Any:
        return self.answer


CASES: dict[str, list[Callable[..., Case]]] = {
    op: [partial(inputs, shape) for shape in SHAPES]
    for op, inputs in (("masked_patch_embed", Embed), ("restore_tokens", Restore), ("masked_patch_mse", Loss))
}
