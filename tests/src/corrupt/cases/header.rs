//! Files that are wrong as a whole, and headers.

use std::error::Error;

use smq_format::header::{HEADER_BYTES, Section};

use super::{Add, Made, Sample, replace_all};

pub(super) fn whole_file(sample: &Sample, add: Add) -> Result<(), Box<dyn Error>> {
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

pub(super) fn header(sample: &Sample, add: Add) -> Result<(), Box<dyn Error>> {
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
    add("index end over 2^64", put(24, u64::MAX - 255))?;
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
