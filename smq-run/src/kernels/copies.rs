//! Weights in device memory, more of them than the L2 cache holds.

use super::host::HostMatrix;
use super::lab::{Floor, Lab};
use smq_engine::Result;
use smq_engine::cuda::{DeviceBuffer, DeviceMatrix, Format, SLACK};

/// A matrix several times in device memory.
pub(super) struct Copies {
    pub matrices: Vec<DeviceMatrix>,
    _memory: DeviceBuffer,
}

impl Copies {
    /// As often as the cache asks for.
    pub(super) fn new(lab: &Lab<'_>, host: &HostMatrix) -> Result<Self> {
        let place = |bytes: usize| (bytes + SLACK).next_multiple_of(256);
        let (data, stream) = (
            host.data.len(),
            host.scales.as_ref().map_or(0, |s| s.stream.len()),
        );
        let step = place(data) + place(stream);
        let count = lab.copies_of(data + stream);
        let memory = lab.poisoned(count * step)?;
        let matrix = |i: usize| -> Result<DeviceMatrix> {
            let part = |at, bytes| memory.span().part(i * step + at, bytes);
            let format = match &host.scales {
                None => Format::Bf16,
                Some(s) => Format::Int4 {
                    scales: part(place(data), stream)?,
                    format: s.format,
                    group: s.group,
                },
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
            memory.upload(lab.stream(), place(data), &s.stream)?;
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
