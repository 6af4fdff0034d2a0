//! The list of cases.

use std::error::Error;

use smq_format::Role;
use smq_format::header::{HEADER_BYTES, Section};
use smq_format::index::{FileEntry, Index, TensorEntry};

use super::{Case, Sample};

type Made = Result<Vec<u8>, Box<dyn Error>>;

/// Every case, made from `sample`.
///
/// # Errors
/// A case that cannot be made: the sample no longer has what the case is about.
pub fn cases(sample: &Sample) -> Result<Vec<Case>, Box<dyn Error>> {
    let mut cases = Vec::new();
    let mut add = |name: &str, made: Made| -> Result<(), Box<dyn Error>> {
        let bytes = made.map_err(|e| format!("{name}: {e}"))?;
        cases.push(Case {
            name: name.to_owned(),
            bytes,
        });
        Ok(())
    };
    whole_file(sample, &mut add)?;
    header(sample, &mut add)?;
    index_form(sample, &mut add)?;
    index_types(sample, &mut add)?;
    names(sample, &mut add)?;
    schemes(sample, &mut add)?;
    layout(sample, &mut add)?;
    blobs(sample, &mut add)?;
    statistics(sample, &mut add)?;
    Ok(cases)
}

type Add<'a> = &'a mut dyn FnMut(&str, Made) -> Result<(), Box<dyn Error>>;

fn whole_file(sample: &Sample, add: Add) -> Result<(), Box<dyn Error>> {
    add("valid", Ok(sample.bytes.clone()))?;
    add("empty", Ok(Vec::new()))?;
    add("one byte", Ok(vec![0x89]))?;
    add("one byte under a header", Ok(sample.bytes[..255].to_vec()))?;
    add("header only", Ok(sample.bytes[..256].to_vec()))?;
    add(
        "one byte missing",
        Ok(sample.bytes(|b| b.truncate(b.len() - 1))),
    )?;
    add("one byte appended", Ok(sample.bytes(|b| b.push(0))))?;
    add("all zero", Ok(vec![0; sample.bytes.len()]))?;
    add(
        "another format",
        Ok(sample.bytes(|b| b[..8].copy_from_slice(b"\x89PNG\r\n\x1a\n"))),
    )?;
    let replaced = |from: &[u8], to: &[u8]| replace_all(&sample.bytes, from, to);
    add("text mode, CRLF to LF", Ok(replaced(b"\r\n", b"\n")))?;
    add("text mode, LF to CRLF", Ok(replaced(b"\n", b"\r\n")))?;
    add(
        "text mode, lone LF to CRLF",
        Ok(sample.bytes(|b| b.insert(7, b'\r'))),
    )?;
    add(
        "text mode, high bit stripped",
        Ok(sample.bytes(|b| b.iter_mut().for_each(|b| *b &= 0x7f))),
    )?;
    add("text mode, CRLF to CR", Ok(replaced(b"\r\n", b"\r")))?;
    add("text mode, CR to LF", Ok(replaced(b"\r", b"\n")))?;
    Ok(())
}

fn replace_all(bytes: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut rest = bytes;
    while let Some((&first, tail)) = rest.split_first() {
        if let Some(after) = rest.strip_prefix(from) {
            out.extend(to);
            rest = after;
        } else {
            out.push(first);
            rest = tail;
        }
    }
    out
}

