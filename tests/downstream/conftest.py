"""What mmssl exported for others; all that these tests have of it."""

from pathlib import Path

import pytest

from tests.processes import Script


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what `make.py` leaves."""
    folder = tmp_path_factory.mktemp("downstream")
    done = Script(Path(__file__).with_name("make.py"), folder).finish()
    assert done.returncode == 0, done.stderr
    return folder
