//! A model's weights on the GPU, as the file has them.

mod layer;
mod values;

use std::borrow::Cow;

use smq_format::nf4::BLOCK_ELEMS;
use smq_format::scale::ScaleFormat;
use smq_format::{Levels, Scales, TensorData};

use super::arena::Arena;
use super::book::{BOOK_BYTES, book_bytes};
use super::contract::ScaleCode;
use super::device::Gpu;
use super::limits;
use super::memory::Span;
use super::upload::{Piece, Staging, upload};
use crate::error::{Error, Result};
use crate::linear::{check_fp8, load_vector};
use crate::model::load_norm;
use crate::report::LoadReport;
pub(super) use layer::{DeviceBiases, DeviceLayer, DeviceNorms};
use smq_model::{LayerNames, LayerNorms, ModelConfig, NamedMatrix, Source};
use values::{check_codes, to_bf16};

/// Columns that share a scale in the int4 kernels; others do not run.
pub(super) const GROUPS: [usize; 3] = [32, 64, 128];
/// The kernels' largest group, whose macros are those of matrices without groups, too.
pub(super) const LARGEST_GROUP: usize = 128;
/// Bytes that kernels may read behind a blob.
pub const SLACK: usize = 64;

/// A matrix `[rows, cols]` on the GPU.
#[derive(Debug, Clone, Copy)]
pub struct DeviceMatrix {
    /// Output features.
    pub rows: usize,
    /// Input features.
    pub cols: usize,
    /// Row-major bf16 elements or nibbles.
    pub data: Span,
    /// How it is stored.
    pub format: Format,
}

/// Storage of a matrix on the GPU.
#[derive(Debug, Clone, Copy)]
pub enum Format {
    /// bf16 elements.
    Bf16,
    /// Nibbles, and one scale a group of columns.
    Int4 {
        /// The scale stream.
        scales: Span,
        /// Its format.
        format: ScaleFormat,
        /// Columns of a group, one of `GROUPS`.
        group: usize,
    },
    /// Nibbles that are indices into a code book, and one scale a group of columns.
    Lut4 {
        /// The scale stream, behind [`book_bytes`].
        scales: Span,
        /// Its format.
        format: ScaleFormat,
        /// Columns of a group, one of `GROUPS`.
        group: usize,
        /// The code book.
        levels: Levels,
    },
    /// NF4 nibbles in blocks of 64 of the flattened matrix.
    Nf4 {
        /// One byte a block.
        absmax: Span,
        /// f32, one for 256 absmax codes.
        nested_absmax: Span,
        /// Added to each absmax.
        offset: f32,
    },
    /// E4M3 codes.
    Fp8 {
        /// f32 `[rows]`.
        scales: Span,
    },
}

impl DeviceMatrix {
    /// Columns of a row that share a scale where `gemm_int4.cu` multiplies it, `None` where that
    /// kernel cannot: it takes int4 and code books in their groups, and NF4 whose blocks lie in rows.
    #[must_use]
    pub fn gemm_group(&self) -> Option<usize> {
        match self.format {
            Format::Int4 { group, .. } | Format::Lut4 { group, .. } => Some(group),
            Format::Nf4 { .. } => self.cols.is_multiple_of(BLOCK_ELEMS).then_some(BLOCK_ELEMS),
            Format::Bf16 | Format::Fp8 { .. } => None,
        }
    }

    /// Whether it has to be widened before bf16 is multiplied.
    #[must_use]
    pub(super) fn is_coded(&self) -> bool {
        match self.format {
            Format::Bf16 => false,
            Format::Int4 { .. } | Format::Lut4 { .. } | Format::Nf4 { .. } | Format::Fp8 { .. } => {
                true
            }
        }
    }

    /// Address of its scale codes, 0 where there are none, and their tensor's bias (NF4: the
    /// offset's bits).
    #[must_use]
    pub fn scales(&self) -> (u64, i32) {
        match self.format {
            Format::Bf16 => (0, 0),
            Format::Int4 { scales, format, .. } | Format::Lut4 { scales, format, .. } => {
                let bias = match format {
                    ScaleFormat::Mini(m) => i32::from(m.bias()),
                    ScaleFormat::F16 | ScaleFormat::F32 => 0,
                };
                (scales.ptr(), bias)
            }
            Format::Nf4 { absmax, offset, .. } => (absmax.ptr(), offset.to_bits().cast_signed()),
            Format::Fp8 { scales } => (scales.ptr(), 0),
        }
    }

