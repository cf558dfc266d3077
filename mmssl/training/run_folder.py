"""Run folders in the place of models: what `mmssl evaluate RUN/` and its like read, also while the run trains."""

from __future__ import annotations

from pathlib import Path

from mmssl.errors import UserError, as_text
from mmssl.training import checkpoints


def model_in(path: Path) -> Path:
    """The model folder that is meant: a run folder's `final`, else its newest whole checkpoint; others themselves.

    Raises UserError for a run that has neither yet.
    """
    if not path.is_dir() or (path / checkpoints.CONFIG).is_file():
        return path
    if (path / "final" / checkpoints.CONFIG).is_file():
        return path / "final"
    newest, problems = checkpoints.newest(path)
    if newest is None and (problems or (path / "settings.json").is_file()):
        told = as_text(" ".join(problems)) or "its first checkpoint is not written yet, see --save-every"
        raise UserError(f"{path}: this run holds no model: {told}")
    if newest is not None and not (newest / checkpoints.CONFIG).is_file():
        raise UserError(f"{newest}: a checkpoint of an older version, which lacks config.json: resume the run first")
    return newest or path