fn header(sample: &Sample, add: Add) -> Result<(), Box<dyn Error>> {
    let set = |at: usize, bytes: &[u8]| -> Made {
        Ok(sample.header(|h| h[at..at + bytes.len()].copy_from_slice(bytes)))
    };
    let put = |at: usize, value: u64| set(at, &value.to_le_bytes());
    let h = &sample.header;
    let end = h.file_bytes;
    add("checksum flipped", Ok(sample.bytes(|b| b[255] ^= 1)))?;
    add(
        "field flipped under the checksum",
        Ok(sample.bytes(|b| b[24] ^= 1)),
    )?;
    add("major version 0", set(8, &[0, 0]))?;
    add("major version 2", set(8, &[2, 0]))?;
    add("major version 65535", set(8, &[255, 255]))?;
    add("minor version 1", set(10, &[1, 0]))?;
    add("minor version 65535", set(10, &[255, 255]))?;
    add("reserved byte 12", set(12, &[1]))?;
    add("reserved byte 15", set(15, &[0x80]))?;
    add("reserved byte 136", set(136, &[1]))?;
    add("reserved byte 223", set(223, &[0x80]))?;
    add("incompatible bit 0", put(120, 1))?;
    add("incompatible bit 63", put(120, 1 << 63))?;
    add("compatible bit 0", put(128, 1))?;
    add("every compatible bit", put(128, u64::MAX))?;
    add("file length one more", put(16, end + 1))?;
    add("file length one less", put(16, end - 1))?;
    add("file length zero", put(16, 0))?;
    add("file length huge", put(16, u64::MAX))?;

    add("index offset zero", put(24, 0))?;
    add("index offset in the header", put(24, 255))?;
    add("index offset at the end", put(24, end))?;
    add("index offset huge", put(24, u64::MAX))?;
    add("index length zero", put(32, 0))?;
    add(
        "index length over the end",
        put(32, end - h.index.offset + 1),
    )?;
    add("index length over the limit", put(32, (64 << 20) + 1))?;
    add("index length huge", put(32, u64::MAX))?;
    add("index end overflows", {
        let high = u64::MAX - 255;
        Ok(sample.header(|h| h[24..32].copy_from_slice(&high.to_le_bytes())))
    })?;
    add("index hash", Ok(sample.header(|h| h[40] ^= 1)))?;
    add(
        "index bit flipped",
        Ok(sample.bytes(|b| b[h.index.offset as usize] ^= 1)),
    )?;

    add("statistics offset zero", put(72, 0))?;
    add(
        "statistics offset one more",
        put(72, h.statistics.offset + 1),
    )?;
    add(
        "statistics offset an alignment earlier",
        put(72, h.statistics.offset - 256),
    )?;
    add("statistics offset huge", put(72, u64::MAX))?;
    add("statistics length zero", put(80, 0))?;
    add(
        "statistics length one less",
        put(80, h.statistics.length - 1),
    )?;
    add(
        "statistics length one more",
        put(80, h.statistics.length + 1),
    )?;
    add("statistics length over the limit", put(80, (64 << 20) + 1))?;
    add("statistics length huge", put(80, u64::MAX))?;
    // Absent statistics: the file ends with the index.
    let without = |edit: &dyn Fn(&mut Section)| -> Made {
        let mut header = *h;
        header.statistics = Section::default();
        edit(&mut header.statistics);
        header.file_bytes = h.index.offset + h.index.length;
        let mut bytes = sample.bytes[..header.file_bytes as usize].to_vec();
        bytes[..HEADER_BYTES].copy_from_slice(&header.encode());
        Ok(bytes)
    };
    add("no statistics", without(&|_| ()))?;
    add(
        "no statistics, but an offset",
        without(&|s| s.offset = h.statistics.offset),
    )?;
    add("no statistics, but a hash", without(&|s| s.hash[31] = 1))?;
    add("trailing bytes that the header counts", {
        let mut header = *h;
        header.file_bytes += 256;
        Ok(sample.bytes(|b| {
            b.resize(b.len() + 256, 0);
            b[..HEADER_BYTES].copy_from_slice(&header.encode());
        }))
    })
}

