//! The 256-byte header.
//!
//! ```text
//!        0        8     10     12     16           24         32         40
//!        +--------+-----+------+------+------------+----------+----------+
//!        | magic  |major| minor| zero | file bytes | index at | index len| ...
//!        +--------+-----+------+------+------------+----------+----------+
//!       40                     72         80         88                 120
//!        +---------------------+----------+----------+-------------------+
//!        | index BLAKE3        | stats at | stats len| stats BLAKE3      | ...
//!        +---------------------+----------+----------+-------------------+
//!      120            128          136                  224           256
//!        +--------------+------------+-------------------+--------------+
//!        | incompatible | compatible | zero              | BLAKE3 0..224|
//!        +--------------+------------+-------------------+--------------+
//! ```

use crate::error::Defect;

/// Length of the header.
pub const HEADER_BYTES: usize = 256;
/// First bytes of every .smq file; like PNG's, they reveal a text-mode transfer.
pub const MAGIC: [u8; 8] = *b"\x89SMQ\r\n\x1a\n";
/// Version this library writes. A reader accepts any minor of its major.
pub const VERSION: (u16, u16) = (1, 0);
/// Incompatible-feature bits this library knows: none yet.
pub const KNOWN_INCOMPATIBLE: u64 = 0;

/// A run of bytes in the file and its BLAKE3.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Section {
    /// Bytes from the start of the file.
    pub offset: u64,
    /// Length of the section in bytes.
    pub length: u64,
    /// BLAKE3 of the bytes.
    pub hash: [u8; 32],
}

/// What the first 256 bytes of a file say, once they are checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Major and minor version.
    pub version: (u16, u16),
    /// Length of the whole file.
    pub file_bytes: u64,
    /// Where the index is, which every file has.
    pub index: Section,
    /// The error statistics; all zero where the file has none.
    pub statistics: Section,
    /// Feature bits a reader must know.
    pub incompatible: u64,
    /// Feature bits a reader may ignore.
    pub compatible: u64,
}

impl Header {
    /// The 256 bytes of this header.
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut out = [0; HEADER_BYTES];
        let mut put = |at: usize, bytes: &[u8]| out[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &MAGIC);
        put(8, &self.version.0.to_le_bytes());
        put(10, &self.version.1.to_le_bytes());
        put(16, &self.file_bytes.to_le_bytes());
        for (at, section) in [(24, &self.index), (72, &self.statistics)] {
            put(at, &section.offset.to_le_bytes());
            put(at + 8, &section.length.to_le_bytes());
            put(at + 16, &section.hash);
        }
        put(120, &self.incompatible.to_le_bytes());
        put(128, &self.compatible.to_le_bytes());
        let hash = blake3::hash(&out[..224]);
        out[224..].copy_from_slice(hash.as_bytes());
        out
    }

    /// Decodes and checks everything that needs no other byte of the file than its length.
    ///
    /// # Errors
    /// The first rule broken, in this order: magic, checksum, version, reserved bytes, features,
    /// length.
    pub fn decode(bytes: &[u8], actual_bytes: u64) -> Result<Self, Defect> {
        let Some(bytes) = bytes.first_chunk::<HEADER_BYTES>() else {
            return Err(Defect::ShorterThanHeader { actual_bytes });
        };
        if bytes[..8] != MAGIC {
            return Err(magic_defect(bytes));
        }
        if blake3::hash(&bytes[..224]).as_bytes() != &bytes[224..] {
            return Err(Defect::HeaderChecksum);
        }
        let u64_at = |at: usize| u64::from_le_bytes(array(bytes, at));
        let section = |at: usize| Section {
            offset: u64_at(at),
            length: u64_at(at + 8),
            hash: array(bytes, at + 16),
        };
        let header = Header {
            version: (
                u16::from_le_bytes(array(bytes, 8)),
                u16::from_le_bytes(array(bytes, 10)),
            ),
            file_bytes: u64_at(16),
            index: section(24),
            statistics: section(72),
            incompatible: u64_at(120),
            compatible: u64_at(128),
        };
        if header.version.0 != VERSION.0 {
            let (major, minor) = header.version;
            return Err(Defect::Version { major, minor });
        }
        if let Some(offset) = (12..16).chain(136..224).find(|&at| bytes[at] != 0) {
            return Err(Defect::Reserved { offset });
        }
        let unknown = header.incompatible & !KNOWN_INCOMPATIBLE;
        if unknown != 0 {
            return Err(Defect::IncompatibleFeature { bits: unknown });
        }
        if header.file_bytes != actual_bytes {
            return Err(Defect::FileLength {
                expected_bytes: header.file_bytes,
                actual_bytes,
            });
        }
        Ok(header)
    }
}

fn array<const N: usize>(bytes: &[u8; HEADER_BYTES], at: usize) -> [u8; N] {
    std::array::from_fn(|i| bytes[at + i])
}

fn magic_defect(bytes: &[u8; HEADER_BYTES]) -> Defect {
    // What CRLF translation, either way, or stripping of the high bit makes of the magic.
    let mangled: [&[u8]; 4] = [
        b"\x89SMQ\n\x1a\n",
        b"\x89SMQ\r\r\n",
        b"\x89SMQ\r\n\x1a\r\n",
        b"\x09SMQ\r\n\x1a\n",
    ];
    if mangled.iter().any(|m| bytes.starts_with(m)) {
        return Defect::TextMode;
    }
    let found: Vec<String> = bytes[..8].iter().map(|b| format!("{b:02x}")).collect();
    Defect::Magic {
        found: found.join(" "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> Header {
        Header {
            version: VERSION,
            file_bytes: 1000,
            index: Section {
                offset: 256,
                length: 744,
                hash: [7; 32],
            },
            statistics: Section::default(),
            incompatible: 0,
            compatible: 1 << 40,
        }
    }

    #[test]
    fn round_trip() {
        assert_eq!(Header::decode(&header().encode(), 1000), Ok(header()));
    }

    #[test]
    fn any_flipped_bit_is_found() {
        let good = header().encode();
        for bit in 0..HEADER_BYTES * 8 {
            let mut bad = good;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(Header::decode(&bad, 1000).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn text_mode_damage_is_named() {
        let mut bytes = header().encode().to_vec();
        bytes.remove(4);
        bytes.push(0);
        assert_eq!(Header::decode(&bytes, 1000), Err(Defect::TextMode));
    }
}
