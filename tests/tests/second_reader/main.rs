//! smq-format against the second reader, which knows `spec/format.md` and none of our code: bit for
//! bit.
//!
//! The tensors are small, since the second reader is pure Python and is made to be read, not to be
//! fast.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test file

mod statistics;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use half::{bf16, f16};
use safetensors::tensor::{Dtype as SourceDtype, TensorView as SourceView};
use smq_convert::{
    Checkpoint, ConvertOptions, LevelChoice, Method, QuantizeOptions, ScaleChoice, ScaleRule,
    convert,
};
use smq_format::scale::{MiniFloat, ScaleFormat};
use smq_format::{Dtype, Levels, Provenance, Scheme, SmqFile, SmqWriter, bits, hash, int4};
use smq_tests::phi3_tiny;
use statistics::{compare_statistics, extreme_statistics};
use tempfile::TempDir;

const E5M5: ScaleChoice = mini(5, 5);

const fn mini(exponent_bits: u32, mantissa_bits: u32) -> ScaleChoice {
    ScaleChoice::Mini {
        exponent_bits,
        mantissa_bits,
    }
}

fn second_reader(args: &[&str]) -> Output {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("second_reader/smq_reader.py");
    Command::new("python3")
        .arg(&script)
        .args(args)
        .output()
        .unwrap_or_else(|e| {
            panic!("cannot run python3, which this test needs (any Python 3.8 or later): {e}")
        })
}

/// What the second reader prints about a file that it must accept.
fn read(path: &Path, args: &[&str]) -> Vec<u8> {
    let output = second_reader(&[&[path.to_str().unwrap()], args].concat());
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{args:?}: {complaint}");
    output.stdout
}

