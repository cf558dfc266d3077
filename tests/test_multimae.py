"""MultiMAE: the authors' layout and forward pass, the paper's counts, what is not there, and other modalities."""

import dataclasses
import math

import pytest
import torch
from torch.nn import functional as F

from mmssl import Encoder, Mask, MultiMAE
from mmssl.errors import UserError
from mmssl.masking import Positions
from mmssl.modality import IMAGENET_MEAN, IMAGENET_STD, Modality
from mmssl.objectives import multimae_config
from mmssl.objectives.multimae import MODALITIES
from mmssl.tokenizer import sample_statistics
from tests.contracts import keys
from tests.parity import assert_gradients_equal, relative

GRID, DIM, HEADS, WIDTH, DECODER_HEADS, CLASSES, EMBEDDING = (4, 4), 32, 2, 16, 2, 5, 6
SIDES, CHANNELS = {"rgb": 8, "depth": 8, "semseg": 2}, {"rgb": 3, "depth": 1, "semseg": CLASSES}
COUNT = math.prod(GRID)


def authors_state(tasks=("rgb", "depth", "semseg", "norm_rgb")) -> dict[str, torch.Tensor]:
    """Random tensors under the names and in the shapes of the authors' files."""
    shapes: dict[str, tuple[int, ...]] = {
        "global_tokens": (1, 1, DIM),
        "input_adapters.semseg.class_emb.weight": (5, 6),
    }

    def linear(name, out, values):
        shapes.update({f"{name}.weight": (out, values), f"{name}.bias": (out,)})

    def norm(name, dim):
        shapes.update({f"{name}.weight": (dim,), f"{name}.bias": (dim,)})

    def block(name, dim):
        for which in ("norm1", "norm2"):
            norm(f"{name}.{which}", dim)
        for part, out, values in (("attn.qkv", 3, 1), ("attn.proj", 1, 1), ("mlp.fc1", 4, 1), ("mlp.fc2", 1, 4)):
            linear(f"{name}.{part}", out * dim, values * dim)

    for name, side in SIDES.items():
        channels = EMBEDDING if name == "semseg" else CHANNELS[name]
        shapes[f"input_adapters.{name}.pos_emb"] = (1, DIM, *GRID)
        shapes[f"input_adapters.{name}.proj.weight"] = (DIM, channels, side, side)
        shapes[f"input_adapters.{name}.proj.bias"] = (DIM,)
    for i in range(2):
        block(f"encoder.{i}", DIM)
    for task in tasks:
        name, predicted = f"output_adapters.{task}", task.removeprefix("norm_")
        shapes |= {f"{name}.task_embeddings.{each}": (1, 1, WIDTH) for each in SIDES}
        shapes |= {f"{name}.mask_token": (1, 1, WIDTH), f"{name}.pos_emb": (1, WIDTH, *GRID)}
        linear(f"{name}.proj_context", WIDTH, DIM)
        for part, out in (("q", 1), ("kv", 2), ("proj", 1)):
            linear(f"{name}.decoder.{part}", out * WIDTH, WIDTH)
        for part in ("context_norm", "query_norm", "out_norm"):
            norm(f"{name}.{part}", WIDTH)
        linear(f"{name}.mlp.fc1", 4 * WIDTH, WIDTH)
        linear(f"{name}.mlp.fc2", WIDTH, 4 * WIDTH)
        for i in range(2):
            block(f"{name}.decoder_transformer.{i}", WIDTH)
        linear(f"{name}.out_proj", CHANNELS[predicted] * SIDES[predicted] ** 2, WIDTH)
    made = {key: torch.randn(shape) * 0.2 for key, shape in shapes.items()}
    return {key: value.requires_grad_(not key.endswith("pos_emb")) for key, value in made.items()}


