"""The first five minutes at toy size: every command is typed, every milestone reached."""

import sys

from tests.first_minutes import TOY, first_minutes
from tests.processes import environment


def test_a_folder_of_pictures_becomes_a_timm_model(tmp_path):
    command = [sys.executable, "-c", "from mmssl.cli import main; main()"]
    reached = first_minutes(tmp_path, TOY, command, environment())
    assert list(reached) == ["first line", "first step", "trained", "evaluated", "exported", "loaded in timm"]
