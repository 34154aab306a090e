"""config.toml, written: ``containerd config default``, ``dump`` and ``migrate``."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date, time

from kontti.config.decode import encode
from kontti.config.document import Table, as_table, read
from kontti.config.load import Config, Overrides, defaults, load
from kontti.config.migrate import migrate
from kontti.config.sections import PLUGINS

_BARE = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-")
_ESCAPES = {"\t": "\\t", "\n": "\\n", "\r": "\\r", '"': '\\"', "\\": "\\\\"}


def default_text() -> str:
    """What holds where nothing is configured."""
    return emit(document(defaults()))


def dump_text(path: str | None, overrides: Overrides | None = None) -> str:
    """What holds with the file ``path``, its imports and the command line."""
    return emit(document(load(path, overrides)))


def migrate_text(path: str) -> str:
    """The file ``path`` alone, in the latest version."""
    table = migrate(read(path), path)
    return emit({"version": table["version"], **table})


def document(config: Config) -> Table:
    """``config`` as tables, with every plugin's defaults."""
    known: dict[str, object] = {kind.URI: config.plugin(kind) for kind in PLUGINS}
    plugins = {uri: encode(value) for uri, value in sorted({**config.plugins, **known}.items())}
    return {**as_table(encode(config)), "plugins": plugins}


def emit(table: Table) -> str:
    """``table`` as TOML 1.0, its keys in their order but for tables, which come last."""
    return "\n".join(_table(table, ())).lstrip("\n") + "\n"


def _table(table: Table, path: tuple[str, ...]) -> Iterator[str]:
    plain = {key: value for key, value in table.items() if not isinstance(value, dict)}
    indent = "  " * len(path)
    if path and (plain or not table):
        yield ""
        yield f"{indent[2:]}[{'.'.join(map(_key, path))}]"
    for key, value in plain.items():
        yield f"{indent}{_key(key)} = {_value(value)}"
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _table(value, (*path, key))


def _value(value: object) -> str:
    if isinstance(value, str):
        return _string(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return f"[{', '.join(map(_value, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{_key(k)} = {_value(v)}' for k, v in value.items())}}}"
    if isinstance(value, date | time):
        return value.isoformat()
    return repr(value)


def _key(key: str) -> str:
    return key if key and _BARE.issuperset(key) else _string(key)


def _string(text: str) -> str:
    if "'" not in text and text.isprintable():
        return f"'{text}'"
    return f'"{"".join(map(_escaped, text))}"'


def _escaped(character: str) -> str:
    if character in _ESCAPES:
        return _ESCAPES[character]
    return character if character.isprintable() else f"\\U{ord(character):08x}"
