"""What scenarios rely on: the lab's kills, cuts, links and disks are what they say. Bare hosts, nothing of ours."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.lab import ground, image
from tests.lab.commands import CommandFailed, LabError, NeverHappened, execute, wait_until
from tests.lab.host import Host
from tests.lab.lab import Lab


def _host(lab: Lab, name: str = "one") -> Host:
    host = lab.bare(name)
    host.boot()
    return host


def _pings(host: Host, other: str) -> bool:
    # Debian's minimal root has no ping: whoever refuses a connection has answered.
    program = f"import socket; socket.create_connection(({other!r}, 9), 2)"
    return "ConnectionRefusedError" in host.run(["python3", "-c", program], check=False).err


def test_hosts_reach_each_other_by_name_and_nothing_else(lab: Lab) -> None:
    one, other = _host(lab), _host(lab, "other")
    assert _pings(one, "other")
    assert _pings(other, "one")
    assert one.run("ip route").out.split() == f"10.98.0.0/24 dev eth0 proto kernel scope link src {one.address}".split()
    assert not one.run(["getent", "hosts", "www.debian.org"], check=False).ok


def test_a_power_cut_loses_what_was_never_synced_and_a_kill_does_not(lab: Lab) -> None:
    host = lab.bare("one")
    host.add_volume("/data", "16M")
    host.boot()
    write = "import os, sys; f = os.open(sys.argv[1], os.O_CREAT | os.O_WRONLY); os.write(f, b'x')"
    host.run(["python3", "-c", write, "/data/loose"])
    host.kill()
    host.boot()
    assert host.read("/data/loose") == "x"
    host.run(["sync"])
    host.run(["python3", "-c", f"{write}; os.fsync(f)", "/data/synced"])
    host.run(["python3", "-c", write, "/data/unsynced"])
    host.power_cut()
    host.boot()
    assert host.read("/data/synced") == "x"
    assert host.read("/data/unsynced") == ""


def test_what_a_host_wrote_outlives_an_orderly_reboot(lab: Lab) -> None:
    host = _host(lab)
    host.put("kept", "/etc/kept")
    boot = host.read("/proc/sys/kernel/random/boot_id")
    host.reboot()
    assert host.read("/etc/kept") == "kept"
    assert boot
    assert len({entry["_BOOT_ID"] for entry in host.journal()}) == 2


def test_a_full_disk_is_full_and_is_freed(lab: Lab) -> None:
    host = lab.bare("one")
    disk = host.add_volume("/data", "16M")
    host.boot()
    disk.fill()
    refused = host.run("dd if=/dev/zero of=/data/more bs=1 count=1", check=False)
    assert "No space left on device" in refused.err
    disk.free()
    host.run("echo 1 > /data/more")
    disk.fill(spare_bytes=1 << 20)
    assert 0 < disk.free_bytes() <= 1 << 20


def test_a_failed_disk_is_read_only_until_the_next_boot(lab: Lab) -> None:
    host = lab.bare("one")
    disk = host.add_volume("/data", "16M")
    host.boot()
    host.run("echo 1 > /data/before")
    disk.fail()
    assert "Read-only file system" in host.run("touch /data/more", check=False).err
    host.reboot()
    host.run("echo 1 > /data/more")


def test_a_pulled_cable_cuts_and_a_limited_one_is_slow(lab: Lab) -> None:
    one, other = _host(lab), _host(lab, "other")
    one.link.down()
    assert not _pings(one, "other")
    one.link.up()
    wait_until("the cable is in", lambda: _pings(one, "other"))
    one.link.limit("512kbit")
    other.run(["systemd-run", "--unit=sink", "python3", "-c", _SINK])
    wait_until("somebody listens", lambda: ":9999" in other.run("ss -ltn").out)
    took = one.run(["python3", "-c", _SOURCE]).took_s
    assert 64_000 * 8 / 512_000 * 0.6 < took < 10
    assert one.link.counters().sent_bytes > 64_000


_SINK = """
import socket
with socket.create_server(("", 9999)) as listener:
    connection, _ = listener.accept()
    while connection.recv(65536):
        pass
"""
_SOURCE = """
import socket
with socket.create_connection(("other", 9999)) as connection:
    connection.sendall(bytes(64000))
    connection.shutdown(socket.SHUT_WR)
    connection.recv(1)
