"""Settings in YAML and JSON, read in one way: text that is no text, that says a key twice, grows
without end or nests without end is refused in one line.

Numbers are those of YAML 1.2: 1e-1 and 1E5 are numbers as well.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ConfigDict, PydanticUserError, TypeAdapter, ValidationError

from ..errors import ConfigError

DEPTH = 40  # lists and tables within each other
NODES = 100_000  # values in one file, those of an alias counted wherever it stands
LARGEST_FILE = 10_000_000  # bytes
LARGEST = 2**63 - 1  # what a 64-bit whole number holds
LARGEST_SEED = 2**64 - 1  # of torch's generators


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with the numbers of YAML 1.2; keys of a table differ from each other."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            line = key_node.start_mark.line + 1
            if not isinstance(key, (str, int, float, bool, type(None))):
                raise yaml.constructor.ConstructorError(
                    None, None, f"line {line}: a list or table cannot be a key"
                )
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"line {line}: {key!r} is there twice"
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {
    first: list(known) for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+$"),
    list("-+0123456789."),
)


def parse(text: str, where: str) -> Any:
    """What the YAML in ``text`` says. Raises ConfigError that begins with ``where``."""
    if "\0" in text:
        raise ConfigError(f"{where}: holds a NUL byte, so it is not a text")
    loader = None
    try:
        _check_nesting(text)
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _check_size(node)
        return loader.construct_document(node)
    except yaml.YAMLError as error:
        raise ConfigError(f"{where}: not YAML ({_short(error)})") from None
    except (ValueError, OverflowError, RecursionError, TypeError, AttributeError) as error:
        # dates such as 2024-99-99, numbers of too many digits
        raise ConfigError(f"{where}: not YAML ({_short(error)})") from None
    finally:
        if loader is not None:
            loader.dispose()


def read(path: str | Path) -> Any:
    """What a YAML file says. Raises ConfigError naming the file."""
    try:
        if Path(path).is_file() and Path(path).stat().st_size > LARGEST_FILE:
            raise ConfigError(f"{path}: too large for settings (over 10 MB)")
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not a text file") from None
    except ValueError:
        raise ConfigError(f"{str(path)!r} is no path: it holds a NUL byte") from None
    return parse(text, str(path))


def _check_nesting(text: str) -> None:
    """Raise YAMLError where lists and tables nest too deeply, before they are made."""
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        if isinstance(event, (yaml.SequenceStartEvent, yaml.MappingStartEvent)):
            depth += 1
            if depth > DEPTH:
                line = event.start_mark.line + 1
                raise yaml.YAMLError(f"line {line}: more than {DEPTH} lists within each other")
        elif isinstance(event, (yaml.SequenceEndEvent, yaml.MappingEndEvent)):
            depth -= 1


def _check_size(root: yaml.Node) -> None:
    """Raise YAMLError where aliases make a text much larger than it is, or endless."""
    sizes: dict[int, int] = {}
    open_: set[int] = set()

    def size(node: yaml.Node) -> int:
        key = id(node)
        if key in open_:
            raise yaml.YAMLError("an alias stands within what it names")
        if key not in sizes:
            open_.add(key)
            sizes[key] = 1 + sum(map(size, _children(node)))
            open_.remove(key)
            if sizes[key] > NODES:
                raise yaml.YAMLError(f"more than {NODES:,} values, those of aliases counted")
        return sizes[key]

    size(root)


def _children(node: yaml.Node) -> Iterator[yaml.Node]:
    if isinstance(node, yaml.SequenceNode):
        yield from node.value
    elif isinstance(node, yaml.MappingNode):
        for pair in node.value:
            yield from pair


def _short(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 200 else f"{text[:199]}…"


def shown(value: Any, length: int = 60) -> str:
    """``value`` in one line of at most ``length`` characters, as an error shows it."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 10**length:
        return f"a whole number of more than {length} digits"
    try:
        text = " ".join(repr(value).split())
    except (RecursionError, ValueError):
        text = f"a {type(value).__name__}"
    return text if len(text) <= length else f"{text[: length - 1]}…"


