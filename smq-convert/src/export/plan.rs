//! Which tensors the directory will hold, and why some files cannot be exported.

use std::collections::HashSet;

use safetensors::Dtype as StDtype;
use smq_format::scale::ScaleFormat;
use smq_format::{Dtype, Scheme, SmqFile, TensorData, TensorView};

use super::ExportFormat;
use super::alike::check_alike;
use super::config::{Edit, dtype_of, has_conv1d, quantization_config, ties_head};
use super::elements::{Content, Half, Rounding};
use crate::error::ConvertError;
use crate::import::Grouping;
use crate::target::is_embedding;

const HEAD: &str = "lm_head.weight";
/// Modules that GPT-2 and its kin have as Conv1D.
const CONV1D: [&str; 4] = ["c_attn", "c_fc", "c_proj", "q_attn"];

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
    pub(super) quantized_tensors: usize,
    /// Elements a group, where all int4 tensors agree.
    pub(super) group: Option<usize>,
    /// What config.json is to say.
    pub(super) edit: Edit,
}

impl<'a> Plan<'a> {
    pub(super) fn new(file: &'a SmqFile, format: ExportFormat) -> Result<Self, ConvertError> {
        let int4: Vec<_> = file.tensors().filter_map(Int4::of).collect();
        let first = int4.first().map(|t| t.group);
        let quantization = match format {
            ExportFormat::Safetensors(_) => None,
            ExportFormat::CompressedTensors { .. } => {
                let grouping = check_packable(file, &int4)?;
                check_alike(file)?;
                let head = int4.iter().find(|t| t.view.name() == HEAD);
                let named: Vec<_> = head.map(|_| "lm_head".to_owned()).into_iter().collect();
                Some(quantization_config(grouping, &unquantized(file), &named))
            }
        };
        let mut outputs = Vec::new();
        for view in file.tensors() {
            match (view.data(), format) {
                (TensorData::Raw { dtype, bytes }, _) => outputs.push(Output {
                    name: view.name().to_owned(),
                    dtype: safetensors_dtype(dtype),
                    shape: view.shape().to_vec(),
                    content: Content::Bytes(bytes.into()),
                }),
                (
                    TensorData::Int4 { .. }
                    | TensorData::Lut4 { .. }
                    | TensorData::Nf4 { .. }
                    | TensorData::Fp8 { .. },
                    ExportFormat::Safetensors(dtype),
                ) => outputs.push(Output {
                    name: view.name().to_owned(),
                    dtype: safetensors_dtype(dtype),
                    shape: view.shape().to_vec(),
                    content: Content::dequantized(view, dtype),
                }),
                (
                    TensorData::Int4 { .. }
                    | TensorData::Lut4 { .. }
                    | TensorData::Nf4 { .. }
                    | TensorData::Fp8 { .. },
                    ExportFormat::CompressedTensors { .. },
                ) => outputs.extend(packed(view)),
            }
        }
        check_names(file, &outputs)?;
        let said = file.embedded("config.json").and_then(dtype_of);
        let dtype = match (format, said) {
            (ExportFormat::Safetensors(Dtype::F32), _) => Some(Dtype::F32),
            // What was f32 beside bf16 weights was loaded in bf16 before; f16 weights likewise.
            (ExportFormat::Safetensors(Dtype::Bf16), Some(Dtype::Bf16 | Dtype::F32))
            | (ExportFormat::Safetensors(Dtype::F16), Some(Dtype::F16 | Dtype::F32)) => None,
            (ExportFormat::Safetensors(Dtype::Bf16), Some(Dtype::F16) | None)
            | (ExportFormat::Safetensors(Dtype::F16), Some(Dtype::Bf16) | None) => widest(&outputs),
            (ExportFormat::CompressedTensors { .. }, _) => None,
        };
        Ok(Plan {
            tensor_bytes: outputs.iter().map(Output::bytes).sum(),
            outputs,
            quantized_tensors: file.tensors().filter(|t| t.scheme().is_quantized()).count(),
            group: first.filter(|&group| int4.iter().all(|t| t.group == group)),
            edit: Edit {
                quantization,
                dtype: dtype.filter(|dtype| said != Some(*dtype)),
                untie: has_own_head(file),
            },
        })
    }

