"""Tables of hardware facts; every row says where it comes from."""

from __future__ import annotations

from typing import NamedTuple


class Vendor(NamedTuple):
    """A maker of GPUs and the kernel driver devrt talks to. `modules` are loaded in this order."""

    name: str
    driver: str
    modules: tuple[str, ...]
    package: str
    source: str


VENDORS = {
    0x1002: Vendor("AMD", "amdgpu", ("amdgpu",), "your distribution's kernel modules (Debian: linux-image-amd64, "
                   "firmware-amd-graphics)", "Linux drivers/gpu/drm/amd"),
    0x10DE: Vendor("NVIDIA", "nvidia", ("nvidia", "nvidia-uvm"), "NVIDIA's open kernel modules (Debian: "
                   "nvidia-open-kernel-dkms)", "open-gpu-kernel-modules kernel-open/"),
}
OTHER_VENDORS = {0x8086: "Intel", 0x1AF4: "virtio", 0x1234: "QEMU", 0x1A03: "ASPEED", 0x102B: "Matrox", 0x15AD: "VMware"}

# Class codes (base, sub) under which GPUs appear. Linux include/linux/pci_ids.h: display 03xx, accelerators 1200.
GPU_CLASSES = {0x0300: "VGA controller", 0x0302: "3D controller", 0x0380: "display controller",
               0x1200: "processing accelerator"}


class Model(NamedTuple):
    name: str
    isa: str
    source: str


_IDS = "pci.ids (pci-ids.ucw.cz)"
_KFD = "public KFD topology dumps"
_ODM = "open-gpu-kernel-modules README, supported GPUs"

MODELS = {
    (0x1002, 0x740F): Model("Instinct MI210", "gfx90a", _IDS),
    (0x1002, 0x740C): Model("Instinct MI250X/MI250", "gfx90a", _IDS),
    (0x1002, 0x7408): Model("Instinct MI250X", "gfx90a", _IDS),
    (0x1002, 0x74A1): Model("Instinct MI300X", "gfx942", _KFD),
    (0x1002, 0x73BF): Model("Radeon RX 6800/6900", "gfx1030", _IDS),
    (0x1002, 0x73AF): Model("Radeon RX 6900 XT", "gfx1030", _KFD),
    (0x1002, 0x744C): Model("Radeon RX 7900", "gfx1100", _KFD),
    (0x1002, 0x7550): Model("Radeon RX 9070", "gfx1201", _IDS),
    (0x1002, 0x7551): Model("Radeon AI PRO R9700", "gfx1201", _KFD),
    (0x10DE, 0x1E04): Model("GeForce RTX 2080 Ti", "sm_75", _ODM),
    (0x10DE, 0x1EB8): Model("T4", "sm_75", _ODM),
    (0x10DE, 0x20B0): Model("A100 SXM4 40GB", "sm_80", _ODM),
    (0x10DE, 0x20B2): Model("A100 SXM4 80GB", "sm_80", _ODM),
    (0x10DE, 0x20B5): Model("A100 PCIe 80GB", "sm_80", _ODM),
    (0x10DE, 0x20F1): Model("A100 PCIe 40GB", "sm_80", _ODM),
    (0x10DE, 0x2204): Model("GeForce RTX 3090", "sm_86", _ODM),
    (0x10DE, 0x2684): Model("GeForce RTX 4090", "sm_89", _ODM),
    (0x10DE, 0x26B9): Model("L40S", "sm_89", _ODM),
    (0x10DE, 0x27B8): Model("L4", "sm_89", _ODM),
    (0x10DE, 0x2330): Model("H100 SXM5 80GB", "sm_90", _ODM),
    (0x10DE, 0x2331): Model("H100 PCIe", "sm_90", _ODM),
    (0x10DE, 0x2335): Model("H200 SXM 141GB", "sm_90", _ODM),
    (0x10DE, 0x2901): Model("B200", "sm_100", _ODM),
    (0x10DE, 0x2B85): Model("GeForce RTX 5090", "sm_120", _ODM),
}

# KFD interface versions that bring something devrt uses. Linux include/uapi/linux/kfd_ioctl.h, the list at its top.
KFD_FEATURES = {
    (1, 12): "dma-buf export, without which copies between GPUs pass through the host",
    (1, 13): "runtime enable, without which a debugger can't attach to devrt's queues",
}


class CpuFeature(NamedTuple):
    flag: str
    name: str
    source: str


_X86 = "Linux arch/x86/include/asm/cpufeatures.h"
_ARM = "Linux Documentation/arch/arm64/elf_hwcaps.rst"

# In the order they are printed; those a machine lacks are left out.
CPU_FEATURES = tuple(CpuFeature(*row) for row in (
    ("avx2", "AVX2", _X86), ("fma", "FMA", _X86), ("f16c", "F16C", _X86), ("avx512f", "AVX-512", _X86),
    ("avx512_bf16", "AVX-512 BF16", _X86), ("avx512_fp16", "AVX-512 FP16", _X86), ("avx512_vnni", "AVX-512 VNNI", _X86),
    ("amx_tile", "AMX", _X86), ("amx_bf16", "AMX BF16", _X86), ("amx_int8", "AMX INT8", _X86),
    ("asimd", "NEON", _ARM), ("asimdhp", "NEON FP16", _ARM), ("asimddp", "dot product", _ARM), ("sve", "SVE", _ARM),
    ("sve2", "SVE2", _ARM), ("i8mm", "I8MM", _ARM), ("bf16", "BF16", _ARM), ("sme", "SME", _ARM)))