fn index_form(sample: &Sample, add: Add) -> Result<(), Box<dyn Error>> {
    let text = String::from_utf8(sample.index.encode()?)?;
    let bytes = |new: &[u8]| -> Made { Ok(sample.index_bytes(new)) };
    let replace = |old: &str, new: &str| sample.index_text(old, new);
    add("index cut", bytes(&text.as_bytes()[..text.len() - 1]))?;
    add("index cut in a string", bytes(&text.as_bytes()[..20]))?;
    add("index one byte long", bytes(b"{"))?;
    add("index null", bytes(b"null"))?;
    add("index an empty object", bytes(b"{}"))?;
    add("index an array", bytes(b"[]"))?;
    add(
        "index followed by a brace",
        bytes(format!("{text}}}").as_bytes()),
    )?;
    add(
        "index followed by a newline",
        bytes(format!("{text}\n").as_bytes()),
    )?;
    add("index after a space", bytes(format!(" {text}").as_bytes()))?;
    add(
        "index after a byte-order mark",
        bytes(format!("\u{feff}{text}").as_bytes()),
    )?;
    add("index with a space", replace(":", ": "))?;
    add(
        "index not UTF-8",
        bytes(&replace_all(text.as_bytes(), b"corpus", b"corp\xff\xfe")),
    )?;
    add(
        "index with an encoded surrogate",
        bytes(&replace_all(text.as_bytes(), b"corpus", b"\xed\xa0\x80")),
    )?;
    add(
        "index with a lone surrogate escape",
        replace("corpus", "\\ud800"),
    )?;
    add(
        "index with a raw control character",
        replace("corpus", "a\nb"),
    )?;
    add(
        "index with a needless escape",
        replace("corpus", "\\u0063orpus"),
    )?;
    add("index with an escaped slash", replace("corpus", "\\/"))?;
    add(
        "index with an upper-case escape",
        replace("corpus", "\\u001F"),
    )?;
    add(
        "index with the shorter escape missed",
        replace("corpus", "\\u000a"),
    )?;
    add(
        "index with every escape",
        replace("corpus", "\\\"\\\\\\b\\f\\n\\r\\t\\u0000\\u001f\u{7f}é😀"),
    )?;
    add(
        "keys not sorted",
        replace("\"dtype\":\"bf16\"", "\"dtype\":\"bf16\"").and_then(|_| {
            replace(
                "\"length\":0,\"name\":\"model.safetensors\"",
                "\"name\":\"model.safetensors\",\"length\":0",
            )
        }),
    )?;
    add(
        "keys of parameters not sorted",
        replace(
            "\"exponent_bits\":5,\"group\":2",
            "\"group\":2,\"exponent_bits\":5",
        ),
    )?;
    add(
        "duplicate key at the top",
        bytes(text.replacen('{', "{\"files\":[],", 1).as_bytes()),
    )?;
    add(
        "duplicate key in a tensor",
        replace("\"name\":\"mini\"", "\"name\":\"mini\",\"name\":\"mini\""),
    )?;
    add(
        "duplicate key in a blob",
        replace("\"role\":\"data\"", "\"role\":\"data\",\"role\":\"data\""),
    )?;
    add(
        "duplicate key in parameters",
        replace("\"group\":4", "\"group\":4,\"group\":4"),
    )?;
    add(
        "duplicate key in provenance",
        replace("{\"group\":\"2\"}", "{\"group\":\"2\",\"group\":\"2\"}"),
    )?;
    add(
        "unknown key at the top",
        bytes(text.replacen('{', "{\"a\":0,", 1).as_bytes()),
    )?;
    add(
        "unknown key in a file",
        replace("\"length\":21", "\"kind\":0,\"length\":21"),
    )?;
    add(
        "unknown key in provenance",
        replace("\"producer\"", "\"p\":0,\"producer\""),
    )?;
    add(
        "unknown key in a tensor",
        replace("\"name\":\"mini\"", "\"n\":0,\"name\":\"mini\""),
    )?;
    add(
        "unknown key in parameters",
        replace("\"group\":4", "\"group\":4,\"zero_point\":0"),
    )?;
    add(
        "unknown key in a blob",
        replace("\"role\":\"data\"", "\"role\":\"data\",\"x\":0"),
    )?;
    add(
        "missing key at the top",
        replace("\"files\":", "\"fyles\":"),
    )?;
    add(
        "missing key in a tensor",
        replace(",\"source_dtype\":\"bf16\"", ""),
    )?;
    add("missing key in a blob", replace(",\"role\":\"data\"", ""))?;
    for (name, open, close) in [("arrays", "[", "]"), ("objects", "{\"a\":", "}")] {
        let deep = format!("{}0{}", open.repeat(100_000), close.repeat(100_000));
        add(&format!("deep nesting of {name}"), bytes(deep.as_bytes()))?;
        let text = text.replacen("\"corpus\"", &deep, 1);
        add(
            &format!("deep nesting of {name} in a field"),
            bytes(text.as_bytes()),
        )?;
    }
    Ok(())
}

