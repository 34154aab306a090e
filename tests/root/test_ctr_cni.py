"""``ctr run --cni`` with Debian's plugins: an address inside, nothing outside when it is over."""

from __future__ import annotations

import json
import subprocess
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from kontti.cmd.ctr import cni
from kontti.errors import InvalidArgument, NotFound
from tests.support.host import IMAGE, Host, host

pytestmark = pytest.mark.root
SUBNET = "10.253.77.0/24"


@pytest.fixture(scope="module")
def here() -> Iterator[Host]:
    with host() as made:
        yield made


@dataclass(frozen=True)
class Net:
    """A network of a bridge, with its configuration and addresses below ``folder``."""

    folder: Path
    bridge: str

    def configure(self, *more: dict[str, Any], **changes: Any) -> None:
        """Write the configuration."""
        ipam = {"type": "host-local", "subnet": SUBNET, "dataDir": str(self.folder / "ipam")}
        bridge = {"type": "bridge", "bridge": self.bridge, "isGateway": True, "ipam": ipam}
        plain = {"cniVersion": "1.0.0", "name": self.bridge, "plugins": [bridge, *more], **changes}
        (self.folder / "conf" / "10-first.conflist").write_text(json.dumps(plain))

    def left(self) -> list[str]:
        """Addresses that are taken, ends of wires, and notes."""
        found = [p.name for p in self.folder.glob(f"ipam/{self.bridge}/10.*")]
        show = ["ip", "-o", "link", "show", "master", self.bridge]
        done = subprocess.run(show, capture_output=True, text=True, check=False)
        found += done.stdout.splitlines()
        return found + [p.name for p in Path(cni.CACHE_DIR).glob(f"{self.bridge}-*")]


@pytest.fixture
def net(here: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Net]:
    made = Net(tmp_path, f"kt{uuid.uuid4().hex[:8]}")
    (tmp_path / "conf").mkdir()
    monkeypatch.setenv("NETCONFPATH", str(tmp_path / "conf"))
    made.configure()
    yield made
    try:
        assert made.left() == []
        assert here.nothing() == {}
    finally:
        subprocess.run(["ip", "link", "del", made.bridge], capture_output=True, check=False)


def test_a_container_has_an_address_while_it_runs(here: Host, net: Net) -> None:
    script = "ip -o -4 addr show eth0; ip route"
    done = here.ctr("run", "--rm", "--cni", IMAGE, "one", "sh", "-c", script)
    assert done.returncode == 0, done
    assert b"10.253.77.2/24" in done.stdout


def test_it_goes_with_the_container(here: Host, net: Net) -> None:
    here.out("run", "-d", "--null-io", "--cni", IMAGE, "one", "sleep", "1000")
    here.until("one", "RUNNING")
    assert len(net.left()) == 3, "an address, a wire and a note"
    look = ("sh", "-c", "ip -o -4 addr show eth0")
    out = here.out("tasks", "exec", "--exec-id", "e", "one", *look)
    assert "10.253.77." in out
    record = json.loads(here.out("containers", "info", "one"))
    assert record["Extensions"][cni.EXTENSION]["type_url"] == cni.EXTENSION_URL
    here.out("tasks", "rm", "-f", "one")
    here.out("containers", "rm", "one")


def test_a_plugin_that_fails_leaves_nothing(here: Host, net: Net) -> None:
    net.configure({"type": "portmap", "capabilities": {"portMappings": True}}, {"type": "no-such"})
    done = here.ctr("run", "--rm", "--cni", IMAGE, "one", "true")
    assert done.returncode == 1
    assert b'failed to find plugin "no-such" in path' in done.stderr
    net.configure({"type": "tuning", "sysctl": {"net.ipv4.no.such": "1"}})
    done = here.ctr("run", "--rm", "--cni", IMAGE, "one", "true")
    assert done.returncode == 1
    assert b'plugin type="tuning" failed (add)' in done.stderr


def test_a_command_that_is_not_there_leaves_no_network(here: Host, net: Net) -> None:
    for flags in (("--rm",), ()):
        done = here.ctr("run", *flags, "--cni", IMAGE, "one", "/none")
        assert done.returncode == 1
    here.ctr("containers", "rm", "one")


def test_no_configuration_is_said_before_anything_is_made(here: Host, net: Net) -> None:
    (net.folder / "conf" / "10-first.conflist").unlink()
    done = here.ctr("run", "--cni", IMAGE, "one", "true")
    assert done.returncode == 1
    assert b"no network config found in" in done.stderr


def test_the_first_network_by_name_is_taken(tmp_path: Path) -> None:
    (tmp_path / "20-b.conflist").write_text('{"name": "b", "plugins": [{"type": "x"}]}')
    (tmp_path / "10-a.conf").write_text('{"name": "a", "type": "y", "cniVersion": "0.4.0"}')
    (tmp_path / "00-readme").write_text("no network")
    found = cni.load(str(tmp_path))
    assert (found["name"], found["cniVersion"]) == ("a", "0.4.0")
    assert [plugin["type"] for plugin in found["plugins"]] == ["y"]  # type: ignore[attr-defined]
    with pytest.raises(NotFound):
        cni.load(str(tmp_path / "none"))


@pytest.mark.parametrize(
    "text",
    [
        "", "[]", "{}", '{"name": "a", "plugins": []}', '{"name": "a", "plugins": [1]}',
        '{"plugins": [{"type": "x"}]}', '{"name": "a", "plugins": [{"type": "../x"}]}',
        '{"name": "../a", "plugins": [{"type": "x"}]}', "[" * 100000,
    ],
)  # fmt: skip
def test_what_is_no_network_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.conflist").write_text(text)
    with pytest.raises(InvalidArgument, match="cni config"):
        cni.load(str(tmp_path))
