"""Real processes, many of them, each in a moment: forked from one server that has imported what they need."""

from __future__ import annotations

import multiprocessing
import os
import runpy
import shutil
import sys
import tempfile
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from subprocess import CompletedProcess

ROOT = Path(__file__).parent.parent
_IMPORTED = (
    *("torch._dynamo", "torch.utils.tensorboard", "matplotlib.pyplot", "tyro", "rich.progress"),
    *("mmssl.cli", "mmssl.pretraining.pretrain", "mmssl.recipe", "mmssl.report"),
)


def environment() -> dict[str, str]:
    """Of a new Python that finds mmssl where it lies, and takes one thread."""
    paths = os.pathsep.join([str(ROOT), str(ROOT / "kernels")])
    return {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "COLUMNS": "120"}


def server() -> ForkServerContext:
    """What makes the processes; all tests of a session share one, which runs without the tests' shape checks."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(_IMPORTED))
    return context


class Script:
    """`python SCRIPT ARGUMENTS`, with one thread: started, and ended by itself or a signal. It is a file or text."""

    def __init__(self, script: Path | str, *arguments: object) -> None:
        self._told = tempfile.mkdtemp()
        if isinstance(script, str):
            text, script = script, Path(self._told, "script.py")
            script.write_text(text)
        words = [str(script), *map(str, arguments)]
        self.process: BaseProcess = server().Process(target=_run, args=(words, self._told))
        self.process.start()

    def finish(self) -> CompletedProcess[str]:
        """Exit code, output and errors, once it has ended."""
        self.process.join()
        output, errors = (Path(self._told, stream).read_text() for stream in ("stdout", "stderr"))
        shutil.rmtree(self._told)
        return CompletedProcess(self.process.name, self.process.exitcode or 0, output, errors)


def printed(script: Path | str, *arguments: object) -> str:
    """What a script that ends well has printed."""
    done = Script(script, *arguments).finish()
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _run(words: list[str], told: str) -> None:
    import torch

    os.environ |= environment()
    torch.set_num_threads(1)
    for name, number in (("stdout", 1), ("stderr", 2)):
        os.dup2(os.open(Path(told, name), os.O_WRONLY | os.O_CREAT), number)
    sys.argv = words
    sys.path.insert(0, str(Path(words[0]).parent))
    runpy.run_path(words[0], run_name="__main__")
