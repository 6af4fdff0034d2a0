//! Which tensors the directory will hold, and why some files cannot be exported.

use std::collections::HashSet;

use safetensors::Dtype as StDtype;
use smq_format::scale::ScaleFormat;
use smq_format::{Dtype, Scales, Scheme, SmqFile, TensorData, TensorView};

use super::ExportFormat;
use super::config::{Edit, dtype_of, ties_head};
use super::elements::{Content, Half, Rounding};
use super::layout::Layout;
use super::packable::{HEAD, int4};
use crate::error::ConvertError;

/// A tensor to write.
pub(super) struct Output<'a> {
    pub(super) name: String,
    pub(super) dtype: StDtype,
    pub(super) shape: Vec<usize>,
    pub(super) content: Content<'a>,
}

impl Output<'_> {
    /// Bytes of data.
    pub(super) fn bytes(&self) -> u64 {
        self.content.rows() as u64 * self.content.row_bytes() as u64
    }
}

/// Everything that is known before a weight is read.
pub(super) struct Plan<'a> {
    /// In the .smq file's order.
    pub(super) outputs: Vec<Output<'a>>,
    pub(super) tensor_bytes: u64,
    layout: Layout,
    pub(super) quantized_tensors: usize,
    /// Elements a group, where all int4 tensors agree.
    pub(super) group: Option<usize>,
    /// What config.json is to say.
    pub(super) edit: Edit,
}

impl<'a> Plan<'a> {
    pub(super) fn new(file: &'a SmqFile, format: ExportFormat) -> Result<Self, ConvertError> {
        let layout = Layout::of(file, format)?;
        let outputs: Vec<_> = file.tensors().flat_map(|v| layout.outputs(v)).collect();
        check_names(file, &outputs)?;
        let said = file.embedded("config.json").and_then(dtype_of);
        let dtype = match (layout, said) {
            (Layout::Dequantized(Dtype::F32), _) => Some(Dtype::F32),
            // What was f32 beside bf16 weights was loaded in bf16 before; f16 weights likewise.
            (Layout::Dequantized(Dtype::Bf16), Some(Dtype::Bf16 | Dtype::F32))
            | (Layout::Dequantized(Dtype::F16), Some(Dtype::F16 | Dtype::F32)) => None,
            (Layout::Dequantized(Dtype::Bf16), Some(Dtype::F16) | None)
            | (Layout::Dequantized(Dtype::F16), Some(Dtype::Bf16) | None) => widest(&outputs),
            (
                Layout::PackQuantized(_)
                | Layout::FloatQuantized
                | Layout::Gptq(_)
                | Layout::Mlx { .. },
                _,
            ) => None,
        };
        let groups: Vec<_> = int4(file).map(|tensor| tensor.group).collect();
        Ok(Plan {
            tensor_bytes: outputs.iter().map(Output::bytes).sum(),
            outputs,
            layout,
            quantized_tensors: file.tensors().filter(|t| t.scheme().is_quantized()).count(),
            group: groups
                .first()
                .copied()
                .filter(|g| groups.iter().all(|other| other == g)),
            edit: Edit {
                quantization: layout.quantization(file),
                dtype: dtype.filter(|dtype| said != Some(*dtype)),
                untie: has_own_head(file),
            },
        })
    }

    /// Decides the element type of the scales, where they are written, and measures what it does to
    /// them: of those that the format has, the type that config.json says of the model, or else the
    /// other one where that alone is exact. Scales that are stored as f16 stay f16.
    ///
    /// # Errors
    /// An inexact scale that was not allowed; one that the type cannot hold at all; an invalid
    /// code.
    pub(super) fn settle_scales(
        &mut self,
        file: &SmqFile,
        allow_inexact: bool,
    ) -> Result<Option<(Half, Rounding)>, ConvertError> {
        let is_f16 = |view: TensorView| match view.scheme() {
            Scheme::Int4 { scales, .. } => scales == ScaleFormat::F16,
            Scheme::Raw(_) | Scheme::Lut4 { .. } | Scheme::Nf4 { .. } | Scheme::Fp8 => true,
        };
        let said = file.embedded("config.json").and_then(dtype_of);
        let prefers_f16 = file.tensors().all(is_f16) || said == Some(Dtype::F16);
        let mut settled = None;
        for &to in self.layout.scale_types(prefers_f16) {
            let rounding = self.rounding(file, to)?;
            if settled.is_none() || rounding.inexact == 0 {
                settled = Some((to, rounding));
            }
            if rounding.inexact == 0 {
                break;
            }
        }
        let Some((to, rounding)) = settled else {
            return Ok(None);
        };
        let dtype = to.dtype();
        if rounding.inexact > 0 && !allow_inexact {
            let (tensor, scale) = self.first_changed(file, |v| to.round(v).1 != v)?;
            return Err(ConvertError::InexactScales {
                path: file.path().to_path_buf(),
                inexact: rounding.inexact,
                scales: rounding.values,
                dtype,
                tensor,
                scale,
                max_relative_error: rounding.max_relative_error,
                remedy: self.layout.exact_scales(),
            });
        }
        if rounding.overflowed > 0 {
            let (tensor, scale) = self.first_changed(file, |v| to.round(v).1.is_infinite())?;
            return Err(ConvertError::Export {
                path: file.path().to_path_buf(),
                problem: format!(
                    "tensor {tensor:?} has a scale of {scale:e}, over {dtype}'s largest; use --to \
                     safetensors --dtype f32"
                ),
            });
        }
        for output in &mut self.outputs {
            if let Content::Scales { to: element, .. } = &mut output.content {
                *element = to;
                output.dtype = safetensors_dtype(dtype);
            }
        }
        Ok(Some((to, rounding)))
    }

