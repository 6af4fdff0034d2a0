//! The annotated dump in `spec/format.md` is the file that the library writes, byte for byte and
//! note for note.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test file

use std::fmt::Write;
use std::path::Path;
use std::process::Command;

use smq_format::header::{Header, Section};
use smq_format::scale::{MiniFloat, ScaleFormat};
use smq_format::statistics::{ErrorSummary, TensorStatistics};
use smq_format::{Dtype, Provenance, Scheme, SmqFile, SmqWriter, Statistics, bits, int4};
use tempfile::TempDir;

/// The tensor as the specification has it: `[1, 4]`, groups of 2.
const WEIGHTS: [f32; 4] = [0.5, -1.0, 2.625, -3.0];
const INTEGERS: [i8; 4] = [1, -2, 7, -8];
const SCALES: [f32; 2] = [0.5, 0.375];

fn specification() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../spec/format.md");
    std::fs::read_to_string(path).unwrap()
}

/// The fenced block that the specification marks as a dump.
fn dump_of(specification: &str) -> &str {
    let (_, rest) = specification.split_once("```hexdump\n").unwrap();
    rest.split_once("```\n").unwrap().0
}

fn write(path: &Path) {
    let mini = MiniFloat::for_largest(5, 5, 0.5).unwrap();
    let mut nibbles = [0; 2];
    int4::pack_row(&INTEGERS, &mut nibbles);
    let stream = bits::pack(SCALES.map(|s| mini.encode(s).code), mini.width_bits());
    let summary = ErrorSummary {
        mean_cosine: 1.0,
        squared_weight: WEIGHTS.iter().map(|w| f64::from(w * w)).sum(),
        ..ErrorSummary::default()
    };
    let mut exponent_counts = vec![0; 32];
    exponent_counts[30..].fill(1);
    let record = TensorStatistics {
        name: "w".into(),
        groups: 2,
        zero_groups: 0,
        under_window: 0,
        clipped: 0,
        stored: summary,
        exact: summary,
        first_exponent: -32,
        exponent_counts,
        block_rows: 1,
        row_blocks: vec![0.0],
        output: None,
    };
    let scheme = Scheme::Int4 {
        group: 2,
        scales: ScaleFormat::Mini(mini),
    };
    let mut writer = SmqWriter::create(path, false).unwrap();
    writer.add_file("config.json", b"{}").unwrap();
    writer
        .add_tensor("w", &[1, 4], Dtype::Bf16, scheme, &[&nibbles, &stream])
        .unwrap();
    let provenance = Provenance {
        parameters: [("group_size".to_owned(), "2".to_owned())].into(),
        producer: "example".to_owned(),
        sources: Vec::new(),
    };
    let statistics = Statistics {
        tensors: vec![record],
        receipts: Vec::new(),
    };
    writer.finish(provenance, Some(&statistics)).unwrap();
}

/// Renders bytes one field a line: offset, bytes, note.
struct Dump<'a> {
    bytes: &'a [u8],
    at: usize,
    out: String,
}

impl Dump<'_> {
    const A_LINE: usize = 16;

    fn field(&mut self, length: usize, note: &str) {
        let field = &self.bytes[self.at..self.at + length];
        if length > Self::A_LINE && field.iter().all(|&b| b == 0) {
            let run = format!("00 x {length}");
            writeln!(self.out, "{:04x}  {run:<48} {note}", self.at).unwrap();
            self.at += length;
            return;
        }
        let mut note = note;
        for line in field.chunks(Self::A_LINE) {
            let hex: Vec<_> = line.iter().map(|b| format!("{b:02x}")).collect();
            let text = format!("{:04x}  {:<48} {note}", self.at, hex.join(" "));
            writeln!(self.out, "{}", text.trim_end()).unwrap();
            self.at += line.len();
            note = "";
        }
    }

    fn fields(&mut self, fields: &[(usize, &str)]) {
        for (length, note) in fields {
            self.field(*length, note);
        }
    }

    fn text(&mut self, length: usize) {
        let end = self.at + length;
        while self.at < end {
            let line = Self::A_LINE.min(end - self.at);
            let text = String::from_utf8(self.bytes[self.at..self.at + line].to_vec()).unwrap();
            self.field(line, &text);
        }
    }

    /// The zeros up to the next section.
    fn padding(&mut self, offset: u64) {
        self.field(offset as usize - self.at, "padding");
    }

    fn title(&mut self, title: &str) {
        let gap = if self.out.is_empty() { "" } else { "\n" };
        writeln!(self.out, "{gap}{title}").unwrap();
    }
}

