"""The house: modules lie in rooms, a room imports only from those below it, and nothing in circles.

Imports inside functions count as well; those for type checkers do not.
"""

from __future__ import annotations

import ast
from pathlib import Path

import potkit

PACKAGE = Path(potkit.__file__).parent
ROOMS = (  # from the ground upwards
    "structures",
    "datasets",
    "models",
    "kernels",
    "objectives",
    "testing",
    "analysis",
    "training",
    "experiments",
    "report",
    "bench",
    "notebooks",
    "cli",
)
AT_THE_ROOT = {"__init__", "__main__", "errors", "units"}


def module_name(file: Path) -> str:
    """The dotted name of a file of the package, such as potkit.training.loop."""
    parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def for_type_checkers(tree: ast.Module) -> set[int]:
    """The nodes under ``if TYPE_CHECKING:``."""
    blocks = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
    ]
    return {id(inner) for block in blocks for inner in ast.walk(block)}


def imports() -> dict[str, set[str]]:
    """Module -> the modules of potkit it imports."""
    files = {module_name(file): file for file in PACKAGE.rglob("*.py")}
    graph: dict[str, set[str]] = {}
    for name, file in files.items():
        tree = ast.parse(file.read_text(encoding="utf-8"))
        ignored = for_type_checkers(tree)
        package = name if file.name == "__init__.py" else name.rpartition(".")[0]
        targets: set[str] = set()
        for node in ast.walk(tree):
            if id(node) in ignored:
                continue
            if isinstance(node, ast.ImportFrom):
                base = node.module or ""
                if node.level:
                    above = package.split(".")[: package.count(".") + 2 - node.level]
                    base = ".".join([*above, base] if base else above)
                if base.split(".")[0] == "potkit":
                    for alias in node.names:
                        full = f"{base}.{alias.name}"
                        targets.add(full if full in files else base)
            elif isinstance(node, ast.Import):
                targets |= {a.name for a in node.names if a.name.split(".")[0] == "potkit"}
        graph[name] = targets - {name}
    return graph


def room_of(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


def circle(graph: dict[str, set[str]]) -> list[str]:
    """A circle of imports, if there is one."""
    done: set[str] = set()

    def visit(module: str, path: list[str]) -> list[str]:
        if module in path:
            return [*path[path.index(module) :], module]
        if module in done:
            return []
        for target in sorted(graph.get(module, ())):
            if loop := visit(target, [*path, module]):
                return loop
        done.add(module)
        return []

    return next((loop for module in sorted(graph) if (loop := visit(module, []))), [])


def test_a_circle_is_seen():
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def test_every_module_lies_in_a_room():
    at_root = {file.stem for file in PACKAGE.glob("*.py")}
    rooms = {folder.name for folder in PACKAGE.iterdir() if (folder / "__init__.py").is_file()}
    assert at_root == AT_THE_ROOT
    assert rooms == set(ROOMS)


def test_arrows_point_downwards_only():
    upwards = [
        f"{module} -> {target}"
        for module, targets in imports().items()
        for target in targets
        if room_of(module) in ROOMS
        and room_of(target) in ROOMS
        and ROOMS.index(room_of(target)) > ROOMS.index(room_of(module))
    ]
    assert upwards == []


def test_nothing_imports_in_circles():
    assert circle(imports()) == []


def test_only_the_command_line_uses_the_public_names():
    """A room that imports ``potkit`` itself would hide which modules it needs."""
    users = {room_of(module) for module, targets in imports().items() if "potkit" in targets}
    assert users <= {"cli"}


def test_every_room_says_what_it_holds():
    for room in ROOMS:
        tree = ast.parse((PACKAGE / room / "__init__.py").read_text(encoding="utf-8"))
        assert ast.get_docstring(tree), room
