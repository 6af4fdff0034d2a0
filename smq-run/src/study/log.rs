//! `raw/matrix.jsonl`, and `raw/online.jsonl` of the online half: appended to, a line at a time, by
//! one run at a time.

use std::collections::HashMap;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

use super::identity::Surroundings;
use super::record::{Body, Line};

/// The file, under the results directory.
pub(crate) const RAW: &str = "raw/matrix.jsonl";
/// Where the raw lines of the online half are, under the results directory.
pub(crate) const RAW_ONLINE: &str = "raw/online.jsonl";

/// Longest log, unpacked; the study's has some megabytes.
const MAX_BYTES: u64 = 1 << 30;

/// The lines so far, and the file open for more.
#[derive(Debug)]
pub(crate) struct Log {
    path: PathBuf,
    file: File,
    /// Body of each id: the last, which only an absent one is followed by.
    lines: HashMap<String, Body>,
}

impl Log {
    /// Opens the log of `out` that is called `name`, or begins it; a last line that a killed run
    /// left unfinished is cut off.
    ///
    /// # Errors
    /// Another run that writes to it, a line that is damaged, or one from another model, commit or
    /// contract unless `allow_mixed`.
    pub(crate) fn open(
        out: &Path,
        name: &str,
        here: &Surroundings,
        allow_mixed: bool,
    ) -> anyhow::Result<Self> {
        let path = out.join(name);
        let packed = packed(out, name);
        if packed.exists() && !path.exists() {
            bail!(
                "{}: is packed; unpack it to go on (gunzip)",
                packed.display()
            );
        }
        let context = || format!("{}: cannot open it", path.display());
        if let Some(dir) = path.parent() {
            std::fs::create_dir_all(dir).with_context(context)?;
        }
        let mut file = OpenOptions::new()
            .create(true)
            .read(true)
            .append(true)
            .open(&path)
            .with_context(context)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => bail!(
                "{}: another run writes to it; wait for it, or choose another --out",
                path.display()
            ),
            Err(TryLockError::Error(e)) => return Err(e).with_context(context),
        }
        let mut text = Vec::new();
        file.read_to_end(&mut text).with_context(context)?;
        let whole = text.iter().rposition(|b| *b == b'\n').map_or(0, |i| i + 1);
        let lines = parse(&path, &text[..whole])?;
        if let Some((line, difference)) = lines
            .iter()
            .find_map(|l| Some((l, here.difference(&l.environment)?)))
            .filter(|_| !allow_mixed)
        {
            let (key, here, there) = difference;
            bail!(
                "{}: {} was measured with {key} {there}, this is {here}; choose another --out, or \
                 pass --allow-mixed",
                path.display(),
                line.id
            );
        }
        // Only now: a file that is refused stays as it is.
        file.set_len(whole as u64).with_context(context)?;
        let lines = lines.into_iter().map(|l| (l.id, l.body)).collect();
        Ok(Self { path, file, lines })
    }

    /// Whether `id` is measured.
    #[must_use]
    pub(crate) fn has(&self, id: &str) -> bool {
        matches!(self.lines.get(id), Some(body) if !matches!(body, Body::Absent { .. }))
    }

    /// Adds a line; one that says again that something is absent, and why, is left out.
    ///
    /// # Errors
    /// If it cannot be written.
    pub(crate) fn append(&mut self, line: Line) -> anyhow::Result<()> {
        if matches!(line.body, Body::Absent { .. })
            && (self.has(&line.id) || self.lines.get(&line.id) == Some(&line.body))
        {
            return Ok(());
        }
        let mut json = serde_json::to_vec(&line)?;
        json.push(b'\n');
        let context = || format!("{}: cannot write to it", self.path.display());
        // In one piece, and on the disk before the cell counts as done.
        self.file.write_all(&json).with_context(context)?;
        self.file.sync_data().with_context(context)?;
        self.lines.insert(line.id, line.body);
        Ok(())
    }
}

impl Drop for Log {
    /// Lets go of the lock, which closing the file does not where a program that this process is
    /// just starting still has a copy of it.
    fn drop(&mut self) {
        let _ = self.file.unlock();
    }
}

/// A log packed by gzip: for keeping, and read by the report where the other is not there.
fn packed(out: &Path, name: &str) -> PathBuf {
    out.join(format!("{name}.gz"))
}

/// Whether `out` has that log, packed or not.
#[must_use]
pub(crate) fn exists(out: &Path, name: &str) -> bool {
    out.join(name).exists() || packed(out, name).exists()
}

/// The lines of a log of `out`, for a report.
///
/// # Errors
/// If there is none, or a line is damaged.
pub(crate) fn read(out: &Path, name: &str) -> anyhow::Result<Vec<Line>> {
    let (path, packed) = (out.join(name), packed(out, name));
    if packed.exists() && !path.exists() {
        let context = || format!("{}: cannot read it", packed.display());
        let file = File::open(&packed).with_context(context)?;
        let unpacked = flate2::read::MultiGzDecoder::new(file);
        let text = smq_format::read_at_most(unpacked, &packed, MAX_BYTES)?;
        return parse(&packed, &text);
    }
    let text = smq_format::read_bounded(&path, MAX_BYTES).with_context(|| {
        format!(
            "{}: cannot read it; `smq-run matrix --out {}` writes it",
            path.display(),
            out.display()
        )
    })?;
    let whole = text.iter().rposition(|b| *b == b'\n').map_or(0, |i| i + 1);
    parse(&path, &text[..whole])
}

fn parse(path: &Path, text: &[u8]) -> anyhow::Result<Vec<Line>> {
    let lines = text.split(|b| *b == b'\n').enumerate();
    lines
        .filter(|(_, line)| !line.is_empty())
        .map(|(i, line)| {
            serde_json::from_slice(line).with_context(|| {
                format!(
                    "{}: line {} is no record of this program",
                    path.display(),
                    i + 1
                )
            })
        })
        .collect()
}

#[cfg(test)]
mod tests;
