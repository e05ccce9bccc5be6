# NVIDIA open-gpu-kernel-modules src/nvidia/arch/nvalloc/unix/include/{nv-ioctl*.h,nv_escape.h}, nvos.h (570.133.20)
"""NVIDIA's resource manager: /dev/nvidiactl and /dev/nvidiaN.

A request's size must be that of this driver's struct. RM's own calls answer in the struct's status, by codes of
devrt.ioctl.nv_status; a bad pointer is EFAULT. Structs that later branches replace are in devrt.ioctl.nv_versions, which
makes the table of a running driver; NVRM here is that of the oldest branch.
"""

from __future__ import annotations

from devrt.ioctl import nv_alloc, nv_controls, nv_health, nv_modes
from devrt.ioctl.nv_classes import Class
from devrt.ioctl.nv_controls import Control
from devrt.ioctl.nv_status import Status
from devrt.ioctl.system import System
from devrt.ioctl.uapi import IOWR, Pointer, Uapi

CARDS = 32  # entries of the array that NV_ESC_CARD_INFO fills (NV_MAX_GPUS of nvlimits.h)

STRUCTS = """
struct NVOS00_PARAMETERS { uint32_t hRoot, hObjectParent, hObjectOld, status; };
struct NVOS21_PARAMETERS {
    uint32_t hRoot, hObjectParent, hObjectNew, hClass; uint64_t pAllocParms; uint32_t paramsSize, status;
};
struct NVOS64_PARAMETERS {
    uint32_t hRoot, hObjectParent, hObjectNew, hClass; uint64_t pAllocParms, pRightsRequested;
    uint32_t paramsSize, flags, status;
};
struct NVOS54_PARAMETERS { uint32_t hClient, hObject, cmd, flags; uint64_t params; uint32_t paramsSize, status; };
struct NVOS02_PARAMETERS {
    uint32_t hRoot, hObjectParent, hObjectNew, hClass, flags; uint64_t pMemory, limit; uint32_t status;
};
struct nv_ioctl_nvos02_parameters_with_fd { struct NVOS02_PARAMETERS params; int32_t fd; };
struct NVOS33_PARAMETERS {
    uint32_t hClient, hDevice, hMemory; uint64_t offset, length, pLinearAddress; uint32_t status, flags;
};
struct nv_ioctl_nvos33_parameters_with_fd { struct NVOS33_PARAMETERS params; int32_t fd; };
struct NVOS34_PARAMETERS { uint32_t hClient, hDevice, hMemory; uint64_t pLinearAddress; uint32_t status, flags; };
struct NVOS46_PARAMETERS {
    uint32_t hClient, hDevice, hDma, hMemory; uint64_t offset, length; uint32_t flags; uint64_t dmaOffset;
    uint32_t status;
};
struct NVOS47_PARAMETERS { uint32_t hClient, hDevice, hDma, hMemory, flags; uint64_t dmaOffset, size; uint32_t status; };
struct NVOS55_PARAMETERS { uint32_t hClient, hParent, hObject, hClientSrc, hObjectSrc, flags, status; };
struct nv_pci_info_t { uint32_t domain; uint8_t bus, slot, function; uint16_t vendor_id, device_id; };
struct nv_ioctl_card_info_t {
    uint8_t valid; struct nv_pci_info_t pci_info; uint32_t gpu_id; uint16_t interrupt_line;
    uint64_t reg_address, reg_size, fb_address, fb_size; uint32_t minor_number; uint8_t dev_name[10];
};
struct nv_ioctl_register_fd_t { int32_t ctl_fd; };
struct nv_ioctl_alloc_os_event_t { uint32_t hClient, hDevice, fd, Status; };
struct nv_ioctl_free_os_event_t { uint32_t hClient, hDevice, fd, Status; };
struct nv_ioctl_status_code_t { uint32_t domain; uint8_t bus, slot; uint32_t status; };
struct nv_ioctl_rm_api_version_t { uint32_t cmd, reply; char versionString[64]; };
struct nv_ioctl_xfer_t { uint32_t cmd, size; uint64_t ptr; };
struct nv_ioctl_wait_open_complete_t { int32_t rc; uint32_t adapterStatus; };
"""

