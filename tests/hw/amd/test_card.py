"""The op suite, copies and timelines on every AMD GPU of this machine. One command: tests/hw/amd/run."""

from tests.hw.suite import *  # noqa: F403
from tests.hw.suite import cards

CARDS = cards("amd")
