//! Opens a file: maps it, checks everything but the blobs' contents once, then hands out views.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use rayon::prelude::*;

use crate::error::{Defect, Error};
use crate::header::{HEADER_BYTES, Header, Section};
use crate::index::{Index, MAX_INDEX_BYTES, align};
use crate::map::{MappedFile, map_file};
use crate::statistics::{MAX_STATISTICS_BYTES, Statistics};
use crate::view::TensorView;

/// An open, memory-mapped .smq file.
///
/// The map is only as stable as the file: see `spec/format.md`, "Files that change". The writer
/// never changes a file in place, so replacing one leaves open maps on the old bytes.
#[derive(Debug)]
pub struct SmqFile {
    path: PathBuf,
    map: MappedFile,
    header: Header,
    index: Index,
    by_name: HashMap<String, usize>,
}

impl SmqFile {
    /// Maps `path` and checks the header, the index and its hash, the layout and the padding.
    ///
    /// Reads no blob: those are checked by [`SmqFile::verify`], and scale codes whenever decoded.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::NotAFile`], or [`Error::Format`] with the first [`Defect`].
    pub fn open(path: &Path) -> Result<Self, Error> {
        let map = map_file(path)?;
        let (header, index) = parse(&map).map_err(Error::format(path))?;
        let names = index.tensors.iter().enumerate();
        let by_name = names.map(|(i, t)| (t.name.clone(), i)).collect();
        Ok(SmqFile {
            path: path.to_path_buf(),
            map,
            header,
            index,
            by_name,
        })
    }

    /// The path given to [`SmqFile::open`].
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The header, which was checked when the file was opened.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The index, which was checked against the header and the length of the file.
    pub fn index(&self) -> &Index {
        &self.index
    }

    /// The whole file's bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.map
    }

    /// A tensor by name.
    pub fn tensor(&self, name: &str) -> Option<TensorView<'_>> {
        self.by_name.get(name).map(|&i| self.view(i))
    }

    /// Every tensor, in index order.
    pub fn tensors(&self) -> impl ExactSizeIterator<Item = TensorView<'_>> {
        (0..self.index.tensors.len()).map(|i| self.view(i))
    }

    /// Contents of an embedded file.
    pub fn embedded(&self, name: &str) -> Option<&[u8]> {
        let file = self.index.files.iter().find(|f| f.name == name)?;
        Some(self.range(file.offset, file.length))
    }

    /// The error statistics; `None` where the file carries none.
    ///
    /// # Errors
    /// A damaged section, or one that does not fit the index ([`Statistics::check`]). The weights
    /// are not affected.
    pub fn statistics(&self) -> Result<Option<Statistics>, Error> {
        let section = &self.header.statistics;
        if section.length == 0 {
            return Ok(None);
        }
        let bytes = self.range(section.offset, section.length);
        check_hash("statistics", bytes, section)
            .and_then(|()| Statistics::decode(bytes))
            .and_then(|statistics| statistics.check(&self.index).map(|()| Some(statistics)))
            .map_err(Error::format(&self.path))
    }

    /// Recomputes every hash and checks every scale code, unused bit and statistics record;
    /// `progress` gets bytes as they are done.
    ///
    /// Returns all that is wrong, in file order; an empty list means that the mapped bytes were
    /// what was written while this read them. It cannot speak for a later change in place
    /// (`spec/format.md`, "Files that change").
    pub fn verify(&self, progress: impl Fn(u64) + Sync) -> Vec<Defect> {
        let files = self.index.files.iter().map(|f| {
            let owner = format!("file {:?}", f.name);
            (owner, f.offset, f.length, f.blake3)
        });
        let blobs = self.index.tensors.iter().flat_map(|t| {
            t.blobs.iter().map(|b| {
                let owner = format!("tensor {:?} {}", t.name, b.role.name());
                (owner, b.offset, b.length, b.blake3)
            })
        });
        let mut defects = Vec::new();
        for (owner, offset, length, expected) in files.chain(blobs) {
            if hash(self.range(offset, length)) != expected {
                defects.push(Defect::BlobHash { owner });
            }
            progress(length);
        }
        let codes: Vec<_> = (0..self.index.tensors.len())
            .into_par_iter()
            .filter_map(|i| self.view(i).check().err())
            .collect();
        defects.extend(codes);
        if let Err(Error::Format { defect, .. }) = self.statistics() {
            defects.push(defect);
        }
        defects
    }

    /// Whether the file is what it was when it was opened, and, where that is in doubt, verifies it
    /// again.
    ///
    /// # Errors
    /// [`Error::Changed`].
    pub fn check_unchanged(&self) -> Result<(), Error> {
        let spares = |defect: &Defect| defect.spares_the_weights();
        self.map
            .check_unchanged(|_| self.verify(|_| ()).iter().all(spares))
    }

    fn view(&self, i: usize) -> TensorView<'_> {
        let entry = &self.index.tensors[i];
        let blobs: Vec<_> = entry
            .blobs
            .iter()
            .map(|b| self.range(b.offset, b.length))
            .collect();
        TensorView::new(entry, &blobs)
    }

    /// Bytes of a blob or section, whose bounds were checked at open.
    fn range(&self, offset: u64, length: u64) -> &[u8] {
        &self.map[offset as usize..(offset + length) as usize]
    }
}

