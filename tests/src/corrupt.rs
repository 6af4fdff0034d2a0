//! The corrupt-file corpus: a small valid file, and from it one file a defect.
//!
//! Each edit goes to one place and hashes again whatever guards that place, so that the defect
//! meant is the defect met. `tests/corpus/expected.tsv` has what each file must be answered with.

mod cases;

use std::error::Error;
use std::path::Path;

use smq_format::header::{HEADER_BYTES, Header, Section};
use smq_format::index::{Index, align};
use smq_format::scale::{MiniFloat, ScaleFormat};
use smq_format::statistics::{ErrorSummary, TensorStatistics};
use smq_format::{Dtype, Levels, Provenance, Scheme, SmqFile, SmqWriter, Statistics, bits, hash};

pub use cases::cases;

/// One file of the corpus.
#[derive(Debug, Clone)]
pub struct Case {
    /// Its name in `expected.tsv`.
    pub name: String,
    /// The file.
    pub bytes: Vec<u8>,
}

/// The valid file that every case starts from, about 7 kB: each scheme, an odd matrix with unused
/// bits and nibbles, an embedded file, provenance and statistics.
#[derive(Debug, Clone)]
pub struct Sample {
    /// The file.
    pub bytes: Vec<u8>,
    /// Its header.
    pub header: Header,
    /// Its index.
    pub index: Index,
}

impl Sample {
    /// Writes the sample into `dir` as `sample.smq` and reads it back.
    ///
    /// # Errors
    /// Whatever the writer or the reader refuses.
    pub fn write(dir: &Path) -> Result<Self, Box<dyn Error>> {
        let path = dir.join("sample.smq");
        let mut writer = SmqWriter::create(&path, true)?;
        writer.add_file("config.json", b"{\"model_type\": \"none\"}")?;
        let mini = MiniFloat::for_largest(5, 5, 0.75).ok_or("widths out of range")?;
        let statistics = Statistics {
            tensors: [("mini", 6), ("half", 2), ("single", 2)].map(record).into(),
            receipts: Vec::new(),
        };
        // Two rows of 5 in groups of 2: an unused nibble a row, and 6 codes of 11 bits leave 6
        // unused.
        let nibbles = [0xe1, 0x87, 0x03, 0x5f, 0x21, 0x0c];
        let codes = [0.75, -0.5, 0.0, 0.015625, 0.375, 0.09375].map(|s| mini.encode(s).code);
        let scheme = |group, scales| Scheme::Int4 { group, scales };
        let stream = bits::pack(codes, mini.width_bits());
        let e5m5 = scheme(2, ScaleFormat::Mini(mini));
        writer.add_tensor("mini", &[2, 5], Dtype::Bf16, e5m5, &[&nibbles, &stream])?;
        let stream = bits::pack([0x3c00, 0xb800], 16);
        let f16 = scheme(4, ScaleFormat::F16);
        writer.add_tensor("half", &[2, 4], Dtype::F16, f16, &[&nibbles[..4], &stream])?;
        let stream = bits::pack([0x3f80_0000, 0xbeaa_aaab], 32);
        let f32 = scheme(128, ScaleFormat::F32);
        writer.add_tensor(
            "single",
            &[2, 4],
            Dtype::F32,
            f32,
            &[&nibbles[..4], &stream],
        )?;
        let raw = Scheme::Raw(Dtype::Bf16);
        writer.add_tensor(
            "norm",
            &[3],
            Dtype::Bf16,
            raw,
            &[&[0x80, 0x3f, 0, 0x40, 0, 0]],
        )?;
        // 3 rows of 43: the last block is of one element, in the high half of a byte.
        let nibbles: Vec<u8> = (0..64).chain([0xa7]).collect();
        let nf4 = Scheme::Nf4 {
            offset_bits: 0.25f32.to_bits(),
        };
        let nested = 0.125f32.to_le_bytes();
        let blobs: [&[u8]; 3] = [&nibbles, &[0, 127, 255], &nested];
        writer.add_tensor("nf4", &[3, 43], Dtype::Bf16, nf4, &blobs)?;
        let codes = [0x7e, 0xfe, 0x01, 0x38, 0x80, 0x00];
        let scales = [0.5f32, 0.001].map(f32::to_le_bytes);
        let blobs: [&[u8]; 2] = [&codes, scales.as_flattened()];
        writer.add_tensor("fp8", &[2, 3], Dtype::Bf16, Scheme::Fp8, &blobs)?;
        // As the first, with a code book.
        let nibbles = [0xf0, 0x87, 0x03, 0x5f, 0x21, 0x0c];
        let stream = bits::pack([0x3c00, 0xb800, 0x0001, 0, 0x3555, 0x2e66], 16);
        let lut4 = Scheme::Lut4 {
            group: 2,
            scales: ScaleFormat::F16,
            levels: Levels::nf4(),
        };
        writer.add_tensor("book", &[2, 5], Dtype::Bf16, lut4, &[&nibbles, &stream])?;
        let provenance = Provenance {
            parameters: [("group".to_owned(), "2".to_owned())].into(),
            producer: "corpus".to_owned(),
            sources: vec![smq_format::SourceFile {
                blake3: hash(b""),
                length: 0,
                name: "model.safetensors".to_owned(),
            }],
        };
        writer.finish(provenance, Some(&statistics))?;
        let file = SmqFile::open(&path)?;
        Ok(Sample {
            bytes: file.bytes().to_vec(),
            header: *file.header(),
            index: file.index().clone(),
        })
    }

