"""Every kernel compiles for every device family without a device, fits its memory and spills no register."""

import pytest

from tests.processes import printed

FAMILIES = ("sm_80", "sm_90", "sm_100", "gfx942")


@pytest.fixture(scope="module")
def compiled() -> list[str]:
    """A line for each kernel of each family."""
    script = "from mmssl_kernels.frame.aot import main; main()"
    return printed(script, "--quick", "--families", *FAMILIES).splitlines()


@pytest.mark.parametrize("family", FAMILIES)
def test_one_representative_of_each_kernel(family: str, compiled: list[str]) -> None:
    kernels = {line.split()[1] for line in compiled if line.startswith(family)}
    assert kernels == {
        "attention_kernel",
        "backward_kernel",
        "bias_gradient_kernel",
        "embed_kernel",
        "gradient_kernel",
        "masked_patch_mse_kernel",
        "normalized_patches_kernel",
        "one_tile_backward_kernel",
        "position_sums_kernel",
        "rank_kernel",
        "restore_kernel",
        "slot_map_kernel",
        "sums_kernel",
        "topk_kernel",
    }
