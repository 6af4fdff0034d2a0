//! Weights as NF4 or FP8.

use smq_convert::Method;
use smq_format::{Dtype, Scheme, fp8, nf4};

use super::host::HostMatrix;
use super::lab::Lab;
use super::products::Layer;
use smq_engine::cuda::{DeviceBuffer, DeviceMatrix, Format, SLACK};
use smq_engine::{Error, Result};

/// Normal weights as the quantizer stores them, here and in device memory, more often than the L2
/// cache holds.
pub(super) struct Coded {
    pub matrices: Vec<DeviceMatrix>,
    scheme: Scheme,
    cols: usize,
    blobs: Vec<Vec<u8>>,
    /// The last of the blobs.
    scales: Vec<f32>,
    _memory: Vec<Vec<DeviceBuffer>>,
}

impl Coded {
    pub(super) fn new(lab: &Lab<'_>, layer: &Layer, method: Method) -> Result<Self> {
        let (rows, cols) = (layer.rows, layer.cols);
        let source = HostMatrix::bf16(41, rows, cols).data;
        let quantized = method.quantize("weights", &source, Dtype::Bf16, (rows, cols));
        let quantized = quantized.map_err(|e| Error::Cuda(format!("{e:?}")))?;
        let (scheme, blobs) = (quantized.scheme, quantized.blobs);
        let count = lab.copies_of(blobs.iter().map(Vec::len).sum());
        let place = |blob: &Vec<u8>| {
            let buffer = lab.poisoned(blob.len() + SLACK)?;
            buffer.upload(lab.stream(), 0, blob)?;
            Ok(buffer)
        };
        let memory: Vec<Vec<DeviceBuffer>> = (0..count)
            .map(|_| blobs.iter().map(place).collect())
            .collect::<Result<_>>()?;
        let matrix = |memory: &Vec<DeviceBuffer>| -> Result<DeviceMatrix> {
            let blob = |i: usize| memory[i].span().part(0, blobs[i].len());
            Ok(DeviceMatrix {
                rows,
                cols,
                data: blob(0)?,
                format: match scheme {
                    Scheme::Nf4 { offset_bits } => Format::Nf4 {
                        absmax: blob(1)?,
                        nested_absmax: blob(2)?,
                        offset: f32::from_bits(offset_bits),
                    },
                    Scheme::Fp8 => Format::Fp8 { scales: blob(1)? },
                    Scheme::Raw(_) | Scheme::Int4 { .. } | Scheme::Lut4 { .. } => {
                        let name = scheme.name();
                        return Err(Error::Input(format!("{name} is not checked as codes")));
                    }
                },
            })
        };
        let bytes = blobs.last().map_or(&[][..], Vec::as_slice);
        let scales = bytes.as_chunks::<4>().0.iter();
        Ok(Self {
            matrices: memory.iter().map(matrix).collect::<Result<_>>()?,
            scheme,
            cols,
            scales: scales.map(|b| f32::from_le_bytes(*b)).collect(),
            blobs,
            _memory: memory,
        })
    }

    /// The weights of row `r`, dequantized.
    pub(super) fn row(&self, r: usize) -> Vec<f32> {
        let (cols, blobs) = (self.cols, &self.blobs);
        let Scheme::Nf4 { offset_bits } = self.scheme else {
            let codes = blobs[0][r * cols..(r + 1) * cols].iter();
            let value = |code: &u8| fp8::VALUES[usize::from(*code)] * self.scales[r];
            return codes.map(value).collect();
        };
        let first = r * cols;
        let absmax = |k: usize| {
            let nested = self.scales[k / nf4::NESTED_BLOCK_CODES];
            nf4::absmax(blobs[1][k], nested, f32::from_bits(offset_bits))
        };
        let of_blocks = first / nf4::BLOCK_ELEMS..nf4::blocks(first + cols);
        let absmax: Vec<f32> = of_blocks.map(absmax).collect();
        let mut row = vec![0.0; cols];
        nf4::dequantize(&blobs[0], &absmax, first, &mut row);
        row
    }
}
