"""What is shipped to be copied: the systemd unit and the example of a configuration."""

from __future__ import annotations

import configparser
from pathlib import Path

from kontti.config.load import load
from kontti.server.settings import settings_of

CONTRIB = Path(__file__).parents[2] / "contrib"


def test_the_unit_ends_the_daemon_alone_and_leaves_it_its_cgroups() -> None:
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read(CONTRIB / "systemd" / "containerd.service")
    service = unit["Service"]
    assert service["Type"] == "notify"
    assert (service["KillMode"], service["Delegate"]) == ("process", "yes")
    assert (service["Restart"], service["TasksMax"]) == ("always", "infinity")
    assert service["ExecStart"] == "/usr/local/bin/containerd"
    assert unit["Install"]["WantedBy"] == "multi-user.target"


def test_the_example_of_a_configuration_says_the_defaults() -> None:
    example = load(str(CONTRIB / "etc" / "config.toml"))
    settings = settings_of(example)
    options = (("max-size", "10m"), ("max-file", "5"), ("compress", "true"))
    assert settings.runtime.log_options == options
    assert settings.stores.root == "/var/lib/containerd"