    /// The macros that say how to decode its scales, the same for every matrix that one kernel can
    /// serve.
    #[must_use]
    pub fn scale_defines(&self) -> [(&'static str, i64); 3] {
        let (code, width, mantissa) = match self.format {
            // It has none; NF4's are bytes that its own kernels decode.
            Format::Bf16 => (ScaleCode::Mini, 16, 0),
            Format::Nf4 { .. } => (ScaleCode::Mini, 8, 0),
            Format::Fp8 { .. } => (ScaleCode::F32, 32, 0),
            Format::Int4 { format, .. } | Format::Lut4 { format, .. } => {
                let mantissa = match format {
                    ScaleFormat::Mini(m) => m.mantissa_bits(),
                    ScaleFormat::F16 | ScaleFormat::F32 => 0,
                };
                (format.into(), format.width_bits(), mantissa)
            }
        };
        [
            ("SCALE_FORMAT", code as i64),
            ("SCALE_WIDTH", width.into()),
            ("SCALE_MANTISSA", mantissa.into()),
        ]
    }

    /// Columns that share a scale, as the int4 kernels' macros have it: `LARGEST_GROUP` where it is
    /// not int4.
    #[must_use]
    pub fn group(&self) -> usize {
        match self.format {
            Format::Int4 { group, .. } | Format::Lut4 { group, .. } => group,
            Format::Bf16 | Format::Nf4 { .. } | Format::Fp8 { .. } => LARGEST_GROUP,
        }
    }

    /// Bytes that one pass over the weights reads.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let scales = match self.format {
            Format::Bf16 => 0,
            Format::Int4 { format, group, .. } | Format::Lut4 { format, group, .. } => {
                self.rows * self.cols.div_ceil(group) * format.width_bits() as usize / 8
            }
            Format::Nf4 {
                absmax,
                nested_absmax,
                ..
            } => absmax.bytes() + nested_absmax.bytes(),
            Format::Fp8 { scales } => scales.bytes(),
        };
        self.data.bytes() + scales
    }
}

/// Every weight.
#[derive(Debug)]
pub(super) struct DeviceModel {
    /// bf16 `[vocab, hidden]`.
    pub embedding: Span,
    /// The layers.
    pub layers: Vec<DeviceLayer>,
    /// f32 `[hidden]`.
    pub norm: Span,
    /// The head.
    pub head: DeviceMatrix,
    /// Holds everything above.
    _arena: Arena,
}

/// A model whose weights have places on the GPU, but are not there yet.
#[derive(Debug)]
pub(super) struct PlacedModel<'s> {
    model: DeviceModel,
    pieces: Vec<(Cow<'s, [u8]>, Span)>,
}

impl PlacedModel<'_> {
    /// The model, its weights not there yet.
    pub(super) fn model(&self) -> &DeviceModel {
        &self.model
    }

    /// Copies every tensor to the GPU, and says what that took.
    ///
    /// # Errors
    /// [`Error::Cuda`] if the driver fails.
    pub(super) fn upload(
        self,
        gpu: &Gpu,
        mut staging: Staging,
    ) -> Result<(DeviceModel, LoadReport)> {
        let pieces = self.pieces.iter();
        let pieces: Vec<Piece<'_>> = pieces
            .map(|(source, to)| Piece { source, to: *to })
            .collect();
        // SAFETY: the places are parts of the model's arena, which nothing uses yet.
        let report = unsafe { upload(gpu, &mut staging, &pieces) }?;
        Ok((self.model, report))
    }
}

impl DeviceModel {
    /// Checks every tensor of `source` and finds it a place on the GPU.
    ///
    /// # Errors
    /// As [`Decoder::load`](crate::model::Decoder::load); [`Error::Model`] for what the kernels do
    /// not do; [`Error::Cuda`] if the memory is not there.
    pub(super) fn place<'s>(
        gpu: &Gpu,
        source: &'s Source,
        c: &ModelConfig,
    ) -> Result<PlacedModel<'s>> {
        let (mut pieces, mut scales) = (Vec::new(), Vec::new());
        let (arena, mut model) = Arena::build(gpu, "the weights", |arena| {
            pieces.clear();
            scales.clear();
            let mut placer = Placer {
                source,
                arena,
                pieces: &mut pieces,
                scales: &mut scales,
                grouped: None,
            };
            placer.model(c)
        })?;
        check_codes(&scales)?;
        model._arena = arena;
        Ok(PlacedModel { model, pieces })
    }

    /// The model's shapes and formats, its weights nowhere.
    ///
    /// # Errors
    /// As [`place`](Self::place), but for memory and for what the weights are.
    pub(super) fn sizes(source: &Source, c: &ModelConfig) -> Result<Self> {
        let mut placer = Placer {
            source,
            arena: &mut Arena::sizes(),
            pieces: &mut Vec::new(),
            scales: &mut Vec::new(),
            grouped: None,
        };
        placer.model(c)
    }

    /// Weight bytes that one decoded token reads.
    #[must_use]
    pub(super) fn bytes_per_token(&self) -> usize {
        let layers = self
            .layers
            .iter()
            .flat_map(|l| l.qkv.iter().chain(&l.gate_up).chain([&l.o, &l.down]));
        layers.chain([&self.head]).map(DeviceMatrix::bytes).sum()
    }
}

