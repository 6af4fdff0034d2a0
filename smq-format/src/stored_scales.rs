//! The scales of a quantized tensor as they are stored, decoded on demand.

use std::ops::Range;

use crate::bits::code_at;
use crate::error::Defect;
use crate::nf4;
use crate::scale::ScaleFormat;

/// The scale stream of an int4 or lut4 tensor.
#[derive(Debug, Clone, Copy)]
pub struct Scales<'a> {
    /// The blob: codes LSB-first, then the zero tail.
    pub stream: &'a [u8],
    /// Format of a code.
    pub format: ScaleFormat,
    /// Number of codes in the stream, one for each group.
    pub count: usize,
    pub(crate) tensor: &'a str,
}

impl<'a> Scales<'a> {
    /// The code of scale `i`, row-major.
    ///
    /// # Panics
    /// Where `i >= self.count`.
    #[inline]
    pub fn code(&self, i: usize) -> u32 {
        assert!(i < self.count, "scale {i} of {}", self.count);
        code_at(self.stream, self.format.width_bits(), i)
    }

    /// Decodes the scales of `range` into `out`, of the same length.
    ///
    /// # Errors
    /// The first invalid code.
    pub fn decode(&self, range: Range<usize>, out: &mut [f32]) -> Result<(), Defect> {
        for (i, out) in range.zip(out) {
            let code = self.code(i);
            *out = self.format.decode(code).ok_or_else(|| {
                let (tensor, group) = (self.tensor.to_owned(), i as u64);
                match self.format {
                    ScaleFormat::Mini(_) => Defect::ScaleCode {
                        tensor,
                        group,
                        code,
                    },
                    ScaleFormat::F16 | ScaleFormat::F32 => Defect::ScaleNotFinite { tensor, group },
                }
            })?;
        }
        Ok(())
    }

    /// Decodes every scale.
    ///
    /// # Errors
    /// The first invalid code.
    pub fn decode_all(&self) -> Result<Vec<f32>, Defect> {
        let mut out = vec![0.0; self.count];
        self.decode(0..self.count, &mut out)?;
        Ok(out)
    }

    /// Checks every code, the unused bits and the zero tail.
    pub(crate) fn check(&self) -> Result<(), Defect> {
        self.decode_all()?;
        let used_bits = self.count * self.format.width_bits() as usize;
        let (byte, bit) = (used_bits / 8, used_bits % 8);
        let unused = &self.stream[byte..];
        if unused.is_empty() || unused[0] >> bit != 0 || unused[1..].iter().any(|&b| b != 0) {
            return Err(Defect::ScalePadding {
                tensor: self.tensor.to_owned(),
            });
        }
        Ok(())
    }
}

/// The double-quantized absmax values of an NF4 tensor.
#[derive(Debug, Clone, Copy)]
pub struct Nf4Scales<'a> {
    /// One code a block, `[ceil(out * in / 64)]`.
    pub absmax: &'a [u8],
    /// Little-endian f32, one for 256 codes, `[ceil(blocks / 256)]`.
    pub nested_absmax: &'a [u8],
    /// What is added to each dequantized absmax: the mean that was taken off before.
    pub offset: f32,
    pub(crate) tensor: &'a str,
}

impl Nf4Scales<'_> {
    /// Nested absmax `i`.
    ///
    /// # Errors
    /// [`Defect::NestedAbsmaxNotFinite`].
    ///
    /// # Panics
    /// Where `i` is out of range.
    pub fn nested(&self, i: usize) -> Result<f32, Defect> {
        f32_at(self.nested_absmax, i).ok_or_else(|| Defect::NestedAbsmaxNotFinite {
            tensor: self.tensor.to_owned(),
            index: i as u64,
        })
    }

    /// Decodes the absmax of each block of `blocks` into `out`, of the same length.
    ///
    /// # Errors
    /// A nested absmax that is not finite.
    pub fn decode(&self, blocks: Range<usize>, out: &mut [f32]) -> Result<(), Defect> {
        let mut block = blocks.start;
        let mut rest = &mut out[..blocks.len()];
        while !rest.is_empty() {
            let nested_block = block / nf4::NESTED_BLOCK_CODES;
            let nested = self.nested(nested_block)?;
            let run = rest
                .len()
                .min((nested_block + 1) * nf4::NESTED_BLOCK_CODES - block);
            let (now, later) = rest.split_at_mut(run);
            for (out, &code) in now.iter_mut().zip(&self.absmax[block..block + run]) {
                *out = nf4::absmax(code, nested, self.offset);
            }
            block += run;
            rest = later;
        }
        Ok(())
    }

    /// Decodes the absmax of every block.
    ///
    /// # Errors
    /// A nested absmax that is not finite.
    pub fn decode_all(&self) -> Result<Vec<f32>, Defect> {
        let mut out = vec![0.0; self.absmax.len()];
        self.decode(0..out.len(), &mut out)?;
        Ok(out)
    }
}

/// The scales of an FP8 tensor: an f32 for each row.
#[derive(Debug, Clone, Copy)]
pub struct RowScales<'a> {
    /// The scales as little-endian f32, `[out]`.
    pub bytes: &'a [u8],
    pub(crate) tensor: &'a str,
}

impl RowScales<'_> {
    /// The scale of a row.
    ///
    /// # Errors
    /// [`Defect::ScaleNotFinite`].
    ///
    /// # Panics
    /// Where `row` is out of range.
    pub fn scale(&self, row: usize) -> Result<f32, Defect> {
        f32_at(self.bytes, row).ok_or_else(|| Defect::ScaleNotFinite {
            tensor: self.tensor.to_owned(),
            group: row as u64,
        })
    }

    /// Every scale, `[out]`.
    ///
    /// # Errors
    /// The first that is not finite.
    pub fn decode_all(&self) -> Result<Vec<f32>, Defect> {
        (0..self.bytes.len() / 4)
            .map(|row| self.scale(row))
            .collect()
    }
}

/// Element `i` of little-endian f32; `None` where it is not finite.
fn f32_at(bytes: &[u8], i: usize) -> Option<f32> {
    let v = f32::from_le_bytes(bytes.as_chunks::<4>().0[i]);
    v.is_finite().then_some(v)
}
