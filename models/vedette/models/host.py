"""The features of a host: how busy the appliance itself is, as one row an interval.

Pure: an adapter reads the machine; two of its readings make a row. Rules:

- What the machine counts becomes a rate a second over the time between the readings, by a clock that never jumps.
- What is not known is null (NaN): a sensor that is not there, a counter that went back because it was reset or wrapped.
- Nothing names the host, an interface, a disk or an address; shares and loads a core make hosts comparable.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vedette.models.schema import Feature, FeatureSchema

_CPU = (
    ("cpu_user_share", "ratio", "Processor time spent in programs, those of low priority too"),
    ("cpu_system_share", "ratio", "Processor time spent in the kernel"),
    ("cpu_iowait_share", "ratio", "Processor time idle while something waits for a disk"),
    ("cpu_interrupt_share", "ratio", "Processor time spent on interrupts, network packets above all"),
    ("cpu_steal_share", "ratio", "Processor time that the hypervisor gave to others"),
)
_IDLE = "cpu_idle"
_GAUGES = (
    ("load_1m", "tasks per core", "Load average over a minute, per core"),
    ("load_15m", "tasks per core", "Load average over 15 minutes, per core"),
    ("tasks_running", "tasks", "Tasks that run or want to"),
    ("tasks_blocked", "tasks", "Tasks that wait for a disk"),
    ("tasks", "tasks", "All tasks: processes and their threads"),
    ("memory_used_share", "ratio", "Memory that is not available to programs"),
    ("memory_cached_share", "ratio", "Memory that holds files and can be taken back"),
    ("swap_used_share", "ratio", "Swap space in use; 0 where there is none"),
    ("disk_used_share", "ratio", "Space in use of the file system that holds the agent's state"),
    ("tcp_established", "connections", "TCP connections that are open, of IPv4 and IPv6"),
    ("tcp_time_wait", "connections", "TCP connections in TIME-WAIT"),
    ("tcp_orphaned", "connections", "TCP connections that no program holds any more"),
    ("temperature", "degrees Celsius", "The hottest sensor; null where there is none"),
    ("uptime", "s", "Since the host started"),
)
_RATES = (
    ("context_switches_rate", "1/s", "Switches between tasks"),
    ("interrupts_rate", "1/s", "Interrupts"),
    ("forks_rate", "1/s", "Processes and threads started"),
    ("swap_in_rate", "bytes/s", "Read back from swap"),
    ("swap_out_rate", "bytes/s", "Written to swap"),
    ("disk_reads_rate", "1/s", "Reads of all disks"),
    ("disk_writes_rate", "1/s", "Writes of all disks"),
    ("disk_read_bytes_rate", "bytes/s", "Read from all disks"),
    ("disk_write_bytes_rate", "bytes/s", "Written to all disks"),
    ("disk_busy_rate", "s/s", "Time that disks worked; two busy disks are 2"),
    ("net_received_bytes_rate", "bytes/s", "Received on all interfaces but loopback"),
    ("net_sent_bytes_rate", "bytes/s", "Sent on all interfaces but loopback"),
    ("net_received_packets_rate", "packets/s", "Received on all interfaces but loopback"),
    ("net_sent_packets_rate", "packets/s", "Sent on all interfaces but loopback"),
    ("net_errors_rate", "packets/s", "Damaged, received or sent"),
    ("net_drops_rate", "packets/s", "Dropped for want of room, received or sent"),
    ("tcp_opened_rate", "connections/s", "TCP connections that this host opened"),
    ("tcp_accepted_rate", "connections/s", "TCP connections that this host accepted"),
    ("tcp_failed_rate", "connections/s", "TCP connections that were not established"),
    ("tcp_reset_rate", "connections/s", "TCP connections that ended by a reset"),
    ("tcp_retransmitted_rate", "packets/s", "TCP segments sent again"),
    ("udp_unwanted_rate", "packets/s", "UDP packets to a port that nobody listens on"),
    ("udp_lost_rate", "packets/s", "UDP packets lost here, for want of room above all"),
)

HOST_SCHEMA = FeatureSchema("host-metrics", tuple(Feature(*row) for row in (*_CPU, *_GAUGES, *_RATES)), "host")
"""The features of a row of host metrics, all float32."""

_UNKNOWN = float("nan")
_MOST = float(np.finfo(np.float32).max)

Row = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class HostReading:
    """What a machine said of itself at one time; what it did not say is left out.

    Attributes:
        at_s: Of a monotonic clock.
        cpu_s: Processor seconds since the start by the names of the shares without ``_share``, and ``cpu_idle``.
        gauges: By the features' names.
        counters: By the features' names without ``_rate``.
    """

    at_s: float
    cpu_s: Mapping[str, float]
    gauges: Mapping[str, float]
    counters: Mapping[str, float]


def host_row(before: HostReading, now: HostReading) -> Row:
    """Return the row of the time between two readings, shape (1, len(HOST_SCHEMA)); NaN where it is not known."""
    spent = {
        name: _grown(before.cpu_s, now.cpu_s, name)
        for name in (*(name.removesuffix("_share") for name, _, _ in _CPU), _IDLE)
    }
    whole = sum(spent.values())  # unknown when a part is
    elapsed_s = now.at_s - before.at_s
    values = [
        *(spent[name.removesuffix("_share")] / whole if whole > 0 else _UNKNOWN for name, _, _ in _CPU),
        *(now.gauges.get(name, _UNKNOWN) for name, _, _ in _GAUGES),
        *(
            _grown(before.counters, now.counters, name.removesuffix("_rate")) / elapsed_s if elapsed_s > 0 else _UNKNOWN
            for name, _, _ in _RATES
        ),
    ]
    row: Row = np.clip(np.array([values]), -_MOST, _MOST).astype(np.float32)
    return row


def host_values(row: Row) -> dict[str, float | None]:
    """Return a row of shape (features,) by name, None where it is not known."""
    known = np.isfinite(row)
    return {
        name: float(f"{value:.6g}") if is_known else None
        for name, value, is_known in zip(HOST_SCHEMA.names, row.tolist(), known.tolist(), strict=True)
    }


def _grown(before: Mapping[str, float], now: Mapping[str, float], name: str) -> float:
    grown = now.get(name, _UNKNOWN) - before.get(name, _UNKNOWN)
    return grown if grown >= 0 else _UNKNOWN