class Authors:
    """Their forward pass (EPFL-VILAB/MultiMAE, `multimae.py`, `output_adapters.py`), on a state dict."""

    def __init__(self, state):
        self.state = state

    def linear(self, name, x):
        return F.linear(x, self.state[f"{name}.weight"], self.state[f"{name}.bias"])

    def norm(self, name, x):
        return F.layer_norm(x, x.shape[-1:], self.state[f"{name}.weight"], self.state[f"{name}.bias"], 1e-6)

    def block(self, name, x, heads):
        q, k, v = self.linear(f"{name}.attn.qkv", self.norm(f"{name}.norm1", x)).unflatten(-1, (3, heads, -1)).unbind(2)
        x = x + self.linear(f"{name}.attn.proj", attended(q, k, v))
        hidden = F.gelu(self.linear(f"{name}.mlp.fc1", self.norm(f"{name}.norm2", x)))
        return x + self.linear(f"{name}.mlp.fc2", hidden)

    def tokens(self, media):
        tokens = []
        for name, values in media.items():
            adapter = f"input_adapters.{name}"
            if name == "semseg":
                values = F.embedding(values, self.state[f"{adapter}.class_emb.weight"]).permute(0, 3, 1, 2)
            weight, bias = (self.state[f"{adapter}.proj.{part}"] for part in ("weight", "bias"))
            tokens.append(F.conv2d(values, weight, bias, SIDES[name]) + self.state[f"{adapter}.pos_emb"])
        return torch.cat([each.flatten(2).transpose(1, 2) for each in tokens], dim=1)

    def encode(self, media, keep):
        kept = self.tokens(media).gather(1, keep[..., None].expand(-1, -1, DIM))
        x = torch.cat([kept, self.state["global_tokens"].expand(len(kept), -1, -1)], dim=1)
        for i in range(2):
            x = self.block(f"encoder.{i}", x, HEADS)
        return x

    def decode(self, task, x, keep):
        """The whole picture `[B, C, H, W]` that a task predicts."""
        name, predicted = f"output_adapters.{task}", task.removeprefix("norm_")
        x, state = self.linear(f"{name}.proj_context", x), self.state
        rows = torch.arange(len(x))[:, None]
        full = state[f"{name}.mask_token"].expand(len(x), 3 * COUNT, -1).clone().index_put((rows, keep), x[:, :-1])
        position = state[f"{name}.pos_emb"].flatten(2).transpose(1, 2)
        full = full + torch.cat([position + state[f"{name}.task_embeddings.{each}"] for each in SIDES], dim=1)
        start = list(SIDES).index(predicted) * COUNT
        context = self.norm(f"{name}.context_norm", torch.cat([full[rows, keep], x[:, -1:]], dim=1))
        q = self.linear(f"{name}.decoder.q", self.norm(f"{name}.query_norm", full[:, start : start + COUNT]))
        k, v = self.linear(f"{name}.decoder.kv", context).unflatten(-1, (2, DECODER_HEADS, -1)).unbind(2)
        x = self.linear(f"{name}.decoder.proj", attended(q.unflatten(-1, (DECODER_HEADS, -1)), k, v))
        x = x + self.linear(f"{name}.mlp.fc2", F.gelu(self.linear(f"{name}.mlp.fc1", self.norm(f"{name}.out_norm", x))))
        for i in range(2):
            x = self.block(f"{name}.decoder_transformer.{i}", x, DECODER_HEADS)
        patches = self.linear(f"{name}.out_proj", x)
        side, channels = SIDES[predicted], CHANNELS[predicted]
        patches = patches.view(len(x), *GRID, channels, side, side).permute(0, 3, 1, 4, 2, 5)
        return patches.reshape(len(x), channels, GRID[0] * side, GRID[1] * side)


def attended(q, k, v):
    """`[B, N, heads, d]` each."""
    return F.scaled_dot_product_attention(*(each.transpose(1, 2) for each in (q, k, v))).transpose(1, 2).flatten(2)


def authors_media(batch):
    """What their training step hands in: normalised pictures, depth standardised without its extreme tenths."""
    image = (batch["image"] - torch.tensor(IMAGENET_MEAN).view(3, 1, 1)) / torch.tensor(IMAGENET_STD).view(3, 1, 1)
    depth = batch["depth"].flatten(1)
    middle = depth.sort(dim=1).values[:, int(0.1 * depth.shape[1]) : int(0.9 * depth.shape[1])]
    depth = (depth - middle.mean(1, keepdim=True)) / (middle.var(1, keepdim=True) + 1e-6).sqrt()
    return {"rgb": image, "depth": depth.view_as(batch["depth"]), "semseg": batch["semseg"]}