    /// Edits the file as it is; nothing is hashed again.
    pub fn bytes(&self, edit: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
        let mut bytes = self.bytes.clone();
        edit(&mut bytes);
        bytes
    }

    /// Edits the header's bytes and renews its checksum.
    pub fn header(&self, edit: impl FnOnce(&mut [u8])) -> Vec<u8> {
        self.bytes(|bytes| {
            edit(&mut bytes[..HEADER_BYTES]);
            let checksum = hash(&bytes[..224]);
            bytes[224..HEADER_BYTES].copy_from_slice(&checksum);
        })
    }

    /// Replaces the index by other bytes; hash and layout fit them.
    pub fn index_bytes(&self, index: &[u8]) -> Vec<u8> {
        self.assemble(index, self.statistics_bytes())
    }

    /// Replaces `old` in the index's text, where it must occur, the first time that it does.
    ///
    /// # Errors
    /// `old` does not occur: the case would be the valid file.
    pub fn index_text(&self, old: &str, new: &str) -> Result<Vec<u8>, Box<dyn Error>> {
        let text = std::str::from_utf8(self.section(&self.header.index))?;
        if !text.contains(old) {
            return Err(format!("the sample's index has no {old:?}").into());
        }
        Ok(self.index_bytes(text.replacen(old, new, 1).as_bytes()))
    }

    /// Edits the index's value, which stays canonical.
    ///
    /// # Errors
    /// An index that cannot be encoded.
    pub fn index(&self, edit: impl FnOnce(&mut Index)) -> Result<Vec<u8>, Box<dyn Error>> {
        let mut index = self.index.clone();
        edit(&mut index);
        Ok(self.index_bytes(&index.encode()?))
    }

    /// Edits blob `blob` of tensor `tensor` and renews its hash.
    ///
    /// # Errors
    /// An index that cannot be encoded.
    pub fn blob(
        &self,
        tensor: usize,
        blob: usize,
        edit: impl FnOnce(&mut [u8]),
    ) -> Result<Vec<u8>, Box<dyn Error>> {
        let mut sample = self.clone();
        let entry = &mut sample.index.tensors[tensor].blobs[blob];
        let start = entry.offset as usize;
        let bytes = &mut sample.bytes[start..start + entry.length as usize];
        edit(bytes);
        entry.blake3 = hash(bytes);
        sample.index(|_| ())
    }

    /// Edits the statistics and renews their hash.
    pub fn statistics(&self, edit: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
        let mut statistics = self.statistics_bytes().to_vec();
        edit(&mut statistics);
        self.assemble(self.section(&self.header.index), &statistics)
    }

    /// The statistics section.
    pub fn statistics_bytes(&self) -> &[u8] {
        self.section(&self.header.statistics)
    }

    fn section(&self, section: &Section) -> &[u8] {
        &self.bytes[section.offset as usize..(section.offset + section.length) as usize]
    }

    /// The blobs as they are, then `index` and `statistics`, and a header that fits.
    fn assemble(&self, index: &[u8], statistics: &[u8]) -> Vec<u8> {
        let mut bytes = self.bytes[..self.header.index.offset as usize].to_vec();
        let mut put = |section: &[u8]| {
            if section.is_empty() {
                return Section::default();
            }
            bytes.resize(align(bytes.len() as u64) as usize, 0);
            bytes.extend(section);
            Section {
                offset: (bytes.len() - section.len()) as u64,
                length: section.len() as u64,
                hash: hash(section),
            }
        };
        let header = Header {
            index: put(index),
            statistics: put(statistics),
            file_bytes: 0,
            ..self.header
        };
        let header = Header {
            file_bytes: bytes.len() as u64,
            ..header
        };
        bytes[..HEADER_BYTES].copy_from_slice(&header.encode());
        bytes
    }
}

/// The record of a tensor of two rows.
fn record((name, groups): (&str, u64)) -> TensorStatistics {
    TensorStatistics {
        name: name.to_owned(),
        groups,
        zero_groups: 0,
        under_window: 0,
        clipped: 0,
        stored: ErrorSummary::default(),
        exact: ErrorSummary::default(),
        first_exponent: -31,
        exponent_counts: vec![0; 32],
        block_rows: 1,
        row_blocks: vec![0.0; 2],
        output: None,
    }
}
