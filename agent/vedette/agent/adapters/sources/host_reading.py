"""Read the machine itself: processor, memory, disks, network, connections, temperature.

Everything comes from a dozen small files of /proc and /sys, through psutil where it knows them: no list of processes or
connections is walked, so a busy host costs no more than an idle one. What cannot be read is left out.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import psutil

from vedette.models.host import HostReading

_PROC, _NETWORK = Path("/proc"), Path("/sys/class/net")
_LOOPBACK = "lo"
_MOST_BYTES = 1 << 20  # of a file of /proc
_HOTTEST = 200.0  # degrees; sensors that are not connected read thousands


def read_host(state_dir: Path, now_s: float) -> HostReading:
    """Return a reading.

    Args:
        state_dir: Whose file system is told.
        now_s: Of a monotonic clock.
    """
    gauges: dict[str, float] = {}
    counters: dict[str, float] = {}
    for read in (_tasks, _memory, _disks, _network, _connections, _sensors):
        # Hidden or absent on this machine: a container, another kernel. The others are told all the same.
        with suppress(OSError, ValueError, KeyError, IndexError, AttributeError, RuntimeError):
            read(gauges, counters)
    with suppress(OSError):
        space = os.statvfs(state_dir)
        gauges["disk_used_share"] = 1.0 - space.f_bavail / space.f_blocks if space.f_blocks else 0.0
    return HostReading(now_s, _processor(), gauges, counters)


def _processor() -> dict[str, float]:
    spent = psutil.cpu_times()
    return {
        "cpu_user": spent.user + spent.nice,
        "cpu_system": spent.system,
        "cpu_iowait": spent.iowait,
        "cpu_interrupt": spent.irq + spent.softirq,
        "cpu_steal": spent.steal,
        "cpu_idle": spent.idle,
    }


def _tasks(gauges: dict[str, float], counters: dict[str, float]) -> None:
    cores = os.cpu_count() or 1
    minute, _, quarter, tasks, _ = _text("loadavg").split()
    gauges["load_1m"], gauges["load_15m"] = float(minute) / cores, float(quarter) / cores
    gauges["tasks"] = float(tasks.partition("/")[2])
    gauges["uptime"] = float(_text("uptime").split()[0])
    said = {name: rest[0] for name, *rest in map(str.split, _text("stat").splitlines()) if rest}
    gauges["tasks_running"], gauges["tasks_blocked"] = float(said["procs_running"]), float(said["procs_blocked"])
    counters["context_switches"], counters["interrupts"] = float(said["ctxt"]), float(said["intr"])
    counters["forks"] = float(said["processes"])


def _memory(gauges: dict[str, float], counters: dict[str, float]) -> None:
    memory = psutil.virtual_memory()
    gauges["memory_used_share"] = 1.0 - memory.available / memory.total
    gauges["memory_cached_share"] = (memory.cached + memory.buffers) / memory.total
    swap = psutil.swap_memory()
    gauges["swap_used_share"] = swap.used / swap.total if swap.total else 0.0
    counters["swap_in"], counters["swap_out"] = float(swap.sin), float(swap.sout)


def _disks(gauges: dict[str, float], counters: dict[str, float]) -> None:
    done = psutil.disk_io_counters(nowrap=False)
    if done is None:  # a host without disks of its own
        return
    counters["disk_reads"], counters["disk_writes"] = float(done.read_count), float(done.write_count)
    counters["disk_read_bytes"], counters["disk_write_bytes"] = float(done.read_bytes), float(done.write_bytes)
    counters["disk_busy"] = done.busy_time / 1000


def _network(gauges: dict[str, float], counters: dict[str, float]) -> None:
    counted = psutil.net_io_counters(pernic=True, nowrap=False)
    counted.pop(_LOOPBACK, None)
    # A bridge counts what its ports count: interfaces with a device of their own are told, and all where none has one.
    real = [one for name, one in counted.items() if (_NETWORK / name / "device").exists()] or list(counted.values())
    counters["net_received_bytes"] = float(sum(one.bytes_recv for one in real))
    counters["net_sent_bytes"] = float(sum(one.bytes_sent for one in real))
    counters["net_received_packets"] = float(sum(one.packets_recv for one in real))
    counters["net_sent_packets"] = float(sum(one.packets_sent for one in real))
    counters["net_errors"] = float(sum(one.errin + one.errout for one in real))
    counters["net_drops"] = float(sum(one.dropin + one.dropout for one in real))


def _connections(gauges: dict[str, float], counters: dict[str, float]) -> None:
    tcp, udp = _table("net/snmp", "Tcp:"), _table("net/snmp", "Udp:")
    gauges["tcp_established"] = tcp["CurrEstab"]
    words = next(line for line in _text("net/sockstat").splitlines() if line.startswith("TCP:")).split()[1:]
    sockets = dict(zip(words[::2], words[1::2], strict=False))
    gauges["tcp_time_wait"], gauges["tcp_orphaned"] = float(sockets["tw"]), float(sockets["orphan"])
    for name, field in _TCP.items():
        counters[name] = tcp[field]
    counters["udp_unwanted"], counters["udp_lost"] = udp["NoPorts"], udp["InErrors"]


_TCP = {
    "tcp_opened": "ActiveOpens",
    "tcp_accepted": "PassiveOpens",
    "tcp_failed": "AttemptFails",
    "tcp_reset": "EstabResets",
    "tcp_retransmitted": "RetransSegs",
}


def _sensors(gauges: dict[str, float], counters: dict[str, float]) -> None:
    found = [one.current for sensors in psutil.sensors_temperatures().values() for one in sensors]
    plausible = [degrees for degrees in found if 0.0 < degrees < _HOTTEST]
    if plausible:
        gauges["temperature"] = max(plausible)


def _text(name: str) -> str:
    with (_PROC / name).open("rb") as file:
        return file.read(_MOST_BYTES).decode(errors="replace")


def _table(name: str, protocol: str) -> Mapping[str, float]:
    """Return the values of a protocol: a line of names, then one of values."""
    lines: Iterator[str] = (line for line in _text(name).splitlines() if line.startswith(protocol))
    names, values = next(lines).split()[1:], next(lines).split()[1:]
    return {key: float(value) for key, value in zip(names, values, strict=True)}
