"""HPACK against the vectors of RFC 7541, and against blocks that no peer should send."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from kontti.wire.hpack import (
    _LENGTHS,
    MAX_HEADERS,
    MAX_TABLE,
    STATIC,
    Decoder,
    HeaderError,
    Huffman,
    encode,
)

Headers = list[tuple[str, str]]
DATE = ("date", "Mon, 21 Oct 2013 20:13:21 GMT")
LATER = ("date", "Mon, 21 Oct 2013 20:13:22 GMT")
PLACE = ("location", "https://www.example.com")
COOKIE = ("set-cookie", "foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1")
GET = [(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "www.example.com")]
REQUESTS: list[Headers] = [
    GET,
    [*GET, ("cache-control", "no-cache")],
    [
        (":method", "GET"),
        (":scheme", "https"),
        (":path", "/index.html"),
        (":authority", "www.example.com"),
        ("custom-key", "custom-value"),
    ],
]
RESPONSES: list[Headers] = [
    [(":status", "302"), ("cache-control", "private"), DATE, PLACE],
    [(":status", "307"), ("cache-control", "private"), DATE, PLACE],
    [
        (":status", "200"),
        ("cache-control", "private"),
        LATER,
        PLACE,
        ("content-encoding", "gzip"),
        COOKIE,
    ],
]
# C.3, C.4, C.5 and C.6: the blocks of one connection, in order; those with responses are preceded
# by the change to a table of 256 bytes that the examples use
EXCHANGES = {
    "requests": """
        828684410f7777772e6578616d706c652e636f6d
        828684be58086e6f2d6361636865
        828785bf400a637573746f6d2d6b65790c637573746f6d2d76616c7565""",
    "requests, huffman": """
        828684418cf1e3c2e5f23a6ba0ab90f4ff
        828684be5886a8eb10649cbf
        828785bf408825a849e95ba97d7f8925a849e95bb8e8b4bf""",
    "responses": """
        3fe1014803333032580770726976617465611d4d6f6e2c203231204f637420323031332032303a31333a32312047\
        4d546e1768747470733a2f2f7777772e6578616d706c652e636f6d
        4803333037c1c0bf
        88c1611d4d6f6e2c203231204f637420323031332032303a31333a323220474d54c05a04677a69707738666f6f3d\
        4153444a4b48514b425a584f5157454f50495541585157454f49553b206d61782d6167653d333630303b20766572\
        73696f6e3d31""",
    "responses, huffman": """
        3fe101488264025885aec3771a4b6196d07abe941054d444a8200595040b8166e082a62d1bff6e919d29ad171863\
        c78f0b97c8e9ae82ae43d3
        4883640effc1c0bf
        88c16196d07abe941054d444a8200595040b8166e084a62d1bffc05a839bd9ab77ad94e7821dd7f2e6c7b335dfdf\
        cd5b3960d5af27087f3672c1ab270fb5291f9587316065c003ed4ee5b1063d5007""",
}


def blocks(name: str) -> list[bytes]:
    return [bytes.fromhex(line) for line in EXCHANGES[name].strip().splitlines()]


@pytest.mark.parametrize("name", EXCHANGES)
def test_rfc_exchanges(name: str) -> None:
    decoder = Decoder()
    wanted = REQUESTS if name.startswith("requests") else RESPONSES
    assert [decoder.decode(block) for block in blocks(name)] == wanted


@pytest.mark.parametrize(
    ("block", "header", "indexed"),
    [
        ("400a637573746f6d2d6b65790d637573746f6d2d686561646572", "custom-key: custom-header", True),
        ("040c2f73616d706c652f70617468", ":path: /sample/path", False),
        ("100870617373776f726406736563726574", "password: secret", False),
        ("82", ":method: GET", False),
    ],
    ids=["with indexing", "without indexing", "never indexed", "indexed"],
)
def test_rfc_representations(block: str, header: str, indexed: bool) -> None:
    name, _, value = header.rpartition(": ")
    decoder = Decoder()
    assert decoder.decode(bytes.fromhex(block)) == [(name, value)]
    if indexed:
        assert decoder.decode(b"\xbe") == [(name, value)]
    else:
        with pytest.raises(HeaderError, match="no entry 62"):
            decoder.decode(b"\xbe")


def test_what_the_table_has_no_room_for_is_gone() -> None:
    decoder = Decoder()
    for block in blocks("responses"):
        decoder.decode(block)
    assert decoder.decode(b"\xbe\xbf\xc0") == [COOKIE, ("content-encoding", "gzip"), LATER]
    with pytest.raises(HeaderError, match="no entry 65"):
        decoder.decode(b"\xc1")


def test_a_table_made_smaller_forgets() -> None:
    decoder = Decoder()
    decoder.decode(literal("a", "1") + literal("b", "2"))
    # down to nothing, and up again
    assert decoder.decode(b"\x20\x3f\xe1\x1f" + literal("c", "3")) == [("c", "3")]
    assert decoder.decode(b"\xbe") == [("c", "3")]
    with pytest.raises(HeaderError, match="no entry 63"):
        decoder.decode(b"\xbf")


def test_an_entry_larger_than_the_table_empties_it() -> None:
    decoder = Decoder()
    decoder.decode(literal("a", "1"))
    big = ("b", "x" * MAX_TABLE)
    assert decoder.decode(literal(*big)) == [big]
    with pytest.raises(HeaderError, match="no entry 62"):
        decoder.decode(b"\xbe")


# RFC 7541, appendix B: the first and the last of each kind
CODES = {
    "0": ("00000", 5),
    "a": ("00011", 5),
    "t": ("01001", 5),
    " ": ("010100", 6),
    "u": ("101101", 6),
    ":": ("1011100", 7),
    "z": ("1111011", 7),
    "&": ("11111000", 8),
    "Z": ("11111101", 8),
    "!": ("1111111000", 10),
    "{": ("111111111111110", 15),
    "\\": ("1111111111111110000", 19),
    "\x01": ("11111111111111111011000", 23),
    "\xff": ("11111111111111111111101110", 26),
    "\x7f": ("1111111111111111111111111100", 28),
    "\xf9": ("1111111111111111111111111110", 28),
    "\n": ("111111111111111111111111111100", 30),
    "\x16": ("111111111111111111111111111110", 30),
}


def packed(bits: str) -> bytes:
    whole = bits + "1" * (-len(bits) % 8)
    return int(whole, 2).to_bytes(len(whole) // 8, "big")


@pytest.mark.parametrize("symbol", CODES)
def test_huffman_codes(symbol: str) -> None:
    bits, length = CODES[symbol]
    assert len(bits) == length
    assert Huffman.decode(packed(bits * 3)) == symbol.encode("latin-1") * 3


def test_huffman_of_nothing() -> None:
    assert Huffman.decode(b"") == b""


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"\xff\xff\xff\xff", "end of string inside"),
        (packed(CODES["a"][0]) + b"\xff", "bad padding"),
        (b"\xff", "bad padding"),
        # "a" and zeros where ones belong
        (b"\x18", "bad padding"),
        # the code of "\n" without its end
        (b"\xff\xff\xff", "bad padding"),
    ],
)
def test_bad_huffman(data: bytes, why: str) -> None:
    with pytest.raises(HeaderError, match=why):
        Huffman.decode(data)


names = st.text("abcdefghijklmnopqrstuvwxyz-0123456789", min_size=1, max_size=200)
values = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=300)
known = st.sampled_from([(name, value) for name, value in STATIC])


@given(st.lists(known | st.tuples(names, values), max_size=20))
def test_what_is_encoded_is_decoded(headers: Headers) -> None:
    assert Decoder().decode(encode(headers)) == headers


def test_text_travels_as_utf8() -> None:
    block = encode([("n", "käyttäjä"), ("p", b"\xff\xfe".decode(errors="surrogateescape"))])
    (_, text), (_, raw) = Decoder().decode(block)
    assert text.encode("latin-1").decode() == "käyttäjä"
    assert raw.encode("latin-1") == b"\xff\xfe"


@given(st.lists(st.tuples(names, values, st.booleans()), max_size=40))
def test_a_peer_that_refers_to_what_it_sent(sent: list[tuple[str, str, bool]]) -> None:
    decoder = Decoder()
    table: Headers = []
    for name, value, refers in sent:
        if refers and table:
            assert decoder.decode(bytes([0x80 | 62])) == [table[0]]
        assert decoder.decode(literal(name, value)) == [(name, value)]
        table.insert(0, (name, value))
        while sum(len(n) + len(v) + 32 for n, v in table) > MAX_TABLE:
            table.pop()
    for position, header in enumerate(table):
        assert decoder.decode(number(62 + position, 7, 0x80)) == [header]


def number(value: int, prefix: int, flags: int) -> bytes:
    """RFC 7541, 5.1."""
    mask = (1 << prefix) - 1
    if value < mask:
        return bytes([flags | value])
    out = [flags | mask]
    value -= mask
    while value >= 128:
        out.append(value % 128 + 128)
        value //= 128
    return bytes([*out, value])


def literal(name: str, value: str, flags: int = 0x40) -> bytes:
    """A header with a new name, with incremental indexing."""
    return bytes([flags]) + b"".join(number(len(t), 7, 0) + t.encode() for t in (name, value))


@pytest.mark.parametrize("length", [0, 126, 127, 128, 254, 255, 1337, 16383, 40000])
def test_lengths(length: int) -> None:
    header = ("n", "x" * length)
    assert Decoder().decode(literal(*header)) == [header]
    assert Decoder().decode(encode([header])) == [header]


@pytest.mark.parametrize(
    ("block", "why"),
    [
        ("80", "no entry 0"),
        ("be", "no entry 62"),
        ("7f", "malformed integer"),
        ("ff", "malformed integer"),
        ("ff80", "malformed integer"),
        ("ff" + "ff" * 5 + "01", "malformed integer"),
        ("ff" + "80" * 1000 + "00", "malformed integer"),
        ("40", "truncated string"),
        ("4001", "truncated string"),
        ("400161", "truncated string"),
        ("40016105616263", "truncated string"),
        ("4001617fffffffff0f", "truncated string"),
        ("7e01", "no entry 62"),
        ("400181", "truncated string"),
        ("400084ffffffff", "end of string inside"),
        ("3fe21f", "table is too large"),
        ("3fffffff7f", "table is too large"),
        ("823fe11f", "table changes inside a block"),
    ],
)
def test_hostile_blocks(block: str, why: str) -> None:
    with pytest.raises(HeaderError, match=rf"^hpack: {why}.*: invalid argument$"):
        Decoder().decode(bytes.fromhex(block))


def test_a_bomb_is_refused() -> None:
    """One entry of 4 KB, which each byte of the block gives once more."""
    block = literal("n", "x" * 4000) + b"\xbe" * 100_000
    with pytest.raises(HeaderError, match="headers are too large"):
        Decoder().decode(block)


def test_headers_up_to_the_limit() -> None:
    header = ("n", "x" * (MAX_HEADERS - 33))
    assert Decoder().decode(literal(*header)) == [header]
    with pytest.raises(HeaderError, match="headers are too large"):
        Decoder().decode(literal("n", header[1] + "x"))


@given(st.binary(max_size=200))
@example(b"\x3f\xe1\x1f\x40")
@example(b"\x00\x80\x80")
def test_any_bytes_decode_or_are_refused(block: bytes) -> None:
    decoder = Decoder()
    try:
        headers = decoder.decode(block)
    except HeaderError:
        return
    assert all(isinstance(part, str) for header in headers for part in header)


def test_a_block_means_what_the_table_says_now() -> None:
    """Blocks that were met before are not read again, as long as the table stays as it is."""
    decoder = Decoder()
    assert decoder.decode(literal("a", "1")) == [("a", "1")]
    for _ in range(3):
        assert decoder.decode(b"\xbe") == [("a", "1")]
    # the same bytes add the same entry each time
    decoder.decode(literal("a", "2"))
    assert decoder.decode(b"\xbe\xbf") == [("a", "2"), ("a", "1")]
    decoder.decode(literal("a", "2"))
    assert decoder.decode(b"\xbe\xbf") == [("a", "2"), ("a", "2")]
    # a change of size alone, and back
    assert decoder.decode(b"\x20\x3f\xe1\x1f") == []
    with pytest.raises(HeaderError, match="no entry 62"):
        decoder.decode(b"\xbe\xbf")


def test_what_is_remembered_is_bounded() -> None:
    decoder = Decoder()
    for n in range(1000):
        decoder.decode(literal("n", str(n), 0x10))
        Huffman.decode(packed(CODES["a"][0] * (n % 40 + 1) + CODES["t"][0] * (n // 40)))
    assert len(decoder._known) <= 64
    assert len(Huffman._known) <= 512


@given(st.text(st.characters(max_codepoint=255), min_size=1, max_size=60))
def test_huffman_of_any_string(text: str) -> None:
    lengths = [ord(c) - ord("A") + 5 for c in _LENGTHS]
    codes, code, previous = {}, 0, 0
    for symbol in sorted(range(257), key=lambda s: (lengths[s], s)):
        code <<= lengths[symbol] - previous
        previous = lengths[symbol]
        codes[symbol] = f"{code:0{previous}b}"
        code += 1
    data = text.encode("latin-1")
    assert Huffman.decode(packed("".join(codes[byte] for byte in data))) == data
