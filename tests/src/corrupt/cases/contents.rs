//! Where things are, and what the blobs and the statistics hold.

use std::error::Error;

use smq_format::Statistics;
use smq_format::header::HEADER_BYTES;
use smq_format::index::Index;
use smq_format::statistics::TensorStatistics;

use super::{Add, Made, Sample};

pub(super) fn layout(sample: &Sample, add: Add) -> Result<(), Box<dyn Error>> {
    let index = |edit: &dyn Fn(&mut Index)| sample.index(edit);
    let blob = |tensor: usize, blob: usize, offset: u64| {
        sample.index(|i| i.tensors[tensor].blobs[blob].offset = offset)
    };
    let offset = |tensor: usize, blob: usize| sample.index.tensors[tensor].blobs[blob].offset;
    add("file in the header", index(&|i| i.files[0].offset = 0))?;
    add("file unaligned", index(&|i| i.files[0].offset = 257))?;
    add(
        "embedded file one byte longer",
        index(&|i| i.files[0].length += 1),
    )?;
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
    let mut bare = sample.clone();
    bare.header.index.offset = HEADER_BYTES as u64;
    add(
        "nothing but an index",
        bare.index(|i| *i = Index::default()),
    )?;
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

pub(super) fn blobs(sample: &Sample, add: Add) -> Result<(), Box<dyn Error>> {
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
    )?;
    add(
        "unused nibble of a code book's row 1",
        sample.blob(6, 0, |b| b[5] |= 0x70),
    )?;
    add(
        "code book's scale infinite",
        sample.blob(6, 1, |b| b[2..4].copy_from_slice(&[0, 0xfc])),
    )?;
    add("code book's scale tail", sample.blob(6, 1, |b| b[19] = 1))?;
    nf4_and_fp8(sample, add)
}

fn nf4_and_fp8(sample: &Sample, add: Add) -> Result<(), Box<dyn Error>> {
    let nibbles = |edit: &dyn Fn(&mut [u8])| sample.blob(4, 0, edit);
    add("unused nibble of NF4 zero", nibbles(&|b| b[64] &= 0xf0))?;
    add("unused nibble of NF4 15", nibbles(&|b| b[64] |= 15))?;
    let nested = |bits: u32| sample.blob(4, 2, |b| b.copy_from_slice(&bits.to_le_bytes()));
    add("nested absmax infinite", nested(0x7f80_0000))?;
    add("nested absmax NaN", nested(0xffc0_0000))?;
    add("nested absmax negative", nested(0xbf80_0000))?;
    for (name, at, code) in [("first", 0, 0x7f), ("last", 5, 0xff)] {
        add(
            &format!("{name} FP8 element NaN"),
            sample.blob(5, 0, |b| b[at] = code),
        )?;
    }
    for (name, bits) in [("infinite", 0xff80_0000u32), ("NaN", 0x7f80_0001)] {
        add(
            &format!("FP8 scale {name}"),
            sample.blob(5, 1, |b| b[4..].copy_from_slice(&bits.to_le_bytes())),
        )?;
    }
    Ok(())
}

pub(super) fn statistics(sample: &Sample, add: Add) -> Result<(), Box<dyn Error>> {
    let edit = |edit: &dyn Fn(&mut Vec<u8>)| -> Made { Ok(sample.statistics(edit)) };
    let length = sample.statistics_bytes().len();
    let at = sample.header.statistics.offset as usize;
    add(
        "statistics bit flipped",
        Ok(sample.bytes(|b| b[at + 40] ^= 1)),
    )?;
    add("statistics hash", Ok(sample.header(|h| h[88] ^= 1)))?;
    add("statistics version 0", edit(&|b| b[0] = 0))?;
    add("statistics version 3", edit(&|b| b[0] = 3))?;
    add("statistics of version 1 that say 2", edit(&|b| b[0] = 2))?;
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
    add("statistics with 31 exponents", huge(162, 31))?;
    statistics_against_the_index(sample, add)?;
    super::calibrated::statistics(sample, add)
}

/// Sections that decode and hash as they should, but are not of this file's tensors.
fn statistics_against_the_index(sample: &Sample, add: Add) -> Result<(), Box<dyn Error>> {
    let whole = Statistics::decode(sample.statistics_bytes())?;
    let with = |edit: &dyn Fn(&mut Vec<TensorStatistics>)| -> Made {
        let mut statistics = whole.clone();
        edit(&mut statistics.tensors);
        let encoded = statistics.encode()?;
        Ok(sample.statistics(|b| *b = encoded))
    };
    let mut of = |name: &str, edit: &dyn Fn(&mut Vec<TensorStatistics>)| {
        add(&format!("statistics {name}"), with(edit))
    };
    of("of no tensor", &|t| t.clear())?;
    of("without one tensor", &|t| drop(t.remove(1)))?;
    of("of a tensor not in the index", &|t| {
        t[1].name = "other".to_owned();
    })?;
    of("of a tensor without a name", &|t| t[0].name.clear())?;
    of("of a raw tensor", &|t| t[2].name = "norm".to_owned())?;
    of("of a tensor twice", &|t| t.insert(1, t[0].clone()))?;
    of("in another order", &|t| t.swap(0, 1))?;
    of("with a group too few", &|t| t[0].groups = 5)?;
    of("with a group too many", &|t| t[2].groups = 3)?;
    of("with 2^64 - 1 groups", &|t| t[1].groups = u64::MAX)?;
    of("with no exponent counts", &|t| t[0].exponent_counts.clear())?;
    of("with 33 exponent counts", &|t| t[0].exponent_counts.push(0))?;
    of("with blocks of no row", &|t| t[0].block_rows = 0)?;
    of("with blocks of two rows", &|t| t[0].block_rows = 2)?;
    of("with blocks of 2^64 - 1 rows", &|t| {
        t[0].block_rows = u64::MAX;
    })?;
    of("with a block of rows too many", &|t| {
        t[1].row_blocks.push(0.0);
    })?;
    of("with no block of rows", &|t| t[1].row_blocks.clear())?;
    of("with figures that are no numbers", &|t| {
        t[0].stored.mean_rel_mse = f64::NAN;
        t[0].row_blocks[0] = f32::NEG_INFINITY;
        t[0].clipped = u64::MAX;
    })?;
    // From the other side: the index changes, the statistics stay.
    add(
        "statistics of a tensor that is renamed",
        sample.index(|i| i.tensors[0].name = "maxi".to_owned()),
    )
}