    /// Decides the element type of the scales, where they are written, and measures what it does to
    /// them: the type that config.json says of the model, or else the other of bf16 and f16 where
    /// that alone is exact. Scales that are stored as f16 stay f16.
    ///
    /// # Errors
    /// An inexact scale that was not allowed; one that the type cannot hold at all; an invalid
    /// code.
    pub(super) fn settle_scales(
        &mut self,
        file: &SmqFile,
        format: ExportFormat,
    ) -> Result<Option<(Half, Rounding)>, ConvertError> {
        let ExportFormat::CompressedTensors { allow_inexact } = format else {
            return Ok(None);
        };
        let is_f16 = |view: TensorView| match view.scheme() {
            Scheme::Int4 { scales, .. } => scales == ScaleFormat::F16,
            Scheme::Raw(_) | Scheme::Lut4 { .. } | Scheme::Nf4 { .. } | Scheme::Fp8 => true,
        };
        let said = file.embedded("config.json").and_then(dtype_of);
        let types = match file.tensors().all(is_f16) || said == Some(Dtype::F16) {
            true => [Half::F16, Half::Bf16],
            false => [Half::Bf16, Half::F16],
        };
        let first = self.rounding(file, types[0])?;
        let mut settled = (types[0], first);
        if first.inexact > 0 {
            let other = self.rounding(file, types[1])?;
            if other.inexact == 0 {
                settled = (types[1], other);
            } else if !allow_inexact {
                return Err(ConvertError::InexactScales {
                    path: file.path().to_path_buf(),
                    inexact: first.inexact,
                    scales: first.values,
                    dtype: types[0].dtype(),
                    max_relative_error: first.max_relative_error,
                });
            }
        }
        let dtype = settled.0.dtype();
        if settled.1.overflowed > 0 {
            return Err(ConvertError::Export {
                path: file.path().to_path_buf(),
                problem: format!(
                    "has scales over {dtype}'s largest; use --to safetensors --dtype f32"
                ),
            });
        }
        for output in &mut self.outputs {
            if let Content::Scales { to, .. } = &mut output.content {
                *to = settled.0;
                output.dtype = safetensors_dtype(dtype);
            }
        }
        Ok(Some(settled))
    }

