//! A valid file cut off at every length, and with every byte changed: never a panic, never
//! unnoticed.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test file

use std::fs::OpenOptions;
use std::io::{Seek, SeekFrom, Write};

use smq_format::{Defect, SmqFile};
use smq_tests::corrupt::Sample;
use tempfile::TempDir;

/// What a reader would do next with a file that opens although it is damaged: none of it may panic.
fn use_everything(file: &SmqFile) {
    for entry in &file.index().files {
        let _ = file.embedded(&entry.name);
    }
    for tensor in file.tensors() {
        let _ = tensor.dequantize();
    }
    let _ = file.statistics();
}

#[test]
fn every_length_is_refused() {
    let dir = TempDir::new().unwrap();
    let sample = Sample::write(dir.path()).unwrap();
    let path = dir.path().join("sample.smq");
    let file = OpenOptions::new().write(true).open(&path).unwrap();
    let whole = sample.bytes.len() as u64;
    assert!(SmqFile::open(&path).unwrap().verify(|_| ()).is_empty());
    for length in (0..whole).rev() {
        file.set_len(length).unwrap();
        let error = SmqFile::open(&path).unwrap_err();
        let expected = match length {
            0..256 => Defect::ShorterThanHeader {
                actual_bytes: length,
            },
            _ => Defect::FileLength {
                expected_bytes: whole,
                actual_bytes: length,
            },
        };
        assert_eq!(error.defect(), Some(&expected), "cut at {length}");
    }
    println!("{whole} lengths");
}

/// As a cut, but the header was made to fit: what is inside must give it away.
#[test]
fn every_length_with_a_header_that_fits_is_refused() {
    let dir = TempDir::new().unwrap();
    let sample = Sample::write(dir.path()).unwrap();
    let path = dir.path().join("cut.smq");
    for length in 256..sample.bytes.len() {
        let mut header = sample.header;
        header.file_bytes = length as u64;
        let mut bytes = sample.bytes[..length].to_vec();
        bytes[..256].copy_from_slice(&header.encode());
        std::fs::write(&path, bytes).unwrap();
        let error = SmqFile::open(&path).unwrap_err();
        let defect = error.defect().unwrap();
        assert!(
            matches!(defect, Defect::SectionBounds { .. }),
            "cut at {length}: {defect}"
        );
    }
}

#[test]
fn every_changed_byte_is_noticed() {
    let dir = TempDir::new().unwrap();
    let sample = Sample::write(dir.path()).unwrap();
    let path = dir.path().join("sample.smq");
    let mut file = OpenOptions::new().write(true).open(&path).unwrap();
    let mut put = |at: usize, byte: u8| {
        file.seek(SeekFrom::Start(at as u64)).unwrap();
        file.write_all(&[byte]).unwrap();
    };
    let (mut at_open, mut by_verify) = (0, 0);
    for (at, &good) in sample.bytes.iter().enumerate() {
        for mask in [0x01, 0x80, 0xff] {
            put(at, good ^ mask);
            match SmqFile::open(&path) {
                Err(error) => {
                    assert!(error.defect().is_some(), "byte {at} ^ {mask:#x}: {error}");
                    at_open += 1;
                }
                Ok(opened) => {
                    let defects = opened.verify(|_| ());
                    assert!(!defects.is_empty(), "byte {at} ^ {mask:#x} goes unnoticed");
                    use_everything(&opened);
                    by_verify += 1;
                }
            }
        }
        put(at, good);
    }
    assert!(SmqFile::open(&path).unwrap().verify(|_| ()).is_empty());
    assert_eq!(at_open + by_verify, 3 * sample.bytes.len());
    // Only blobs and statistics are left to verify.
    let entries = sample.index.files.iter().map(|f| f.length);
    let blobs = sample.index.tensors.iter().map(|t| t.stored_bytes());
    let left = entries.chain(blobs).sum::<u64>() + sample.header.statistics.length;
    assert_eq!(by_verify as u64, 3 * left);
    println!("{at_open} refused at open, {by_verify} found by verify");
}