fn index_types(sample: &Sample, add: Add) -> Result<(), Box<dyn Error>> {
    let replace = |old: &str, new: &str| sample.index_text(old, new);
    for (name, value) in [
        ("fraction", "2.0"),
        ("exponent", "2e0"),
        ("text", "\"2\""),
        ("null", "null"),
        ("boolean", "true"),
        ("array", "[2]"),
        ("negative", "-2"),
        ("negative zero", "-0"),
        ("with a leading zero", "02"),
        ("of 2^63", "9223372036854775808"),
        ("of 2^64", "18446744073709551616"),
        ("of 1e400", "1e400"),
        ("NaN", "NaN"),
    ] {
        add(
            &format!("group {name}"),
            replace("\"group\":2", &format!("\"group\":{value}")),
        )?;
        add(
            &format!("dimension {name}"),
            replace("\"shape\":[2", &format!("\"shape\":[{value}")),
        )?;
        add(
            &format!("length {name}"),
            replace("\"length\":6", &format!("\"length\":{value}")),
        )?;
        add(
            &format!("offset {name}"),
            replace("\"offset\":256", &format!("\"offset\":{value}")),
        )?;
    }
    add("bias negative zero", replace("\"bias\":32", "\"bias\":-0"))?;
    add("bias a fraction", replace("\"bias\":32", "\"bias\":32.5"))?;
    add("shape a number", replace("\"shape\":[2,5]", "\"shape\":2"))?;
    add("name a number", replace("\"name\":\"mini\"", "\"name\":1"))?;
    add(
        "scheme null",
        replace("\"scheme\":\"raw\"", "\"scheme\":null"),
    )?;
    add(
        "tensors an object",
        replace("\"tensors\":[", "\"tensors\":{"),
    )?;
    add(
        "provenance value a number",
        replace("\"group\":\"2\"", "\"group\":2"),
    )?;
    add(
        "source_dtype unknown",
        replace("\"source_dtype\":\"bf16\"", "\"source_dtype\":\"f64\""),
    )?;
    add(
        "role unknown",
        replace("\"role\":\"data\"", "\"role\":\"zeros\""),
    )?;
    let digest = hex(&sample.index.files[0].blake3);
    for (name, new) in [
        ("empty", String::new()),
        ("of 63 digits", digest[1..].to_owned()),
        ("of 65 digits", format!("{digest}0")),
        ("with a letter past f", format!("g{}", &digest[1..])),
        ("in upper case", digest.to_uppercase()),
        ("of 32 two-byte letters", "é".repeat(32)),
    ] {
        add(&format!("hash {name}"), replace(&digest, &new))?;
    }
    Ok(())
}

fn hex(hash: &[u8; 32]) -> String {
    hash.iter().map(|b| format!("{b:02x}")).collect()
}