/// Finds tensors, checks them, and gives them places.
struct Placer<'a, 's, 'p> {
    source: &'s Source,
    arena: &'a mut Arena,
    pieces: &'p mut Vec<(Cow<'s, [u8]>, Span)>,
    /// Scales whose codes are to be checked, and the names of their matrices.
    scales: &'p mut Vec<(String, Scales<'s>)>,
    /// The groups of the first int4 matrix, and its name.
    grouped: Option<(usize, String)>,
}

impl<'s> Placer<'_, 's, '_> {
    fn model(&mut self, c: &ModelConfig) -> Result<DeviceModel> {
        let mut table = |name: &str| {
            self.matrix(&NamedMatrix {
                name: name.into(),
                rows: c.vocab,
                cols: c.hidden,
                bias: None,
            })
        };
        let embedding = table(c.embedding())?;
        limits::embedding(c.embedding(), &embedding)?;
        let head = c.own_head().map_or(Ok(embedding), table)?;
        let layers = (0..c.layers)
            .map(|i| self.layer(&LayerNames::of(c, i), c))
            .collect::<Result<_>>()?;
        Ok(DeviceModel {
            embedding: embedding.data,
            layers,
            norm: self.norm(c.architecture.last_norm, c.hidden, c)?,
            head,
            _arena: Arena::sizes(),
        })
    }

    fn layer(&mut self, names: &LayerNames, c: &ModelConfig) -> Result<DeviceLayer> {
        let one = std::slice::from_ref::<NamedMatrix>;
        let LayerNorms {
            before_attention,
            after_attention,
            before_mlp,
            after_mlp,
        } = &names.norms;
        let mut norm = |name: &Option<String>| {
            let name = name.as_deref();
            name.map(|name| self.norm(name, c.hidden, c)).transpose()
        };
        let norms = DeviceNorms {
            before_attention: norm(before_attention)?,
            after_attention: norm(after_attention)?,
            before_mlp: norm(before_mlp)?,
            after_mlp: norm(after_mlp)?,
        };
        let qk_norm = match &names.qk_norm {
            None => None,
            Some([queries, keys]) => Some([
                self.norm(&queries.name, queries.len, c)?,
                self.norm(&keys.name, keys.len, c)?,
            ]),
        };
        Ok(DeviceLayer {
            norms,
            qkv: self.matrices(&names.qkv)?,
            qk_norm,
            o: self.matrix(&names.o)?,
            gate_up: self.matrices(&names.gate_up)?,
            down: self.matrix(&names.down)?,
            biases: DeviceBiases {
                qkv: self.bias(&names.qkv)?,
                o: self.bias(one(&names.o))?,
                gate_up: self.bias(&names.gate_up)?,
                down: self.bias(one(&names.down))?,
            },
        })
    }

    /// The biases of matrices that are multiplied together, one behind the other.
    fn bias(&mut self, list: &[NamedMatrix]) -> Result<Option<Span>> {
        let mut values = Vec::new();
        for m in list {
            if let Some(name) = &m.bias {
                values.extend(load_vector(self.source, name, m.rows)?);
            }
        }
        match values.is_empty() {
            true => Ok(None),
            false => self.floats(&values).map(Some),
        }
    }

    fn matrices(&mut self, list: &[NamedMatrix]) -> Result<Vec<DeviceMatrix>> {
        let out: Vec<DeviceMatrix> = list.iter().map(|m| self.matrix(m)).collect::<Result<_>>()?;
        limits::stored_alike(list, &out)?;
        Ok(out)
    }