def authors_loss(task, predicted, media, hidden):
    """Masked means of each sample, then the mean over those that have any (`criterion.py`)."""
    name = task.removeprefix("norm_")
    wanted, side = media[name], SIDES[name]
    where = hidden.view(-1, *GRID).repeat_interleave(side, 1).repeat_interleave(side, 2)
    if name == "semseg":
        loss = F.cross_entropy(predicted, wanted, reduction="none")
    elif name == "depth":
        loss = (predicted - wanted).abs().mean(1)
    else:
        if task == "norm_rgb":
            cut = wanted.unfold(2, side, side).unfold(3, side, side)  # [B, C, rows, columns, side, side]
            mean, var = cut.mean((1, 4, 5), keepdim=True), cut.var((1, 4, 5), keepdim=True)
            wanted = ((cut - mean) / (var + 1e-6).sqrt()).permute(0, 1, 2, 4, 3, 5).reshape(wanted.shape)
        loss = (predicted - wanted).square().mean(1)
    some = where.flatten(1).any(1)  # their nanmean is as much, but for gradients that are not numbers
    return ((loss * where)[some].flatten(1).sum(1) / where[some].flatten(1).sum(1)).mean()


def rasters(batch=3):
    return {
        "image": torch.rand(batch, 3, 32, 32),
        "depth": 5 + 2 * torch.randn(batch, 1, 32, 32),
        "semseg": torch.randint(CLASSES, (batch, 8, 8)),
    }


def a_mask():
    """The first sample sees all of its depth and nothing else: nothing of its depth is hidden."""
    keep = torch.stack([torch.arange(16, 32), *(torch.randperm(48)[:16].sort().values for _ in range(2))])
    kept = Positions(keep).boolean(48)
    return Mask(Positions(keep), (Positions((~kept).nonzero()[:, 1].view(3, -1)),), dict.fromkeys(rasters(), COUNT))


def test_the_authors_files_give_the_same_tokens_predictions_losses_and_gradients(tmp_path):
    state = authors_state()
    path = tmp_path / "multimae.pth"
    torch.save({"model": {key: value.detach() for key, value in state.items()}}, path)
    ours = MultiMAE.from_official(path, heads=HEADS, decoder_heads=DECODER_HEADS)
    theirs, batch, mask = Authors(state), rasters(), a_mask()
    media, keep = authors_media(batch), mask.keep.index
    out, x = ours(batch, mask), theirs.encode(media, keep)
    tokens = ours.encoder(batch, mask).x
    assert relative(tokens[:, 1:], x[:, :-1]) < 1e-5 and relative(tokens[:, :1], x[:, -1:]) < 1e-5
    losses = {}
    for number, (task, name) in enumerate((t, t.removeprefix("norm_")) for t in ("rgb", "depth", "semseg", "norm_rgb")):
        predicted = theirs.decode(task, x, keep)
        start = list(SIDES).index(name) * COUNT
        hidden = mask.hide.boolean(48)[:, start : start + COUNT]
        cut = predicted.unfold(2, SIDES[name], SIDES[name]).unfold(3, SIDES[name], SIDES[name])
        assert relative(out.predictions[task], cut.permute(0, 2, 3, 4, 5, 1).reshape(3, COUNT, -1)[hidden]) < 1e-5
        losses[task] = authors_loss(task, predicted, media, hidden)
        assert list(out.parts)[number] == task
        assert out.parts[task].item() == pytest.approx(losses[task].item(), rel=1e-5)
    out.loss.backward()
    sum(losses.values()).backward()
    slopes = {key: torch.zeros_like(value) if value.grad is None else value.grad for key, value in state.items()}
    assert_gradients_equal(ours, MultiMAE.from_official(slopes, heads=HEADS, decoder_heads=DECODER_HEADS))
    assert Encoder.from_official(path, heads=HEADS).config == ours.encoder.config


