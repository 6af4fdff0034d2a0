//! The index's form, types, names and schemes.

use std::error::Error;

use smq_format::Role;
use smq_format::index::{FileEntry, TensorEntry};

use super::{Add, Made, Sample, replace_all};

pub(super) fn index_form(sample: &Sample, add: Add) -> Result<(), Box<dyn Error>> {
    let text = String::from_utf8(sample.index.encode()?)?;
    let start = text
        .find("{\"parameters\":{\"group\":\"2\"}")
        .ok_or("no provenance")?;
    let end = text.find(",\"tensors\"").ok_or("no tensors")?;
    let provenance = text[start..end].to_owned();
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
        replace(
            "\"length\":0,\"name\":\"model.safetensors\"",
            "\"name\":\"model.safetensors\",\"length\":0",
        ),
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
        replace("\"length\":22", "\"kind\":0,\"length\":22"),
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
    add(
        "index with an object as an array",
        replace(&provenance, "[{\"group\":\"2\"},\"corpus\",[]]"),
    )?;
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

pub(super) fn index_types(sample: &Sample, add: Add) -> Result<(), Box<dyn Error>> {
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

pub(super) fn names(sample: &Sample, add: Add) -> Result<(), Box<dyn Error>> {
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
    add("file name with NUL", file("config\0.json"))?;
    add("file name in a directory", file("templates/tool_use.jinja"))?;
    add("file name in two directories", file("a/b/config.json"))?;
    add("file name absolute", file("/config.json"))?;
    add("file name of a directory", file("templates/"))?;
    add("file name in the parent", file("../config.json"))?;
    add("file name in the same directory", file("./config.json"))?;
    add("file name that climbs back", file("templates/.."))?;
    add("file name with a drive's letter", file("C:config.json"))?;
    add("file name of a stream", file("config.json:other"))?;
    add("file name hidden", file(".bashrc"))?;
    add(
        "file name hidden in a directory",
        file("templates/.a.jinja"),
    )?;
    add(
        "file name in a hidden directory",
        file(".ssh/authorized_keys"),
    )?;
    add("file name of three dots", file("..."))?;
    add("file name with a dot at the end", file("config.json."))?;
    add(
        "file name with a space at the end",
        file("templates /a.jinja"),
    )?;
    add("file name of one letter in a directory of one", file("a/b"))?;
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

pub(super) fn schemes(sample: &Sample, add: Add) -> Result<(), Box<dyn Error>> {
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
    add(
        "parameter bias null",
        replace("\"group\":4", "\"bias\":null,\"group\":4"),
    )?;

    let offset = format!("\"offset_bits\":{}", 0.25f32.to_bits());
    for value in ["-1", "2139095040", "4294967296", "1.5", "\"3e800000\""] {
        add(
            &format!("offset_bits {value}"),
            replace(&offset, &format!("\"offset_bits\":{value}")),
        )?;
    }
    add("parameter offset_bits missing", replace(&offset, ""))?;
    add(
        "parameter offset_bits of f16 scales",
        replace("\"group\":4", "\"group\":4,\"offset_bits\":0"),
    )?;
    add(
        "parameter group of NF4",
        replace(&offset, &format!("\"group\":64,{offset}")),
    )?;
    add(
        "parameter group of FP8",
        replace(
            "\"parameters\":{},\"scheme\":\"fp8",
            "\"parameters\":{\"group\":64},\"scheme\":\"fp8",
        ),
    )?;

    add("shape without dimensions", shape(0, &[]))?;
    add("shape of one dimension of NF4", shape(4, &[129]))?;
    add("shape of three dimensions of FP8", shape(5, &[1, 2, 3]))?;
    add("shape without rows of NF4", shape(4, &[0, 43]))?;
    add("shape without columns of FP8", shape(5, &[2, 0]))?;
    add("shape of another size of NF4", shape(4, &[4, 43]))?;
    add("shape of FP8 transposed", shape(5, &[3, 2]))?;
    add("shape of NF4 with 2^62 rows", shape(4, &[1 << 62, 1]))?;
    add("shape of FP8 with 2^62 rows", shape(5, &[1 << 62, 1]))?;
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
    add(
        "blob of nested absmax missing",
        tensor(4, &|t| t.blobs.truncate(2)),
    )?;
    add(
        "blob of absmax one less",
        tensor(4, &|t| t.blobs[1].length -= 1),
    )?;
    add(
        "blob of nested absmax one element more",
        tensor(4, &|t| t.blobs[2].length += 4),
    )?;
    add(
        "blob of FP8 scales with a tail",
        tensor(5, &|t| t.blobs[1].length += 8),
    )?;
    add("blobs of NF4 swapped", tensor(4, &|t| t.blobs.swap(0, 1)))?;
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