"""


def test_a_lossy_link_loses_about_its_share(lab: Lab) -> None:
    one, other = _host(lab), _host(lab, "other")
    assert _pings(one, "other")  # each has the other's hardware address now
    one.link.loss(50)
    before = other.link.counters().received_packets
    send = "import socket; s=socket.socket(2,2); [s.sendto(b'x',('other',9)) for _ in range(2000)]"
    one.run(["python3", "-c", send])
    arrived = other.link.counters().received_packets - before
    assert 800 < arrived < 1200


_SEND = "import socket; s=socket.socket(2,2); [s.sendto(b'x',('other',9)) for _ in range(100)]"


@pytest.mark.parametrize(("direction", "arrives"), [("to", True), ("from", False)])
def test_a_cable_can_be_mute_one_way_while_its_end_stays_up(lab: Lab, direction: str, arrives: bool) -> None:
    one, other = _host(lab), _host(lab, "other")
    assert _pings(one, "other")  # each has the other's hardware address now
    one.link.block(direction)
    before = other.link.counters().received_packets
    one.run(["python3", "-c", _SEND])
    assert (other.link.counters().received_packets - before >= 100) is arrives
    assert not _pings(one, "other")
    assert "state UP" in one.run("ip link show eth0").out
    one.link.block()
    wait_until("the cable is open", lambda: _pings(one, "other"))


def test_a_host_that_moves_has_another_address_and_the_same_name(lab: Lab) -> None:
    one, other = _host(lab), _host(lab, "other")
    before = other.address
    lab.move(other)
    assert other.address != before
    assert _pings(one, "other")
    assert not _pings(one, before)


def test_memory_limits_of_units_hold(lab: Lab) -> None:
    host = _host(lab)
    hog = ["python3", "-c", "x = bytearray(200 << 20)"]
    host.run(["systemd-run", "--wait", "--quiet", *hog])
    assert not host.run(
        ["systemd-run", "--wait", "--quiet", "-p", "MemoryMax=50M", "-p", "MemorySwapMax=0", *hog], check=False
    ).ok


def test_a_unit_can_be_told_another_time(lab: Lab) -> None:
    host = _host(lab)
    tell = "while :; do date +%Y > /run/year.new; mv /run/year.new /run/year; sleep 0.1; done"
    host.put(f"[Service]\nExecStart=/bin/sh -c '{tell.replace('%', '%%')}'\n", "/etc/systemd/system/teller.service")
    host.systemctl("daemon-reload")
    host.systemctl("start", "teller")
    host.clock("teller", "@2031-05-01 12:00:00")
    wait_until("it believes in 2031", lambda: host.read("/run/year").strip() == "2031")
    host.clock("teller", None)
    wait_until("it believes in today", lambda: host.read("/run/year") == host.run("date +%Y").out)


def test_a_host_that_cannot_boot_says_why_and_leaves_nothing(lab: Lab) -> None:
    host = lab.bare("one")
    (host.root / "lib/systemd/systemd").unlink()
    with pytest.raises(LabError, match="systemd: not found"):
        host.boot()
    host.end()
    assert not host.is_up


def test_a_command_that_hangs_is_killed_and_named(lab: Lab) -> None:
    host = _host(lab)
    with pytest.raises(CommandFailed, match="still running after"):
        host.run("sleep 1000", timeout=0.5)
    wait_until("it is gone", lambda: "sleep 1000" not in host.run("ps -eo args").out)


def test_a_wait_says_what_it_saw_last() -> None:
    with pytest.raises(NeverHappened, match="waited 0 s until pigs fly; last: 0"):
        wait_until("pigs fly", lambda: 0, timeout=0)


def test_a_killed_run_is_swept_by_the_next(tmp_path: Path) -> None:
    program = (
        "import os, sys; from tests.lab.lab import Lab; from tests.lab.ground import break_ground\n"
        "lab = Lab(break_ground()); host = lab.bare('one'); host.add_volume('/data', '16M'); host.boot()\n"
        "print(lab.ground.identity, flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], cwd=ground.ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        identity = process.stdout.readline().strip()
        os.kill(process.pid, signal.SIGKILL)
    assert identity in execute(["ip", "netns"]).out
    ground.sweep_abandoned()
    assert identity not in execute(["ip", "netns"]).out
    assert identity not in Path("/proc/self/mountinfo").read_text()
    assert not list(Path("/sys/fs/cgroup").glob(f"*/{identity}-*"))
    assert identity not in execute(["ps", "-eo", "args"]).out


def test_layers_of_former_builds_go_and_those_that_are_new_wanted_or_in_use_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image, "LAB_FOLDER", tmp_path)
    images, mounted = tmp_path / "images", tmp_path / "mounted"
    ages_h = {"agent-a": 12, "agent-b": 11, "agent-c": 10, "agent-d": 9, "agent-e": 1, "agent-f": 0, "controller-a": 12}
    for name, age_h in ages_h.items():
        (images / f"vedette-{name}/etc").mkdir(parents=True)
        os.utime(images / f"vedette-{name}", times=(time.time() - age_h * 3600,) * 2)
    for folder in (images / "bare-a", mounted):
        folder.mkdir()
    with image.building(images / "vedette-agent-b") as staged:
        assert staged is None  # it is there, and wanted now

    lower = f"lowerdir={images / 'vedette-agent-c'}:{images / 'bare-a'}"
    execute(["mount", "-t", "overlay", "-o", lower, "overlay", str(mounted)])
    try:
        gone = image.prune(keep=1, unused_s=6 * 3600)
    finally:
        execute(["umount", str(mounted)])

    assert [path.name for path in gone] == ["vedette-agent-a", "vedette-agent-d"]
    left = {path.name for path in images.iterdir() if path.is_dir()}
    assert left == {
        "bare-a",
        "vedette-agent-b",
        "vedette-agent-c",
        "vedette-agent-e",
        "vedette-agent-f",
        "vedette-controller-a",
    }