def walk(value: Any, where: str = "") -> Iterator[tuple[str, Any]]:
    """Every value within lists and tables, with the names and places that lead to it."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from walk(item, f"{where}.{key}" if where else str(key))
    elif isinstance(value, (list, tuple)):
        for place, item in enumerate(value):
            yield from walk(item, f"{where}[{place}]")
    else:
        yield where, value


def check_plain(values: Any, where: str, also: Callable[[Any], bool] = lambda _: False) -> None:
    """Raise ConfigError where settings hold what no setting is: NaN, infinity, whole numbers of
    more than 64 bits, text with NUL, or objects that YAML and JSON do not know.

    ``also``: further values that are right.
    """
    for name, value in walk(values):
        at = f"{where}: {name}" if name else where
        if value is None or isinstance(value, bool) or also(value):
            continue
        if isinstance(value, float) and not abs(value) < float("inf"):
            raise ConfigError(f"{at}: must be a finite number, got {value}")
        if isinstance(value, int) and abs(value) > LARGEST_SEED:
            raise ConfigError(f"{at}: {shown(value)} is too large")
        if isinstance(value, str) and "\0" in value:
            raise ConfigError(f"{at}: holds a NUL character")
        if not isinstance(value, (int, float, str)):
            raise ConfigError(f"{at}: {shown(value)} is neither a number nor a text")


_ANY = ConfigDict(arbitrary_types_allowed=True)


def check_types(hints: Mapping[str, Any], values: Mapping[str, Any], where: str) -> None:
    """Raise ConfigError for the first of ``values`` that is not of the type its name has in
    ``hints``; what has no type there passes. Nothing is converted: 1 stays 1 where 1.0 would do.
    """
    for name, value in values.items():
        if name not in hints:
            continue
        words = str(hints[name])
        for _, item in walk(value):  # pydantic takes true and "1" for 1
            if isinstance(item, bool) and not any(kind in words for kind in ("bool", "Any")):
                raise ConfigError(f"{where}: {name} must not be true or false, got {item}")
            if isinstance(item, str) and not any(k in words for k in ("str", "Any", "Literal")):
                raise ConfigError(f"{where}: {name} must not be a text, got {shown(item)}")
            whole = "int" in words and not any(kind in words for kind in ("float", "Any"))
            if isinstance(item, float) and whole:  # pydantic takes 8.0 for 8, whatever its size
                raise ConfigError(f"{where}: {name} must be a whole number, got {shown(item)}")
        try:
            TypeAdapter(hints[name], config=_ANY).validate_python(value)
        except ValidationError as error:
            first = error.errors()[0]
            place = "".join(f"[{part}]" for part in first["loc"] if isinstance(part, int))
            message = first["msg"][0].lower() + first["msg"][1:]
            raise ConfigError(f"{where}: {name}{place}: {message}, got {shown(value)}") from None
        except PydanticUserError:  # a type of which pydantic knows nothing
            continue


def seed(value: Any, where: str = "seed") -> int:
    """``value`` if it can seed every generator: 0…2^64 − 1. Raises ConfigError."""
    whole = hasattr(value, "__index__") and not isinstance(value, bool)
    if not whole or not 0 <= int(value) <= LARGEST_SEED:
        raise ConfigError(f"{where} must be a whole number in 0…2^64 − 1, got {shown(value)}")
    return int(value)


def count(value: Any, where: str, least: int = 1, most: int = LARGEST) -> int:
    """``value`` if it is a whole number in ``least`` … ``most``. Raises ConfigError."""
    whole = hasattr(value, "__index__") and not isinstance(value, bool)
    if not whole or not least <= int(value) <= most:
        upper = f" to {most}" if most != LARGEST else " or more"
        raise ConfigError(f"{where} must be a whole number, {least}{upper}, got {shown(value)}")
    return int(value)
