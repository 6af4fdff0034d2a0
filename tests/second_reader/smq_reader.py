#!/usr/bin/env python3
"""A second reader of .smq files, written from spec/format.md alone.

    smq_reader.py FILE --tensor NAME    the tensor as little-endian f32, to standard output
    smq_reader.py FILE --all-digests    BLAKE3 of each dequantized tensor's f32 bytes, then its name
    smq_reader.py FILE --statistics     the statistics as JSON
    smq_reader.py --check FILE...       verifies each file: "ok", or the first rule it breaks

It needs Python 3's standard library and nothing else. It is made to be read beside the
specification, not to be fast. Whatever it prints, it has checked: the header, the index, the
layout, and every hash, code and unused bit of what was asked for.
"""
import argparse, json, math, os, struct, sys

ALIGN, MAX_SECTION = 256, 64 << 20


class Refused(Exception):
    """The file breaks a rule of the format."""


def need(condition, rule):
    if not condition:
        raise Refused(rule)


# BLAKE3 (https://github.com/BLAKE3-team/BLAKE3-specs), hash mode with 32 bytes of output.
IV = (0x6A09E667, 0xBB67AE85, 0x3C6EF372, 0xA54FF53A,
      0x510E527F, 0x9B05688C, 0x1F83D9AB, 0x5BE0CD19)
PERMUTATION = (2, 6, 3, 10, 7, 0, 4, 13, 1, 11, 12, 5, 9, 14, 15, 8)
MIXES = ((0, 4, 8, 12), (1, 5, 9, 13), (2, 6, 10, 14), (3, 7, 11, 15),
         (0, 5, 10, 15), (1, 6, 11, 12), (2, 7, 8, 13), (3, 4, 9, 14))
CHUNK_START, CHUNK_END, PARENT, ROOT, M32 = 1, 2, 4, 8, 0xFFFFFFFF


def compress(cv, block, counter, flags):
    m = struct.unpack("<16I", block.ljust(64, b"\0"))
    v = [*cv, *IV[:4], counter & M32, counter >> 32, len(block), flags]
    for _ in range(7):
        for i, (a, b, c, d) in enumerate(MIXES):
            for word, right_d, right_b in ((m[2 * i], 16, 12), (m[2 * i + 1], 8, 7)):
                v[a] = v[a] + v[b] + word & M32
                x = v[d] ^ v[a]
                v[d] = x >> right_d | x << 32 - right_d & M32
                v[c] = v[c] + v[d] & M32
                x = v[b] ^ v[c]
                v[b] = x >> right_b | x << 32 - right_b & M32
        m = [m[p] for p in PERMUTATION]
    return [v[i] ^ v[i + 8] for i in range(8)]


