"""The op suite, copies and timelines on every NVIDIA GPU of this machine. One command: tests/hw/nvidia/run.sh."""

from tests.hw.suite import *  # noqa: F403
from tests.hw.suite import cards

CARDS = cards("nvidia")