fn names(sample: &Sample, add: Add) -> Result<(), Box<dyn Error>> {
    let tensor = |name: &str| sample.index(|i| name.clone_into(&mut i.tensors[0].name));
    let file = |name: &str| sample.index(|i| name.clone_into(&mut i.files[0].name));
    let source = |name: &str| sample.index(|i| name.clone_into(&mut i.provenance.sources[0].name));
    add("tensor name empty", tensor(""))?;
    add("tensor name of 513 bytes", tensor(&"n".repeat(513)))?;
    add(
        "tensor name of 257 two-byte letters",
        tensor(&"é".repeat(257)),
    )?;
    add("tensor name with NUL", tensor("a\0b"))?;
    add("tensor name with a newline", tensor("a\nb"))?;
    add("tensor name with U+0085", tensor("a\u{85}b"))?;
    add("tensor name with an escape sequence", tensor("\u{1b}[2J"))?;
    add("tensor name twice", tensor("half"))?;
    add("file name empty", file(""))?;
    add("file name a dot", file("."))?;
    add("file name two dots", file(".."))?;
    add("file name with a slash", file("../../etc/passwd"))?;
    add("file name with a backslash", file("..\\config.json"))?;
    add("file name with DEL", file("config\u{7f}"))?;
    add("file name of 513 bytes", file(&"n".repeat(513)))?;
    add(
        "file name twice",
        sample.index(|i| {
            let twin = FileEntry {
                offset: 0,
                ..i.files[0].clone()
            };
            i.files.push(twin);
        }),
    )?;
    add("source name a path", source("/etc/passwd"))?;
    add("source name empty", source(""))
}

