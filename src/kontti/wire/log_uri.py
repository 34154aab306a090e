"""``kontti-log:///folder?max-size=10m&max-file=5&compress=true``: where the log driver writes.

It stands in a task's stdout and stderr beside containerd's ``fifo``, ``file`` and ``binary``; the
name is ours, so that no scheme that containerd may get one day means another thing. For shims that
do not know it the same is said as ``binary:///…/kontti-logger?folder=…&max-size=…``.
"""

from __future__ import annotations

from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

from kontti.errors import InvalidArgument

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from urllib.parse import SplitResult

SCHEME = "kontti-log"
LOGGER = "kontti-logger"
LABEL = "kontti.io/log-uri"
"""Of a container: where its output was last sent, "none" for nowhere."""
NONE = "none"
DRIVERS = ("cri", NONE)
FOLDER = "logs"
"""Below an engine's or daemon's root; a container's is ``<namespace>/<id>`` in it."""
SMALLEST, LARGEST = 4 << 10, 1 << 50
MOST_FILES = 1000
_SHIFTS = {"": 0, "b": 0, "k": 10, "kb": 10, "kib": 10, "m": 20, "mb": 20, "mib": 20,
           "g": 30, "gb": 30, "gib": 30}  # fmt: skip


class Limits:
    """How much is kept: files of at most ``max_size`` bytes, at most ``max_file`` of them."""

    __slots__ = ("compress", "max_file", "max_size")

    def __init__(
        self, max_size: int = 10 << 20, max_file: int = 5, *, compress: bool = True
    ) -> None:
        if not SMALLEST <= max_size <= LARGEST:
            raise InvalidArgument(f"max-size {max_size}: at least {SMALLEST} bytes, at most 1 PiB")
        if not 1 <= max_file <= MOST_FILES:
            raise InvalidArgument(f"max-file {max_file}: between 1 and {MOST_FILES}")
        self.max_size = max_size
        self.max_file = max_file
        self.compress = compress

    def changed(self, options: Mapping[str, str]) -> Limits:
        """With what ``options`` say (max-size, max-file, compress); raises InvalidArgument."""
        unknown = [key for key in options if key not in ("max-size", "max-file", "compress")]
        if unknown:
            raise InvalidArgument(
                f"unknown log option {unknown[0]!r:.40}: max-size, max-file and compress are known"
            )
        size, files = options.get("max-size"), options.get("max-file")
        compress = options.get("compress")
        return Limits(
            self.max_size if size is None else parse_size(size),
            self.max_file if files is None else _count(files),
            compress=self.compress if compress is None else _bool(compress),
        )

    def options(self) -> dict[str, str]:
        """As ``changed`` takes them."""
        return {
            "max-size": str(self.max_size),
            "max-file": str(self.max_file),
            "compress": "true" if self.compress else "false",
        }


def parse_size(text: str) -> int:
    """Bytes of ``10m``, ``1GiB``, ``65536``: units are powers of 1024. Raises InvalidArgument."""
    digits = text.rstrip("bBiIkKmMgG")
    shift = _SHIFTS.get(text[len(digits) :].lower())
    if shift is None or not digits.isascii() or not digits.isdigit() or len(digits) > 15:
        raise InvalidArgument(f"max-size {text!r:.40} is not a size such as 10m")
    return int(digits) << shift


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 9:
        raise InvalidArgument(f"max-file {text!r:.40} is not a number")
    return int(text)


def _bool(text: str) -> bool:
    if text not in ("true", "false"):
        raise InvalidArgument(f"compress {text!r:.40} is neither true nor false")
    return text == "true"


def options_of(entries: Iterable[str]) -> dict[str, str]:
    """``key=value`` entries of the command line; raises InvalidArgument."""
    found = {}
    for entry in entries:
        key, separator, value = entry.partition("=")
        if not separator:
            raise InvalidArgument(f"log option {entry!r:.80} is not key=value")
        found[key] = value
    return found


def is_log(uri: str) -> bool:
    """Whether a stream goes to the log driver, as the driver's own URI says it."""
    return uri.startswith(f"{SCHEME}:")


def make(folder: str, options: Mapping[str, str] | None = None) -> str:
    """The URI of a folder; what ``options`` leave out is for the daemon to say."""
    query = urlencode(options or {})
    return f"{SCHEME}://{quote(folder)}" + (f"?{query}" if query else "")


def parse(uri: str, defaults: Limits | None = None) -> tuple[str, Limits]:
    """The folder and the limits; raises InvalidArgument."""
    parts = _split(uri)
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    folder = unquote(parts.path)
    if parts.scheme != SCHEME or parts.netloc or parts.fragment:
        raise InvalidArgument(f"log URI {uri!r:.200} is not {SCHEME}:///folder?option=value")
    return checked_folder(folder), (defaults or Limits()).changed(options)


def _split(uri: str) -> SplitResult:
    try:
        return urlsplit(uri)
    except ValueError:
        raise InvalidArgument(f"log URI {uri!r:.200} is malformed") from None


def checked_folder(folder: str) -> str:
    """An absolute path that does not climb; raises InvalidArgument."""
    if not folder.startswith("/") or folder == "/" or "\0" in folder or ".." in folder.split("/"):
        raise InvalidArgument(f"log folder {folder!r:.200} is not an absolute path")
    return folder


def for_shim(uri: str, defaults: Limits) -> str:
    """The URI with nothing left open, for our own shim."""
    folder, limits = parse(uri, defaults)
    return make(folder, limits.options())


def for_logger(uri: str, defaults: Limits, program: str) -> str:
    """The same for any other shim, which starts ``program`` to do it."""
    folder, limits = parse(uri, defaults)
    query = urlencode({"folder": folder, **limits.options()})
    return f"binary://{quote(program)}?{query}"


def folder_of(uri: str) -> str:
    """The folder that a task's stream is kept in, in either form; "" where it goes elsewhere."""
    try:
        parts = _split(uri)
        if parts.scheme == SCHEME:
            return checked_folder(unquote(parts.path))
        if parts.scheme == "binary" and parts.path.rpartition("/")[2] == LOGGER:
            return checked_folder(dict(parse_qsl(parts.query)).get("folder", ""))
    except InvalidArgument:
        pass  # nobody has written to such a one
    return ""
