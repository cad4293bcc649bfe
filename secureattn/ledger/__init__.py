"""What a run cost: events of one or more parties → tables, JSON, Chrome trace, plot, and time on a network."""

from secureattn.ledger.export import to_json
from secureattn.ledger.ledger import COUNTS, ENGINE_COUNTS, Ledger, Party
from secureattn.ledger.machine import machine
from secureattn.ledger.network import LAN, PLANNED, PUMA, WAN, Network, load_network, network_seconds, network_table
from secureattn.ledger.plot import write_plot
from secureattn.ledger.reading import from_json
from secureattn.ledger.roles import busy, roles
from secureattn.ledger.table import breakdown_table, phase_table, region_table, role_table
from secureattn.ledger.trace import write_trace

__all__ = [
    "COUNTS",
    "ENGINE_COUNTS",
    "LAN",
    "PLANNED",
    "PUMA",
    "WAN",
    "Ledger",
    "Network",
    "Party",
    "breakdown_table",
    "busy",
    "from_json",
    "load_network",
    "machine",
    "network_seconds",
    "network_table",
    "phase_table",
    "region_table",
    "role_table",
    "roles",
    "to_json",
    "write_plot",
    "write_trace",
]