    fn rounding(&self, file: &SmqFile, to: Half) -> Result<Rounding, ConvertError> {
        let mut rounding = Rounding::default();
        for output in &self.outputs {
            let Content::Scales { scales, .. } = &output.content else {
                continue;
            };
            let values = scales
                .decode_all()
                .map_err(|defect| damaged(file, defect))?;
            for scale in values {
                rounding.add(scale, to);
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

struct Int4<'a> {
    view: TensorView<'a>,
    group: usize,
    columns: usize,
}

impl<'a> Int4<'a> {
    fn of(view: TensorView<'a>) -> Option<Self> {
        match view.data() {
            TensorData::Int4 { group, .. } => Some(Int4 {
                view,
                group,
                columns: view.matrix_shape().1,
            }),
            TensorData::Raw { .. }
            | TensorData::Lut4 { .. }
            | TensorData::Nf4 { .. }
            | TensorData::Fp8 { .. } => None,
        }
    }
}

/// The three tensors of compressed-tensors' `pack-quantized` form.
fn packed(view: TensorView<'_>) -> Vec<Output<'_>> {
    let (rows, columns) = view.matrix_shape();
    let TensorData::Int4 {
        nibbles,
        scales,
        group,
    } = view.data()
    else {
        return Vec::new();
    };
    let shape: Vec<u8> = [rows, columns]
        .iter()
        .flat_map(|&n| (n as i64).to_le_bytes())
        .collect();
    let output = |suffix, dtype, shape, content| Output {
        name: format!("{}{suffix}", view.name()),
        dtype,
        shape,
        content,
    };
    let words = columns.div_ceil(8);
    let groups = columns.div_ceil(group);
    vec![
        output(
            "_packed",
            StDtype::I32,
            vec![rows, words],
            Content::Packed { nibbles, columns },
        ),
        output(
            "_scale",
            StDtype::BF16,
            vec![rows, groups],
            Content::Scales {
                view,
                scales,
                groups,
                to: Half::Bf16,
            },
        ),
        output(
            "_shape",
            StDtype::I64,
            vec![2],
            Content::Bytes(shape.into()),
        ),
    ]
}

/// compressed-tensors quantizes Linear modules, all with one group size that divides their columns,
/// or all with one group a row.
fn check_packable(file: &SmqFile, int4: &[Int4]) -> Result<Grouping, ConvertError> {
    let other = file.tensors().find(|view| {
        view.scheme().is_quantized() && !matches!(view.data(), TensorData::Int4 { .. })
    });
    if let Some(view) = other {
        let name = view.scheme().name();
        let problem = match view.scheme() {
            Scheme::Lut4 { .. } => format!(
                "is {name}, and pack-quantized has no code book; use --to safetensors, which \
                 dequantizes"
            ),
            Scheme::Raw(_) | Scheme::Int4 { .. } | Scheme::Nf4 { .. } | Scheme::Fp8 => format!(
                "is {name}, and only int4 can be exported as pack-quantized; use --to \
                 safetensors, which dequantizes"
            ),
        };
        return Err(not_exportable(file, &view, problem));
    }
    let Some(first) = int4.first() else {
        return Err(ConvertError::Export {
            path: file.path().to_path_buf(),
            problem: "holds no int4 tensor; use --to safetensors".to_owned(),
        });
    };
    let Some(config) = file.embedded("config.json") else {
        return Err(ConvertError::Export {
            path: file.path().to_path_buf(),
            problem: "has no config.json, where compressed-tensors describes the quantization; \
                      convert the checkpoint again with its config.json beside it"
                .to_owned(),
        });
    };
    let transposed = has_conv1d(config);
    let by_row = int4.iter().all(|t| t.group >= t.columns);
    let divides = |group: usize| int4.iter().all(|t| t.columns.is_multiple_of(group));
    let alike = int4.iter().all(|t| t.group == first.group) && divides(first.group);
    for tensor in int4 {
        let refuse = |problem| Err(not_exportable(file, &tensor.view, problem));
        let Some(module) = tensor.view.name().strip_suffix(".weight") else {
            return refuse(
                "is not the weight of a module, which is all that compressed-tensors \
                 quantizes; convert again without it in --target"
                    .to_owned(),
            );
        };
        let last = module.rsplit('.').next().unwrap_or(module);
        if is_embedding(last) {
            return refuse(
                "is an embedding, and only linear modules can be exported in int4; \
                 convert again without it in --target"
                    .to_owned(),
            );
        }
        if transposed && CONV1D.contains(&last) {
            return refuse(
                "is stored [in, out] for a Conv1D module, and compressed-tensors \
                 quantizes Linear ones; use --to safetensors"
                    .to_owned(),
            );
        }
        if by_row {
            continue;
        }
        if tensor.group != first.group {
            return refuse(format!(
                "has groups of {} but {:?} has groups of {}; only one group size can be exported",
                tensor.group,
                first.view.name(),
                first.group
            ));
        }
        if !tensor.columns.is_multiple_of(tensor.group) {
            return refuse(format!(
                "has {} columns, which groups of {} do not divide, and compressed-tensors has no \
                 shorter last group; convert the checkpoint again with {}",
                tensor.columns,
                tensor.group,
                remedy(int4)
            ));
        }
    }
    Ok(match by_row && !alike {
        true => Grouping::Row,
        false => Grouping::Runs(first.group),
    })
}

/// The largest of the group sizes with kernels elsewhere (vLLM's Marlin has 32, 64 and 128) that
/// divides every tensor.
fn remedy(int4: &[Int4]) -> String {
    let divides = |group: &usize| int4.iter().all(|t| t.columns.is_multiple_of(*group));
    match [128, 64, 32].into_iter().find(divides) {
        Some(group) => {
            format!("--group-size {group}, which divides the columns of every quantized tensor")
        }
        None => "a --target that leaves this tensor out".to_owned(),
    }
}

/// Modules whose matrix stays as it is, and lm_head, which shares the embedding's where it has none
/// of its own. Experts in one tensor are modules for vLLM alone, which names each.
fn unquantized(file: &SmqFile) -> Vec<String> {
    let raw = file
        .tensors()
        .filter(|t| t.shape().len() == 2 && matches!(t.data(), TensorData::Raw { .. }));
    let modules = raw.filter_map(|t| t.name().strip_suffix(".weight"));
    let mut modules: Vec<_> = modules
        .filter(|module| !is_embedding(module.rsplit('.').next().unwrap_or(module)))
        .map(str::to_owned)
        .collect();
    if file.tensor(HEAD).is_none() {
        modules.push("lm_head".to_owned());
    }
    for view in file.tensors() {
        let block = view.name().split_once(".experts.").map(|(block, _)| block);
        if let (Some(block), 3) = (block, view.shape().len()) {
            modules.push(format!("re:{}\\.experts.*", regex::escape(block)));
        }
    }
    modules.dedup();
    modules
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

fn safetensors_dtype(dtype: Dtype) -> StDtype {
    match dtype {
        Dtype::Bf16 => StDtype::BF16,
        Dtype::F16 => StDtype::F16,
        Dtype::F32 => StDtype::F32,
    }
}
