"""ctr's command line is read as the original reads it: flags, their positions, and what it says."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kontti.cmd.ctr import main
from kontti.cmd.ctr.grammar import (
    BOOL,
    DURATION,
    FLOAT,
    INT,
    LIST,
    UINT,
    Call,
    Flag,
    MissingFlag,
    UsageError,
    parse,
)

FLAGS = (
    Flag("quiet,q", BOOL),
    Flag("name,n", default="unnamed"),
    Flag("label,l", LIST),
    Flag("count", INT, default=-1),
    Flag("limit", UINT),
    Flag("cpus", FLOAT),
    Flag("timeout,t", DURATION),
    Flag("from-env", env="KONTTI_TEST_FLAG"),
)


def call(*words: str, passthrough: bool = False) -> Call:
    return Call(*parse(FLAGS, words, passthrough))


def said(*words: str) -> str:
    with pytest.raises(UsageError) as caught:
        call(*words)
    return str(caught.value)


@pytest.mark.parametrize(
    "words", [("--name", "x"), ("--name=x",), ("-name", "x"), ("-name=x",), ("-n", "x"), ("-n=x",)]
)
def test_each_way_to_write_a_flag(words: tuple[str, ...]) -> None:
    made = call(*words, "arg")
    assert (made.str("name"), made.args, set(made.given)) == ("x", ["arg"], {"name"})


def test_what_is_not_given_has_its_default() -> None:
    made = call()
    assert (made.bool("quiet"), made.str("name"), made.list("label")) == (False, "unnamed", [])
    assert (made.int("count"), made.int("limit"), made.float("timeout")) == (-1, 0, 0.0)


def test_a_flags_value_may_look_like_a_flag_or_be_nothing() -> None:
    assert call("--name", "--quiet").str("name") == "--quiet"
    assert call("--name=--quiet").str("name") == "--quiet"
    assert call("--name=").str("name") == ""
    assert call("--name=a=b").str("name") == "a=b"


@pytest.mark.parametrize("text", ["1", "t", "T", "true", "TRUE", "True"])
def test_booleans(text: str) -> None:
    assert call(f"--quiet={text}").bool("quiet")
    assert not call(
        "-q", f"-q={text.replace('1', '0').replace('t', 'f').replace('T', 'F')[:1]}"
    ).bool("quiet")


def test_a_boolean_takes_no_word() -> None:
    made = call("--quiet", "true")
    assert (made.bool("quiet"), made.args) == (True, ["true"])


def test_the_last_one_counts_but_lists_grow() -> None:
    made = call("-l", "a,b", "--label=c", "-n", "x", "-n", "y")
    assert (made.list("label"), made.str("name")) == (["a,b", "c"], "y")


def test_flags_may_follow_arguments() -> None:
    made = call("one", "-q", "two", "--name", "x", "three")
    assert (made.args, made.bool("quiet"), made.str("name")) == (["one", "two", "three"], True, "x")


def test_what_is_no_flag_behind_an_argument_is_one() -> None:
    # label keys, filters and names may begin with a dash
    assert call("one", "-x=y", "--bogus", "---z").args == ["one", "-x=y", "--bogus", "---z"]


def test_a_command_that_runs_something_stops_at_its_first_argument() -> None:
    made = call("-q", "image", "id", "ls", "-q", "--name", "x", "--", "y", passthrough=True)
    assert made.args == ["image", "id", "ls", "-q", "--name", "x", "--", "y"]
    assert made.str("name") == "unnamed"


def test_two_dashes_end_the_flags() -> None:
    assert call("-q", "--", "-n", "x").args == ["-n", "x"]
    assert call("--", "--").args == ["--"]


def test_one_dash_is_an_argument() -> None:
    assert call("-", "-q").args == ["-"]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0.0),
        ("10s", 10.0),
        ("1m30s", 90.0),
        ("1.5h", 5400.0),
        ("250ms", 0.25),
        ("1h1ms", 3600.001),
    ],
)
def test_durations(text: str, seconds: float) -> None:
    assert call("--timeout", text).float("timeout") == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--bogus",), "flag provided but not defined: -bogus"),
        (("-bogus=1",), "flag provided but not defined: -bogus"),
        (("--qu",), "flag provided but not defined: -qu"),
        (("-qn",), "flag provided but not defined: -qn"),
        (("--name",), "flag needs an argument: -name"),
        (("-n",), "flag needs an argument: -n"),
        (("---q",), "bad flag syntax: ---q"),
        (("-=x",), "bad flag syntax: -=x"),
        (("--=x",), "bad flag syntax: --=x"),
        (("-q=maybe",), 'invalid boolean value "maybe" for -q: parse error'),
        (("--count", "x"), 'invalid value "x" for flag -count: parse error'),
        (("--count", "1.5"), 'invalid value "1.5" for flag -count: parse error'),
        (("--limit", "-5"), 'invalid value "-5" for flag -limit: parse error'),
        (
            ("--limit", str(1 << 64)),
            f'invalid value "{1 << 64}" for flag -limit: value out of range',
        ),
        (
            ("--count", str(1 << 63)),
            f'invalid value "{1 << 63}" for flag -count: value out of range',
        ),
        (("--cpus", "x"), 'invalid value "x" for flag -cpus: parse error'),
        (("-t", "5"), 'invalid value "5" for flag -t: parse error'),
        (("-t", "5x"), 'invalid value "5x" for flag -t: parse error'),
        (("-t", "s"), 'invalid value "s" for flag -t: parse error'),
        (("-t", "5s1"), 'invalid value "5s1" for flag -t: parse error'),
    ],
)
def test_what_is_wrong_is_said_as_the_original_does(words: tuple[str, ...], message: str) -> None:
    assert said(*words) == message


def test_numbers_in_other_bases_and_at_their_limits() -> None:
    assert call("--limit", "0x10").int("limit") == 16
    assert call("--limit", str((1 << 64) - 1)).int("limit") == (1 << 64) - 1
    assert call("--count", str(-(1 << 63))).int("count") == -(1 << 63)


def test_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KONTTI_TEST_FLAG", "outer")
    assert call().str("from-env") == "outer"
    assert call("--from-env", "inner").str("from-env") == "inner"
    monkeypatch.setenv("KONTTI_TEST_FLAG", "")
    assert call().str("from-env") == ""


def test_a_flag_that_must_be_given() -> None:
    flags = (Flag("exec-id", required=True), Flag("help,h", BOOL))
    with pytest.raises(MissingFlag, match='Required flag "exec-id" not set'):
        parse(flags, ["x"], passthrough=True)
    assert parse(flags, ["--exec-id", ""], passthrough=True)[0]["exec-id"] == ""
    assert parse(flags, ["-h"], passthrough=True)[0]["help"] is True


def test_an_argument_that_must_be_given() -> None:
    with pytest.raises(UsageError, match="container id must be provided"):
        call("").arg(0, "container id must be provided")


@given(st.lists(st.text(max_size=8), max_size=6), st.booleans())
def test_nothing_typed_is_lost_or_raises_anything_else(words: list[str], passthrough: bool) -> None:
    try:
        values, args, _ = parse(FLAGS, words, passthrough)
    except UsageError:
        return
    assert set(values) == {flag.names[0] for flag in FLAGS}
    assert all(arg in words for arg in args)


# --- the whole command line, as far as it needs no daemon


def outcome(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    """Exit code, the first line of stdout, and stderr."""
    code = main.main(["--address", "/nonexistent/s", *words])
    done = capsys.readouterr()
    assert "Traceback" not in done.err
    return code, done.out.partition("\n")[0], done.err


@pytest.mark.parametrize("words", ["bogus", "tasks bogus", "help bogus", "images help bogus"])
def test_an_unknown_command(capsys: pytest.CaptureFixture[str], words: str) -> None:
    assert outcome(capsys, *words.split()) == (3, "", "No help topic for 'bogus'\n")


@pytest.mark.parametrize(
    "words",
    ["--bogus version", "tasks --bogus ls", "tasks ls --bogus", "events --bogus", "run --bogus"],
)
def test_an_unknown_flag(capsys: pytest.CaptureFixture[str], words: str) -> None:
    message = "flag provided but not defined: -bogus"
    expected = (1, f"Incorrect Usage: {message}", f"ctr: {message}\n")
    assert outcome(capsys, *words.split()) == expected


@pytest.mark.parametrize(
    ("words", "title"),
    [
        ("", "NAME:"), ("-h", "NAME:"), ("--help", "NAME:"), ("help", "NAME:"), ("h", "NAME:"),
        ("tasks", "NAME:"), ("t -h", "NAME:"), ("help tasks", "NAME:"), ("tasks help", "NAME:"),
        ("tasks ls -h", "NAME:"), ("tasks help ls", "NAME:"), ("t exec -h", "NAME:"),
        ("run --help", "NAME:"), ("help run", "NAME:"), ("snapshots --snapshotter x", "NAME:"),
    ],
)  # fmt: skip
def test_help_needs_no_daemon(capsys: pytest.CaptureFixture[str], words: str, title: str) -> None:
    assert outcome(capsys, *words.split()) == (0, title, "")


@pytest.mark.parametrize(
    ("words", "name"),
    [("tasks list -h", "tasks list"), ("t ls -h", "tasks list"), ("i ls -h", "images list"),
     ("image rm -h", "images delete"), ("c del -h", "containers delete"),
     ("ns c -h", "namespaces create"),
     ("event -h", "events"), ("snapshot rm -h", "snapshots delete"),
     ("task metric -h", "tasks metrics")],
)  # fmt: skip
def test_aliases(capsys: pytest.CaptureFixture[str], words: str, name: str) -> None:
    assert main.main(words.split()) == 0
    assert capsys.readouterr().out.splitlines()[1].startswith(f"   ctr {name} - ")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("run", "image ref must be provided"),
        ("run x", "container id must be provided"),
        ("run --rm -d x y", "flags --detach and --rm cannot be specified together"),
        ("run --config f", "container id must be provided"),
        (
            "run --config f x y",
            "with spec config file, only container id should be provided: invalid argument",
        ),
        ("containers create", "image ref must be provided"),
        ("containers create x", "container id must be provided"),
        ("tasks exec --exec-id e", "container id must be provided"),
        ("tasks start", "container id must be provided"),
        ("tasks kill", "container id must be provided"),
        ("tasks attach", "container id must be provided"),
        ("tasks ps", "container id must be provided"),
        ("tasks pause", "container id must be provided"),
        ("tasks delete", "container id must be provided"),
    ],
)  # fmt: skip
def test_what_is_missing_is_said_before_anything_is_asked(
    capsys: pytest.CaptureFixture[str], words: str, message: str
) -> None:
    assert outcome(capsys, *words.split()) == (1, "", f"ctr: {message}\n")


def test_a_missing_flag_is_said_with_help(capsys: pytest.CaptureFixture[str]) -> None:
    expected = (1, "NAME:", 'ctr: Required flag "exec-id" not set\n')
    assert outcome(capsys, "tasks", "exec", "x", "ls", "-h") == expected


def test_the_version_needs_no_daemon(capsys: pytest.CaptureFixture[str]) -> None:
    code, line, _ = outcome(capsys, "-v")
    assert (code, line[:11]) == (0, "ctr kontti ")
    # this one asks the daemon, after it has said who asks
    code, line, error = outcome(capsys, "version")
    assert (code, line) == (1, "Client:")
    assert error.startswith('ctr: failed to dial "/nonexistent/s": ')
