"""The instruction set: forms, fields, and what reads and writes them."""

from devrt.compiler.sass.isa.assemble import assemble
from devrt.compiler.sass.isa.codec import IllegalInstruction, decode, encode
from devrt.compiler.sass.isa.form import Form
from devrt.compiler.sass.isa.special import SPECIAL
from devrt.compiler.sass.isa.tables import GENERATIONS, forms
from devrt.compiler.sass.isa.text import text

__all__ = ["GENERATIONS", "SPECIAL", "Form", "IllegalInstruction", "assemble", "decode", "encode", "forms", "text"]
