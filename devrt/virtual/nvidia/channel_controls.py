"""NV_ESC_RM_CONTROL on channels, their groups, and the debugger (ctrl906f.h, ctrla06c.h, ctrla06f, ctrlc36f.h, ctrl83de)."""

from __future__ import annotations

from typing import Any

from devrt.ioctl.nv_alloc import EngineType, VaSpaceFlag
from devrt.ioctl.nv_status import Status
from devrt.virtual.nvidia.controls import ControlCall, control
from devrt.virtual.nvidia.objects import ChannelObject, Debugger, Group
from devrt.virtual.nvidia.status import refuse

_MOST_SMS = 100   # of READ_ALL_SM_ERROR_STATES
_MOST_FAULTS = 4  # of READ_MMU_FAULT_INFO


def _schedulable(one: ChannelObject) -> bool:
    """Where UVM owns the page tables, context-switch buffers have their addresses from UVM_REGISTER_CHANNEL
    (kchannelIsSchedulable)."""
    external = one.va_space is not None and bool(one.va_space.flags & VaSpaceFlag.IS_EXTERNALLY_OWNED)
    return one.gpu_channel.engine != EngineType.GRAPHICS or not external or one.registered is not None


def _schedule(call: ControlCall, channels: list[ChannelObject]) -> None:
    if not channels or call.params.bEnable and not all(_schedulable(one) for one in channels):
        refuse(Status.NV_ERR_INVALID_STATE)
    for one in channels:
        one.scheduled = bool(call.params.bEnable)
        call.card.engine.enable(one.gpu_channel, one.scheduled)


@control("NVA06C_CTRL_CMD_GPFIFO_SCHEDULE", Group)
def schedule_group(call: ControlCall) -> None:
    _schedule(call, call.target.channels)


@control("NVA06F_CTRL_CMD_GPFIFO_SCHEDULE", ChannelObject)
def schedule_channel(call: ControlCall) -> None:
    if isinstance(call.target.parent, Group):  # the group is scheduled as a whole
        refuse(Status.NV_ERR_INVALID_STATE)
    _schedule(call, [call.target])


@control("NVA06F_CTRL_CMD_BIND", ChannelObject)
def bind(call: ControlCall) -> None:
    if call.params.engineType != call.target.gpu_channel.engine:
        refuse(Status.NV_ERR_INVALID_ARGUMENT)


@control("NVC36F_CTRL_CMD_GPFIFO_GET_WORK_SUBMIT_TOKEN", ChannelObject)
def work_submit_token(call: ControlCall) -> None:
    call.params.workSubmitToken = call.target.gpu_channel.token


@control("NV906F_CTRL_CMD_RESET_CHANNEL", ChannelObject)
def reset_channel(call: ControlCall) -> None:
    refuse(Status.NV_ERR_INSUFFICIENT_PERMISSIONS)


@control("NV906F_CTRL_CMD_GET_MMU_FAULT_INFO", ChannelObject)
def mmu_fault_info(call: ControlCall) -> None:
    engine = call.card.started
    fault = next((one for one in (engine.mmu_faults if engine else ()) if one.channel is call.target.gpu_channel), None)
    if fault is None:
        return
    call.params.addrHi, call.params.addrLo = fault.address >> 32, fault.address & 0xFFFFFFFF
    call.params.faultType, call.params.faultString = fault.fault_type, f"FAULT_{fault.fault_type.name}".encode()[:31]


# ---------------------------------------------------------------------------------------------------------------------
# The debugger


@control("NV83DE_CTRL_CMD_SM_DEBUG_MODE_ENABLE", Debugger)
def debug_mode_enable(call: ControlCall) -> None:
    pass


@control("NV83DE_CTRL_CMD_SM_DEBUG_MODE_DISABLE", Debugger)
def debug_mode_disable(call: ControlCall) -> None:
    pass


@control("NV83DE_CTRL_CMD_DEBUG_SET_EXCEPTION_MASK", Debugger)
def set_exception_mask(call: ControlCall) -> None:
    pass


def _target(call: ControlCall) -> Any:
    """The channel that a debugger's control is about. Raises Refused."""
    handle = call.params.hTargetChannel
    app = call.target.target.client
    own = call.target.target.parent
    one = app.find(handle) if handle else own
    if not isinstance(one, ChannelObject):
        refuse(Status.NV_ERR_INVALID_ARGUMENT)
    return one.gpu_channel


def _group_of(channel: Any, other: Any) -> bool:
    return other is channel or channel.group is not None and other.group is channel.group


def _write_state(row: Any, state: Any) -> None:
    row.hwwGlobalEsr, row.hwwWarpEsr, row.hwwWarpEsrPc = state.global_esr, state.warp_esr, state.pc & 0xFFFFFFFF
    row.hwwWarpEsrPc64, row.hwwEsrAddr = state.pc, state.address
    row.hwwGlobalEsrReportMask = row.hwwWarpEsrReportMask = 0xFFFFFFFF


@control("NV83DE_CTRL_CMD_DEBUG_READ_SINGLE_SM_ERROR_STATE", Debugger)
def read_single_sm(call: ControlCall) -> None:
    channel = _target(call)
    if call.params.smID >= call.card.model.sms:
        refuse(Status.NV_ERR_INVALID_ARGUMENT)
    for state in call.card.engine.sm_errors:
        if state.sm == call.params.smID and _group_of(channel, state.channel):
            _write_state(call.params.smErrorState, state)


@control("NV83DE_CTRL_CMD_DEBUG_READ_ALL_SM_ERROR_STATES", Debugger)
def read_all_sms(call: ControlCall) -> None:
    params, channel = call.params, _target(call)
    first, count = params.startingSM, params.numSMsToRead
    if not 0 < count <= _MOST_SMS or first >= call.card.model.sms:  # more than there are: those read as no error
        refuse(Status.NV_ERR_INVALID_ARGUMENT)
    engine = call.card.engine
    for state in engine.sm_errors:
        if first <= state.sm < first + count and _group_of(channel, state.channel):
            _write_state(params.smErrorStateArray[state.sm - first], state)
    fault = next((one for one in engine.mmu_faults if _group_of(channel, one.channel)), None)
    params.mmuFault.valid = int(fault is not None)
    params.mmuFaultInfo = params.mmuFault.faultInfo = fault.fault_type if fault is not None else 0


@control("NV83DE_CTRL_CMD_DEBUG_CLEAR_ALL_SM_ERROR_STATES", Debugger)
def clear_all_sms(call: ControlCall) -> None:
    call.card.engine.clear_errors(_target(call))


@control("NV83DE_CTRL_CMD_DEBUG_READ_MMU_FAULT_INFO", Debugger)
def read_mmu_faults(call: ControlCall) -> None:
    channel = call.target.target.parent.gpu_channel
    found = [one for one in call.card.engine.mmu_faults if _group_of(channel, one.channel)][:_MOST_FAULTS]
    for index, fault in enumerate(found):
        row = call.params.mmuFaultInfoList[index]
        row.faultAddress, row.faultType, row.accessType = fault.address, fault.fault_type, fault.access_type
    call.params.count = len(found)
