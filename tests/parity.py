"""What tests of parity with other libraries share."""

import torch

from mmssl.decoder import DecoderConfig
from mmssl.interop import config_from_dict, siammae


def randomize(module):
    """Biases and tokens that start at zero would hide a wrong key map."""
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.02)
    return module


def normalised(encoder, pixels):
    """What transformers and timm expect: the statistics applied outside the model; channels on axis 1."""
    (tokenizer,) = encoder.tokenizers.values()
    shape = (-1, *(1,) * (pixels.ndim - 2))
    return (pixels - tokenizer.mean.view(shape)) / tokenizer.std.view(shape)


def assert_states_equal(first, second):
    assert first.keys() == second.keys()
    for key, value in first.items():
        assert torch.equal(value, second[key]), key


def relative(got, expected) -> float:
    return ((got - expected).norm() / expected.norm()).item()


def gradients_as_weights(theirs):
    """Put their gradients where their weights are: read through the key map, they have our names."""
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.copy_(torch.zeros_like(parameter) if parameter.grad is None else parameter.grad)


def assert_gradients_equal(ours, expected, tolerance=1e-5):
    """Each gradient's error within `tolerance` of the norm of all (design.md, "Parity"); `expected` holds them as
    weights of the same model."""
    gradients = {name: p.grad for name, p in ours.named_parameters() if p.requires_grad and p.numel()}
    wanted = dict(expected.named_parameters())
    total = torch.stack([gradient.norm() for gradient in gradients.values()]).norm()
    assert total > 0
    for name, gradient in gradients.items():
        assert (gradient - wanted[name]).norm() < tolerance * total, name


def cropmae_decoder_config(*sizes: int) -> DecoderConfig:
    """The decoder of the public CropMAE files, or one like it: width, depth, heads."""
    return config_from_dict(DecoderConfig, siammae.decoder_settings(*sizes))
