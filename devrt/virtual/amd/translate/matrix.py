"""Matrix instructions: WMMA and MFMA over the lanes of a wave."""

from __future__ import annotations

from devrt.virtual.amd.translate.writer import Rule

NAMED: dict[str, Rule] = {}
