"""LLVM IR of the context's fields, and what walks page tables."""

from __future__ import annotations

from devrt.virtual import walker
from devrt.virtual.amd.translate import layout as at
from devrt.virtual.context import KIND
from devrt.virtual.walker import field

__all__ = ["KIND", "TEXT"]

TEXT = walker.TEXT + "".join((
    field("lds", at.LDS), field("lds_bytes", at.LDS_BYTES), field("scratch", at.SCRATCH),
    field("scratch_lane", at.SCRATCH_LANE), field("states", at.STATES), field("templates", at.TEMPLATES),
    field("waves", at.WAVES, "i32"), field("scratch_wave", at.SCRATCH_WAVE), field("groups_x", at.GROUPS_X, "i32"),
    field("groups_y", at.GROUPS_Y, "i32"), field("id_x", at.ID_X, "i32"), field("id_y", at.ID_Y, "i32"),
    field("id_z", at.ID_Z, "i32"), field("id_yz", at.ID_YZ, "i32"), field("first_x", at.FIRST_X, "i32"),
    field("first_y", at.FIRST_Y, "i32"), field("first_z", at.FIRST_Z, "i32"), field("group", at.GROUP),
    field("midst", at.MIDST, "i32"), field("group_budget", at.GROUP_BUDGET)
)) + walker.giving_way("get_waves", at.SLICE, at.STATUS)
