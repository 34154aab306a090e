"""runc and crun run what our specs say."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import tarfile
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from kontti.linux import libc
from kontti.oci import flags, options, resources, security
from kontti.oci.base import Context, build
from kontti.oci.encode import encode
from tests.support import images

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kontti.oci.base import Option

pytestmark = pytest.mark.root
UNIFIED = "/sys/fs/cgroup/unified"
SETTLE = (options.with_default_path(), resources.with_default_unix_devices())


def command(runtime: str) -> list[str]:
    """crun refuses a host with cgroup v1 and v2 side by side unless v2 is hidden from it."""
    hybrid = Path(UNIFIED).is_dir() and libc.statfs_type(UNIFIED) == libc.CGROUP2_SUPER_MAGIC
    if runtime == "crun" and hybrid:
        return ["unshare", "-m", "sh", "-c", f'umount {UNIFIED}; exec crun "$@"', "crun"]
    return [runtime]


@pytest.fixture(scope="module")
def rootfs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rootfs")
    with tarfile.open(fileobj=io.BytesIO(images.base_layer())) as tar:
        tar.extractall(path, filter="fully_trusted")
    return path


Run = Callable[[Sequence["Option"]], subprocess.CompletedProcess[str]]


@pytest.fixture(params=["runc", "crun"])
def run(request: pytest.FixtureRequest, tmp_path: Path, rootfs: Path) -> Run:
    id = f"kontti-oci-{uuid.uuid4().hex[:12]}"
    runtime = [*command(request.param), "--root", str(tmp_path / "state")]

    def run(chosen: Sequence[Option]) -> subprocess.CompletedProcess[str]:
        context = Context("kontti-test", id, lambda: contextlib.nullcontext(str(rootfs)))
        # a cgroup right below the top: a runtime removes its own, but not the ones above it
        place = (options.with_root_path(str(rootfs)), resources.with_cgroup(f"/{id}"))
        spec = build(context, [*place, *SETTLE, *chosen])
        (tmp_path / "config.json").write_bytes(encode(spec))
        argv = [*runtime, "run", "--bundle", str(tmp_path), id]
        try:
            return subprocess.run(argv, capture_output=True, text=True, check=False, timeout=30)
        finally:
            subprocess.run([*runtime, "delete", "-f", id], capture_output=True, check=False)

    return run


def output(run: Run, script: str, *chosen: Option) -> str:
    result = run([options.with_args(["sh", "-c", script]), *chosen])
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_default(run: Run) -> None:
    assert output(run, "id -u; pwd; stat -c %t:%T /dev/null").split("\n") == ["0", "/", "1:3"]


def test_user_of_the_image(run: Run) -> None:
    user = (options.with_user("alice"), options.with_additional_gids("alice"))
    assert output(run, "id -u; id -g; id -G", *user).split("\n") == ["1000", "1000", "1000 50"]


def test_environment_and_directory(run: Run) -> None:
    chosen = (options.with_env(["A=é b"]), options.with_cwd("/tmp"), options.with_hostname("h1"))
    assert output(run, 'echo "$A"; pwd; hostname', *chosen).split("\n") == ["é b", "/tmp", "h1"]


def test_default_seccomp_refuses_what_it_should(run: Run) -> None:
    profile = security.with_default_seccomp()
    assert output(run, "grep Seccomp: /proc/self/status; date > /dev/null", profile).endswith("2")
    namespace = options.with_args(["busybox", "unshare", "-U", "true"])
    assert run([namespace]).returncode == 0
    refused = run([namespace, profile])
    assert refused.returncode != 0
    assert "not permitted" in refused.stderr


def test_privileged(run: Run) -> None:
    chosen = (security.with_privileged(), resources.with_host_devices())
    script = "mount -t tmpfs x /tmp && grep ' /sys ' /proc/mounts && grep CapEff /proc/self/status"
    lines = output(run, script, *chosen).split("\n")
    assert lines[0].split()[3].startswith("rw")
    ours = [x for x in Path("/proc/self/status").read_text().split("\n") if "CapEff" in x]
    assert lines[1:] == ours


def test_read_only_root_and_mounts(run: Run, tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "file").write_text("seen")
    mount = flags.parse_mount(f"type=bind,src={tmp_path}/shared,dst=/tmp,options=rbind:ro")
    chosen = (options.with_readonly_root(), options.with_mounts([mount]))
    script = "touch /etc/x 2>/dev/null || touch /tmp/x 2>/dev/null || cat /tmp/file"
    assert output(run, script, *chosen) == "seen"


def test_limits(run: Run) -> None:
    chosen = (
        resources.with_memory_limit(64 << 20),
        resources.with_cpu({"shares": 512}),
        resources.with_pids_limit(50),
        resources.with_rlimit(flags.parse_rlimit("RLIMIT_NOFILE", "100:200")),
    )
    assert output(run, "ulimit -n; ulimit -H -n", *chosen).split("\n") == ["100", "200"]


def test_host_network(run: Run) -> None:
    host = os.readlink("/proc/self/ns/net")
    seen = output(run, "stat -L -c %i /proc/self/ns/net", options.with_host_network())
    assert seen == host[5:-1]


def test_device_is_there_and_may_be_used(run: Run) -> None:
    device = resources.with_device("/dev/zero", "/dev/other")
    assert output(run, "head -c 3 /dev/other | wc -c", device) == "3"


def test_user_namespace(run: Run, rootfs: Path) -> None:
    mapping = flags.parse_id_mapping("0:0:65536")
    chosen = options.with_user_namespace([mapping], [mapping])
    assert output(run, "cat /proc/self/uid_map", chosen).split() == ["0", "0", "65536"]
