"""Small files of configuration."""

from __future__ import annotations

from kontti.errors import InvalidArgument, NotFound

MAX_FILE = 1 << 20


def read_small(path: str) -> str:
    """The text of a file of up to 1 MiB; raises NotFound, InvalidArgument."""
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_FILE + 1)
        if len(data) > MAX_FILE:
            raise InvalidArgument(f"unable to read {path}: larger than {MAX_FILE} bytes")
        return data.decode()
    except FileNotFoundError as error:
        raise NotFound(f"file {path}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidArgument(f"unable to read {path}: {error}") from error
