"""Loads, stores and atomics of the vector and scalar units, in global memory, LDS and private memory."""

from __future__ import annotations

from devrt.virtual.amd.isa.instruction import Instruction, Operand
from devrt.virtual.amd.isa.opcodes import bits
from devrt.virtual.amd.translate import buffer, lanes
from devrt.virtual.amd.translate.pages import KIND
from devrt.virtual.amd.translate.writer import APERTURE_HIGH, NotTranslated, Writer
from devrt.virtual.memory import Access

_NEED = (Access.VALID | Access.WRITE | Access.DIRTY).value
_MISALIGNED = KIND["misaligned"]
_CROSS = {"ds_bpermute_b32": lanes.bpermute, "ds_bpermute_fi_b32": lanes.bpermute,
          "ds_permute_b32": lanes.permute, "ds_swizzle_b32": lanes.swizzle}
_C, _OK = ("ptr", "%c"), ("ptr", "%ok")


def emit(w: Writer, i: Instruction) -> None:
    """Write one memory instruction; `%ok` is 0 afterwards where an address was refused."""
    if i.mnemonic in _CROSS:
        _CROSS[i.mnemonic](w, i)
        return
    m = i.memory
    assert m is not None
    if m.to_lds or m.transpose or m.gds or m.addtid:
        raise NotTranslated(i.mnemonic)
    if m.space == "constant":
        scalar_load(w, i)
    elif m.action == "atomic":
        atomic(w, i)
    elif m.action == "load":
        load(w, i)
    else:
        store(w, i)


def _operand(i: Instruction, name: str) -> Operand | None:
    return next((o for o in i.operands if o.name == name and o.kind != "off"), None)


def scalar_load(w: Writer, i: Instruction) -> None:
    """Dwords from the base plus offsets, the lowest two bits dropped; gfx12 loads bytes and words of one as well."""
    m, out = i.memory, i.destinations[0]
    base, more = _operand(i, "sbase"), _operand(i, "soffset")
    assert m is not None and base is not None
    narrow = m.type in ("u8", "i8", "u16", "i16")
    if m.action != "load" or base.dwords != 2 or not narrow and m.type not in ("b32", "b64", "b96", "b128", "b256", "b512"):
        raise NotTranslated(i.mnemonic)
    at = w.scalar64(base)
    if more is not None:
        at = w.op(f"add i64 {at}, {w.op(f'zext i32 {w.scalar(more)} to i64')}")
    exact = w.op(f"add i64 {at}, {m.offset}")
    at = w.op(f"and i64 {exact}, -4")
    if narrow:
        w.set_scalar(out, _part_of(w, at, exact, m.type))
        return
    values = [w.call("i32", "load_dword", _C, ("i64", w.op(f"add i64 {at}, {4 * k}")), ("i32", "0"), _OK, declare=False)
              for k in range(out.dwords)]
    for k, value in enumerate(values):
        w.set_scalar(out, value, k)


def _part_of(w: Writer, dword: str, exact: str, type: str) -> str:
    """The byte or word at `exact` of the dword there, extended; a word's lowest address bit is dropped."""
    whole = w.call("i32", "load_dword", _C, ("i64", dword), ("i32", "0"), _OK, declare=False)
    place = w.op(f"and i64 {exact}, {3 if bits(type) == 8 else 2}")
    amount = w.op(f"trunc i64 {w.op(f'shl i64 {place}, 3')} to i32")
    moved = w.op(f"lshr i32 {whole}, {amount}")
    narrow = w.op(f"trunc i32 {moved} to i{bits(type)}")
    return w.op(f"{'sext' if type.startswith('i') else 'zext'} i{bits(type)} {narrow} to i32")


