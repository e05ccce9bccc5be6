"""Instruction sets of RDNA (gfx1030, gfx1100, gfx1201) and CDNA (gfx90a, gfx942): formats, opcodes, decoder, text."""

from devrt.virtual.amd.isa.blocks import Block, walk
from devrt.virtual.amd.isa.decode import decode
from devrt.virtual.amd.isa.formats import GENS, WAVE_SIZE, Gen
from devrt.virtual.amd.isa.instruction import Dpp, IllegalInstruction, Instruction, Memory, Operand, Sdwa
from devrt.virtual.amd.isa.opcodes import Effect, bits
from devrt.virtual.amd.isa.text import text

__all__ = ["GENS", "WAVE_SIZE", "Block", "Dpp", "Effect", "Gen", "IllegalInstruction", "Instruction", "Memory", "Operand", "Sdwa",
           "bits", "decode", "text", "walk"]
