"""
Datagram services: a sturdy UDP port, responders, limits, and a prober.
"""

from connpool.datagram.answering import NOTHING, AnsweringPort, DatagramStats, Unwrap, shared
from connpool.datagram.echo import Echo
from connpool.datagram.figures import Point, Report, Sample, Spread
from connpool.datagram.histogram import Histogram
from connpool.datagram.info import DatagramInfo
from connpool.datagram.irtt import Auto, Irtt
from connpool.datagram.limits import RULES, Limits, OwnPorts, Policy
from connpool.datagram.marking import Marking, parseDSCP
from connpool.datagram.opening import openPorts
from connpool.datagram.plot import plot
from connpool.datagram.port import SturdyPort
from connpool.datagram.prober import Prober
from connpool.datagram.responders import makeResponder, responderFactories
from connpool.datagram.stamp import Stamp
from connpool.datagram.sweep import SweepReport, sweep
from connpool.datagram.tcpecho import TCPEcho, TCPEchoFactory
from connpool.datagram.tcpprober import TCPProber, makeProber, probe

__all__ = [
    "NOTHING",
    "RULES",
    "AnsweringPort",
    "Auto",
    "DatagramInfo",
    "DatagramStats",
    "Echo",
    "Histogram",
    "Irtt",
    "Limits",
    "Marking",
    "OwnPorts",
    "Point",
    "Policy",
    "Prober",
    "Report",
    "Sample",
    "Spread",
    "Stamp",
    "SturdyPort",
    "SweepReport",
    "TCPEcho",
    "TCPEchoFactory",
    "TCPProber",
    "Unwrap",
    "makeProber",
    "makeResponder",
    "openPorts",
    "parseDSCP",
    "plot",
    "probe",
    "responderFactories",
    "shared",
    "sweep",
]