fn bytes_of(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// Every tensor is the same to both readers; a difference is found by digest and told by element.
fn compare(path: &Path) {
    let file = SmqFile::open(path).unwrap();
    assert_eq!(file.verify(|_| ()), []);
    let theirs = String::from_utf8(read(path, &["--all-digests"])).unwrap();
    let theirs: Vec<_> = theirs.lines().collect();
    assert_eq!(theirs.len(), file.tensors().len());
    for (tensor, theirs) in file.tensors().zip(theirs) {
        let name = tensor.name();
        let ours = bytes_of(&tensor.dequantize().unwrap());
        if theirs == format!("{} {name}", hex(&hash(&ours))) {
            continue;
        }
        let theirs = read(path, &["--tensor", name]);
        assert_eq!(theirs.len(), ours.len(), "{name}: bytes");
        for (i, (a, b)) in ours.chunks(4).zip(theirs.chunks(4)).enumerate() {
            assert_eq!(hex(a), hex(b), "{name} element {i}: ours and theirs");
        }
        panic!("{name}: equal bytes, different digests");
    }
}

/// A checkpoint of a few rows of the bundled one, and of shapes and values that it does not have.
fn small_checkpoint(dir: &Path) -> PathBuf {
    let whole = Checkpoint::open(&phi3_tiny()).unwrap();
    let cut = |name: &str, elems: usize| {
        let tensor = whole.tensor(name).unwrap();
        let shard = std::fs::read(whole.file_of(tensor)).unwrap();
        shard[tensor.range.clone()][..2 * elems].to_vec()
    };
    let bf16s = |values: Vec<f32>| -> Vec<u8> {
        let elems = values.into_iter().map(bf16::from_f32);
        elems.flat_map(bf16::to_le_bytes).collect()
    };
    let mut odd = cut("model.layers.2.mlp.gate_up_proj.weight", 5 * 131);
    odd[2 * 131..4 * 131].fill(0);
    // Row 1 is far under the window that row 0 makes; row 2 reaches down to its edge.
    let window = (0..3 * 130).map(|i| match i / 130 {
        0 => 1.0 + (i % 7) as f32,
        1 => 2f32.powi(-60),
        _ => -(2f32.powi(-27)) * (1 + i % 5) as f32,
    });
    let f16s = (0..4 * 33).map(|i| f16::from_f32((i as f32 * 0.77).sin() / 9.0));
    let f32s: Vec<f32> = (0..2 * 200).map(|i| (i as f32 * 1.3).cos() / 3.0).collect();
    let tensors = [
        (
            "cut.mlp.down_proj.weight",
            SourceDtype::BF16,
            vec![4, 768],
            cut("model.layers.0.mlp.down_proj.weight", 4 * 768),
        ),
        (
            "odd.mlp.up_proj.weight",
            SourceDtype::BF16,
            vec![5, 131],
            odd,
        ),
        (
            "zero.mlp.up_proj.weight",
            SourceDtype::BF16,
            vec![3, 257],
            vec![0; 2 * 3 * 257],
        ),
        (
            "window.mlp.up_proj.weight",
            SourceDtype::BF16,
            vec![3, 130],
            bf16s(window.collect()),
        ),
        (
            "half.mlp.up_proj.weight",
            SourceDtype::F16,
            vec![4, 33],
            f16s.clone().flat_map(f16::to_le_bytes).collect(),
        ),
        (
            "single.mlp.up_proj.weight",
            SourceDtype::F32,
            vec![2, 200],
            bytes_of(&f32s),
        ),
        (
            "raw.bf16",
            SourceDtype::BF16,
            vec![256],
            cut("model.norm.weight", 256),
        ),
        (
            "raw.f16",
            SourceDtype::F16,
            vec![2, 3, 22],
            f16s.flat_map(f16::to_le_bytes).collect(),
        ),
        ("raw.f32", SourceDtype::F32, vec![400], bytes_of(&f32s)),
    ];
    let views = tensors.iter().map(|(name, dtype, shape, data)| {
        (*name, SourceView::new(*dtype, shape.clone(), data).unwrap())
    });
    let path = dir.join("model.safetensors");
    safetensors::serialize_to_file(views, None, &path).unwrap();
    path
}

fn options(group: usize, scales: ScaleChoice, rule: ScaleRule) -> ConvertOptions {
    ConvertOptions {
        target: "mlp".parse().unwrap(),
        quantize: Method::Int4(QuantizeOptions {
            group,
            scales,
            rule,
        }),
        overwrite: true,
        jobs: 1,
    }
}

#[test]
fn conversions_are_the_same_to_both_readers() {
    let dir = TempDir::new().unwrap();
    let checkpoint = Checkpoint::open(&small_checkpoint(dir.path())).unwrap();
    let out = dir.path().join("out.smq");
    for (group, scales, rule) in [
        (128, mini(5, 0), ScaleRule::Reference),
        (128, mini(5, 3), ScaleRule::Reference),
        (128, E5M5, ScaleRule::Reference),
        (128, mini(5, 10), ScaleRule::Reference),
        (128, ScaleChoice::F16, ScaleRule::Reference),
        (128, ScaleChoice::F32, ScaleRule::Reference),
        (128, mini(4, 3), ScaleRule::Reference),
        (128, mini(8, 0), ScaleRule::Nearest),
        (128, mini(5, 3), ScaleRule::Signed),
        (128, ScaleChoice::F32, ScaleRule::Signed),
        (31, mini(5, 3), ScaleRule::Search),
        (1, E5M5, ScaleRule::Signed),
    ] {
        println!("group {group}, {scales}, {rule}");
        let options = options(group, scales, rule);
        convert(&checkpoint, &out, &options, &|_| true).unwrap();
        compare(&out);
        compare_statistics(&out);
    }
    let lut4 = |group, scales, rule, levels| Method::Lut4 {
        options: QuantizeOptions {
            group,
            scales,
            rule,
        },
        levels,
    };
    for method in [
        Method::Nf4,
        Method::Fp8,
        lut4(128, mini(5, 3), ScaleRule::Nearest, LevelChoice::Learned),
        lut4(128, ScaleChoice::F16, ScaleRule::Nearest, LevelChoice::Nf4),
        lut4(
            64,
            ScaleChoice::F32,
            ScaleRule::Signed,
            LevelChoice::Learned,
        ),
        lut4(31, mini(5, 3), ScaleRule::Search, LevelChoice::Nf4),
    ] {
        let options = ConvertOptions {
            quantize: method,
            ..options(128, E5M5, ScaleRule::Reference)
        };
        convert(&checkpoint, &out, &options, &|_| true).unwrap();
        compare(&out);
        compare_statistics(&out);
    }
}

/// The bundled checkpoint as a user converts it; of its tensors, three, for time's sake.
#[test]
fn the_bundled_checkpoint_is_the_same_to_both_readers() {
    let dir = TempDir::new().unwrap();
    let out = dir.path().join("phi3.smq");
    let checkpoint = Checkpoint::open(&phi3_tiny()).unwrap();
    convert(
        &checkpoint,
        &out,
        &options(128, E5M5, ScaleRule::Reference),
        &|_| true,
    )
    .unwrap();
    let file = SmqFile::open(&out).unwrap();
    for name in [
        "model.layers.3.mlp.down_proj.weight",
        "model.layers.0.self_attn.o_proj.weight",
        "model.norm.weight",
    ] {
        let ours = file.tensor(name).unwrap().dequantize().unwrap();
        assert!(read(&out, &["--tensor", name]) == bytes_of(&ours), "{name}");
    }
    compare_statistics(&out);
}

/// Every valid code of the narrower formats, with every integer, at the edges of the bias.
fn every_code(writer: &mut SmqWriter) {
    for (e, x) in [(2, 0), (4, 3), (5, 0), (5, 3), (8, 0)] {
        let range = MiniFloat::bias_range(e);
        for bias in BTreeSet::from([*range.start(), 7.max(*range.start()), *range.end()]) {
            let format = MiniFloat::new(e, x, bias).unwrap();
            let codes = (0..1 << format.width_bits()).filter(|&c| format.decode(c).is_some());
            let codes: Vec<u32> = codes.collect();
            let name = format!("e{e}m{x} bias {bias}");
            all_integers(writer, &name, ScaleFormat::Mini(format), &codes);
        }
    }
    let f16s = [0, 1, 0x3ff, 0x400, 0x3c00, 0x7bff, 0x8000, 0x8001, 0xfbff];
    all_integers(writer, "f16", ScaleFormat::F16, &f16s);
    // Products that are rounded, subnormal or over the range.
    let f32s = [
        0,
        1,
        3,
        0x7f_ffff,
        0x80_0000,
        0x3eaa_aaab,
        0x7f7f_ffff,
        0x8000_0000,
        0xff7f_ffff,
    ];
    all_integers(writer, "f32", ScaleFormat::F32, &f32s);
}

/// A tensor with a row for each code, which multiplies each of the 16 integers and one more.
fn all_integers(writer: &mut SmqWriter, name: &str, scales: ScaleFormat, codes: &[u32]) {
    let integers: Vec<i8> = (-8..=7).chain([-3]).collect();
    let mut row = vec![0; int4::row_bytes(integers.len())];
    int4::pack_row(&integers, &mut row);
    let scheme = Scheme::Int4 { group: 32, scales };
    let stream = bits::pack(codes.iter().copied(), scales.width_bits());
    let shape = [codes.len(), integers.len()];
    let blobs: [&[u8]; 2] = [&row.repeat(codes.len()), &stream];
    writer
        .add_tensor(name, &shape, Dtype::F32, scheme, &blobs)
        .unwrap();
    // The same bytes as indices into a book from end to end.
    let levels = Levels::new(std::array::from_fn(|i| (17 * i as i16 - 128) as i8)).unwrap();
    let scheme = Scheme::Lut4 {
        group: 32,
        scales,
        levels,
    };
    writer
        .add_tensor(
            &format!("book of {name}"),
            &shape,
            Dtype::F32,
            scheme,
            &blobs,
        )
        .unwrap();
}

/// Every absmax code with each of the 16 nibbles, under scales that make subnormals, and every FP8
/// code.
fn nf4_and_fp8_codes(writer: &mut SmqWriter) {
    let nibbles: Vec<u8> = (0..=255).cycle().take(3 * 257 * 64 / 2).collect();
    let absmax: Vec<u8> = (0..=255).cycle().take(3 * 257).collect();
    for (name, nested, offset) in [
        ("nf4", [0.25f32, -3e-3, 1e-20, 7.5], 0.375f32),
        ("nf4 small", [1e-38, 3e-39, 1e-45, 0.0], 1e-39),
    ] {
        let nested = nested.map(f32::to_le_bytes);
        let scheme = Scheme::Nf4 {
            offset_bits: offset.to_bits(),
        };
        let blobs: [&[u8]; 3] = [&nibbles, &absmax, nested.as_flattened()];
        writer
            .add_tensor(name, &[257, 192], Dtype::F32, scheme, &blobs)
            .unwrap();
    }
    let codes: Vec<u8> = (0..=254).filter(|c| c & 0x7f != 0x7f).collect();
    let codes = codes.repeat(4);
    let scales = [1.0f32, -0.3, 1e-40, 1e37].map(f32::to_le_bytes);
    let blobs: [&[u8]; 2] = [&codes, scales.as_flattened()];
    writer
        .add_tensor("fp8", &[4, 254], Dtype::F32, Scheme::Fp8, &blobs)
        .unwrap();
}

#[test]
fn every_code_and_odd_shapes_are_the_same_to_both_readers() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("hand.smq");
    let mut writer = SmqWriter::create(&path, false).unwrap();
    writer.add_file("config.json", b"{}").unwrap();
    writer.add_file("empty", b"").unwrap();
    every_code(&mut writer);
    // Raw elements: both zeros, subnormals, infinities, and for f32 NaNs, whose bits are kept.
    let f32s = [
        0u32,
        1 << 31,
        1,
        0x807f_ffff,
        0x7f80_0000,
        0xff80_0000,
        0x7f80_0001,
        0xffc0_1234,
    ];
    let f32s: Vec<u8> = f32s.iter().flat_map(|b| b.to_le_bytes()).collect();
    let f16s = [0u16, 1 << 15, 1, 0x83ff, 0x7bff, 0x7c00, 0xfc00, 0x3555];
    let f16s: Vec<u8> = f16s.iter().flat_map(|b| b.to_le_bytes()).collect();
    for (name, dtype, bytes, shape) in [
        ("raw f32", Dtype::F32, &f32s, vec![2, 4]),
        ("raw f16", Dtype::F16, &f16s, vec![8]),
        ("raw bf16", Dtype::Bf16, &f16s, vec![2, 2, 1, 2]),
        ("raw scalar \"é\\😀", Dtype::Bf16, &vec![0x80, 0x3f], vec![]),
        ("raw nothing", Dtype::F32, &vec![], vec![3, 0]),
    ] {
        let blobs: [&[u8]; 1] = [bytes];
        writer
            .add_tensor(name, &shape, dtype, Scheme::Raw(dtype), &blobs)
            .unwrap();
    }
    all_integers(&mut writer, "é", ScaleFormat::F16, &[0; 65]);
    nf4_and_fp8_codes(&mut writer);
    writer
        .finish(Provenance::default(), Some(&extreme_statistics()))
        .unwrap();
    compare(&path);
    compare_statistics(&path);
}

#[test]
fn the_second_reader_refuses_what_is_damaged() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("hand.smq");
    let mut writer = SmqWriter::create(&path, false).unwrap();
    all_integers(&mut writer, "f32", ScaleFormat::F32, &[0x3f80_0000]);
    writer.finish(Provenance::default(), None).unwrap();
    assert_eq!(read(&path, &["--statistics"]), b"null\n");
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[256] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let output = second_reader(&[path.to_str().unwrap(), "--tensor", "f32"]);
    assert!(!output.status.success() && output.stdout.is_empty());
    let complaint = String::from_utf8(output.stderr).unwrap();
    assert!(complaint.contains("hash of the blob at 256"), "{complaint}");
}
