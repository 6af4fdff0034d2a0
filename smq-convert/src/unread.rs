//! Tensors that no model reads: buffers such as position ids and causal masks, which older programs
//! saved along.
//!
//! Of an architecture that smq-run knows, config.json implies every tensor that is read. Of another
//! one, integers that could not be a quantized matrix are taken for buffers. A .smq holds bf16, f16
//! and f32: buffers of these types are carried along as they are, and of any other left out, which
//! is said.

use std::collections::{BTreeSet, HashSet};

use indicatif::DecimalBytes;
use safetensors::Dtype as StDtype;
use smq_format::index::{MAX_DIMS, MAX_NAME_BYTES};
use smq_model::{StoredTensor, dtype};

use crate::error::ConvertError;
use crate::known::implied;

/// Names said in one note.
const MAX_NAMES: usize = 3;

/// Who reads a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reader {
    /// The model of this config.json.
    Model,
    /// Nobody: the architecture is known, and has no such tensor.
    Nobody,
    /// The architecture is not known, but the tensor is called a weight, or is a vector called
    /// bias.
    PerhapsModel,
    /// The architecture is not known, and by its name the tensor may be anything.
    PerhapsNobody,
}

/// What is known about who reads a checkpoint's tensors.
#[derive(Debug)]
pub(crate) struct Readers {
    /// The names that config.json implies; `None` of an architecture that is not known.
    implied: Option<HashSet<String>>,
}

impl Reader {
    /// Whether a NaN in the tensor means that the checkpoint is damaged.
    pub(crate) fn needs_numbers(self) -> bool {
        match self {
            Reader::Model | Reader::PerhapsModel => true,
            Reader::Nobody | Reader::PerhapsNobody => false,
        }
    }
}

impl Readers {
    /// Of a checkpoint.
    ///
    /// # Errors
    /// A config.json that is not JSON or contradicts itself.
    pub(crate) fn of(files: &smq_model::Checkpoint) -> Result<Self, ConvertError> {
        // A head that is int4 already is still in its parts.
        let has = |name: &str| {
            let module = name.strip_suffix(".weight").unwrap_or(name);
            let packed = [".weight_packed", ".qweight"].map(|end| format!("{module}{end}"));
            files.tensor(name).is_some() || packed.iter().any(|name| files.tensor(name).is_some())
        };
        let implied = implied(files, has)?;
        let names = |file: smq_model::ConfigFile| file.tensors().into_iter().map(|t| t.name);
        Ok(Self {
            implied: implied.map(|file| names(file).collect()),
        })
    }

    /// Who reads the tensor `name` of `dims` dimensions.
    pub(crate) fn of_tensor(&self, name: &str, dims: usize) -> Reader {
        if let Some(implied) = &self.implied {
            return match implied.contains(name) {
                true => Reader::Model,
                false => Reader::Nobody,
            };
        }
        // GPT-2 calls its causal mask of four dimensions a bias too.
        let last = name.rsplit('.').next().unwrap_or(name);
        let weight = last == "weight" || last.ends_with("_weight");
        match weight || (last == "bias" && dims < 2) {
            true => Reader::PerhapsModel,
            false => Reader::PerhapsNobody,
        }
    }

    /// Takes out of `stored` the tensors that a .smq cannot hold and nobody reads; a note says
    /// which.
    pub(crate) fn leave_out(
        &self,
        stored: Vec<StoredTensor>,
    ) -> (Vec<StoredTensor>, Option<String>) {
        let (left, kept): (Vec<_>, Vec<_>) = stored.into_iter().partition(|t| self.is_left_out(t));
        if left.is_empty() {
            return (kept, None);
        }
        let names: Vec<_> = left
            .iter()
            .take(MAX_NAMES)
            .map(|t| t.name.as_str())
            .collect();
        let more = match left.len() - names.len() {
            0 => String::new(),
            n => format!(" and {n} more"),
        };
        let types: BTreeSet<String> = left.iter().map(type_of).collect();
        let types: Vec<_> = types.into_iter().collect();
        let note = format!(
            "left out, since {} and no .smq can hold them: {}{more} ({}, {}, {})",
            match self.implied {
                Some(_) => "no part of the model reads them",
                None => "they look like buffers",
            },
            names.join(", "),
            match left.len() {
                1 => "1 tensor".to_owned(),
                n => format!("{n} tensors"),
            },
            types.join(" and "),
            DecimalBytes(left.iter().map(|t| t.range.len() as u64).sum()),
        );
        (kept, Some(note))
    }

    fn is_left_out(&self, tensor: &StoredTensor) -> bool {
        let holds = dtype(tensor.dtype).is_some();
        match self.of_tensor(&tensor.name, tensor.shape.len()) {
            _ if is_quantized_part(&tensor.name) => false,
            Reader::Model | Reader::PerhapsModel => false,
            Reader::Nobody => !holds || !is_allowed(tensor),
            Reader::PerhapsNobody if holds => false,
            Reader::PerhapsNobody => !is_packed_matrix(tensor),
        }
    }
}

fn type_of(tensor: &StoredTensor) -> String {
    format!("{:?}", tensor.dtype).to_lowercase()
}

/// Whether the format has names and shapes like the tensor's.
fn is_allowed(tensor: &StoredTensor) -> bool {
    let name = &tensor.name;
    (1..=MAX_NAME_BYTES).contains(&name.len())
        && !name.contains(char::is_control)
        && tensor.shape.len() <= MAX_DIMS
}

/// The parts of which an int4 tensor is put together, or which show that one is incomplete.
fn is_quantized_part(name: &str) -> bool {
    let last = name.rsplit('.').next().unwrap_or(name);
    ["qweight", "qzeros", "scales", "g_idx"].contains(&last) || last.starts_with("weight_")
}

/// Whether a tensor may be a matrix that some quantizer packed: never in 64 bits, and with rows and
/// columns.
fn is_packed_matrix(tensor: &StoredTensor) -> bool {
    let plain = [StDtype::I64, StDtype::U64, StDtype::BOOL, StDtype::F64];
    let dims = &tensor.shape;
    !plain.contains(&tensor.dtype) && dims.len() >= 2 && dims.iter().all(|&n| n > 1)
}