def address(w: Writer, i: Instruction) -> str:
    """The address of every lane: 64 bits in global and flat space, 64-bit offsets into LDS and private memory."""
    m = i.memory
    assert m is not None
    if m.space == "buffer":
        return ""
    wide, t = w.vec("i64"), w.vec("i32")
    vector, base = _operand(i, "addr"), _operand(i, "saddr")
    if m.space in ("lds", "scratch"):
        total = w.dword(vector) if vector is not None else "zeroinitializer"
        if base is not None:
            total = w.op(f"add {t} {total}, {w.splat('i32', w.scalar(base))}")
        if m.space == "scratch":
            total = w.op(f"add {t} {total}, splat (i32 {m.offset})")
            return w.op(f"zext {t} {total} to {wide}")
        return w.op(f"zext {t} {total} to {wide}")
    if vector is not None and vector.dwords == 2:
        total = w.qword(vector)
    else:
        total = w.op(f"zext {t} {w.dword(vector)} to {wide}") if vector is not None else "zeroinitializer"
    if base is not None:
        total = w.op(f"add {wide} {total}, {w.splat('i64', w.scalar64(base))}")
    return w.op(f"add {wide} {total}, splat (i64 {m.offset})") if m.offset else total


def spaces(w: Writer, i: Instruction, at: str) -> list[tuple[str, str, str]]:
    """(space, addresses, lanes) of an access: a flat one may go to three spaces."""
    m = i.memory
    assert m is not None
    exec_ = w.exec()
    if m.space == "buffer":
        return buffer.spaces(w, i)
    if m.space != "flat":
        return [(m.space, at, exec_)]
    wide = w.vec("i64")
    high = w.op(f"lshr {wide} {at}, splat (i64 32)")
    low = w.op(f"and {wide} {at}, splat (i64 4294967295)")
    found = []
    rest = exec_
    for space, name in (("lds", "shared"), ("scratch", "private")):
        inside = w.op(f"icmp eq {wide} {high}, splat (i64 {APERTURE_HIGH[name]})")
        part = w.op(f"and {w.iw} {w.op(f'bitcast {w.mask} {inside} to {w.iw}')}, {exec_}")
        rest = w.op(f"and {w.iw} {rest}, {w.op(f'xor {w.iw} {part}, -1')}")
        found.append((space, low, part))
    return [("global", at, rest), *found]


def load(w: Writer, i: Instruction) -> None:
    m, out = i.memory, i.destinations[0]
    assert m is not None
    width = bits(m.type)
    at = address(w, i)
    if m.offsets:
        values = []
        for offset in m.offsets:
            values += _read(w, "lds", at, w.exec(), offset, width)
    else:
        offset = m.offset if m.space == "lds" else 0
        parts = spaces(w, i, at)
        values = _read(w, parts[0][0], parts[0][1], parts[0][2], offset, width)
        for space, where, mask in parts[1:]:
            more = _read(w, space, where, mask, 0, width)
            values = [w.op(f"or {w.vec('i32')} {a}, {b}") for a, b in zip(values, more, strict=True)]
    if width < 32:
        values = [_narrow(w, i, values[0], width)]
    n = w.vcode(out)
    for k, value in enumerate(values):
        w.set_v(n + k, value)


def _narrow(w: Writer, i: Instruction, value: str, width: int) -> str:
    """A loaded byte or word, extended, in the half of the register that the instruction names."""
    m, out = i.memory, i.destinations[0]
    assert m is not None
    t = w.vec("i32")
    if m.type.startswith("i"):
        up = w.op(f"shl {t} {value}, splat (i32 {32 - width})")
        value = w.op(f"ashr {t} {up}, splat (i32 {32 - width})")
    if not m.half:
        return value
    old = w.v(w.vcode(out))
    word = w.op(f"and {t} {value}, splat (i32 65535)")
    if m.half == "hi":
        return w.op(f"or {t} {w.op(f'and {t} {old}, splat (i32 65535)')}, {w.op(f'shl {t} {word}, splat (i32 16)')}")
    return w.op(f"or {t} {w.op(f'and {t} {old}, splat (i32 -65536)')}, {word}")


_FUNCTIONS = {"global": "global", "lds": "lds", "scratch": "private"}
_BUFFER = "moved"  # registers on their way