fn schemes(sample: &Sample, add: Add) -> Result<(), Box<dyn Error>> {
    let replace = |old: &str, new: &str| sample.index_text(old, new);
    let shape =
        |tensor: usize, shape: &[usize]| sample.index(|i| i.tensors[tensor].shape = shape.to_vec());
    add(
        "scheme unknown",
        replace("\"scheme\":\"int4-e5mx\"", "\"scheme\":\"nf4\""),
    )?;
    add(
        "scheme empty",
        replace("\"scheme\":\"raw\"", "\"scheme\":\"\""),
    )?;
    add(
        "scheme in upper case",
        replace("\"scheme\":\"raw\"", "\"scheme\":\"RAW\""),
    )?;
    for (name, old, values) in [
        (
            "group",
            "\"group\":2",
            &["0", "-1", "1048577", "9223372036854775807"][..],
        ),
        (
            "exponent_bits",
            "\"exponent_bits\":5",
            &["1", "9", "-1", "4294967301"],
        ),
        (
            "mantissa_bits",
            "\"mantissa_bits\":5",
            &["-1", "11", "4294967301"],
        ),
        (
            "bias",
            "\"bias\":32",
            &["-97", "158", "65568", "-9223372036854775808"],
        ),
    ] {
        for value in values {
            let key = old.split(':').next().unwrap_or_default();
            add(
                &format!("{name} {value}"),
                replace(old, &format!("{key}:{value}")),
            )?;
        }
    }
    add(
        "dtype unknown",
        replace("\"dtype\":\"bf16\"", "\"dtype\":\"f8\""),
    )?;
    add(
        "dtype of another width",
        replace("\"dtype\":\"bf16\"", "\"dtype\":\"f32\""),
    )?;
    add(
        "mantissa_bits that the blob is not for",
        replace("\"mantissa_bits\":5", "\"mantissa_bits\":4"),
    )?;
    add("parameter bias missing", replace("\"bias\":32,", ""))?;
    add("parameter group missing", replace("\"group\":4", ""))?;
    add("parameter dtype missing", replace("\"dtype\":\"bf16\"", ""))?;
    add(
        "parameter exponent_bits missing",
        replace("\"exponent_bits\":5,", ""),
    )?;
    add(
        "parameter mantissa_bits missing",
        replace(",\"mantissa_bits\":5", ""),
    )?;
    add(
        "parameter group of a raw tensor",
        replace("\"dtype\":\"bf16\"", "\"dtype\":\"bf16\",\"group\":2"),
    )?;
    add(
        "parameter bias of f16 scales",
        replace("\"group\":4", "\"bias\":0,\"group\":4"),
    )?;
    add(
        "parameter dtype of f32 scales",
        replace("\"group\":128", "\"dtype\":\"f32\",\"group\":128"),
    )?;

    add("shape without dimensions", shape(0, &[]))?;
    add("shape of one dimension", shape(0, &[10]))?;
    add("shape of three dimensions", shape(0, &[1, 2, 5]))?;
    add(
        "shape of nine dimensions",
        shape(3, &[1, 1, 1, 1, 1, 1, 1, 1, 3]),
    )?;
    add("shape of a thousand dimensions", shape(3, &[1; 1000]))?;
    add("shape without rows", shape(0, &[0, 5]))?;
    add("shape without columns", shape(0, &[2, 0]))?;
    add("shape of another size", shape(0, &[3, 5]))?;
    add("shape transposed", shape(0, &[5, 2]))?;
    add("shape of 2^60 rows", shape(0, &[1 << 60, 1]))?;
    add("shape of 2^60 columns", shape(0, &[1, 1 << 60]))?;
    add("shape of 2^63 elements", shape(3, &[1 << 62, 2]))?;
    add("shape of 2^64 elements", shape(3, &[1 << 32, 1 << 32]))?;
    add("shape of 2^62 elements in 2^63 bytes", shape(3, &[1 << 62]))?;
    add("shape of 2^63 - 1 elements", shape(3, &[i64::MAX as usize]))?;
    add("shape of 2^63 bytes of scales", shape(2, &[1 << 62, 1]))?;
    add(
        "shape of the largest dimensions",
        shape(1, &[usize::MAX, usize::MAX]),
    )?;
    add(
        "shape of a huge product times zero",
        shape(3, &[1 << 40, 1 << 40, 0]),
    )?;

    let tensor =
        |n: usize, edit: &dyn Fn(&mut TensorEntry)| sample.index(|i| edit(&mut i.tensors[n]));
    add("blobs missing", tensor(0, &|t| t.blobs.clear()))?;
    add(
        "blob of scales missing",
        tensor(0, &|t| t.blobs.truncate(1)),
    )?;
    add(
        "blob too many",
        tensor(3, &|t| t.blobs.push(t.blobs[0].clone())),
    )?;
    add("blobs swapped", tensor(0, &|t| t.blobs.reverse()))?;
    add(
        "blob of another role",
        tensor(3, &|t| t.blobs[0].role = Role::Nibbles),
    )?;
    add(
        "blob length one more",
        tensor(0, &|t| t.blobs[0].length += 1),
    )?;
    add(
        "blob length one less",
        tensor(0, &|t| t.blobs[1].length -= 1),
    )?;
    add("blob length zero", tensor(3, &|t| t.blobs[0].length = 0))?;
    add(
        "blob length huge",
        tensor(3, &|t| t.blobs[0].length = u64::MAX),
    )
}