    /// The first scale, in the file's order, of which `is_it` holds, and its tensor.
    fn first_changed(
        &self,
        file: &SmqFile,
        is_it: impl Fn(f32) -> bool,
    ) -> Result<(String, f32), ConvertError> {
        for (view, scales, times) in self.scales() {
            let values = scales
                .decode_all()
                .map_err(|defect| damaged(file, defect))?;
            if let Some(scale) = values.into_iter().find(|&scale| is_it(times * scale)) {
                return Ok((view.name().to_owned(), scale));
            }
        }
        Ok((String::new(), f32::NAN))
    }

    /// The scales that are written, and how many times each.
    fn scales(&self) -> impl Iterator<Item = (TensorView<'a>, Scales<'a>, f32)> {
        self.outputs
            .iter()
            .filter_map(|output| match output.content {
                Content::Scales {
                    view,
                    scales,
                    times,
                    ..
                } => Some((view, scales, times)),
                Content::Bytes(_)
                | Content::F32(_)
                | Content::Rounded { .. }
                | Content::Packed { .. }
                | Content::Words { .. }
                | Content::GroupOf { .. } => None,
            })
    }

    fn rounding(&self, file: &SmqFile, to: Half) -> Result<Rounding, ConvertError> {
        let mut rounding = Rounding::default();
        for (_, scales, times) in self.scales() {
            let values = scales
                .decode_all()
                .map_err(|defect| damaged(file, defect))?;
            for scale in values {
                // MLX's biases are eight scales, so that all they can do is overflow.
                match times == 1.0 {
                    true => _ = rounding.add(scale, to),
                    false => {
                        let rounded = to.round(times * scale).1;
                        rounding.overflowed += u64::from(rounded.is_infinite());
                    }
                }
            }
        }
        Ok(rounding)
    }
}

/// The narrowest type that holds what is written, where anything is.
fn widest(outputs: &[Output]) -> Option<Dtype> {
    let mut dtypes = outputs.iter().map(|o| o.dtype);
    let first = dtypes.next()?;
    Some(match first {
        StDtype::BF16 if dtypes.all(|d| d == first) => Dtype::Bf16,
        StDtype::F16 if dtypes.all(|d| d == first) => Dtype::F16,
        _ => Dtype::F32,
    })
}

/// Whether config.json ties the head to the embedding, though the file has another one.
/// transformers keeps such a head with a warning, and vLLM passes over it.
fn has_own_head<'a>(file: &'a SmqFile) -> bool {
    let tied = file.embedded("config.json").is_some_and(ties_head);
    let embedding = file.tensors().find(|t| {
        let module = t.name().strip_suffix(".weight").unwrap_or_default();
        module.rsplit('.').next() == Some("embed_tokens")
    });
    let raw = |view: &TensorView<'a>| match view.data() {
        TensorData::Raw { bytes, dtype } => Some((bytes, dtype)),
        TensorData::Int4 { .. }
        | TensorData::Lut4 { .. }
        | TensorData::Nf4 { .. }
        | TensorData::Fp8 { .. } => None,
    };
    let shared = embedding.as_ref().and_then(raw);
    let same = |head: &TensorView<'a>| shared.is_some() && raw(head) == shared;
    tied && file.tensor(HEAD).is_some_and(|head| !same(&head))
}

/// safetensors has one name space, with a reserved name.
fn check_names(file: &SmqFile, outputs: &[Output]) -> Result<(), ConvertError> {
    let mut seen = HashSet::new();
    match outputs
        .iter()
        .find(|o| o.name == "__metadata__" || !seen.insert(o.name.as_str()))
    {
        None => Ok(()),
        Some(output) => Err(ConvertError::Export {
            path: file.path().to_path_buf(),
            problem: format!(
                "would put two entries called {:?} into one safetensors file",
                output.name
            ),
        }),
    }
}

pub(super) fn not_exportable(
    file: &SmqFile,
    view: &TensorView,
    problem: impl std::fmt::Display,
) -> ConvertError {
    ConvertError::Export {
        path: file.path().to_path_buf(),
        problem: format!("tensor {:?} {problem}", view.name()),
    }
}

pub(super) fn damaged(file: &SmqFile, defect: smq_format::Defect) -> ConvertError {
    ConvertError::Format(smq_format::Error::Format {
        path: file.path().to_path_buf(),
        defect,
    })
}

pub(super) fn safetensors_dtype(dtype: Dtype) -> StDtype {
    match dtype {
        Dtype::Bf16 => StDtype::BF16,
        Dtype::F16 => StDtype::F16,
        Dtype::F32 => StDtype::F32,
    }
}
