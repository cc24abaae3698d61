"""
The options of C{connpool send}, C{list} and C{get} that say where to connect, and as whom.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from typing import Any

from connpool.addresses import clientEndpoint
from connpool.errors import AddressError, WrongSetting
from connpool.standardstreams import canWrite

__all__ = ["DEFAULT_TO", "asTimeout", "endpointOf", "prepareNative"]

DEFAULT_TO = "127.0.0.1:8640"


def asTimeout(text: str) -> float:
    """
    Read seconds above 0, for argparse.
    """
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value <= 86_400:
        raise argparse.ArgumentTypeError("seconds above 0 are asked for, a day at most")
    return value


def endpointOf(reactor: Any, arguments: argparse.Namespace, option: str) -> Any:
    """
    Make the endpoint that an option names.

    @param option: without its dashes: C{to} or C{from}.
    @raise WrongSetting: why not, in one line.
    """
    text = getattr(arguments, option)
    try:
        return clientEndpoint(reactor, text, arguments.timeout, ca=arguments.ca)
    except AddressError as e:
        raise WrongSetting(f"--{option}: {e}") from None


def prepareNative(arguments: argparse.Namespace) -> None:
    """
    Read the credentials in place of the name of their file, and see that lines of JSON
    have somewhere to go.

    @raise WrongSetting: why not, in one line.
    """
    # imported here: the classic protocol has none
    from connpool.transfer.send.credentials import readCredentials

    try:
        arguments.credentials = readCredentials(arguments.credentials, os.environ)
    except ValueError as e:
        raise WrongSetting(f"--credentials: {e}") from None
    if arguments.json and not canWrite(sys.stdout):
        raise WrongSetting("--json: standard output is closed")