fn render(file: &SmqFile) -> String {
    let mut dump = Dump {
        bytes: file.bytes(),
        at: 0,
        out: String::new(),
    };
    let header: &Header = file.header();
    let (embedded, w) = (&file.index().files[0], &file.index().tensors[0]);
    dump_header(&mut dump, header);
    dump.title("config.json");
    dump.field(2, "\"{}\"");
    dump.padding(w.blobs[0].offset);
    dump.title("w: nibbles");
    dump.fields(&[
        (1, "-2 in the high half (column 1), 1 in the low (column 0)"),
        (1, "-8 and 7: columns 3 and 2"),
    ]);
    dump.padding(w.blobs[1].offset);
    dump.title("w: scales");
    dump.fields(&[
        (3, "codes 0x3e0 (bits 0-10) and 0x3d0 (bits 11-21)"),
        (8, "tail"),
    ]);
    dump.padding(header.index.offset);
    dump.title("index");
    dump.text(header.index.length as usize);
    dump.padding(header.statistics.offset);
    dump_statistics(&mut dump, &header.statistics);
    assert_eq!(embedded.offset, 256);
    assert_eq!(dump.at, dump.bytes.len());
    dump.out
}

fn dump_header(dump: &mut Dump, header: &Header) {
    let section = |s: &Section| [s.offset, s.length].map(|n| n.to_string());
    let [index_offset, index_length] = section(&header.index);
    let [statistics_offset, statistics_length] = section(&header.statistics);
    dump.title("header");
    dump.fields(&[
        (8, "magic"),
        (2, "major version 1"),
        (2, "minor version 0"),
        (4, "zero"),
        (8, &format!("length of the file, {}", header.file_bytes)),
        (8, &format!("offset of the index, {index_offset}")),
        (8, &format!("length of the index, {index_length}")),
        (32, "BLAKE3 of the index"),
        (8, &format!("offset of the statistics, {statistics_offset}")),
        (8, &format!("length of the statistics, {statistics_length}")),
        (32, "BLAKE3 of the statistics"),
        (8, "incompatible-feature bits"),
        (8, "compatible-feature bits"),
        (88, "zero"),
        (32, "BLAKE3 of bytes 0 to 223"),
    ]);
}

fn dump_statistics(dump: &mut Dump, section: &Section) {
    dump.title("statistics");
    dump.fields(&[
        (4, "version 1"),
        (8, "1 record"),
        (8, "name of 1 byte"),
        (1, "\"w\""),
        (8, "groups, 2"),
        (8, "zero_groups"),
        (8, "under_window"),
        (8, "clipped"),
    ]);
    for which in ["stored", "exact"] {
        dump.fields(&[
            (8, &format!("{which}: mean_rel_mse, 0.0")),
            (16, &format!("{which}: percentiles_rel_mse, 4 times 0.0")),
            (4, &format!("{which}: max_rel_mse, 0.0")),
            (8, &format!("{which}: mean_cosine, 1.0")),
            (8, &format!("{which}: squared_error, 0.0")),
            (8, &format!("{which}: squared_weight, 17.140625")),
        ]);
    }
    dump.fields(&[
        (2, "first_exponent, -32"),
        (8, "32 exponent_counts:"),
        (240, "none of exponent -32 to -3"),
        (8, "1 of exponent -2"),
        (8, "1 of exponent -1"),
        (8, "block_rows, 1"),
        (8, "1 of row_blocks:"),
        (4, "0.0"),
    ]);
    assert_eq!(dump.at as u64, section.offset + section.length);
}

