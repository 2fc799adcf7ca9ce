"""The tables of characters that data/unicode reads: classes as the regular expressions of `tokenizers` see
them, and canonical compositions as its NFC does.  Writes data/unicode_classes.cpp and
data/unicode_forms.cpp; needs the packages tokenizers and regex."""

import os
import unicodedata

import regex
from tokenizers import Regex, normalizers, pre_tokenizers

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..")
ALL = [c for c in range(0x110000) if not 0xD800 <= c < 0xE000]
TEXT = "".join(map(chr, ALL))


def ranges_of(pattern):
    """Runs of the class and of what is not in it take turns, and U+0000 is in no class."""
    pieces = pre_tokenizers.Split(Regex(pattern), "isolated").pre_tokenize_str(TEXT)
    return [(ord(piece[0]), ord(piece[-1])) for piece, _ in pieces[1::2]]


def lines(items, indent="    "):
    out, line = [], indent
    for item in items:
        if len(line) + len(item) + 1 > 100:
            out.append(line.rstrip())
            line = indent
        line += item + " "
    return "\n".join(out + [line.rstrip()])


def table(kind, name, items):
    return (f"constexpr {kind} {name}Rows[] = {{\n{lines(items)}}};\n"
            f"constinit const std::span<const {kind}> {name} = {name}Rows;\n")


HEAD = """// %s
// tests/oracles/make_unicode.py writes this file.
#include "data/unicode.h"

// clang-format off
namespace weft::data {

"""
TAIL = "\n}  // namespace weft::data\n"


def write(name, what, *tables):
    with open(os.path.join(ROOT, "data", name), "w") as f:
        f.write(HEAD % what + "\n".join(tables) + TAIL)


def classes():
    tables = [table("CharacterRange", name, [f"{{{a}, {b}}}," for a, b in ranges_of(p + "+")])
              for name, p in (("kLetters", r"\p{L}"), ("kNumbers", r"\p{N}"), ("kSpaces", r"\s"))]
    write("unicode_classes.cpp",
          "Letters, numbers, white space and combining classes of Unicode, as ranges of characters.",
          *tables, table("CombiningRange", "kCombining", combining()))


def known(value):
    try:
        return bool(regex.compile(r"\p{ccc=%d}" % value))
    except regex.error:
        return False


CLASSES = [value for value in range(1, 255) if known(value)]


def forms():
    nfd, nfc = normalizers.NFD(), normalizers.NFC()
    hangul = range(0xAC00, 0xAC00 + 11172)
    full = {c: nfd.normalize_str(chr(c)) for c in ALL if c not in hangul and c > 0x7F}
    full = {c: d for c, d in full.items() if d != chr(c)}
    by_full = {d: c for c, d in full.items()}
    items = []
    for c, d in sorted(full.items()):
        named = unicodedata.decomposition(chr(c))
        if named and not named.startswith("<"):
            parts = [int(x, 16) for x in named.split()]
        elif len(d) == 1:
            parts = [ord(d)]
        else:
            parts = [ord(d[0]) if len(d) == 2 else by_full[d[:-1]], ord(d[-1])]
        composes = len(parts) == 2 and nfc.normalize_str(chr(c)) == chr(c)
        a, b = parts[0], parts[1] if len(parts) == 2 else 0
        items.append(f"{{{c}, {a}, {b}, {int(composes)}}},")
    write("unicode_forms.cpp", "Canonical decompositions of Unicode, for NFC.",
          table("Decomposition", "kDecompositions", items))


def combining():
    marks = []
    for c in ALL:
        if not unicodedata.combining(chr(c)) and not regex.match(r"\p{M}", chr(c)):
            continue
        value = unicodedata.combining(chr(c))
        if unicodedata.category(chr(c)) == "Cn":  # newer than Python's own tables
            value = next((n for n in CLASSES if regex.match(r"\p{ccc=%d}" % n, chr(c))), 0)
        if value:
            if marks and marks[-1][1] == c - 1 and marks[-1][2] == value:
                marks[-1][1] = c
            else:
                marks.append([c, c, value])
    return [f"{{{a}, {b}, {v}}}," for a, b, v in marks]


if __name__ == "__main__":
    classes()
    forms()