fn layout(sample: &Sample, add: Add) -> Result<(), Box<dyn Error>> {
    let index = |edit: &dyn Fn(&mut Index)| sample.index(edit);
    let blob = |tensor: usize, blob: usize, offset: u64| {
        sample.index(|i| i.tensors[tensor].blobs[blob].offset = offset)
    };
    let offset = |tensor: usize, blob: usize| sample.index.tensors[tensor].blobs[blob].offset;
    add("file in the header", index(&|i| i.files[0].offset = 0))?;
    add("file unaligned", index(&|i| i.files[0].offset = 257))?;
    add("file length one more", index(&|i| i.files[0].length += 1))?;
    add(
        "file over its successor",
        index(&|i| i.files[0].length = 257),
    )?;
    add(
        "file over the index",
        index(&|i| i.files[0].length = 1 << 40),
    )?;
    add(
        "file end overflows",
        index(&|i| i.files[0].length = u64::MAX),
    )?;
    add(
        "file end at 2^64 - 1",
        index(&|i| i.files[0].length = u64::MAX - 256),
    )?;
    add("blob on the one before", blob(0, 1, offset(0, 0)))?;
    add("blob at zero", blob(1, 0, 0))?;
    add("blob unaligned", blob(1, 0, offset(1, 0) + 1))?;
    add("blob after a gap", blob(2, 0, offset(2, 0) + 256))?;
    add("blob past the end", blob(3, 0, 1 << 40))?;
    add("blob offset huge", blob(3, 0, u64::MAX))?;
    add("blobs in another order", index(&|i| i.tensors.swap(0, 1)))?;
    add(
        "last blob left out",
        index(&|i| {
            i.tensors.pop();
        }),
    )?;
    add("first blob left out", index(&|i| i.files.clear()))?;
    add("everything left out", index(&|i| *i = Index::default()))?;
    // The index one alignment further on, and one byte further on.
    for (name, by) in [("index after a gap", 256), ("index unaligned", 1)] {
        let mut moved = sample.clone();
        let at = moved.header.index.offset as usize;
        moved.bytes.splice(at..at, vec![0; by]);
        moved.header.index.offset += by as u64;
        moved.header.statistics.offset += by as u64;
        moved.header.file_bytes += by as u64;
        add(
            name,
            Ok(moved.bytes(|b| b[..HEADER_BYTES].copy_from_slice(&moved.header.encode()))),
        )?;
    }
    let mut end = HEADER_BYTES;
    let files = sample.index.files.iter().map(|f| (f.offset, f.length));
    let blobs = sample.index.tensors.iter().flat_map(|t| &t.blobs);
    let blobs = blobs.map(|b| (b.offset, b.length));
    let sections = [sample.header.index, sample.header.statistics].map(|s| (s.offset, s.length));
    for (offset, length) in files.chain(blobs).chain(sections) {
        for at in [end, (offset as usize).saturating_sub(1)] {
            if at >= end && at < offset as usize {
                add(
                    &format!("padding byte {at}"),
                    Ok(sample.bytes(|b| b[at] = 1)),
                )?;
            }
        }
        end = (offset + length) as usize;
    }
    Ok(())
}

