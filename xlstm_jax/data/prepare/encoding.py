"""What a file is that claims to be text: UTF-8, text in another encoding, or no text at all."""

from __future__ import annotations

import codecs

UTF8_BOM = codecs.BOM_UTF8

HEAD_BYTES = 4096
"""How much of a file `wide_encoding` looks at."""

_MARKS = (
    # UTF-32 first: its little-endian mark begins with that of UTF-16.
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)
# Tab, line feed, vertical tab, form feed, carriage return and escape (of terminals' colours) stand in texts too.
_CONTROLS = bytes({*range(0x20), 0x7F} - {0x09, 0x0A, 0x0B, 0x0C, 0x0D, 0x1B})


def wide_encoding(head: bytes) -> str | None:
    """`UTF-16`, `UTF-32LE` or the like if a file that begins so is in it, by its mark or by where its zeros are."""
    for mark, name in _MARKS:
        if head.startswith(mark):
            return name
    for width, name in ((4, "UTF-32"), (2, "UTF-16")):
        whole = head[: len(head) - len(head) % width]
        for order, sign in (("le", 0), ("be", width - 1)):
            zeros = [whole[lane::width].count(0) / (len(whole) or 1) * width for lane in range(width)]
            # Of ordinary text all bytes of a character but one are mostly zero. Of numbers too, but they are no text.
            if zeros.pop(sign) < 0.02 and min(zeros) > 0.4:
                text = whole.decode(f"{name}-{order}", "replace").encode("utf-8", "replace")
                return f"{name}{order.upper()}" if _controls(text) == 0 else None
    return None


def is_utf8(content: bytes) -> bool:
    """Whether all of it is UTF-8."""
    try:
        content.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def is_binary(content: bytes) -> bool:
    """Whether it is no text in any encoding of single bytes: it holds a NUL, or is not UTF-8 and has more control
    characters than texts have."""
    if b"\0" in content:
        return True
    return _controls(content) > len(content) // 50 and not is_utf8(content)


def _controls(content: bytes) -> int:
    return len(content) - len(content.translate(None, _CONTROLS))
