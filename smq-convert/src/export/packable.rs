//! Which files other programs' int4 and FP8 can hold.

use smq_format::{RowScales, Scales, Scheme, SmqFile, TensorData, TensorView};

use super::config::has_conv1d;
use super::plan::not_exportable;
use crate::error::ConvertError;
use crate::import::Grouping;
use crate::target::is_embedding;

pub(super) const HEAD: &str = "lm_head.weight";
/// Modules that GPT-2 and its kin have as Conv1D.
const CONV1D: [&str; 4] = ["c_attn", "c_fc", "c_proj", "q_attn"];
/// Elements a group for which other programs have kernels, largest first.
pub(super) const KERNEL_GROUPS: [usize; 3] = [128, 64, 32];

/// An FP8 tensor.
pub(super) struct Fp8<'a> {
    pub(super) view: TensorView<'a>,
    pub(super) codes: &'a [u8],
    pub(super) scales: RowScales<'a>,
}

impl<'a> Fp8<'a> {
    pub(super) fn of(view: TensorView<'a>) -> Option<Self> {
        match view.data() {
            TensorData::Fp8 { codes, scales } => Some(Fp8 {
                view,
                codes,
                scales,
            }),
            TensorData::Raw { .. }
            | TensorData::Int4 { .. }
            | TensorData::Lut4 { .. }
            | TensorData::Nf4 { .. } => None,
        }
    }
}

/// An int4 tensor.
pub(super) struct Int4<'a> {
    pub(super) view: TensorView<'a>,
    pub(super) nibbles: &'a [u8],
    pub(super) scales: Scales<'a>,
    pub(super) group: usize,
    pub(super) columns: usize,
}

