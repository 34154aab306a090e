"""Plugins come after what they require; what the daemon tells of them is so."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kontti.errors import FailedPrecondition, InvalidArgument
from kontti.server.plugins import BUILTINS, Plugin, check_required, order, plugin_rows

OVERLAY = "io.containerd.snapshotter.v1.overlayfs"
# each may require types of a lower number: no circle can come of it
FREE_OF_CIRCLES = st.lists(
    st.integers(0, 5).flatmap(
        lambda kind: st.builds(
            Plugin,
            st.just(f"t{kind}"),
            st.text("ab", min_size=1, max_size=3),
            st.lists(st.integers(0, kind).map(lambda n: f"t{n}"), unique=True).map(tuple),
        )
    ),
    unique_by=lambda plugin: plugin.uri,
)


def without_own(plugin: Plugin) -> Plugin:
    requires = tuple(required for required in plugin.requires if required != plugin.type)
    return Plugin(plugin.type, plugin.id, requires)


@given(FREE_OF_CIRCLES)
def test_what_is_required_comes_first(plugins: list[Plugin]) -> None:
    plugins = [without_own(plugin) for plugin in plugins]
    ordered = order(plugins)
    assert sorted(p.uri for p in ordered) == sorted(p.uri for p in plugins)
    for index, plugin in enumerate(ordered):
        assert not {later.type for later in ordered[index:]} & set(plugin.requires)


@given(FREE_OF_CIRCLES)
def test_order_is_a_fixed_point(plugins: list[Plugin]) -> None:
    ordered = order([without_own(plugin) for plugin in plugins])
    assert order(ordered) == ordered


def test_a_circle_is_named() -> None:
    plugins = [Plugin("a", "1", ("b",)), Plugin("b", "2", ("c",)), Plugin("c", "3", ("a",))]
    with pytest.raises(InvalidArgument, match=r"a\.1 -> b\.2 -> c\.3 -> a\.1"):
        order(plugins)


def test_one_that_requires_its_own_type_waits_for_the_others() -> None:
    plugins = [Plugin("a", "1", ("a",)), Plugin("a", "2")]
    assert [plugin.id for plugin in order(plugins)] == ["2", "1"]


def test_builtins_require_only_what_is_there() -> None:
    types = {plugin.type for plugin in BUILTINS}
    assert {required for plugin in BUILTINS for required in plugin.requires} <= types
    assert len({plugin.uri for plugin in BUILTINS}) == len(BUILTINS)


def test_rows() -> None:
    native = "io.containerd.snapshotter.v1.native"
    rows = plugin_rows({"overlayfs": "no overlay here"}, [native], {OVERLAY: {"root": "/x"}})
    by_uri = {row.uri: row for row in rows}
    assert native not in by_uri
    assert by_uri[OVERLAY].init_error == "no overlay here"
    assert by_uri[OVERLAY].exports == (("root", "/x"),)
    assert by_uri[OVERLAY].platforms[0].os == "linux"
    assert by_uri["io.containerd.grpc.v1.version"].platforms == ()
    check_required(rows, ["io.containerd.content.v1.content"])
    with pytest.raises(FailedPrecondition, match="native not included"):
        check_required(rows, [native])
    with pytest.raises(FailedPrecondition, match="overlayfs: no overlay here"):
        check_required(rows, [OVERLAY])
