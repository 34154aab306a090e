"""HPACK header compression (RFC 7541): all of decoding, and plain encoding."""

from __future__ import annotations

from kontti.errors import InvalidArgument

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import ClassVar

# RFC 7541, appendix A
STATIC = tuple(
    tuple(pair.split("|"))
    for pair in [
        ":authority|",
        ":method|GET",
        ":method|POST",
        ":path|/",
        ":path|/index.html",
        ":scheme|http",
        ":scheme|https",
        ":status|200",
        ":status|204",
        ":status|206",
        ":status|304",
        ":status|400",
        ":status|404",
        ":status|500",
        "accept-charset|",
        "accept-encoding|gzip, deflate",
        "accept-language|",
        "accept-ranges|",
        "accept|",
        "access-control-allow-origin|",
        "age|",
        "allow|",
        "authorization|",
        "cache-control|",
        "content-disposition|",
        "content-encoding|",
        "content-language|",
        "content-length|",
        "content-location|",
        "content-range|",
        "content-type|",
        "cookie|",
        "date|",
        "etag|",
        "expect|",
        "expires|",
        "from|",
        "host|",
        "if-match|",
        "if-modified-since|",
        "if-none-match|",
        "if-range|",
        "if-unmodified-since|",
        "last-modified|",
        "link|",
        "location|",
        "max-forwards|",
        "proxy-authenticate|",
        "proxy-authorization|",
        "range|",
        "referer|",
        "refresh|",
        "retry-after|",
        "server|",
        "set-cookie|",
        "strict-transport-security|",
        "transfer-encoding|",
        "user-agent|",
        "vary|",
        "via|",
        "www-authenticate|",
    ]
)
# RFC 7541, appendix B. The code is canonical: the lengths of the 257 symbols' codes are all of it.
# A letter is a length, from A for 5 bits on.
_LENGTHS = (
    "ISXXXXXXXTZXXZXXXXXXXXZXXXXXXXXXBFFHIBDGFFDGDBBBAAABBBBBBBCDKBHFIBCCCCCCCCCCCCCCCCCCCCCCDCDIOIJB"
    "KABABABBBACCBBBABCBAABCCCCCKGJIXPRPPRRRSRSSSSSTSTTRSTSSSSQRSRSSTRQPRRSSQSRRTQRSSQQRQSRSSPRRRSRRS"
    "VVPORSRUVVVWWVTUOQVWWVWTQQVVXWWWPTPQRQQSRRUUTTVSVWVVWWWWWXWWWWWVZ"
)
_BITS = (1 << 64) - 1
KNOWN_STRINGS, KNOWN_SIZE, KNOWN_BLOCKS = 512, 128, 64
MAX_TABLE = 4096
MAX_HEADERS = 64 << 10
Header = tuple[str, str]


class HeaderError(InvalidArgument):
    """A header block that cannot be decoded: the connection is lost with it."""


class _Codes:
    """Symbols by code: those of up to eight bits by each byte they begin, the others by length."""

    __slots__ = ("long", "short")

    def __init__(self) -> None:
        lengths = [ord(c) - ord("A") + 5 for c in _LENGTHS]
        self.short: list[tuple[int, int] | None] = [None] * 256
        self.long: dict[tuple[int, int], int] = {}
        code = previous = 0
        for symbol in sorted(range(257), key=lambda s: (lengths[s], s)):
            length = lengths[symbol]
            code <<= length - previous
            previous = length
            if length <= 8:
                first = code << 8 - length
                for byte in range(first, first + (1 << 8 - length)):
                    self.short[byte] = (symbol, length)
            else:
                self.long[length, code] = symbol
            code += 1

    def next(self, bits: int, left: int) -> tuple[int, int] | None:
        """The symbol that the last ``left`` of ``bits`` begin with, and its length; None without
        a whole one. Raises HeaderError."""
        head = (bits >> left - 8 if left >= 8 else bits << 8 - left) & 0xFF
        found = self.short[head]
        if found is not None:
            return found if found[1] <= left else None
        for length in range(9, min(left, 30) + 1):
            symbol = self.long.get((length, bits >> left - length & (1 << length) - 1))
            if symbol == 256:
                raise HeaderError("hpack: end of string inside a string")
            if symbol is not None:
                return symbol, length
        if left >= 30:
            raise HeaderError("hpack: no such code")
        return None


class Huffman:
    """Decodes strings; the table is made when the first one is met."""

    _codes: _Codes | None = None
    _known: ClassVar[dict[bytes, bytes]] = {}

    @classmethod
    def decode(cls, data: bytes) -> bytes:
        """Raises HeaderError for a code that is none, or padding that is not ones."""
        known = cls._known.get(data)
        if known is not None:
            return known
        decoded = cls._decode(data)
        # clients send the same few strings on each of their connections
        if len(data) <= KNOWN_SIZE:
            if len(cls._known) >= KNOWN_STRINGS:
                cls._known.clear()
            cls._known[data] = decoded
        return decoded

    @classmethod
    def _decode(cls, data: bytes) -> bytes:
        if cls._codes is None:
            cls._codes = _Codes()
        following = cls._codes.next
        out = bytearray()
        bits = left = 0
        for byte in data:
            bits = (bits << 8 | byte) & _BITS
            left += 8
            while left >= 5:
                found = following(bits, left)
                if found is None:
                    break
                out.append(found[0])
                left -= found[1]
        if left > 7 or bits & (1 << left) - 1 != (1 << left) - 1:
            raise HeaderError("hpack: bad padding")
        return bytes(out)


