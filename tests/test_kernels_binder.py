"""Every launch that the ops' examples make goes through Triton's own binder, as for a GPU of each family.

No GPU is needed: the driver is made up, and Triton's hook in front of its compiler says that nothing is to be compiled.
In a process of its own, where kernels are not interpreted and the driver is nobody else's.
"""

import sys
from pathlib import Path

from tests.processes import printed


class Driver:
    """What the binder asks a GPU's driver for."""

    def __init__(self, target):
        self.get_current_target = lambda: target
        self.get_current_device = lambda: target.arch
        self.get_current_stream = lambda device: 0


def bind(launch, driver):
    """What Triton would hand its compiler for a launch: the types of the arguments, the constants and the warps."""
    from triton import knobs
    from triton.runtime.driver import driver as drivers

    found = []

    def instead_of_compiling(compile, **_):
        found.append(compile)
        return True

    drivers.set_active(driver)
    knobs.runtime.jit_cache_hook = instead_of_compiling
    launch.start()
    (bound,) = found
    names = launch.kernel.arg_names
    constants = {names[place]: value for (place, *_), value in bound["constants"].items()}
    return bound["signature"], constants, (bound["num_warps"], bound["num_stages"])


def check(family):
    """How many launches were bound. What is compiled ahead of time must be what would have been compiled there."""
    from mmssl_kernels.frame import aot

    driver, launches = Driver(aot.TARGETS[family]), list(aot.launches(family, quick=False))
    for example, launch in launches:
        source, config = aot.source(launch), launch.config
        constants = {launch.kernel.arg_names[place]: value for (place,), value in source.constants.items()}
        ahead = source.signature, constants, (config.warps, config.stages)
        assert bind(launch, driver) == ahead, f"{example} on {family}: {launch.kernel.__name__}"
    return len(launches)


def test_every_launch_of_every_example_is_bound_on_every_family():
    told = printed(Path(__file__), "sm_80", "sm_90", "sm_100", "gfx942").split()
    assert len(told) == 4 and all(int(count) > 100 for count in told)


if __name__ == "__main__":
    for name in sys.argv[1:]:
        print(check(name))