/// The bytes that a dump's lines give, which must follow one another.
fn parse(dump: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    for line in dump.lines() {
        // Titles and blank lines have no offset.
        let Some((offset, rest)) = line.split_once("  ") else {
            continue;
        };
        assert_eq!(usize::from_str_radix(offset, 16), Ok(bytes.len()), "{line}");
        let hex = rest.get(..48).unwrap_or(rest).trim_end();
        match hex.strip_prefix("00 x ") {
            Some(count) => bytes.resize(bytes.len() + count.parse::<usize>().unwrap(), 0),
            None => bytes.extend(hex.split(' ').map(|b| u8::from_str_radix(b, 16).unwrap())),
        }
    }
    bytes
}

#[test]
fn the_dump_is_what_the_library_writes() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("tiny.smq");
    write(&path);
    let file = SmqFile::open(&path).unwrap();
    let rendered = render(&file);
    let specification = specification();
    let dump = dump_of(&specification);
    assert!(
        dump == rendered,
        "the dump in spec/format.md is not the library's, which is\n{rendered}"
    );
    assert_eq!(parse(dump), file.bytes());
}

/// From the specification's text alone: both readers take the file for what the text says it is.
#[test]
fn the_dump_is_a_file_that_both_readers_accept() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("from-the-specification.smq");
    std::fs::write(&path, parse(dump_of(&specification()))).unwrap();
    let file = SmqFile::open(&path).unwrap();
    assert_eq!(file.verify(|_| ()), []);
    assert_eq!(file.embedded("config.json"), Some(&b"{}"[..]));
    assert_eq!(file.tensor("w").unwrap().dequantize().unwrap(), WEIGHTS);
    let products: Vec<f32> = (0..4)
        .map(|i| f32::from(INTEGERS[i]) * SCALES[i / 2])
        .collect();
    assert_eq!(products, WEIGHTS);
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("second_reader/smq_reader.py");
    let output = Command::new("python3")
        .arg(script)
        .args([path.to_str().unwrap(), "--tensor", "w"])
        .output()
        .unwrap();
    let expected: Vec<u8> = WEIGHTS.iter().flat_map(|w| w.to_le_bytes()).collect();
    assert_eq!(output.stdout, expected);
}

/// The limits that the specification lists are the constants that the code has.
#[test]
fn the_limits_are_the_codes() {
    let specification = specification();
    let (_, limits) = specification.split_once("## Limits\n").unwrap();
    let row = |name: &str| -> u64 {
        let line = limits.lines().find(|l| l.contains(&format!("`{name}`")));
        let line = line.unwrap_or_else(|| panic!("no limit {name}"));
        let number = line.split('|').nth(2).unwrap().replace(',', "");
        number.trim().parse().unwrap()
    };
    use smq_format::{header, index, scale, scheme, statistics};
    for (name, value) in [
        ("HEADER_BYTES", header::HEADER_BYTES as u64),
        ("ALIGN_BYTES", index::ALIGN_BYTES),
        ("MAX_INDEX_BYTES", index::MAX_INDEX_BYTES),
        ("MAX_STATISTICS_BYTES", statistics::MAX_STATISTICS_BYTES),
        ("MAX_DIMS", index::MAX_DIMS as u64),
        ("MAX_NAME_BYTES", index::MAX_NAME_BYTES as u64),
        ("GROUP_RANGE", *scheme::GROUP_RANGE.end() as u64),
        ("MAX_MANTISSA_BITS", u64::from(scale::MAX_MANTISSA_BITS)),
        ("STREAM_TAIL_BYTES", bits::STREAM_TAIL_BYTES as u64),
        ("EXPONENT_BUCKETS", statistics::EXPONENT_BUCKETS as u64),
        ("MAX_ROW_BLOCKS", statistics::MAX_ROW_BLOCKS as u64),
        ("MAX_RECEIPTS", statistics::MAX_RECEIPTS as u64),
    ] {
        assert_eq!(row(name), value, "{name}");
    }
}
