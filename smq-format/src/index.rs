//! The index: every embedded file and tensor, its scheme and where its blobs are.

use std::collections::{BTreeMap, HashSet};

use serde::{Deserialize, Serialize};

use crate::error::Defect;
use crate::header::HEADER_BYTES;
use crate::json::canonical;
use crate::parameters::Parameters;
use crate::scheme::{Dtype, Role, Scheme};

/// Every blob, and the index, starts at a multiple of this.
pub const ALIGN_BYTES: u64 = 256;
/// Largest index a reader accepts.
pub const MAX_INDEX_BYTES: u64 = 64 << 20;
/// Most dimensions of a tensor.
pub const MAX_DIMS: usize = 8;
/// Longest tensor or file name.
pub const MAX_NAME_BYTES: usize = 512;

/// The contents of a file.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Index {
    /// Embedded files (config.json, tokenizer.json, ...), whose blobs come first.
    pub files: Vec<FileEntry>,
    /// Who made the file, how, and from what.
    pub provenance: Provenance,
    /// Tensors, in the order of their blobs.
    pub tensors: Vec<TensorEntry>,
}

/// A file of the checkpoint, such as its tokenizer, that the .smq file holds as it was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileEntry {
    /// BLAKE3 of the contents.
    #[serde(with = "hex")]
    pub blake3: [u8; 32],
    /// Length of the contents in bytes.
    pub length: u64,
    /// Plain file name, or one behind the name of one directory and a slash.
    pub name: String,
    /// Bytes from the start of the .smq.
    pub offset: u64,
}

/// Who made the file, how, and from what.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Provenance {
    /// The command's parameters that decide the bytes.
    pub parameters: BTreeMap<String, String>,
    /// Name and version of the program.
    pub producer: String,
    /// The files of the checkpoint that the tensors were made from.
    pub sources: Vec<SourceFile>,
}

/// A file that the tensors were made from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SourceFile {
    /// BLAKE3 of the file.
    #[serde(with = "hex")]
    pub blake3: [u8; 32],
    /// Length of the file in bytes.
    pub length: u64,
    /// Plain file name, without a directory.
    pub name: String,
}

/// What the index says of a tensor: its name, shape and scheme, and where its bytes are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorEntry {
    /// Name in the checkpoint.
    pub name: String,
    /// Row-major shape; a linear layer's weight is `[out, in]`.
    pub shape: Vec<usize>,
    /// Element type in the checkpoint.
    pub source_dtype: Dtype,
    /// How it is stored.
    pub scheme: Scheme,
    /// The tensor's blobs, in the order of [`Scheme::blob_lengths`].
    pub blobs: Vec<Blob>,
}

impl TensorEntry {
    /// Number of elements, which is the product of the shape.
    pub fn elems(&self) -> usize {
        self.shape.iter().product()
    }

    /// Bytes of its blobs, without padding.
    pub fn stored_bytes(&self) -> u64 {
        self.blobs.iter().map(|b| b.length).sum()
    }

    /// Bytes it had in the checkpoint.
    pub fn source_bytes(&self) -> u64 {
        (self.elems() * self.source_dtype.bytes()) as u64
    }
}