def blake3(data, first_chunk=0, root=ROOT):
    """The hash; for an inner node (root = 0) its chaining value."""
    if len(data) > 1024:
        left = 1024 << ((len(data) - 1) // 1024).bit_length() - 1
        halves = (blake3(data[:left], first_chunk, 0)
                  + blake3(data[left:], first_chunk + left // 1024, 0))
        return struct.pack("<8I", *compress(IV, halves, 0, PARENT | root))
    cv, blocks = IV, [bytes(data[i:i + 64]) for i in range(0, len(data), 64)] or [b""]
    for i, block in enumerate(blocks):
        last = CHUNK_END | root if i == len(blocks) - 1 else 0
        cv = compress(cv, block, first_chunk, (CHUNK_START if i == 0 else 0) | last)
    return struct.pack("<8I", *cv)


# The index: which keys and types an object has.
HASH, INT, UINT, TEXT = "hash", "integer", "unsigned integer", "string"
BLOB = {"blake3": HASH, "length": UINT, "offset": UINT, "role": TEXT}
SOURCE = {"blake3": HASH, "length": UINT, "name": TEXT}
TENSOR = {"blobs": [BLOB], "name": TEXT, "parameters": dict, "scheme": TEXT,
          "shape": [UINT], "source_dtype": TEXT}
INDEX = {"files": [{**SOURCE, "offset": UINT}], "tensors": [TENSOR],
         "provenance": {"parameters": {str: TEXT}, "producer": TEXT, "sources": [SOURCE]}}
MINI = {"group": (1, 1 << 20), "exponent_bits": (2, 8), "mantissa_bits": (0, 10), "bias": None}
SCHEMES = {"raw": {"dtype": None},
           "int4-e5mx": MINI,
           "int4-f16": {"group": MINI["group"]},
           "int4-f32": {"group": MINI["group"]},
           "lut4-e5mx": {**MINI, "levels": None},
           "lut4-f16": {"group": MINI["group"], "levels": None},
           "lut4-f32": {"group": MINI["group"], "levels": None},
           "nf4-dq": {"offset_bits": (0, 0x7F7FFFFF)},
           "fp8-e4m3": {}}
DTYPES = {"bf16": 2, "f16": 2, "f32": 4}
HEX_DIGITS = set("0123456789abcdef")

# NF4's values, and those of the absmax codes between 0 and 1, as the bits of binary32.
NF4 = """
    bf800000 bf3239b1 bf066b30 beca32a0 be91a24d be3d353f bdba7871 00000000
    3da2faff 3e24cae3 3e7c04dd 3ead033a 3ee1a4b8 3f1007ab 3f3913b3 3f800000"""
ABSMAX = """
    3513a3b7 365a1a94 370205ff 37b24206 38378034 388aefb3 38ba1f4b 3923d70b 398ce705 39c7e283
    3a016f01 3a1eecc1 3a3c6a80 3a59e83e 3a7765ff 3aa7ef9d 3af1a9fc 3b1db22d 3b428f5c 3b676c8a
    3b8624dd 3b989374 3bab020d 3bbd70a4 3bcfdf3b 3be24dd3 3bf4bc6a 3c039581 3c0ccccd 3c160418
    3c1f3b64 3c3ae148 3c68f5c3 3c8b851f 3ca28f5d 3cb9999a 3cd0a3d7 3ce7ae15 3cfeb852 3d0ae148
    3d166667 3d21eb85 3d2d70a3 3d38f5c3 3d447ae1 3d500000 3d5b851f 3d670a3d 3d728f5d 3d7e147b
    3d84cccd 3d8a8f5d 3d9051eb 3d96147b 3d9bd70a 3da1999a 3da75c2a 3dad1eb8 3db2e148 3db8a3d7
    3dbe6667 3dc428f7 3dc9eb85 3ddb3334 3df80000 3e0a6666 3e18cccd 3e273333 3e35999a 3e440000
    3e526666 3e60cccd 3e6f3333 3e7d9999 3e860000 3e8d3334 3e946666 3e9b999a 3ea2cccc 3eaa0000
    3eb13333 3eb86666 3ebf999a 3ec6cccc 3ece0000 3ed53333 3edc6666 3ee3999a 3eeacccc 3ef20000
    3ef93332 3f003333 3f03cccc 3f076666 3f0b0000 3f0e999a 3f123334 3f15cccd 3f196666 3f1d0000
    3f20999a 3f243334 3f27cccd 3f2b6666 3f2f0000 3f32999a 3f363334 3f39cccd 3f3d6666 3f410000
    3f44999a 3f483333 3f4bcccd 3f4f6666 3f530000 3f56999a 3f5a3333 3f5dcccd 3f616666 3f650000
    3f68999a 3f6c3333 3f6fcccd 3f736666 3f770000 3f7a999a 3f7e3333"""


def f32_words(text):
    return [struct.unpack(">f", bytes.fromhex(word))[0] for word in text.split()]


NF4, ABSMAX = f32_words(NF4), f32_words(ABSMAX)
ABSMAX = [-v for v in reversed(ABSMAX)] + [0.0] + ABSMAX + [1.0]


def check_type(value, kind, where="index"):
    if isinstance(kind, list):
        need(type(value) is list, f"{where} is not an array")
        for item in value:
            check_type(item, kind[0], where)
    elif isinstance(kind, dict):
        need(type(value) is dict, f"{where} is not an object")
        need(str in kind or value.keys() == kind.keys(), f"{where} has missing or unknown keys")
        for key, item in value.items():
            check_type(item, kind.get(key) or kind[str], key)
    elif kind is dict:
        need(type(value) is dict, f"{where} is not an object")
    elif kind in (INT, UINT):
        need(type(value) is int and (kind is INT or 0 <= value < 1 << 64),
             f"{where} is not an {kind}")
    else:
        need(type(value) is str, f"{where} is not a string")
        need(kind is TEXT or len(value) == 64 and set(value) <= HEX_DIGITS,
             f"{where} is not a hash")


def check_name(name):
    need(1 <= len(name.encode()) <= 512, f"name {name[:64]!r} is empty or too long")
    need(not any(ord(c) < 32 or 127 <= ord(c) < 160 for c in name),
         f"name {name!r} has a control character")


def check_file_name(name):
    """At most one directory, and nothing that leads out of the one that it is extracted into."""
    check_name(name)
    parts = name.split("/")
    need("\\" not in name and ":" not in name and len(parts) <= 2, f"name {name!r} is a path")
    need(all(p and p[0] != "." and p[-1] not in ". " for p in parts),
         f"a part of name {name!r} is not allowed")


def check_source_name(name):
    check_name(name)
    need(name not in (".", "..") and "/" not in name and "\\" not in name,
         f"name {name!r} is a path")


def check_tensor(tensor):
    """Parameters, shape, and that the blobs are those of the scheme."""
    name, shape, given = tensor["name"], tensor["shape"], tensor["parameters"]
    check_name(name)
    need(tensor["source_dtype"] in DTYPES, f"{name}: unknown source dtype")
    need(len(shape) <= 8, f"{name}: more than 8 dimensions")
    need(tensor["scheme"] in SCHEMES, f"{name}: unknown scheme {tensor['scheme']!r}")
    limits = SCHEMES[tensor["scheme"]]
    need(given.keys() == limits.keys(), f"{name}: wrong set of parameters")
    elements = math.prod(shape)
    need(math.prod(max(d, 1) for d in shape) < 1 << 63, f"{name}: too many elements")
    if tensor["scheme"] == "raw":
        need(given["dtype"] in list(DTYPES), f"{name}: unknown dtype")
        expected = {"data": elements * DTYPES[given["dtype"]]}
    else:
        for key, value in given.items():
            if key == "levels":
                check_levels(value, name)
                continue
            check_type(value, INT, key)
            need(not limits[key] or limits[key][0] <= value <= limits[key][1],
                 f"{name}: {key} out of range")
        if "bias" in given:
            top = 1 << given["exponent_bits"]
            need(top - 128 <= given["bias"] <= top + 125, f"{name}: bias out of range")
        need(len(shape) == 2 and min(shape) >= 1, f"{name}: shape is not [out, in]")
    if tensor["scheme"] == "nf4-dq":
        blocks = -(-elements // 64)
        expected = {"nibbles": -(-elements // 2), "absmax": blocks,
                    "nested_absmax": -(-blocks // 256) * 4}
    elif tensor["scheme"] == "fp8-e4m3":
        expected = {"data": elements, "scales": shape[0] * 4}
    elif tensor["scheme"] != "raw":
        codes = shape[0] * -(-shape[1] // given["group"])
        expected = {"nibbles": shape[0] * -(-shape[1] // 2),
                    "scales": -(-codes * scale_width(tensor) // 8) + 8}
    found = [(blob["role"], blob["length"]) for blob in tensor["blobs"]]
    need(found == list(expected.items()), f"{name}: blobs are {found}, expected {expected}")


def check_levels(value, name):
    check_type(value, TEXT, "levels")
    need(len(value) == 32 and set(value) <= HEX_DIGITS,
         f"{name}: levels are not 32 hexadecimal digits")
    levels = levels_of(value)
    need(all(a < b for a, b in zip(levels, levels[1:])), f"{name}: levels do not increase")


def levels_of(digits):
    return struct.unpack("16b", bytes.fromhex(digits))


def scale_width(tensor):
    given = tensor["parameters"]
    return ({"f16": 16, "f32": 32}.get(tensor["scheme"][5:])
            or 1 + given["exponent_bits"] + given["mantissa_bits"])


def decode_scale(tensor, code):
    given = tensor["parameters"]
    if tensor["scheme"].endswith("-e5mx"):
        e, x, bias = given["exponent_bits"], given["mantissa_bits"], given["bias"]
        sign, field, mantissa = code >> e + x, code >> x & (1 << e) - 1, code & (1 << x) - 1
        need(code == 0 or field >= 1 and field - bias >= -126,
             f"{tensor['name']}: invalid scale code {code:#x}")
        return (-1) ** sign * math.ldexp(1 + mantissa / 2 ** x, field - bias) if code else 0.0
    size, kind = (2, "<e") if tensor["scheme"].endswith("-f16") else (4, "<f")
    scale = struct.unpack(kind, code.to_bytes(size, "little"))[0]
    need(math.isfinite(scale), f"{tensor['name']}: scale is not finite")
    return scale


def e4m3(code):
    """The value of an FP8 code; a NaN is refused."""
    field, mantissa = code >> 3 & 15, code & 7
    need(code & 127 != 127, "an FP8 element is NaN")
    value = math.ldexp(8 + mantissa, field - 10) if field else math.ldexp(mantissa, -9)
    return -value if code > 127 else value


def finite(data):
    """Little-endian f32, none of them infinite or NaN."""
    values = [value for (value,) in struct.iter_unpack("<f", data)]
    need(all(map(math.isfinite, values)), "a scale is not finite")
    return values


def rounded(value):
    """To the nearest binary32."""
    return struct.unpack("<f", f32(value))[0]


def f32(value):
    """Rounds to binary32, half to even; what is over its range becomes infinite."""
    try:
        return struct.pack("<f", value)
    except OverflowError:
        return struct.pack("<f", math.copysign(math.inf, value))


class Smq:
    def __init__(self, path):
        need(os.path.isfile(path), "not a regular file")
        with open(path, "rb") as file:
            self.bytes = data = memoryview(file.read())
        need(len(data) >= 256, "shorter than the header")
        need(data[:8] == b"\x89SMQ\r\n\x1a\n", "wrong magic")
        need(data[224:256] == blake3(data[:224]), "header checksum")
        major, _, zero, length, *index, = struct.unpack_from("<HHIQQQ32s", data, 8)
        *statistics, incompatible, _ = struct.unpack_from("<QQ32sQQ", data, 72)
        need(major == 1, "unknown major version")
        need(zero == 0 and not any(data[136:224]), "reserved header byte is not zero")
        need(incompatible == 0, "unknown incompatible feature")
        need(length == len(data), "file length")
        text = self.section("index", index)
        need(blake3(text) == index[2], "index hash")
        try:
            self.index = json.loads(bytes(text).decode("utf-8"))
            check_type(self.index, INDEX)
            canonical = json.dumps(self.index, ensure_ascii=False, sort_keys=True,
                                   separators=(",", ":"))
            need(canonical.encode("utf-8") == text, "index is not canonical")
            self.check_entries()
        except (ValueError, RecursionError) as error:
            raise Refused(f"index: {error}") from None
        end = 256
        for blob in self.blobs():
            end = self.follows("blob", end, blob["offset"], blob["length"])
        end = self.follows("index", end, *index[:2])
        if statistics[1]:
            self.section("statistics", statistics)
            end = self.follows("statistics", end, *statistics[:2])
        else:
            need(statistics[0] == 0 and not any(statistics[2]),
                 "absent statistics have an offset or a hash")
        need(end == len(data), "bytes after the last section")
        self.statistics_section = statistics

    def section(self, name, section):
        offset, length, _ = section
        need(length <= MAX_SECTION, f"{name} too large")
        need(256 <= offset and offset + length <= len(self.bytes), f"{name} outside the file")
        return self.bytes[offset:offset + length]

    def follows(self, what, end, offset, length):
        need(offset == -(-end // ALIGN) * ALIGN, f"{what} at {offset} is not where it belongs")
        need(offset + length <= len(self.bytes), f"{what} at {offset} runs over the end")
        need(not any(self.bytes[end:offset]), f"padding before {offset} is not zero")
        return offset + length

    def check_entries(self):
        files, tensors = self.index["files"], self.index["tensors"]
        for entry in files:
            check_file_name(entry["name"])
        for entry in self.index["provenance"]["sources"]:
            check_source_name(entry["name"])
        for tensor in tensors:
            check_tensor(tensor)
        for what in (files, tensors):
            need(len({entry["name"] for entry in what}) == len(what), "a name appears twice")

    def blobs(self):
        files, tensors = self.index["files"], self.index["tensors"]
        return files + [blob for tensor in tensors for blob in tensor["blobs"]]

    def blob(self, blob):
        data = self.bytes[blob["offset"]:blob["offset"] + blob["length"]]
        need(blake3(data).hex() == blob["blake3"], f"hash of the blob at {blob['offset']}")
        return data

    def dequantize(self, tensor):
        """The tensor's elements, row-major, as the bytes of binary32."""
        first, *rest = [self.blob(blob) for blob in tensor["blobs"]]
        if tensor["scheme"] == "raw":
            dtype = tensor["parameters"]["dtype"]
            if dtype == "f32":
                return bytes(first)
            if dtype == "bf16":
                return b"".join(b"\0\0" + bytes(first[i:i + 2]) for i in range(0, len(first), 2))
            return b"".join(f32(value) for (value,) in struct.iter_unpack("<e", first))
        rows, columns = tensor["shape"]
        if tensor["scheme"] == "nf4-dq":
            return self.dequantize_nf4(tensor, first, rest[0], finite(rest[1]))
        if tensor["scheme"] == "fp8-e4m3":
            scales, codes = finite(rest[0]), [e4m3(code) for code in first]
            return b"".join(f32(value * scales[i // columns]) for i, value in enumerate(codes))
        group = tensor["parameters"]["group"]
        values = ([*range(8), *range(-8, 0)] if tensor["scheme"].startswith("int4")
                  else levels_of(tensor["parameters"]["levels"]))
        width, groups = scale_width(tensor), -(-columns // group)
        stream = int.from_bytes(rest[0], "little")
        need(stream >> rows * groups * width == 0,
             f"{tensor['name']}: unused bits of the scales are not zero")
        out = []
        for row in range(rows):
            nibbles = first[row * -(-columns // 2):][:-(-columns // 2)]
            need(columns % 2 == 0 or nibbles[-1] < 16,
                 f"{tensor['name']}: unused nibble of row {row} is not zero")
            for g in range(groups):
                code = stream >> (row * groups + g) * width & (1 << width) - 1
                scale = decode_scale(tensor, code)
                products = [f32(float(value) * scale) for value in values]
                for c in range(g * group, min(columns, (g + 1) * group)):
                    out.append(products[nibbles[c // 2] >> c % 2 * 4 & 15])
        return b"".join(out)

    def dequantize_nf4(self, tensor, nibbles, codes, nested):
        elements = math.prod(tensor["shape"])
        need(elements % 2 == 0 or nibbles[-1] & 15 == 7,
             f"{tensor['name']}: unused half of the last byte is not 7")
        offset = struct.unpack("<f", struct.pack("<I", tensor["parameters"]["offset_bits"]))[0]
        absmax = [rounded(rounded(ABSMAX[code] * nested[i // 256]) + offset)
                  for i, code in enumerate(codes)]
        nibble = lambda i: nibbles[i // 2] >> (4 - i % 2 * 4) & 15
        return b"".join(f32(NF4[nibble(i)] * absmax[i // 64]) for i in range(elements))

    def statistics(self):
        offset, length, digest = self.statistics_section
        if length == 0:
            return None
        data = self.bytes[offset:offset + length]
        need(blake3(data) == digest, "statistics hash")
        at = 0

        def take(kind):
            nonlocal at
            need(at + struct.calcsize("<" + kind) <= len(data), "statistics end early")
            values = struct.unpack_from("<" + kind, data, at)
            at += struct.calcsize("<" + kind)
            return values[0] if len(values) == 1 else list(values)

        def sequence(read):
            count = take("Q")
            need(count <= len(data) - at, "statistics have a sequence longer than the rest")
            return read(count) if read is text else [read() for _ in range(count)]

        def text(count):
            try:
                return bytes(take(f"{count}s")).decode("utf-8")
            except UnicodeDecodeError:
                raise Refused("statistics have a name that is not UTF-8") from None

        def summary():
            kinds = {"mean_rel_mse": "d", "percentiles_rel_mse": "4f", "max_rel_mse": "f",
                     "mean_cosine": "d", "squared_error": "d", "squared_weight": "d"}
            return {field: take(kind) for field, kind in kinds.items()}

        def record():
            counts = ("groups", "zero_groups", "under_window", "clipped")
            return {"name": sequence(text), **{count: take("Q") for count in counts},
                    "stored": summary(), "exact": summary(),
                    "first_exponent": take("h"), "exponent_counts": sequence(lambda: take("Q")),
                    "block_rows": take("Q"), "row_blocks": sequence(lambda: take("f"))}

        def flag():
            value = take("B")
            need(value < 2, "statistics have a flag that is neither 0 nor 1")
            return value == 1

        def output():
            return ({"rounded": take("d"), "stored": take("d"), "is_rounded": flag()}
                    if flag() else None)

        def receipt():
            figures = ("mean_kl", "kl_stderr", "perplexity", "base_perplexity", "top1_agreement")
            return {"text": sequence(text), "blake3": take("32s").hex(),
                    "window": take("Q"), "tokens_scored": take("Q"),
                    **{figure: take("d") for figure in figures}}

        version = take("I")
        need(version in (1, 2), "statistics have an unknown version")
        if version == 1:
            result = {"version": 1, "tensors": sequence(record)}
        else:
            result = {"version": 2, "tensors": sequence(lambda: {**record(), "output": output()}),
                      "receipts": sequence(receipt)}
            need(result["receipts"] or any(record["output"] for record in result["tensors"]),
                 "statistics of version 2 have nothing that version 1 has not")
        need(at == len(data), "bytes after the statistics")
        self.check_statistics(result["tensors"])
        self.check_figures(result)
        return result

    def check_figures(self, statistics):
        """Output errors and receipts, which only version 2 has, are what can be measured."""
        def figure(value):
            need(0 <= value < float("inf"),
                 "statistics have a figure that is negative or not finite")

        for output in filter(None, (record.get("output") for record in statistics["tensors"])):
            figure(output["rounded"])
            figure(output["stored"])
            need(not output["is_rounded"] or output["rounded"] == output["stored"],
                 "statistics contradict themselves")
        receipts = statistics.get("receipts", [])
        need(len(receipts) <= 64, "statistics have more than 64 receipts")
        for receipt in receipts:
            need(0 < len(receipt["text"].encode()) <= 512, "a receipt's text has a bad name")
            need(receipt["window"] >= 2 and receipt["tokens_scored"], "a receipt scores nothing")
            for name in ("mean_kl", "kl_stderr", "perplexity", "base_perplexity", "top1_agreement"):
                figure(receipt[name])
            need(receipt["top1_agreement"] <= 1, "a receipt has a share over 1")

    def check_statistics(self, records):
        """Each record fits a quantized tensor; they are in index order, at most one a tensor."""
        tensors = iter(self.index["tensors"])
        for record in records:
            name = record["name"]
            tensor = next((tensor for tensor in tensors if tensor["name"] == name), None)
            need(tensor, f"statistics of {name!r}, which is not in the index or not in this place")
            need(tensor["scheme"] != "raw", f"statistics of {name!r}, which is raw")
            rows, columns = tensor["shape"]
            group = ({"nf4-dq": 64, "fp8-e4m3": columns}.get(tensor["scheme"])
                     or tensor["parameters"]["group"])
            groups = rows * -(-columns // group)
            need(record["groups"] == groups,
                 f"statistics of {name!r} have a wrong number of groups")
            need(len(record["exponent_counts"]) == 32,
                 f"statistics of {name!r} have not 32 exponent counts")
            blocks, block_rows = len(record["row_blocks"]), record["block_rows"]
            need(block_rows and blocks == -(-rows // block_rows) <= 64,
                 f"statistics of {name!r} have wrong blocks of rows")


def check(path):
    try:
        smq = Smq(path)
        for file in smq.index["files"]:
            smq.blob(file)
        for tensor in smq.index["tensors"]:
            smq.dequantize(tensor)
        smq.statistics()
        return "ok"
    except (Refused, OSError) as error:
        return str(error)


def main():
    parser = argparse.ArgumentParser(description="A second reader of .smq files.")
    parser.add_argument("files", metavar="FILE", nargs="+")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--tensor", metavar="NAME")
    for flag in ("--all-digests", "--statistics", "--check"):
        what.add_argument(flag, action="store_true")
    args = parser.parse_args()
    if args.check:
        results = [check(path) for path in args.files]
        print("\n".join(f"{path}: {result}" for path, result in zip(args.files, results)))
        sys.exit(results != ["ok"] * len(results))
    if len(args.files) != 1:
        parser.error("only --check takes more than one file")
    try:
        smq = Smq(args.files[0])
        if args.statistics:
            print(json.dumps(smq.statistics()))
        elif args.all_digests:
            for tensor in smq.index["tensors"]:
                print(blake3(smq.dequantize(tensor)).hex(), tensor["name"])
        else:
            found = [tensor for tensor in smq.index["tensors"] if tensor["name"] == args.tensor]
            need(found, f"no tensor {args.tensor!r}")
            sys.stdout.buffer.write(smq.dequantize(found[0]))
    except (Refused, OSError) as error:
        sys.exit(f"{args.files[0]}: {error}")


if __name__ == "__main__":
    main()