fn blobs(sample: &Sample, add: Add) -> Result<(), Box<dyn Error>> {
    // The second reader of a bit is verify: opening does not read blobs.
    for file in &sample.index.files {
        let (at, name) = (file.offset as usize, &file.name);
        add(
            &format!("bit of file {name} flipped"),
            Ok(sample.bytes(|b| b[at] ^= 1)),
        )?;
    }
    for tensor in &sample.index.tensors {
        for blob in &tensor.blobs {
            let (at, length) = (blob.offset as usize, blob.length as usize);
            let name = format!("{} {}", tensor.name, blob.role.name());
            let first = sample.bytes(|b| b[at] ^= 1);
            add(&format!("first bit of {name} flipped"), Ok(first))?;
            let last = sample.bytes(|b| b[at + length - 1] ^= 0x80);
            add(&format!("last bit of {name} flipped"), Ok(last))?;
        }
    }
    add(
        "hash of a blob",
        sample.index(|i| i.tensors[3].blobs[0].blake3[0] ^= 1),
    )?;
    // Codes of 11 bits: the second is bits 11 to 21, the last bits 55 to 65; 66 to 71 are unused.
    let scales = |edit: &dyn Fn(&mut [u8])| sample.blob(0, 1, edit);
    add(
        "scale code with the sign and nothing else",
        scales(&|b| {
            b[..2].copy_from_slice(&(1u16 << 10).to_le_bytes());
        }),
    )?;
    add(
        "scale code with field 0 and a mantissa",
        scales(&|b| {
            b[0] = 1;
            b[1] &= !7;
        }),
    )?;
    add(
        "last scale code with field 0",
        scales(&|b| {
            b[6] = b[6] & 0x7f | 0x80;
            b[7] = 0;
            b[8] &= !3;
        }),
    )?;
    add(
        "scale exponent under binary32's",
        sample.index_text("\"bias\":32", "\"bias\":157"),
    )?;
    add("scale stream with an unused bit", scales(&|b| b[8] |= 4))?;
    add(
        "scale stream with the last unused bit",
        scales(&|b| b[8] |= 0x80),
    )?;
    add("scale stream with a bit in its tail", scales(&|b| b[9] = 1))?;
    add(
        "scale stream with the last bit of its tail",
        scales(&|b| b[16] = 0x80),
    )?;
    add(
        "f16 scale infinite",
        sample.blob(1, 1, |b| b[..2].copy_from_slice(&[0, 0x7c])),
    )?;
    add(
        "f16 scale NaN",
        sample.blob(1, 1, |b| b[2..4].copy_from_slice(&[1, 0xfe])),
    )?;
    add("f16 scale tail", sample.blob(1, 1, |b| b[4] = 1))?;
    add(
        "f32 scale infinite",
        sample.blob(2, 1, |b| b[2..4].copy_from_slice(&[0x80, 0x7f])),
    )?;
    add("f32 scale NaN", sample.blob(2, 1, |b| b[4..8].fill(0xff)))?;
    add("f32 scale tail", sample.blob(2, 1, |b| b[15] = 1))?;
    add(
        "unused nibble of row 0",
        sample.blob(0, 0, |b| b[2] |= 0x10),
    )?;
    add(
        "unused nibble of row 1",
        sample.blob(0, 0, |b| b[5] |= 0x80),
    )
}

fn statistics(sample: &Sample, add: Add) -> Result<(), Box<dyn Error>> {
    let edit = |edit: &dyn Fn(&mut Vec<u8>)| -> Made { Ok(sample.statistics(edit)) };
    let length = sample.statistics_bytes().len();
    let at = sample.header.statistics.offset as usize;
    add(
        "statistics bit flipped",
        Ok(sample.bytes(|b| b[at + 40] ^= 1)),
    )?;
    add("statistics hash", Ok(sample.header(|h| h[88] ^= 1)))?;
    add("statistics version 0", edit(&|b| b[0] = 0))?;
    add("statistics version 2", edit(&|b| b[0] = 2))?;
    add("statistics of one byte", edit(&|b| b.truncate(1)))?;
    add("statistics of a version alone", edit(&|b| b.truncate(4)))?;
    add(
        "statistics cut by a byte",
        edit(&|b| b.truncate(length - 1)),
    )?;
    add(
        "statistics cut in a record",
        edit(&|b| b.truncate(length / 2)),
    )?;
    add("statistics and one byte", edit(&|b| b.push(0)))?;
    // version u32, records u64, then the first record: name length u64, name, ...
    let huge =
        |at: usize, value: u64| edit(&|b| b[at..at + 8].copy_from_slice(&value.to_le_bytes()));
    add("statistics of 2^64 - 1 records", huge(4, u64::MAX))?;
    add("statistics of 2^32 records", huge(4, 1 << 32))?;
    add("statistics of one record too many", huge(4, 4))?;
    add("statistics of one record too few", huge(4, 2))?;
    add("statistics with a name of 2^63 bytes", huge(12, 1 << 63))?;
    add("statistics with a name of 60 MiB", huge(12, 60 << 20))?;
    add("statistics with a name not UTF-8", edit(&|b| b[20] = 0xff))?;
    // "mini", 4 counts, 2 summaries of 52 bytes, first_exponent: the count of exponents is at 162.
    add("statistics with 2^61 exponents", huge(162, 1 << 61))?;
    add("statistics with 31 exponents", huge(162, 31))
}
