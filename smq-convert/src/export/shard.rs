//! Writes safetensors files, one buffer ahead of the disk.

use std::cmp::Reverse;
use std::fs::File;
use std::io::Write;
use std::path::Path;

use smq_format::SmqFile;

use super::ExportProgress;
use super::elements::{Content, Rounding};
use super::plan::{Output, damaged, not_exportable};
use crate::directory::{DirectoryError, Staging, header};
use crate::error::ConvertError;

/// Bytes made ahead of the disk; two such buffers are live. Rounded to whole rows, at least one.
const WAVE_BYTES: usize = 16 << 20;

/// Writes shards and keeps count.
pub(super) struct Writer<'a> {
    pub(super) file: &'a SmqFile,
    pub(super) staging: &'a Staging,
    /// Bytes of work in all, and done so far.
    pub(super) total_bytes: u64,
    pub(super) done_bytes: u64,
    /// Bytes of tensor data in all shards.
    pub(super) tensor_bytes: u64,
    pub(super) rounding: Rounding,
    pub(super) progress: ExportProgress<'a>,
}

impl Writer<'_> {
    /// Writes and syncs the shard `name`.
    pub(super) fn write(
        &mut self,
        name: &str,
        mut outputs: Vec<&Output>,
    ) -> Result<(), ConvertError> {
        let path = self.staging.path(name);
        let target = self.staging.target(name);
        // As the safetensors library: wide elements first, which aligns each tensor to its own.
        outputs.sort_by(|a, b| (Reverse(a.dtype), &a.name).cmp(&(Reverse(b.dtype), &b.name)));
        let infos = outputs
            .iter()
            .map(|o| (o.name.as_str(), o.dtype, o.shape.as_slice()));
        let header = header(infos).map_err(|source| DirectoryError::Header {
            path: target.clone(),
            source,
        })?;
        let io = |error| DirectoryError::write(&target, self.tensor_bytes)(error);
        let mut out = File::create_new(&path).map_err(io)?;
        out.write_all(&header).map_err(io)?;
        self.write_data(&mut out, &target, &outputs)?;
        let io = |error| DirectoryError::write(&target, self.tensor_bytes)(error);
        out.sync_all().map_err(io)?;
        Ok(())
    }

    /// Writes one buffer while the next is made.
    fn write_data(
        &mut self,
        out: &mut File,
        target: &Path,
        outputs: &[&Output],
    ) -> Result<(), ConvertError> {
        let (mut full, mut next) = (Vec::new(), Vec::new());
        for output in outputs {
            let content = &output.content;
            let (rows, row_bytes) = (content.rows(), content.row_bytes());
            if row_bytes == 0 {
                continue;
            }
            let wave_rows = (WAVE_BYTES / row_bytes).max(1);
            for first in (0..rows).step_by(wave_rows) {
                let wave = first..rows.min(first + wave_rows);
                let (written, made) = rayon::join(
                    || self.flush(out, target, &full),
                    || content.fill(wave, &mut next),
                );
                written?;
                let rounding = made.map_err(|defect| damaged(self.file, defect))?;
                if let (1.., Content::Rounded { view, to }) = (rounding.overflowed, content) {
                    let problem =
                        format!("has weights over {}'s largest; use --dtype f32", to.dtype());
                    return Err(not_exportable(self.file, view, problem));
                }
                self.rounding = self.rounding.merge(rounding);
                std::mem::swap(&mut full, &mut next);
                self.done_bytes += full.len() as u64;
                if !(self.progress)(self.done_bytes, self.total_bytes) {
                    return Err(ConvertError::Interrupted);
                }
            }
        }
        self.flush(out, target, &full)
    }

    fn flush(&self, out: &mut File, target: &Path, bytes: &[u8]) -> Result<(), ConvertError> {
        out.write_all(bytes)
            .map_err(DirectoryError::write(target, self.tensor_bytes))?;
        Ok(())
    }
}