/// A run of a tensor's bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Blob {
    /// BLAKE3 of the bytes.
    #[serde(with = "hex")]
    pub blake3: [u8; 32],
    /// Length of the blob in bytes, without the padding behind it.
    pub length: u64,
    /// Bytes from the start of the file.
    pub offset: u64,
    /// What the blob holds of its tensor, such as codes or scales.
    pub role: Role,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct WireIndex {
    files: Vec<FileEntry>,
    provenance: Provenance,
    tensors: Vec<WireTensor>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct WireTensor {
    blobs: Vec<Blob>,
    name: String,
    parameters: Parameters,
    scheme: String,
    shape: Vec<usize>,
    source_dtype: Dtype,
}

impl Index {
    /// The index as canonical JSON, the only form that a reader accepts.
    pub fn encode(&self) -> Result<Vec<u8>, Defect> {
        let tensors = self.tensors.iter().map(|t| WireTensor {
            blobs: t.blobs.clone(),
            name: t.name.clone(),
            parameters: t.scheme.to_wire(),
            scheme: t.scheme.name().to_owned(),
            shape: t.shape.clone(),
            source_dtype: t.source_dtype,
        });
        let wire = WireIndex {
            files: self.files.clone(),
            provenance: self.provenance.clone(),
            tensors: tensors.collect(),
        };
        let value = serde_json::to_value(wire).map_err(json_defect)?;
        Ok(canonical(&value).into_bytes())
    }

    /// Parses and checks an index on its own; [`Index::check_layout`] checks it against the file.
    ///
    /// # Errors
    /// The first rule broken: JSON, known keys and types, names, schemes and parameters, blob roles
    /// and lengths, and last that the bytes are the canonical ones. A newer `minor` version may add
    /// keys, which no 1.0 file has; until one is defined, unknown keys are refused.
    pub fn decode(bytes: &[u8]) -> Result<Self, Defect> {
        let wire: WireIndex = serde_json::from_slice(bytes).map_err(json_defect)?;
        let tensors = wire.tensors.into_iter().map(|t| {
            let scheme = Scheme::from_wire(&t.name, &t.scheme, &t.parameters)?;
            Ok(TensorEntry {
                name: t.name,
                shape: t.shape,
                source_dtype: t.source_dtype,
                scheme,
                blobs: t.blobs,
            })
        });
        let index = Index {
            files: wire.files,
            provenance: wire.provenance,
            tensors: tensors.collect::<Result<_, _>>()?,
        };
        index.check()?;
        let again = index.encode()?;
        if again != bytes {
            let same = again.iter().zip(bytes).take_while(|(a, b)| a == b);
            return Err(Defect::IndexNotCanonical {
                offset: same.count(),
            });
        }
        Ok(index)
    }

    /// Names, shapes, schemes and blob lengths; what can be checked without offsets.
    pub(crate) fn check(&self) -> Result<(), Defect> {
        let mut seen = HashSet::new();
        for file in &self.files {
            check_embedded_name(&file.name)?;
            if !seen.insert(file.name.as_str()) {
                return Err(duplicate("file", &file.name));
            }
        }
        for source in &self.provenance.sources {
            check_source_name(&source.name)?;
        }
        seen.clear();
        for tensor in &self.tensors {
            check_tensor(tensor)?;
            if !seen.insert(tensor.name.as_str()) {
                return Err(duplicate("tensor", &tensor.name));
            }
        }
        Ok(())
    }

    /// Checks that the blobs follow the header in index order, aligned, without gaps, within
    /// `index_offset`, where the index must start; returns the padding ranges, which must be zero.
    ///
    /// # Errors
    /// The first blob out of place.
    pub fn check_layout(&self, index_offset: u64) -> Result<Vec<std::ops::Range<u64>>, Defect> {
        let mut end = HEADER_BYTES as u64;
        let mut padding = Vec::new();
        for (owner, offset, length) in self.blobs() {
            let expected = align(end);
            if offset != expected {
                return Err(Defect::BlobOffset {
                    owner: owner(),
                    actual: offset,
                    expected,
                });
            }
            let blob_end = offset.checked_add(length).filter(|&e| e <= index_offset);
            let Some(blob_end) = blob_end else {
                return Err(Defect::BlobBounds {
                    owner: owner(),
                    offset,
                    length,
                    limit: index_offset,
                });
            };
            padding.push(end..offset);
            end = blob_end;
        }
        if index_offset != align(end) {
            return Err(Defect::SectionOffset {
                section: "index",
                offset: index_offset,
                expected: align(end),
            });
        }
        padding.push(end..index_offset);
        Ok(padding)
    }

    /// Owner (for messages), offset and length of every blob, in index order.
    pub(crate) fn blobs(&self) -> impl Iterator<Item = (impl Fn() -> String + '_, u64, u64)> + '_ {
        enum Owner<'a> {
            File(&'a str),
            Tensor(&'a str, Role),
        }
        let files = self
            .files
            .iter()
            .map(|f| (Owner::File(&f.name), f.offset, f.length));
        let tensors = self.tensors.iter().flat_map(|t| {
            t.blobs
                .iter()
                .map(move |b| (Owner::Tensor(&t.name, b.role), b.offset, b.length))
        });
        files.chain(tensors).map(|(owner, offset, length)| {
            let describe = move || match owner {
                Owner::File(name) => format!("file {name:?}"),
                Owner::Tensor(name, role) => format!("tensor {name:?} {}", role.name()),
            };
            (describe, offset, length)
        })
    }
}

/// The next multiple of [`ALIGN_BYTES`] (saturating: a huge offset fails the bounds check that
/// follows).
pub fn align(offset: u64) -> u64 {
    offset
        .checked_next_multiple_of(ALIGN_BYTES)
        .unwrap_or(u64::MAX)
}

fn check_tensor(tensor: &TensorEntry) -> Result<(), Defect> {
    check_name("tensor", &tensor.name)?;
    if tensor.shape.len() > MAX_DIMS {
        return Err(Defect::Dimensions {
            tensor: tensor.name.clone(),
            dims: tensor.shape.len(),
            limit: MAX_DIMS,
        });
    }
    let expected = tensor.scheme.blob_lengths(&tensor.name, &tensor.shape)?;
    let roles = |roles: Vec<Role>| {
        let names: Vec<_> = roles.into_iter().map(Role::name).collect();
        format!("[{}]", names.join(", "))
    };
    if !expected
        .iter()
        .map(|e| e.0)
        .eq(tensor.blobs.iter().map(|b| b.role))
    {
        return Err(Defect::BlobRoles {
            tensor: tensor.name.clone(),
            scheme: tensor.scheme.name(),
            found: roles(tensor.blobs.iter().map(|b| b.role).collect()),
            expected: roles(expected.iter().map(|e| e.0).collect()),
        });
    }
    for (blob, (role, expected)) in tensor.blobs.iter().zip(expected) {
        if blob.length != expected {
            return Err(Defect::BlobLength {
                owner: format!("tensor {:?} {}", tensor.name, role.name()),
                actual: blob.length,
                expected,
            });
        }
    }
    Ok(())
}

fn check_name(what: &'static str, name: &str) -> Result<(), Defect> {
    let rule = if name.is_empty() {
        "it is empty"
    } else if name.len() > MAX_NAME_BYTES {
        "it is longer than 512 bytes"
    } else if name.chars().any(char::is_control) {
        "it has a control character"
    } else {
        return Ok(());
    };
    let name = name.chars().take(64).collect();
    Err(Defect::Name { what, name, rule })
}

/// A name that is safe to extract into a directory, of any system.
fn check_embedded_name(name: &str) -> Result<(), Defect> {
    check_name("file", name)?;
    let bad_part =
        |part: &str| part.is_empty() || part.starts_with('.') || part.ends_with(['.', ' ']);
    let rule = if name.contains(['\\', ':']) {
        "it has a backslash or a colon"
    } else if name.split('/').count() > 2 {
        "it has more than one slash"
    } else if name.split('/').any(bad_part) {
        "a part of it is empty, begins with a dot, or ends in a dot or a space"
    } else {
        return Ok(());
    };
    Err(Defect::Name {
        what: "file",
        name: name.to_owned(),
        rule,
    })
}

fn check_source_name(name: &str) -> Result<(), Defect> {
    check_name("source file", name)?;
    if name == "." || name == ".." || name.contains(['/', '\\']) {
        return Err(Defect::Name {
            what: "source file",
            name: name.to_owned(),
            rule: "it is a path, not a plain file name",
        });
    }
    Ok(())
}

fn duplicate(what: &'static str, name: &str) -> Defect {
    Defect::Duplicate {
        what,
        name: name.to_owned(),
    }
}

fn json_defect(error: serde_json::Error) -> Defect {
    Defect::IndexJson {
        reason: error.to_string(),
    }
}

/// Hashes are 64 lower-case hex digits in the index.
mod hex {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(
        hash: &[u8; 32],
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(blake3::Hash::from_bytes(*hash).to_hex().as_str())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<[u8; 32], D::Error> {
        let digits = String::deserialize(deserializer)?;
        let lower = digits
            .bytes()
            .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        match blake3::Hash::from_hex(&digits) {
            Ok(hash) if lower => Ok(*hash.as_bytes()),
            _ => Err(D::Error::custom("blake3 is not 64 lower-case hex digits")),
        }
    }
}