def test_a_file_without_norm_rgb_is_read_and_one_without_decoders_says_so():
    state = {key: value.detach() for key, value in authors_state(("rgb", "semseg")).items()}
    assert [task.name for task in MultiMAE.from_official(state, heads=HEADS, decoder_heads=2).config.tasks] == [
        "rgb",
        "semseg",
    ]
    encoder = {key: value for key, value in state.items() if not key.startswith("output_adapters")}
    with pytest.warns(UserWarning, match="holds no decoder"):
        ours = MultiMAE.from_official(encoder, heads=HEADS)
    assert list(ours(rasters(), a_mask()).parts) == ["rgb", "depth", "semseg"]
    with pytest.raises(UserError, match="not a checkpoint of MultiMAE"):
        MultiMAE.from_official({"cls_token": torch.zeros(1, 1, 8)})


def test_at_other_sizes_their_tables_are_interpolated():
    state = {key: value.detach() for key, value in authors_state(("depth",)).items()}
    ours = MultiMAE.from_official(state, heads=HEADS, decoder_heads=2, visible=20)
    modes = {"input_adapters.rgb": "bicubic", "input_adapters.semseg": "bilinear", "output_adapters.depth": "bilinear"}
    tables = (
        ours.encoder.tokenizer("image").position,
        ours.encoder.tokenizer("semseg").position,
        ours.decoders["depth"].positions[0],
    )
    for (name, mode), table in zip(modes.items(), tables, strict=True):
        expected = F.interpolate(state[f"{name}.pos_emb"], (6, 5), mode=mode, align_corners=False)[0].flatten(1).T
        assert relative(table((6, 5)), expected) < 1e-6
    larger = {
        "image": torch.rand(2, 3, 48, 40),
        "depth": torch.rand(2, 1, 48, 40),
        "semseg": torch.zeros(2, 12, 10).long(),
    }
    assert ours(larger).loss.isfinite()
    with pytest.raises(UserError, match=r"aligned rasters have as many patches each, but image .*48, 40"):
        ours({**larger, "semseg": larger["semseg"][:, :8]})


def test_timm_takes_the_encoder_of_pictures():
    ours = MultiMAE.from_official({k: v.detach() for k, v in authors_state(("rgb",)).items()}, heads=HEADS).eval()
    batch, model = rasters(), ours.encoder.to_timm().eval()
    found = model.forward_features(authors_media(batch)["rgb"])
    assert relative(found, ours.encoder({"image": batch["image"]}).x) < 1e-5
    assert torch.equal(model.pos_embed[:, :1], torch.zeros(1, 1, DIM))
    again = Encoder.from_official(model.state_dict(), heads=HEADS).eval()
    assert relative(again({"image": batch["image"]}).x, found) < 1e-5


def test_parameter_counts_are_the_papers():
    with torch.device("meta"):
        method = MultiMAE("base")

    def count(module):
        return sum(parameter.numel() for parameter in module.parameters())

    encoder = method.encoder
    assert count(method) == 98_569_360
    assert sum(p.numel() for p in method.parameters() if p.requires_grad) == 97_917_072
    assert count(encoder.transformer) + encoder.prefix_tokens.numel() == 85_055_232
    assert [count(each) for each in encoder.tokenizers.values()] == [741_120, 347_904, 946_240]
    assert [count(each) for each in method.decoders.values()] == [2_815_232, 2_683_648, 3_164_752, 2_815_232]
    assert method.config.visible == 98
    sizes = {"image": (2, 3, 224, 224), "depth": (2, 1, 224, 224), "semseg": (2, 56, 56)}
    mask = method.hide({name: torch.empty(size) for name, size in sizes.items()} | keys(2))
    assert (mask.keep.index.shape[1], mask.hide.index.shape[1]) == (98, 490)


