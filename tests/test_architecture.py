"""The floors of docs/architecture.md are those of the code: a room imports only what its table has above it."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "architecture.md").read_text()


def floors() -> dict[str, int]:
    """The floor of each room, from the top."""
    table = [line for line in PAGE.splitlines() if line.startswith("| `")]
    return {
        name.strip("/").removesuffix(".py"): number
        for number, line in enumerate(table)
        for name in re.findall(r"`([^`]+)`", line.split("|")[1])
    }


def imports(tree: ast.Module) -> set[str]:
    """The rooms that a module imports when it is imported itself."""
    names: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module == "mmssl":
            names |= {f"mmssl.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return {name.split(".")[1] for name in names if name.startswith("mmssl.")}


def test_rooms_import_only_what_is_above_them_and_all_of_them_are_in_the_table():
    floor, wrong = floors(), []
    for path in sorted((ROOT / "mmssl").rglob("*.py")):
        room = path.relative_to(ROOT / "mmssl").parts[0].removesuffix(".py")
        if room in ("__init__", "__main__"):
            continue
        assert room in floor, f"{room} is in no line of docs/architecture.md"
        wrong += [
            f"{path.name} imports {each}" for each in imports(ast.parse(path.read_text())) if floor[each] > floor[room]
        ]
    assert not wrong, wrong


def test_every_file_that_the_page_names_is_there():
    places = [ROOT, ROOT / "mmssl", *(path for path in (ROOT / "mmssl").iterdir() if path.is_dir())]
    for name in set(re.findall(r"[\w/]+\.py", PAGE)) - {"mmssl/objectives/NAME.py"}:
        assert any((place / name).exists() for place in places), name
