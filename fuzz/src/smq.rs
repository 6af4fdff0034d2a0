//! Mutates .smq files part by part and hashes again what guards each part.

use serde_json::Value;
use smq_format::header::{HEADER_BYTES, Header, Section};
use smq_format::index::{Blob, Index, align};
use smq_format::scale::{MiniFloat, ScaleFormat};
use smq_format::{Dtype, Levels, Scheme, hash};

use crate::json::{STORAGE, mutate_json};
use crate::{Mutate, Random};

/// Which blob hashes the index gets after a mutation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hashes {
    /// Those that it had: where only the parser is of interest.
    Stale,
    /// Fitting ones in half of the mutations.
    Half,
    /// Fitting ones in seven of eight mutations: where what does not verify is not looked at.
    Mostly,
}

/// A file taken apart.
struct Parts {
    header: Header,
    /// Contents of every blob, in index order.
    blobs: Vec<Vec<u8>>,
    index: Vec<u8>,
    statistics: Vec<u8>,
}

/// Mutates a .smq file of at most `limit` bytes; one that cannot be taken apart is mutated as
/// bytes.
pub fn mutate_smq(
    file: &[u8],
    limit: usize,
    random: &mut Random,
    hashes: Hashes,
    mutate: Mutate,
) -> Vec<u8> {
    let choice = random.below(16);
    let Some(mut parts) = Parts::take(file) else {
        let mut bytes = file.to_vec();
        mutate(&mut bytes, 64);
        checksum(&mut bytes);
        return bytes;
    };
    let fix = match hashes {
        Hashes::Stale => false,
        Hashes::Half => random.below(2) == 0,
        Hashes::Mostly => random.below(8) > 0,
    };
    let out = match choice {
        0 => {
            // The bytes of the file, with or without a checksum and a length that fit.
            let mut bytes = file.to_vec();
            mutate(&mut bytes, 64);
            if random.below(2) == 0 {
                let length = bytes.len() as u64;
                if let Some(field) = bytes.get_mut(16..24) {
                    field.copy_from_slice(&length.to_le_bytes());
                }
                checksum(&mut bytes);
            }
            bytes
        }
        1 | 2 => {
            let mut bytes = file.to_vec();
            let mut header = bytes[..224].to_vec();
            mutate(&mut header, 0);
            header.resize(224, 0);
            if random.below(4) > 0 {
                header[..8].copy_from_slice(&smq_format::header::MAGIC);
            }
            bytes[..224].copy_from_slice(&header);
            checksum(&mut bytes);
            bytes
        }
        3 | 4 => {
            mutate(&mut parts.index, 64);
            if random.below(2) == 0
                && let Ok(value) = serde_json::from_slice::<Value>(&parts.index)
            {
                parts.index = value.to_string().into_bytes();
            }
            parts.put()
        }
        5..=7 => {
            let Ok(mut value) = serde_json::from_slice::<Value>(&parts.index) else {
                return parts.put();
            };
            for _ in 0..1 + random.below(3) {
                mutate_json(&mut value, random, &STORAGE);
            }
            parts.index = value.to_string().into_bytes();
            parts.put()
        }
        8..=10 => {
            parts.reshape(random, fix);
            parts.put()
        }
        11 | 12 => {
            if parts.statistics.is_empty() {
                parts.statistics = vec![1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
            }
            // As version 1 or 2 in some of the mutations: what the other has is then refused.
            if random.below(16) == 0 {
                parts.statistics[0] = 1 + random.below(2) as u8;
            }
            mutate(&mut parts.statistics, 32);
            parts.put()
        }
        _ => {
            if !parts.blobs.is_empty() {
                let i = random.below(parts.blobs.len());
                let length = parts.blobs[i].len();
                mutate(&mut parts.blobs[i], 0);
                parts.blobs[i].resize(length, 0);
            }
            if fix {
                parts.rehash();
            }
            parts.put()
        }
    };
    if out.len() > limit {
        file.to_vec()
    } else {
        out
    }
}

impl Parts {
    /// `None` where the header is damaged or the sections are out of the file.
    fn take(file: &[u8]) -> Option<Self> {
        let header = Header::decode(file, file.len() as u64).ok()?;
        let section = |s: &Section| {
            let end = s.offset.checked_add(s.length)?;
            file.get(s.offset as usize..end as usize)
        };
        let index = section(&header.index)?.to_vec();
        let statistics = section(&header.statistics)?.to_vec();
        let blobs = match Index::decode(&index) {
            Ok(index) => ranges(&index)
                .map(|b| {
                    Some(
                        file.get(b.0 as usize..b.0.checked_add(b.1)? as usize)?
                            .to_vec(),
                    )
                })
                .collect::<Option<_>>()?,
            // Not an index any more: what is before it stays in one piece.
            Err(_) => vec![
                file.get(HEADER_BYTES..header.index.offset as usize)?
                    .to_vec(),
            ],
        };
        Some(Parts {
            header,
            blobs,
            index,
            statistics,
        })
    }

    /// The file, with lengths, offsets and hashes of header, index and statistics that fit.
    fn put(&self) -> Vec<u8> {
        let mut out = vec![0; HEADER_BYTES];
        let place = |out: &mut Vec<u8>, bytes: &[u8]| {
            out.resize(align(out.len() as u64) as usize, 0);
            out.extend(bytes);
            Section {
                offset: (out.len() - bytes.len()) as u64,
                length: bytes.len() as u64,
                hash: hash(bytes),
            }
        };
        for blob in &self.blobs {
            place(&mut out, blob);
        }
        let index = place(&mut out, &self.index);
        let statistics = if self.statistics.is_empty() {
            Section::default()
        } else {
            place(&mut out, &self.statistics)
        };
        let header = Header {
            file_bytes: out.len() as u64,
            index,
            statistics,
            ..self.header
        };
        out[..HEADER_BYTES].copy_from_slice(&header.encode());
        out
    }

    /// Gives one tensor another shape, scheme or parameters, and every blob its length and place.
    fn reshape(&mut self, random: &mut Random, fix: bool) {
        let Ok(mut index) = Index::decode(&self.index) else {
            return;
        };
        if index.tensors.is_empty() {
            return;
        }
        let i = random.below(index.tensors.len());
        if random.below(8) == 0 && index.tensors.len() < 12 {
            let mut twin = index.tensors[i].clone();
            twin.name = format!("{}{}", twin.name, index.tensors.len());
            let first: usize = index.files.len()
                + index.tensors[..=i]
                    .iter()
                    .map(|t| t.blobs.len())
                    .sum::<usize>();
            let copies = self.blobs[first - twin.blobs.len()..first].to_vec();
            self.blobs.splice(first..first, copies);
            index.tensors.insert(i + 1, twin);
        }
        let dims = [1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 31, 33, 64, 127, 128, 129];
        let tensor = &mut index.tensors[i];
        tensor.scheme = scheme(random);
        tensor.shape = match tensor.scheme {
            Scheme::Raw(_) => (0..random.below(4))
                .map(|_| random.pick(&[0, 1, 2, 3, 5, 16]))
                .collect(),
            _ => vec![random.pick(&dims[..8]), random.pick(&dims)],
        };
        let Ok(lengths) = tensor.scheme.blob_lengths(&tensor.name, &tensor.shape) else {
            return;
        };
        let old = tensor.blobs.len();
        tensor.blobs = lengths
            .iter()
            .map(|&(role, length)| Blob {
                blake3: [0; 32],
                length,
                offset: 0,
                role,
            })
            .collect();
        let first = index.files.len()
            + index.tensors[..i]
                .iter()
                .map(|t| t.blobs.len())
                .sum::<usize>();
        let mut pool: Vec<u8> = self.blobs[first..first + old].concat();
        pool.push(0x21);
        let bytes = lengths.iter().map(|&(_, length)| {
            let filled = pool.iter().copied().cycle().skip(random.below(pool.len()));
            filled.take(length as usize).collect()
        });
        let bytes: Vec<Vec<u8>> = bytes.collect();
        self.blobs.splice(first..first + old, bytes);
        place(&mut index);
        if let Ok(text) = index.encode() {
            self.index = text;
        }
        if fix {
            self.rehash();
        }
    }

    /// Fits the blobs' hashes in the index.
    fn rehash(&mut self) {
        let Ok(mut index) = Index::decode(&self.index) else {
            return;
        };
        let mut blobs = self.blobs.iter();
        for file in &mut index.files {
            let Some(bytes) = blobs.next() else { return };
            file.blake3 = hash(bytes);
        }
        for blob in index.tensors.iter_mut().flat_map(|t| &mut t.blobs) {
            let Some(bytes) = blobs.next() else { return };
            blob.blake3 = hash(bytes);
        }
        if let Ok(text) = index.encode() {
            self.index = text;
        }
    }
}

fn scheme(random: &mut Random) -> Scheme {
    let group = random.pick(&[1, 2, 3, 5, 8, 31, 32, 64, 127, 128, 1 << 20]);
    let scales = match random.below(8) {
        6 => {
            let offset = random.pick(&[0, 1, 0x3d80_0000, 0x3f80_0000, 0x7f7f_ffff]);
            return Scheme::Nf4 {
                offset_bits: offset,
            };
        }
        7 => return Scheme::Fp8,
        0 => return Scheme::Raw(random.pick(&[Dtype::Bf16, Dtype::F16, Dtype::F32])),
        1 => ScaleFormat::F16,
        2 => ScaleFormat::F32,
        _ => {
            let (e, m) = (2 + random.below(7) as u32, random.below(11) as u32);
            let range = MiniFloat::bias_range(e);
            let any = range.start() + random.below(254) as i16;
            let bias = random.pick(&[*range.start(), *range.end(), any]);
            match MiniFloat::new(e, m, bias) {
                Some(mini) => ScaleFormat::Mini(mini),
                None => ScaleFormat::F32,
            }
        }
    };
    if random.below(3) > 0 {
        return Scheme::Int4 { group, scales };
    }
    // Steps that fit: the levels stay in a byte.
    let mut level = i8::MIN + random.below(16) as i8;
    let any = std::array::from_fn(|_| {
        level = level.saturating_add(1 + random.below(14) as i8);
        level
    });
    let levels = [
        Levels::int4(),
        Levels::nf4(),
        Levels::new(any).unwrap_or(Levels::nf4()),
    ];
    Scheme::Lut4 {
        group,
        scales,
        levels: random.pick(&levels),
    }
}

fn ranges(index: &Index) -> impl Iterator<Item = (u64, u64)> {
    let files = index.files.iter().map(|f| (f.offset, f.length));
    let blobs = index.tensors.iter().flat_map(|t| &t.blobs);
    files.chain(blobs.map(|b| (b.offset, b.length)))
}

/// Gives every blob its place.
fn place(index: &mut Index) {
    let mut end = HEADER_BYTES as u64;
    let files = index.files.iter_mut().map(|f| (&mut f.offset, f.length));
    let blobs = index.tensors.iter_mut().flat_map(|t| &mut t.blobs);
    for (offset, length) in files.chain(blobs.map(|b| (&mut b.offset, b.length))) {
        *offset = align(end);
        end = *offset + length;
    }
}

fn checksum(bytes: &mut [u8]) {
    if bytes.len() >= HEADER_BYTES {
        let sum = hash(&bytes[..224]);
        bytes[224..HEADER_BYTES].copy_from_slice(&sum);
    }
}