def tiny(**settings):
    image, depth, labels = MODALITIES
    labels = dataclasses.replace(labels, channels=CLASSES, patch=(2, 2), embedding=EMBEDDING)
    modalities = (dataclasses.replace(image, patch=(8, 8)), dataclasses.replace(depth, patch=(8, 8)), labels)
    config = multimae_config("tiny", modalities=modalities, grid=GRID, decoder_dim=32, decoder_depth=1, **settings)
    blocks = dataclasses.replace(config.encoder.transformer, dim=32, depth=1, heads=2)
    return MultiMAE(dataclasses.replace(config, encoder=dataclasses.replace(config.encoder, transformer=blocks)))


def test_predicting_zero_costs_what_the_paper_says():
    method = tiny()
    for decoder in method.decoders.values():
        torch.nn.init.zeros_(decoder.pred.weight)
    out = method(rasters())
    assert out.parts["norm_rgb"].item() == pytest.approx(191 / 192, rel=1e-3)
    assert out.parts["semseg"].item() == pytest.approx(math.log(CLASSES), rel=1e-5)


def where(hide, side):
    return hide.boolean(COUNT).view(-1, *GRID).repeat_interleave(side, 1).repeat_interleave(side, 2)


def test_what_is_hidden_is_unread():
    method, batch, mask = tiny(), rasters(), a_mask()
    batch["depth.statistics"] = sample_statistics(batch["depth"])
    out, dirty = method(batch, mask), dict(batch)
    for name, side in (("image", 8), ("depth", 8), ("semseg", 2)):
        hidden = where(mask.hidden(name)[0], side)
        dirty[name] = (
            torch.where(hidden, (batch[name] + 1) % CLASSES, batch[name])
            if name == "semseg"
            else torch.where(hidden[:, None], torch.nan, batch[name])
        )
    again = method(dirty, mask)
    for name, prediction in out.predictions.items():
        assert torch.equal(again.predictions[name], prediction)