impl<'a> Int4<'a> {
    pub(super) fn of(view: TensorView<'a>) -> Option<Self> {
        match view.data() {
            TensorData::Int4 {
                nibbles,
                scales,
                group,
            } => Some(Int4 {
                view,
                nibbles,
                scales,
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

/// The int4 tensors of a file.
pub(super) fn int4(file: &SmqFile) -> impl Iterator<Item = Int4<'_>> {
    file.tensors().filter_map(Int4::of)
}

/// Whether what is quantized is FP8, all of it.
///
/// # Errors
/// A file in which some of it is: compressed-tensors describes one scheme here.
pub(super) fn is_fp8(file: &SmqFile) -> Result<bool, ConvertError> {
    let quantized = || file.tensors().filter(|view| view.scheme().is_quantized());
    let Some(fp8) = quantized().find(|view| view.scheme() == Scheme::Fp8) else {
        return Ok(false);
    };
    let Some(other) = quantized().find(|view| view.scheme() != Scheme::Fp8) else {
        return Ok(true);
    };
    let problem = format!(
        "is {} but {:?} is {}, and compressed-tensors is written with one scheme for all; convert \
         the checkpoint again with one --scheme, or use --to safetensors, which dequantizes",
        other.scheme().name(),
        fp8.name(),
        fp8.scheme().name()
    );
    Err(not_exportable(file, &other, problem))
}

/// Refuses quantized tensors that are not the matrix of a Linear module, which is what the readers
/// of `form` quantize, and a file without the config.json that is to say so.
///
/// # Errors
/// The first such tensor and what to do.
pub(super) fn check_linear(file: &SmqFile, form: &str) -> Result<(), ConvertError> {
    let Some(config) = file.embedded("config.json") else {
        return Err(ConvertError::Export {
            path: file.path().to_path_buf(),
            problem: format!(
                "has no config.json, where {form} describes the quantization; convert the \
                 checkpoint again with its config.json beside it"
            ),
        });
    };
    let transposed = has_conv1d(config);
    for view in file.tensors().filter(|view| view.scheme().is_quantized()) {
        let refuse = |problem| Err(not_exportable(file, &view, problem));
        let Some(module) = view.name().strip_suffix(".weight") else {
            return refuse(format!(
                "is not the weight of a module, which is all that {form} quantizes; convert again \
                 without it in --target"
            ));
        };
        let last = module.rsplit('.').next().unwrap_or(module);
        if is_embedding(last) {
            return refuse(
                "is an embedding, and only linear modules can be exported quantized; convert \
                 again without it in --target"
                    .to_owned(),
            );
        }
        if transposed && CONV1D.contains(&last) {
            return refuse(format!(
                "is stored [in, out] for a Conv1D module, and {form} quantizes Linear ones; use \
                 --to safetensors"
            ));
        }
    }
    Ok(())
}

/// The programs that read `form` quantize Linear modules, all with one group size that divides their
/// columns, or all with one group a row.
///
/// # Errors
/// The first tensor that is otherwise and what to do.
pub(super) fn check_packable(file: &SmqFile, form: &str) -> Result<Grouping, ConvertError> {
    let int4: Vec<_> = int4(file).collect();
    let other = file.tensors().find(|view| {
        view.scheme().is_quantized() && !matches!(view.data(), TensorData::Int4 { .. })
    });
    if let Some(view) = other {
        let name = view.scheme().name();
        let problem = match view.scheme() {
            Scheme::Lut4 { .. } => format!(
                "is {name}, and {form} has no code book; use --to safetensors, which \
                 dequantizes"
            ),
            Scheme::Fp8 => format!(
                "is {name}, and only int4 can be exported as {form}; use --to compressed-tensors, \
                 or --to safetensors, which dequantizes"
            ),
            Scheme::Raw(_) | Scheme::Int4 { .. } | Scheme::Nf4 { .. } => format!(
                "is {name}, and only int4 can be exported as {form}; use --to safetensors, which \
                 dequantizes"
            ),
        };
        return Err(not_exportable(file, &view, problem));
    }
    let Some(first) = int4.first() else {
        return Err(ConvertError::Export {
            path: file.path().to_path_buf(),
            problem: "holds no quantized tensor; use --to safetensors".to_owned(),
        });
    };
    check_linear(file, form)?;
    let by_row = int4.iter().all(|t| t.group >= t.columns);
    let divides = |group: usize| int4.iter().all(|t| t.columns.is_multiple_of(group));
    let alike = int4.iter().all(|t| t.group == first.group) && divides(first.group);
    for tensor in int4.iter().filter(|_| !by_row) {
        let refuse = |problem| Err(not_exportable(file, &tensor.view, problem));
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
                "has {} columns, which groups of {} do not divide, and {form} has no shorter last \
                 group; convert the checkpoint again with {}",
                tensor.columns,
                tensor.group,
                remedy(&int4)
            ));
        }
    }
    Ok(match by_row && !alike {
        true => Grouping::Row,
        false => Grouping::Runs(first.group),
    })
}

/// Refuses group sizes that a format's readers have no kernel for; with `or_rows`, which GPTQ has,
/// they take one group a row as well. Returns the elements of a group, where all have as many.
///
/// # Errors
/// The tensor and what to do.
pub(super) fn check_group(
    file: &SmqFile,
    form: &str,
    grouping: Grouping,
    or_rows: bool,
) -> Result<usize, ConvertError> {
    let tensors: Vec<_> = int4(file).collect();
    let fits = |tensor: &&Int4| match grouping {
        Grouping::Runs(group) => {
            KERNEL_GROUPS.contains(&group) || or_rows && group == tensor.columns
        }
        Grouping::Row => or_rows,
    };
    let Some(tensor) = tensors.iter().find(|tensor| !fits(tensor)) else {
        return Ok(tensors.first().map_or(0, |tensor| tensor.group));
    };
    let rows = if or_rows { ", or one a row" } else { "" };
    let problem = format!(
        "has {} columns in groups of {}, and {form} takes groups of 32, 64 and 128{rows}; convert \
         the checkpoint again with {}",
        tensor.columns,
        tensor.group,
        remedy(&tensors)
    );
    Err(not_exportable(file, &tensor.view, problem))
}

/// GPTQ packs eight columns, and the zero points of eight outputs, into a word.
///
/// # Errors
/// The first tensor of another shape.
pub(super) fn check_whole_words(file: &SmqFile) -> Result<(), ConvertError> {
    let whole = |tensor: &Int4| {
        let (rows, columns) = tensor.view.matrix_shape();
        rows.is_multiple_of(8) && columns.is_multiple_of(8)
    };
    let Some(tensor) = int4(file).find(|tensor| !whole(tensor)) else {
        return Ok(());
    };
    let (rows, columns) = tensor.view.matrix_shape();
    let problem = format!(
        "has {rows} rows and {columns} columns, and GPTQ packs eights of both; use --to \
         compressed-tensors, or convert again without it in --target"
    );
    Err(not_exportable(file, &tensor.view, problem))
}

/// The largest of the group sizes with kernels elsewhere that divides every tensor.
fn remedy(int4: &[Int4]) -> String {
    let divides = |group: &usize| int4.iter().all(|t| t.columns.is_multiple_of(*group));
    match KERNEL_GROUPS.into_iter().find(divides) {
        Some(group) => {
            format!("--group-size {group}, which divides the columns of every quantized tensor")
        }
        None => "a --target that leaves this tensor out".to_owned(),
    }
}

/// Modules whose matrix is quantized.
pub(super) fn quantized(file: &SmqFile) -> Vec<String> {
    let quantized = file.tensors().filter(|t| t.scheme().is_quantized());
    let modules = quantized.filter_map(|t| t.name().strip_suffix(".weight"));
    modules.map(str::to_owned).collect()
}

/// Modules whose matrix stays as it is, and lm_head, which shares the embedding's where it has none
/// of its own. Experts in one tensor are modules for vLLM alone, which names each.
pub(super) fn unquantized(file: &SmqFile) -> Vec<String> {
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
