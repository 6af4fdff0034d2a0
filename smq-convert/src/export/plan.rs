//! Which tensors the directory will hold, and why some files cannot be exported.

use std::collections::HashSet;

use half::bf16;
use safetensors::Dtype as StDtype;
use serde_json::Value;
use smq_format::{Dtype, SmqFile, TensorData, TensorView};

use super::ExportFormat;
use super::config::quantization_config;
use super::elements::{Content, Rounding};
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
    pub(super) quantized_tensors: usize,
    /// Elements a group, where all int4 tensors agree.
    pub(super) group: Option<usize>,
    /// What config.json says about the quantization; `None` for dequantized weights.
    pub(super) quantization: Option<Value>,
}

impl<'a> Plan<'a> {
    pub(super) fn new(file: &'a SmqFile, format: ExportFormat) -> Result<Self, ConvertError> {
        let int4: Vec<_> = file.tensors().filter_map(Int4::of).collect();
        let first = int4.first().map(|t| t.group);
        let quantization = match format {
            ExportFormat::Safetensors(_) => None,
            ExportFormat::CompressedTensors { .. } => {
                check_packable(file, &int4)?;
                Some(quantization_config(
                    first.unwrap_or_default(),
                    &unquantized(file),
                ))
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
                (_, ExportFormat::Safetensors(dtype)) => outputs.push(Output {
                    name: view.name().to_owned(),
                    dtype: safetensors_dtype(dtype),
                    shape: view.shape().to_vec(),
                    content: Content::dequantized(view, dtype),
                }),
                (_, ExportFormat::CompressedTensors { .. }) => outputs.extend(packed(view)),
            }
        }
        check_names(file, &outputs)?;
        Ok(Plan {
            tensor_bytes: outputs.iter().map(Output::bytes).sum(),
            outputs,
            quantized_tensors: file.tensors().filter(|t| t.scheme().is_quantized()).count(),
            group: first.filter(|&group| int4.iter().all(|t| t.group == group)),
            quantization,
        })
    }

    /// Measures what bf16 does to the scales, where that is what is written.
    ///
    /// # Errors
    /// An inexact scale that was not allowed; one that bf16 cannot hold at all; an invalid code.
    pub(super) fn check_scales(
        &self,
        file: &SmqFile,
        format: ExportFormat,
    ) -> Result<Rounding, ConvertError> {
        let mut rounding = Rounding::default();
        let ExportFormat::CompressedTensors { allow_inexact } = format else {
            return Ok(rounding);
        };
        for output in &self.outputs {
            let Content::Scales { view, scales, .. } = &output.content else {
                continue;
            };
            let values = scales
                .decode_all()
                .map_err(|defect| damaged(file, defect))?;
            for scale in values {
                rounding.add(scale);
                if bf16::from_f32(scale).is_infinite() {
                    return Err(not_exportable(
                        file,
                        view,
                        format!(
                            "has a scale of {scale:e}, over bf16's largest; use --to safetensors --dtype f32"
                        ),
                    ));
                }
            }
        }
        match (rounding.inexact, allow_inexact) {
            (1.., false) => Err(ConvertError::InexactScales {
                path: file.path().to_path_buf(),
                inexact: rounding.inexact,
                scales: rounding.values,
                max_relative_error: rounding.max_relative_error,
            }),
            _ => Ok(rounding),
        }
    }
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
            TensorData::Raw { .. } | TensorData::Nf4 { .. } | TensorData::Fp8 { .. } => None,
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

/// compressed-tensors quantizes Linear modules, all with one group size that divides their columns.
fn check_packable(file: &SmqFile, int4: &[Int4]) -> Result<(), ConvertError> {
    let other = file.tensors().find(|view| {
        view.scheme().is_quantized() && !matches!(view.data(), TensorData::Int4 { .. })
    });
    if let Some(view) = other {
        let problem = format!(
            "is {}, and only int4 can be exported as pack-quantized; use --to safetensors, which dequantizes",
            view.scheme().name()
        );
        return Err(not_exportable(file, &view, problem));
    }
    let Some(first) = int4.first() else {
        return Err(ConvertError::Export {
            path: file.path().to_path_buf(),
            problem: "holds no int4 tensor; use --to safetensors".to_owned(),
        });
    };
    if file.embedded("config.json").is_none() {
        return Err(ConvertError::Export {
            path: file.path().to_path_buf(),
            problem: "has no config.json, where compressed-tensors describes the quantization; convert the checkpoint again with its config.json beside it".to_owned(),
        });
    }
    for tensor in int4 {
        let refuse = |problem| Err(not_exportable(file, &tensor.view, problem));
        let Some(module) = tensor.view.name().strip_suffix(".weight") else {
            return refuse("is not the weight of a module, which is all that compressed-tensors quantizes; convert again without it in --target".to_owned());
        };
        if is_embedding(module) {
            return refuse("is an embedding, and only linear modules can be exported in int4; convert again without it in --target".to_owned());
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
                "has {} columns, which groups of {} do not divide, and compressed-tensors has no shorter last group; convert the checkpoint again with {}",
                tensor.columns,
                tensor.group,
                remedy(int4)
            ));
        }
    }
    Ok(())
}

/// The largest of the group sizes with kernels elsewhere (vLLM's Marlin has 32, 64 and 128) that divides every tensor.
fn remedy(int4: &[Int4]) -> String {
    let divides = |group: &usize| int4.iter().all(|t| t.columns.is_multiple_of(*group));
    match [128, 64, 32].into_iter().find(divides) {
        Some(group) => {
            format!("--group-size {group}, which divides the columns of every quantized tensor")
        }
        None => "a --target that leaves this tensor out".to_owned(),
    }
}

fn is_embedding(module: &str) -> bool {
    let last = module.rsplit('.').next().unwrap_or(module);
    last.contains("embed") || matches!(last, "wte" | "wpe")
}

/// Modules whose matrix stays as it is, and lm_head, which shares the embedding's where it has none of its own.
fn unquantized(file: &SmqFile) -> Vec<String> {
    let raw = file
        .tensors()
        .filter(|t| t.shape().len() == 2 && matches!(t.data(), TensorData::Raw { .. }));
    let modules = raw.filter_map(|t| t.name().strip_suffix(".weight"));
    let mut modules: Vec<_> = modules
        .filter(|module| !is_embedding(module))
        .map(str::to_owned)
        .collect();
    if file.tensor("lm_head.weight").is_none() {
        modules.push("lm_head".to_owned());
    }
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
