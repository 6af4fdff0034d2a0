//! Weights in device memory, more of them than the L2 cache holds.

use super::host::HostMatrix;
use super::lab::{Floor, Lab};
use smq_engine::Result;
use smq_engine::cuda::{BOOK_BYTES, DeviceBuffer, DeviceMatrix, Format, SLACK, book_bytes};

/// A matrix several times in device memory.
pub(super) struct Copies {
    pub matrices: Vec<DeviceMatrix>,
    _memory: DeviceBuffer,
}

impl Copies {
    /// As many copies of the weights as the cache's size asks for.
    pub(super) fn new(lab: &Lab<'_>, host: &HostMatrix) -> Result<Self> {
        let place = |bytes: usize| (bytes + SLACK).next_multiple_of(256);
        let (data, stream) = (
            host.data.len(),
            host.scales.as_ref().map_or(0, |s| s.stream.len()),
        );
        // A book is before the scales.
        let scales_at = place(data) + place(BOOK_BYTES);
        let step = scales_at + place(stream);
        let count = lab.copies_of(data + stream);
        let memory = lab.poisoned(count * step)?;
        let matrix = |i: usize| -> Result<DeviceMatrix> {
            let part = |at, bytes| memory.span().part(i * step + at, bytes);
            let format = match &host.scales {
                None => Format::Bf16,
                Some(s) => {
                    let (scales, format, group) = (part(scales_at, stream)?, s.format, s.group);
                    match s.levels {
                        None => Format::Int4 {
                            scales,
                            format,
                            group,
                        },
                        Some(levels) => Format::Lut4 {
                            scales,
                            format,
                            group,
                            levels,
                        },
                    }
                }
            };
            Ok(DeviceMatrix {
                rows: host.rows,
                cols: host.cols,
                data: part(0, data)?,
                format,
            })
        };
        let matrices = (0..count).map(matrix).collect::<Result<Vec<_>>>()?;
        memory.upload(lab.stream(), 0, &host.data)?;
        if let Some(s) = &host.scales {
            memory.upload(lab.stream(), scales_at, &s.stream)?;
            if let Some(book) = s.levels.and_then(book_bytes) {
                memory.upload(lab.stream(), scales_at - BOOK_BYTES, &book)?;
            }
        }
        let first = memory.span().part(0, step)?;
        for i in 1..count {
            // SAFETY: both are parts of the buffer, which do not overlap and nothing else uses.
            unsafe {
                memory
                    .span()
                    .part(i * step, step)?
                    .copy_within(lab.stream(), first)?
            };
        }
        lab.stream().synchronize()?;
        Ok(Self {
            matrices,
            _memory: memory,
        })
    }

    /// Reading one of them, each scale once.
    pub(super) fn floor(&self, lab: &mut Lab<'_>) -> Result<Floor> {
        let bytes = self.matrices[0].bytes();
        let places: Vec<u64> = self.matrices.iter().map(|m| m.data.ptr()).collect();
        Ok(Floor::Read(bytes, lab.read_floor(&places, bytes)?))
    }
}