    /// A matrix that the engine multiplies with.
    fn matrix(&mut self, m: &NamedMatrix) -> Result<DeviceMatrix> {
        let (bytes, format) = match self.source.stored(&m.name, &[m.rows, m.cols])? {
            TensorData::Raw { dtype, bytes } => (to_bf16(dtype, bytes), Format::Bf16),
            TensorData::Int4 {
                nibbles,
                scales,
                group,
            } => {
                let group = self.group(m, group)?;
                self.scales.push((m.name.clone(), scales));
                let format = scales.format;
                let stream = self.arena.take(scales.stream.len() + SLACK)?;
                let place = stream.part(0, scales.stream.len())?;
                self.pieces.push((Cow::Borrowed(scales.stream), place));
                let format = Format::Int4 {
                    scales: stream,
                    format,
                    group,
                };
                (Cow::Borrowed(nibbles), format)
            }
            TensorData::Lut4 {
                nibbles,
                scales,
                group,
                levels,
            } => {
                let group = self.group(m, group)?;
                self.scales.push((m.name.clone(), scales));
                let book = book_bytes(levels).ok_or_else(|| limits::widest_book(&m.name))?;
                // The book before the scales, as decode_lut4.cuh wants it.
                let length = scales.stream.len();
                let both = self.arena.take(BOOK_BYTES + length + SLACK)?;
                let stream = both.part(BOOK_BYTES, both.bytes() - BOOK_BYTES)?;
                self.pieces
                    .push((Cow::Owned(book.to_vec()), both.part(0, BOOK_BYTES)?));
                self.pieces
                    .push((Cow::Borrowed(scales.stream), stream.part(0, length)?));
                let format = Format::Lut4 {
                    scales: stream,
                    format: scales.format,
                    group,
                    levels,
                };
                (Cow::Borrowed(nibbles), format)
            }
            TensorData::Nf4 { nibbles, scales } => {
                for i in 0..scales.nested_absmax.len() / 4 {
                    let nested = scales.nested(i);
                    nested.map_err(|e| Error::tensor(&m.name, e.to_string()))?;
                }
                // One behind the other, as decode_product.cuh wants them.
                let nested_at = scales.absmax.len().next_multiple_of(16);
                let (codes, nested) = (scales.absmax, scales.nested_absmax);
                let both = self.arena.take(nested_at + nested.len() + SLACK)?;
                let absmax = both.part(0, codes.len())?;
                let nested_absmax = both.part(nested_at, nested.len())?;
                self.pieces.push((Cow::Borrowed(codes), absmax));
                self.pieces.push((Cow::Borrowed(nested), nested_absmax));
                let format = Format::Nf4 {
                    absmax,
                    nested_absmax,
                    offset: scales.offset,
                };
                (Cow::Borrowed(nibbles), format)
            }
            TensorData::Fp8 { codes, scales } => {
                // Gigabytes are looked at once: not while sizes are counted.
                if self.arena.buffer().is_some() {
                    check_fp8(&m.name, codes)?;
                }
                let finite = scales.decode_all();
                finite.map_err(|e| Error::tensor(&m.name, e.to_string()))?;
                let scales = self.place(Cow::Borrowed(scales.bytes))?;
                (Cow::Borrowed(codes), Format::Fp8 { scales })
            }
        };
        limits::sizes(m, format)?;
        let data = self.place(bytes)?;
        Ok(DeviceMatrix {
            rows: m.rows,
            cols: m.cols,
            data,
            format,
        })
    }

    /// The kernels' group for `m`, whose file has groups of `group`.
    fn group(&mut self, m: &NamedMatrix, group: usize) -> Result<usize> {
        let group = limits::group(m, group, self.grouped.as_ref())?;
        self.grouped.get_or_insert_with(|| (group, m.name.clone()));
        Ok(group)
    }

    /// What a norm multiplies with, f32 `[len]`.
    fn norm(&mut self, name: &str, len: usize, c: &ModelConfig) -> Result<Span> {
        let values = load_norm(self.source, name, len, c)?;
        self.floats(&values)
    }

    fn floats(&mut self, values: &[f32]) -> Result<Span> {
        self.place(Cow::Owned(bytemuck::cast_slice(values).to_vec()))
    }

    fn place(&mut self, bytes: Cow<'s, [u8]>) -> Result<Span> {
        let place = self.arena.take(bytes.len() + SLACK)?.part(0, bytes.len())?;
        self.pieces.push((bytes, place));
        Ok(place)
    }
}

#[cfg(test)]
mod tests;