class Decoder:
    """One direction of a connection: header blocks in, headers out."""

    def __init__(self) -> None:
        self._dynamic: list[Header] = []
        self._size = 0
        self._limit = MAX_TABLE
        self._changed = False
        # what blocks mean while the table stays as it is: calls of one kind begin with the same
        self._known: dict[bytes, list[Header]] = {}

    def decode(self, block: bytes) -> list[Header]:
        """The headers of a whole block, not to be changed; raises HeaderError."""
        known = self._known.get(block)
        if known is not None:
            return known
        self._changed = False
        headers = self._decode(block)
        if self._changed or len(self._known) >= KNOWN_BLOCKS:
            self._known.clear()
        if not self._changed and len(block) <= KNOWN_SIZE:
            self._known[block] = headers
        return headers

    def _decode(self, block: bytes) -> list[Header]:
        headers: list[Header] = []
        total = pos = 0
        while pos < len(block):
            byte = block[pos]
            if byte & 0x80:
                index, pos = _integer(block, pos, 7)
                headers.append(self._entry(index))
            elif byte & 0xE0 == 0x20:
                limit, pos = _integer(block, pos, 5)
                if headers:
                    raise HeaderError("hpack: table changes inside a block")
                if limit > MAX_TABLE:
                    raise HeaderError("hpack: table is too large")
                self._limit = limit
                self._changed = True
                self._evict()
                continue
            else:
                header, pos = self._literal(block, pos, 6 if byte & 0x40 else 4)
                headers.append(header)
                if byte & 0x40:
                    self._add(header)
            total += _weight(headers[-1])
            if total > MAX_HEADERS:
                raise HeaderError("hpack: headers are too large")
        return headers

    def _literal(self, block: bytes, pos: int, prefix: int) -> tuple[Header, int]:
        index, pos = _integer(block, pos, prefix)
        if index:
            name = self._entry(index)[0]
        else:
            name, pos = _string(block, pos)
        value, pos = _string(block, pos)
        return (name, value), pos

    def _entry(self, index: int) -> Header:
        if 0 < index <= len(STATIC):
            name, value = STATIC[index - 1]
            return name, value
        position = index - len(STATIC) - 1
        if not 0 <= position < len(self._dynamic):
            raise HeaderError(f"hpack: no entry {index}")
        return self._dynamic[position]

    def _add(self, header: Header) -> None:
        self._dynamic.insert(0, header)
        self._changed = True
        self._size += _weight(header)
        self._evict()

    def _evict(self) -> None:
        while self._size > self._limit:
            self._size -= _weight(self._dynamic.pop())


def _weight(header: Header) -> int:
    return len(header[0]) + len(header[1]) + 32


def _integer(block: bytes, pos: int, prefix: int) -> tuple[int, int]:
    mask = (1 << prefix) - 1
    value = block[pos] & mask
    pos += 1
    if value < mask:
        return value, pos
    shift = 0
    while True:
        if pos >= len(block) or shift > 28:
            raise HeaderError("hpack: malformed integer")
        byte = block[pos]
        pos += 1
        value += (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, pos


def _string(block: bytes, pos: int) -> tuple[str, int]:
    if pos >= len(block):
        raise HeaderError("hpack: truncated string")
    huffman = block[pos] & 0x80
    length, pos = _integer(block, pos, 7)
    data = block[pos : pos + length]
    if len(data) != length:
        raise HeaderError("hpack: truncated string")
    if huffman:
        data = Huffman.decode(data)
    return data.decode("latin-1"), pos + length


def encode(headers: Iterable[Header]) -> bytes:
    """A block by the static table alone: it leaves the peer's table as it is."""
    out = bytearray()
    for header in headers:
        if header in _INDEX:
            out += _put_integer(_INDEX[header], 7, 0x80)
            continue
        name = _NAMES.get(header[0], 0)
        out += _put_integer(name, 4, 0)
        if not name:
            out += _put_string(header[0])
        out += _put_string(header[1])
    return bytes(out)


_INDEX = {(name, value): n for n, (name, value) in enumerate(STATIC, 1) if value}
_NAMES = {name: n for n, (name, _) in reversed(list(enumerate(STATIC, 1)))}


def _put_string(text: str) -> bytes:
    data = text.encode("utf-8", "surrogateescape")
    return _put_integer(len(data), 7, 0) + data


def _put_integer(value: int, prefix: int, flags: int) -> bytes:
    mask = (1 << prefix) - 1
    if value < mask:
        return bytes((flags | value,))
    out = bytearray((flags | mask,))
    value -= mask
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
