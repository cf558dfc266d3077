"""The first five minutes at toy size: every command is typed, every milestone reached."""

from collections.abc import Iterator

from tests.first_minutes import ELSEWHERE, TOY, first_minutes, started
from tests.processes import printed


def forked(program: str, arguments: list[str]) -> Iterator[str]:
    """From a process with its imports, but for that which must have none of ours."""
    if program == ELSEWHERE:
        return started(program, arguments)
    return iter(printed(program, *arguments).splitlines(keepends=True))


def test_a_folder_of_pictures_becomes_a_timm_model(tmp_path):
    reached = first_minutes(tmp_path, TOY, forked)
    assert list(reached) == ["first line", "first step", "trained", "evaluated", "exported", "loaded in timm"]
