"""Every small change of a JSON value, for tests that expect each to be noticed."""

import copy
from collections.abc import Iterator

_OTHER_TYPES: tuple[object, ...] = (None, True, 7, 1.5, "text", [], {}, [[]], {"a": 1})
Path = tuple[str | int, ...]


def paths(value: object, path: Path = ()) -> Iterator[Path]:
    """The path of every value inside `value`, containers included, the whole not."""
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, child in children:
        yield (*path, name)
        yield from paths(child, (*path, name))


def at(value: object, path: Path) -> object:
    for name in path:
        value = value[name]
    return value


def replaced(value: object, path: Path, new: object) -> object:
    """A copy of `value` with `new` at `path`; `...` removes what is there."""
    copied = copy.deepcopy(value)
    parent = at(copied, path[:-1])
    if new is ...:
        del parent[path[-1]]
    else:
        parent[path[-1]] = new
    return copied


def other_types(old: object) -> list[object]:
    """Values of every JSON type but the one of `old`."""
    return [new for new in _OTHER_TYPES if type(new) is not type(old)]


def other_values(old: object) -> list[object]:
    """Near values of the same type."""
    if isinstance(old, bool):
        return [not old]
    if isinstance(old, int):
        return [old + 1, old - 1, -old - 1, 2**53, 10**400]
    if isinstance(old, float):
        return [old + 1]
    if isinstance(old, str):
        swapped = [
            old[:i] + _other_char(old[i]) + old[i + 1 :] for i in {0, 1, 2, len(old) // 2, len(old) - 1} if old[i:]
        ]
        return [
            *swapped,
            old + "0",
            old + " ",
            " " + old,
            old[:-1],
            old.swapcase(),
            old + "\ud800",
            old + "\0",
            "",
            "0x",
        ]
    if isinstance(old, list):
        repeated = [old + old[-1:], old[1:] + old[:1], old[:-1]] if old else []
        return [*repeated, [*old, None], []]
    if isinstance(old, dict):
        return [old | {"extra": 1}, {}]
    return []


def mutations(value: object) -> Iterator[tuple[Path, object]]:
    """(path, copy of `value` changed there): other types, other values, members and elements removed."""
    for path in paths(value):
        old = at(value, path)
        for new in [..., *other_types(old), *other_values(old)]:
            if new is ... or type(new) is not type(old) or new != old:
                yield path, replaced(value, path, new)


def _other_char(char: str) -> str:
    return "1" if char == "0" else "0"