/// BLAKE3 of bytes, on all threads where that pays.
pub fn hash(bytes: &[u8]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    if bytes.len() >= 256 << 10 {
        hasher.update_rayon(bytes);
    } else {
        hasher.update(bytes);
    }
    *hasher.finalize().as_bytes()
}

fn parse(bytes: &[u8]) -> Result<(Header, Index), Defect> {
    let file_bytes = bytes.len() as u64;
    let header = Header::decode(bytes, file_bytes)?;
    let index_bytes = section(bytes, "index", &header.index, MAX_INDEX_BYTES)?;
    check_hash("index", index_bytes, &header.index)?;
    let index = Index::decode(index_bytes)?;
    let mut padding = index.check_layout(header.index.offset)?;

    let mut end = header.index.offset + header.index.length;
    let statistics = &header.statistics;
    if statistics.length > 0 {
        section(bytes, "statistics", statistics, MAX_STATISTICS_BYTES)?;
        if statistics.offset != align(end) {
            return Err(Defect::SectionOffset {
                section: "statistics",
                offset: statistics.offset,
                expected: align(end),
            });
        }
        padding.push(end..statistics.offset);
        end = statistics.offset + statistics.length;
    } else if *statistics != Section::default() {
        return Err(Defect::AbsentSection {
            section: "statistics",
        });
    }
    if end != file_bytes {
        return Err(Defect::TrailingBytes {
            expected: end,
            actual: file_bytes,
        });
    }
    for range in padding {
        let run = &bytes[range.start as usize..range.end as usize];
        if let Some(i) = run.iter().position(|&b| b != 0) {
            return Err(Defect::Padding {
                offset: range.start + i as u64,
            });
        }
    }
    Ok((header, index))
}

fn section<'a>(
    bytes: &'a [u8],
    name: &'static str,
    section: &Section,
    limit: u64,
) -> Result<&'a [u8], Defect> {
    let (offset, length) = (section.offset, section.length);
    let file_bytes = bytes.len() as u64;
    if length > limit {
        return Err(Defect::SectionTooLarge {
            section: name,
            length,
            limit,
        });
    }
    match offset.checked_add(length) {
        Some(end) if end <= file_bytes && offset >= HEADER_BYTES as u64 => {
            Ok(&bytes[offset as usize..end as usize])
        }
        _ => Err(Defect::SectionBounds {
            section: name,
            offset,
            length,
            file_bytes,
        }),
    }
}

fn check_hash(name: &'static str, bytes: &[u8], section: &Section) -> Result<(), Defect> {
    if hash(bytes) == section.hash {
        Ok(())
    } else {
        Err(Defect::SectionHash { section: name })
    }
}