CONTROLS: dict[str, Control] = {**nv_controls.CONTROLS, **nv_health.CONTROLS, **nv_modes.CONTROLS}
PARAMETERS: dict[int, str] = {**nv_alloc.PARAMETERS, **nv_modes.PARAMETERS}  # by class

NVRM = Uapi(
    name="nvrm",
    header="nv-ioctl.h",
    nodes=("/dev/nvidiactl", "/dev/nvidia[0-9]*"),
    magic=ord("F"),
    structs=STRUCTS + nv_alloc.STRUCTS + nv_controls.STRUCTS + nv_health.STRUCTS + nv_modes.STRUCTS,
    ioctls={
        "NV_ESC_CARD_INFO": IOWR(200, "nv_ioctl_card_info_t"),  # an array of them
        "NV_ESC_REGISTER_FD": IOWR(201, "nv_ioctl_register_fd_t"),
        "NV_ESC_ALLOC_OS_EVENT": IOWR(206, "nv_ioctl_alloc_os_event_t"),
        "NV_ESC_FREE_OS_EVENT": IOWR(207, "nv_ioctl_free_os_event_t"),
        "NV_ESC_STATUS_CODE": IOWR(209, "nv_ioctl_status_code_t"),
        "NV_ESC_CHECK_VERSION_STR": IOWR(210, "nv_ioctl_rm_api_version_t"),
        "NV_ESC_IOCTL_XFER_CMD": IOWR(211, "nv_ioctl_xfer_t", Pointer("ptr", "size")),
        "NV_ESC_WAIT_OPEN_COMPLETE": IOWR(218, "nv_ioctl_wait_open_complete_t"),
        "NV_ESC_RM_ALLOC_MEMORY": IOWR(0x27, "nv_ioctl_nvos02_parameters_with_fd", addresses=("params.pMemory",)),
        "NV_ESC_RM_FREE": IOWR(0x29, "NVOS00_PARAMETERS"),
        "NV_ESC_RM_CONTROL": IOWR(0x2A, "NVOS54_PARAMETERS", Pointer("params", "paramsSize", by="cmd")),
        "NV_ESC_RM_ALLOC": IOWR(0x2B, "NVOS64_PARAMETERS", Pointer("pAllocParms", "paramsSize", by="hClass"),
                                addresses=("pRightsRequested",)),
        "NV_ESC_RM_DUP_OBJECT": IOWR(0x34, "NVOS55_PARAMETERS"),
        "NV_ESC_RM_MAP_MEMORY": IOWR(0x4E, "nv_ioctl_nvos33_parameters_with_fd", addresses=("params.pLinearAddress",)),
        "NV_ESC_RM_UNMAP_MEMORY": IOWR(0x4F, "NVOS34_PARAMETERS", addresses=("pLinearAddress",)),
        "NV_ESC_RM_MAP_MEMORY_DMA": IOWR(0x57, "NVOS46_PARAMETERS"),
        "NV_ESC_RM_UNMAP_MEMORY_DMA": IOWR(0x58, "NVOS47_PARAMETERS"),
    },
    variants={"cmd": {row.number: row.struct for row in CONTROLS.values() if row.struct}, "hClass": PARAMETERS},
    inner={
        "NV0080_CTRL_GPU_GET_CLASSLIST_PARAMS": (Pointer("classList", "numClasses", 4),),
        "NV2080_CTRL_GR_GET_INFO_PARAMS": (Pointer("grInfoList", "grInfoListSize", 8),),
    },
    names={"cmd": {row.number: name for name, row in CONTROLS.items()},
           "hClass": {int(one): one.name for one in Class},
           "status": {int(status): status.name for status in Status}},
)


def card_info(system: System, fd: int, table: Uapi = NVRM) -> list[dict[str, object]]:
    """The valid entries of NV_ESC_CARD_INFO: one a GPU, with `minor_number` of its node. Raises OSError."""
    size = table.size("nv_ioctl_card_info_t")
    argument = bytearray(size * CARDS)
    request = table.request("NV_ESC_CARD_INFO") & ~(0x3FFF << 16) | len(argument) << 16
    system.ioctl(fd, request, argument)
    rows = [table.fields("nv_ioctl_card_info_t", bytes(argument[at:at + size])) for at in range(0, len(argument), size)]
    return [row for row in rows if row["valid"]]