def _moved(w: Writer, action: str, space: str, at: str, mask: str, offset: int, width: int) -> str:
    """Call the function that loads or stores `width` bits a lane; the place of the dwords."""
    place = w.local(_BUFFER, 16 * w.wave)
    more = [("i64", str(offset))] if space == "lds" else []
    last = [] if space == "lds" else [_OK]
    w.call("void", f"{_FUNCTIONS[space]}_{action}", _C, (w.vec("i64"), at), (w.iw, mask), *more, ("i64", str(width // 8)),
           ("ptr", place), *last, declare=False)
    return place


def _dword(w: Writer, place: str, k: int) -> str:
    return w.op(f"getelementptr i8, ptr {place}, i64 {4 * w.wave * k}") if k else place


def _read(w: Writer, space: str, at: str, mask: str, offset: int, width: int) -> list[str]:
    """The dwords of every lane of `mask`; other lanes 0."""
    place = _moved(w, "load", space, at, mask, offset, width)
    return [w.op(f"load {w.vec('i32')}, ptr {_dword(w, place, k)}, align 4") for k in range(max(1, width // 32))]


def store(w: Writer, i: Instruction) -> None:
    m = i.memory
    assert m is not None
    width = bits(m.type)
    at = address(w, i)
    data = [o for o in i.sources if o.name in ("data", "data0", "data1", "vdata")]
    if m.offsets:
        for offset, o in zip(m.offsets, data, strict=True):
            _write(w, "lds", at, w.exec(), offset, width, [w.dword(o, k) for k in range(width // 32)])
        return
    values = [w.dword(data[0], k) for k in range(max(1, width // 32))]
    if m.half == "hi":
        values = [w.op(f"lshr {w.vec('i32')} {values[0]}, splat (i32 16)")]
    offset = m.offset if m.space == "lds" else 0
    for n, (space, where, mask) in enumerate(spaces(w, i, at)):
        _write(w, space, where, mask, offset if n == 0 else 0, width, values)


def _write(w: Writer, space: str, at: str, mask: str, offset: int, width: int, values: list[str]) -> None:
    place = w.local(_BUFFER, 16 * w.wave)
    for k, value in enumerate(values):
        w.line(f"store {w.vec('i32')} {value}, ptr {_dword(w, place, k)}, align 4")
    _moved(w, "store", space, at, mask, offset, width)


# ---------------------------------------------------------------------------------------------------------------------
# Atomics


_OPERATIONS = {"add": "add", "sub": "sub", "and": "and", "or": "or", "xor": "xor", "swap": "xchg", "inc": "uinc_wrap",
               "dec": "udec_wrap", "wrxchg": "xchg"}


def operation(atomic: str, type: str) -> str:
    """LLVM's name of an atomicrmw, or cmpxchg."""
    kind = type[0]
    if atomic == "cmpswap":
        return "cmpxchg"
    if atomic in ("add", "pk_add") and kind in ("f", "b") and type in _FLOATS:
        return "fadd"
    if atomic in ("min", "max"):
        return {"i": "", "u": "u", "f": "f"}[kind] + atomic
    if atomic in _OPERATIONS:
        return _OPERATIONS[atomic]
    raise NotTranslated(f"atomic {atomic} of {type}")


def atomic(w: Writer, i: Instruction) -> None:
    """Lane after lane, the lowest first."""
    m = i.memory
    assert m is not None
    width = bits(m.type)
    if width not in (32, 64):
        raise NotTranslated(i.mnemonic)
    name = operation(m.atomic, m.type)
    at = address(w, i)
    if m.space == "lds":
        at = w.op(f"add {w.vec('i64')} {at}, splat (i64 {m.offset})")
    data = [o for o in i.sources if o.name in ("data", "data0", "data1", "vdata")]
    count = width // 32

    def number(o: Operand, k: int) -> str:
        return w.dword(o, k) if width == 32 else w.qword(o, k)
    value = number(data[0], 0)
    compare = "zeroinitializer"
    if name == "cmpxchg":
        if m.space != "lds":  # {new, expected} in one register tuple
            compare = number(data[0], count)
        elif i.mnemonic.startswith("ds_cmpstore"):
            compare = number(data[1], 0)
        else:
            value, compare = number(data[1], 0), value
    t, function = w.vec(f"i{width}"), f"atomic_{name}_{m.type}"
    w.helpers[function] = atomic_text(name, m.type, w.wave)
    total = None
    for space, where, mask in spaces(w, i, at):
        if space == "scratch":
            continue  # private memory has no atomics
        old = w.call(t, function, _C, (w.vec("i64"), where), (t, value), (t, compare), (w.iw, mask),
                     ("i1", "true" if space == "lds" else "false"), _OK, declare=False)
        total = old if total is None else w.op(f"or {t} {total}, {old}")
    if m.returns and i.destinations:
        assert total is not None
        n = w.vcode(i.destinations[0])
        if width == 32:
            w.set_v(n, total)
        else:
            w.set_v(n, w.op(f"trunc {t} {total} to {w.vec('i32')}"))
            high = w.op(f"lshr {t} {total}, splat (i64 32)")
            w.set_v(n + 1, w.op(f"trunc {t} {high} to {w.vec('i32')}"))


_FLOATS = {"f32": "float", "f64": "double", "f16x2": "<2 x half>", "bf16x2": "<2 x bfloat>"}


def atomic_text(name: str, type: str, wave: int) -> str:
    """The function that does one atomic operation lane by lane."""
    width, f = bits(type), _FLOATS.get(type, "")
    t, float_ = f"i{width}", name.startswith("f")
    if name == "cmpxchg":
        body = f"""  %pair = cmpxchg ptr %p, {t} %k, {t} %x seq_cst seq_cst
  %old = extractvalue {{ {t}, i1 }} %pair, 0"""
    elif float_:
        body = f"""  %xf = bitcast {t} %x to {f}
  %oldf = atomicrmw {name} ptr %p, {f} %xf seq_cst
  %old = bitcast {f} %oldf to {t}"""
    else:
        body = f"  %old = atomicrmw {name} ptr %p, {t} %x seq_cst"
    return f"""
define internal <{wave} x {t}> @atomic_{name}_{type}(ptr %c, <{wave} x i64> %va, <{wave} x {t}> %v, <{wave} x {t}> %e, i{wave} %exec, i1 %lds, ptr %ok) noinline {{
entry:
  br label %head
head:
  %left = phi i{wave} [ %exec, %entry ], [ %left2, %next ]
  %acc = phi <{wave} x {t}> [ zeroinitializer, %entry ], [ %acc2, %next ]
  %none = icmp eq i{wave} %left, 0
  %good.so.far = load i8, ptr %ok
  %fault = icmp eq i8 %good.so.far, 0
  %end = or i1 %none, %fault
  br i1 %end, label %out, label %lane
lane:
  %n = call i32 @first(i{wave} %left)
  %a = extractelement <{wave} x i64> %va, i32 %n
  %x = extractelement <{wave} x {t}> %v, i32 %n
  %k = extractelement <{wave} x {t}> %e, i32 %n
  %off = and i64 %a, {width // 8 - 1}
  %aligned = icmp eq i64 %off, 0
  br i1 %aligned, label %where, label %crooked
where:
  br i1 %lds, label %local, label %far
local:
  %h0 = call i64 @lds_host(ptr %c, i64 %a, i64 {width // 8})
  %in = icmp ne i64 %h0, 0
  br i1 %in, label %go, label %next
far:
  %h1 = call i64 @host(ptr %c, i64 %a, i64 {_NEED}, i32 %n)
  %good = icmp ne i64 %h1, 0
  br i1 %good, label %go, label %bad
go:
  %h = phi i64 [ %h0, %local ], [ %h1, %far ]
  %p = inttoptr i64 %h to ptr
{body}
  br label %next
crooked:
  call void @set_kind(ptr %c, i32 {_MISALIGNED})
  call void @set_va(ptr %c, i64 %a)
  call void @set_lane(ptr %c, i32 %n)
  br label %bad
bad:
  store i8 0, ptr %ok
  br label %next
next:
  %r = phi {t} [ 0, %local ], [ %old, %go ], [ 0, %bad ]
  %acc2 = insertelement <{wave} x {t}> %acc, {t} %r, i32 %n
  %m1 = sub i{wave} %left, 1
  %left2 = and i{wave} %left, %m1
  br label %head
out:
  ret <{wave} x {t}> %acc
}}
"""  # noqa: E501