def test_what_is_not_there_is_in_no_loss_and_no_statistics():
    method, batch, mask = tiny(), rasters(), a_mask()
    hidden = where(mask.hidden("depth")[0], 8)[:, None]
    holes = batch["depth"].masked_fill(torch.rand_like(batch["depth"]) < 0.3, torch.nan)
    mean, deviation = sample_statistics(holes)[1, :, 0]
    there = holes[1][~holes[1].isnan()].sort().values
    there = there[int(0.1 * len(there)) : int(0.9 * len(there))]
    assert torch.stack([mean, deviation]).tolist() == pytest.approx([there.mean().item(), there.std().item()], rel=1e-5)
    out = method({**batch, "depth": holes}, mask)
    statistics = sample_statistics(holes)
    wanted = (holes - statistics[:, 0, :, None, None]) / statistics[:, 1, :, None, None]
    picture = torch.zeros_like(holes)
    cut = picture.unfold(2, 8, 8).unfold(3, 8, 8)
    hide, _ = mask.hidden("depth")
    cut[hide.rows, 0, hide.index // 4, hide.index % 4] = out.predictions["depth"].detach().view(-1, 8, 8)
    here = hidden & ~holes.isnan()
    each = [(picture - wanted)[i][here[i]].abs().mean() for i in (1, 2)]  # the first sample has nothing hidden
    assert out.parts["depth"].item() == pytest.approx(torch.stack(each).mean().item(), rel=1e-5)
    out.loss.backward()
    assert all(p.grad.isfinite().all() for p in method.parameters() if p.requires_grad)
    nothing = method({**batch, "semseg": torch.full_like(batch["semseg"], 255)}, mask)
    assert nothing.parts["semseg"] == 0 and nothing.loss.isfinite()


def test_samples_without_a_modality_keep_the_whole_budget_elsewhere():
    method, batch = tiny(), rasters() | keys(3)
    batch["depth.present"] = torch.tensor([True, False, True])
    mask = method.hide(batch)
    depth, hidden = (each.within(*mask.span("depth"))[0].lengths for each in (mask.keep, mask.hide))
    assert mask.keep.index.shape == (3, 8)
    assert (depth + hidden).tolist() == [16, 0, 16]
    absent = {**batch, "depth": batch["depth"].index_fill(0, torch.tensor([1]), torch.nan)}
    assert torch.equal(method(absent).loss, method(batch).loss)
    alone = method({"image": batch["image"], **keys(3)})
    assert list(alone.parts) == ["rgb", "norm_rgb"]


def test_a_subset_of_the_modalities_is_drawn_first_where_asked():
    method = tiny(subsets=True)
    mask = method.hide(rasters(64) | keys(64))
    counts = torch.stack([mask.keep.within(*mask.span(name))[0].lengths for name in mask.sizes], dim=1)
    alone = (counts == 8).any(dim=1).float().mean()
    assert 0.2 < alone < 0.75  # three of the seven subsets are of one modality


def test_figures_show_each_modality_in_one_range_and_all_others_from_it_alone():
    method, batch = tiny(), rasters() | keys(3)
    batch["depth.present"] = torch.tensor([True, False, True])
    batch["semseg"][:, 0] = 255
    shown = {figure.name: figure for figure in method.figures(batch)}
    tasks = ["rgb", "depth", "semseg", "norm_rgb"]
    assert list(shown) == [f"reconstructions-{task}" for task in tasks] + ["from-image", "from-depth", "from-semseg"]
    mask = method.hide(batch)
    kept = where(mask.keep.within(*mask.span("depth"))[0], 8)[:, None]
    seen, predicted, original = shown["reconstructions-depth"].columns
    assert torch.equal(~seen.isnan(), kept) and torch.equal(seen[kept], original[kept])
    assert torch.equal(predicted[kept], original[kept]) and not torch.equal(predicted[0], original[0])
    assert original[1].isnan().all() and predicted[1].isnan().all()  # it has none
    low, high = original.nanquantile(0.01), original.nanquantile(0.99)
    assert low.item() == pytest.approx(0, abs=1e-5) and high.item() == pytest.approx(1, abs=1e-5)
    *_, labels = shown["reconstructions-semseg"].columns
    assert labels[:, :, 0].isnan().all() and torch.equal(labels[:, 0, 1:], batch["semseg"][:, 1:].float())

    crossed = shown["from-image"]
    assert crossed.palettes == ("colours", "heat", "heat", "classes", "classes")
    assert {each.shape[2:] for each in crossed.columns} == {(32, 32)}
    other = {**batch, "semseg": (batch["semseg"] + 1) % CLASSES, "depth": batch["depth"].flip(-1)}
    again = next(figure for figure in method.figures(other) if figure.name == "from-image")
    assert torch.equal(again.columns[3], crossed.columns[3]) and not torch.equal(again.columns[4], crossed.columns[4])
    assert len(shown["from-depth"].columns[0]) == 2


def test_input_that_no_model_can_read_is_named():
    with pytest.raises(UserError, match="a budget of 48 visible tokens hides nothing"):
        tiny(visible=48)(rasters())
    with pytest.raises(UserError, match=r"semseg: labels from \d to 9, but its 5 classes are 0 to 4 and 255 for none"):
        tiny()({**rasters(), "semseg": torch.full((3, 8, 8), 9)})


def test_any_other_rasters_and_labels_train_by_configuration_alone():
    infrared = Modality("infrared", ("height", "width"), 1, (4, 4), mean=(280.0,), std=(15.0,), gaps=True)
    cover = Modality("cover", ("height", "width"), 9, (2, 2), kind="categorical", embedding=8, ignore=0)
    bands = Modality("bands", ("height", "width"), 7, (4, 4), mean=(0.3,) * 7, std=(0.2,) * 7)
    method = MultiMAE("tiny", modalities=(infrared, cover, bands), grid=(3, 5), decoder_dim=32, decoder_depth=1)
    batch = {
        "infrared": 280 + 15 * torch.randn(4, 1, 12, 20),
        "cover": torch.randint(9, (4, 6, 10), dtype=torch.uint8),
        "bands": torch.rand(4, 7, 12, 20),
        **keys(4),
    }
    batch["infrared"][0, :, 3:7] = torch.nan
    out = method(batch)
    assert list(out.parts) == ["infrared", "cover", "bands"]
    assert out.predictions["cover"].shape[1] == 2 * 2 * 9 and out.predictions["bands"].shape[1] == 4 * 4 * 7
    out.loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in method.parameters() if p.requires_grad)
