"""Protobuf's wire format, as far as ONNX files written by hand need it."""


def varint(value: int) -> bytes:
    """A number of seven bits a byte, the lowest first."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def length_key(field: int) -> bytes:
    """What stands before a field of bytes; their number and they follow."""
    return varint(field << 3 | 2)
