//! Which files of a directory hold the weights: exactly those that transformers 5.24 loads, else a
//! refusal.
//!
//! transformers looks for, in this order: `shard-RRRRR-model-NNNNN-of-NNNNN.safetensors` (the ranks
//! of a distributed checkpoint), the file that config.json's `transformers_weights` names,
//! `model.safetensors`, `model.safetensors.index.json`, `pytorch_model.bin` and its index. Of an
//! index it takes the names of the files and no more: every tensor in them counts, and of two with
//! one name the one in the later file. A single safetensors file of another name, which
//! transformers does not load, is taken here where nothing else could be meant.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::{Map, Value};
use smq_format::map_file;

use crate::error::{Error, Result};
use crate::json::parse_object;
use crate::locate::dequantize_gguf;

/// Name of the shard index of a sharded checkpoint.
pub const SHARD_INDEX: &str = "model.safetensors.index.json";
const SINGLE: &str = "model.safetensors";
pub(super) const END: &str = ".safetensors";
pub(super) const INDEX_END: &str = ".safetensors.index.json";
const ADAPTER: &str = "adapter_model.safetensors";
const ADAPTER_CONFIG: &str = "adapter_config.json";
/// The key of config.json that names the weights.
const EXPLICIT: &str = "transformers_weights";
/// Names said in one message, before the rest is counted.
const MAX_NAMES: usize = 4;

/// The files that hold a checkpoint's weights.
#[derive(Debug, Default)]
pub(super) struct Weights {
    /// Plain file names, ascending.
    pub(super) names: Vec<String>,
    /// The index that lists them, with its name.
    pub(super) index: Option<(String, BTreeMap<String, String>)>,
    /// What was taken and what was left, where there was a choice.
    pub(super) notes: Vec<String>,
}

/// Chooses the files of `dir`, which holds what is `listed` and whose config.json is `config`.
///
/// # Errors
/// Nothing that can be read, more than one candidate, an index or a `transformers_weights` that
/// cannot be followed.
pub(super) fn choose(
    dir: &Path,
    listed: &[String],
    config: Option<&Map<String, Value>>,
) -> Result<Weights> {
    let is_file = |name: &str| dir.join(name).is_file();
    if let Some(name) = listed.iter().find(|name| is_rank_file(name)) {
        let problem = format!(
            "holds {name} of a distributed checkpoint, which transformers loads before any other \
             weights and smq does not read; save it with save_pretrained on one process, or move \
             the shard-*{END} files away"
        );
        return Err(Error::model(dir, problem));
    }
    let mut weights = match config.and_then(|c| c.get(EXPLICIT)) {
        Some(Value::Null) | None if is_file(SINGLE) => Weights::single(SINGLE),
        Some(Value::Null) | None if is_file(SHARD_INDEX) => sharded(dir, SHARD_INDEX)?,
        Some(Value::Null) | None => return other(dir, listed),
        Some(name) => explicit(dir, name)?,
    };
    weights.note_what_is_left(dir, listed);
    Ok(weights)
}

fn sharded(dir: &Path, name: &str) -> Result<Weights> {
    let map = weight_map(dir, name)?;
    let names: BTreeSet<_> = map.values().cloned().collect();
    Ok(Weights {
        names: names.into_iter().collect(),
        index: Some((name.to_owned(), map)),
        notes: Vec::new(),
    })
}

/// What config.json's `transformers_weights` names.
fn explicit(dir: &Path, value: &Value) -> Result<Weights> {
    let refuse = |problem: String| {
        let config = dir.join("config.json").display().to_string();
        Error::file(config, format!("{EXPLICIT} is {value}, {problem}"))
    };
    let name = value.as_str().filter(|name| is_plain(name));
    match name {
        Some(name) if !dir.join(name).is_file() => {
            Err(refuse("which is not beside it; download it".to_owned()))
        }
        Some(name) if name.ends_with(INDEX_END) => sharded(dir, name),
        Some(name) if name.ends_with(END) => Ok(Weights::single(name)),
        _ => Err(refuse(format!(
            "expected the plain name of a {END} or {INDEX_END} file beside it"
        ))),
    }
}

/// Where neither model.safetensors nor its index is a file.
fn other(dir: &Path, listed: &[String]) -> Result<Weights> {
    // A link that leads nowhere, a directory, a FIFO: named by what is wrong with it.
    for name in [SINGLE, SHARD_INDEX] {
        if listed.iter().any(|listed| listed == name) {
            map_file(&dir.join(name))?;
        }
    }
    let refuse = |problem: String| Err(Error::model(dir, problem));
    let candidates: Vec<_> = listed
        .iter()
        .filter(|name| name.ends_with(END) && *name != ADAPTER)
        .collect();
    let pickle = ["pytorch_model.bin", "pytorch_model.bin.index.json"]
        .into_iter()
        .find(|name| dir.join(name).is_file());
    let shown = dir.display();
    if let Some(pickle) = pickle {
        let beside = match candidates.as_slice() {
            [] => String::new(),
            [one] => format!("; if {one} holds the same weights, rename it to {SINGLE}"),
            names => format!("; {} are not what transformers loads", enumerate(names)),
        };
        return refuse(format!(
            "transformers would load {pickle}, which is not read because unpickling runs code; \
             save the model as safetensors with: python -c \"from transformers import \
             AutoModelForCausalLM as M; M.from_pretrained('{shown}', \
             dtype='auto').save_pretrained('{shown}')\"{beside}"
        ));
    }
    match candidates.as_slice() {
        [name] => Ok(Weights {
            notes: vec![format!(
                "{shown}: weights are taken from {name}, the only safetensors file in it; \
                 transformers loads {SINGLE} or what {SHARD_INDEX} lists, and would not load this \
                 one"
            )],
            ..Weights::single(name)
        }),
        [] if listed.iter().any(|name| name == ADAPTER) => refuse(adapter(dir)),
        [] => Err(Error::NoWeights {
            dir: dir.to_path_buf(),
            problem: nothing(dir, listed),
        }),
        names if names.iter().all(|name| name.contains("-of-")) => refuse(format!(
            "holds {}, but not {SHARD_INDEX}, which lists their tensors; download it too",
            enumerate(names)
        )),
        names => refuse(format!(
            "holds {} and neither {SINGLE} nor {SHARD_INDEX}, so which of them is the model \
             cannot be known; rename the right one to {SINGLE}, or download {SHARD_INDEX}",
            enumerate(names)
        )),
    }
}

/// What a model with an adapter beside it says is decided by both: transformers applies the adapter
/// where it can.
///
/// # Errors
/// [`Error::Model`] for a directory that has an adapter's config.
pub(super) fn refuse_adapter_beside(dir: &Path) -> Result<()> {
    let path = dir.join(ADAPTER_CONFIG);
    if path.symlink_metadata().is_err() {
        return Ok(());
    }
    let base = adapter_base(dir).map_or(String::new(), |name| format!(" for {name}"));
    let message = format!(
        "is of an adapter (LoRA or the like){base}, which is not applied here; merge the two with \
         peft's merge_and_unload, or move the adapter's files away to have the model without it"
    );
    Err(Error::model(path, message))
}

/// The model that a directory's adapter was trained on.
fn adapter_base(dir: &Path) -> Option<String> {
    let config = map_file(&dir.join(ADAPTER_CONFIG)).ok()?;
    let json = parse_object(ADAPTER_CONFIG, &config).ok()?;
    Some(json.get("base_model_name_or_path")?.as_str()?.to_owned())
}

/// That a directory holds an adapter and no model.
pub(super) fn adapter(dir: &Path) -> String {
    let base = adapter_base(dir).map_or("the model it was trained on".to_owned(), |name| {
        format!("its base model {name}")
    });
    format!(
        "holds an adapter (LoRA; adapter_config.json says of what) and no model; merge it into \
         {base} with peft's merge_and_unload and save_pretrained, and give that directory"
    )
}

/// What a directory without safetensors holds instead.
fn nothing(dir: &Path, listed: &[String]) -> String {
    let ends = |end: &str| listed.iter().find(|name| name.ends_with(end));
    let instead = [
        ".smq", ".gguf", ".bin", ".pt", ".pth", ".msgpack", ".h5", ".onnx",
    ]
    .into_iter()
    .find_map(ends);
    let instead = match instead {
        Some(name) if name.ends_with(".smq") => format!("; it holds {name}: give that file"),
        Some(name) if name.ends_with(".gguf") => format!(
            "; it holds {name}, which is not read: {}",
            dequantize_gguf(&dir.display().to_string(), name)
        ),
        Some(name) => format!(
            "; it holds {name}, which is not read: give the checkpoint's directory with \
             safetensors, as save_pretrained writes it"
        ),
        None => String::new(),
    };
    format!("no {SINGLE}, no {SHARD_INDEX} and no other {END} file in it{instead}")
}

/// The `weight_map` of an index: tensor to plain file name.
fn weight_map(dir: &Path, name: &str) -> Result<BTreeMap<String, String>> {
    let path = dir.join(name);
    let problem = |problem: String| Error::ShardIndex {
        path: path.clone(),
        problem,
    };
    let text = map_file(&path)?;
    let json = parse_object(&path.display().to_string(), &text)?;
    let Some(Value::Object(map)) = json.get("weight_map") else {
        return Err(problem(
            "is not a shard index, it has no object weight_map".to_owned(),
        ));
    };
    let file = |(tensor, file): (&String, &Value)| match file.as_str() {
        Some(file) if is_plain(file) && file.ends_with(END) => {
            Ok((tensor.clone(), file.to_owned()))
        }
        Some(file) => Err(problem(format!(
            "places tensor {tensor:?} in {file:?}, expected the plain name of a {END} file beside \
             the index"
        ))),
        None => Err(problem(format!(
            "places tensor {tensor:?} in {file}, expected a file's name"
        ))),
    };
    let map: BTreeMap<_, _> = map.iter().map(file).collect::<Result<_>>()?;
    match map.is_empty() {
        true => Err(problem("lists no tensor".to_owned())),
        false => Ok(map),
    }
}

fn is_plain(name: &str) -> bool {
    !name.is_empty() && name != ".." && name != "." && !name.contains(['/', '\\'])
}

/// `shard-RRRRR-model-NNNNN-of-NNNNN.safetensors`.
fn is_rank_file(name: &str) -> bool {
    let parts: Vec<&str> = match name.strip_suffix(END) {
        Some(stem) => stem.split('-').collect(),
        None => return false,
    };
    let digits = |text: &str| text.len() == 5 && text.bytes().all(|b| b.is_ascii_digit());
    matches!(parts[..], ["shard", rank, "model", number, "of", count]
        if digits(rank) && digits(number) && digits(count))
}

impl Weights {
    /// Weights in one file, without an index.
    pub(super) fn single(name: &str) -> Self {
        Self {
            names: vec![name.to_owned()],
            ..Self::default()
        }
    }

    /// Says which other weights the directory has.
    fn note_what_is_left(&mut self, dir: &Path, listed: &[String]) {
        let taken = |name: &String| {
            self.names.contains(name) || self.index.as_ref().is_some_and(|index| index.0 == *name)
        };
        let mut left: Vec<_> = listed
            .iter()
            .filter(|name| (name.ends_with(END) || name.ends_with(INDEX_END)) && !taken(name))
            .collect();
        let single = match (&self.index, self.names.as_slice()) {
            (None, [name]) => Some(name.as_str()),
            _ => None,
        };
        let mut differs = String::new();
        if let (Some(single), true) = (single, left.iter().any(|name| *name == SHARD_INDEX)) {
            match weight_map(dir, SHARD_INDEX) {
                // An index of the single file contradicts nothing.
                Ok(map) if map.values().all(|file| file == single) => {
                    left.retain(|name| *name != SHARD_INDEX);
                }
                Ok(map) => {
                    let files: BTreeSet<_> = map.values().collect();
                    let gone = files
                        .iter()
                        .filter(|file| !dir.join(file).is_file())
                        .count();
                    differs = match gone {
                        0 => format!(
                            "; the index lists {} tensors in {} other files",
                            map.len(),
                            files.len()
                        ),
                        n => format!(
                            "; of the {} files that the index lists, {n} are not there",
                            files.len()
                        ),
                    };
                }
                Err(_) => differs = "; the index cannot be read".to_owned(),
            }
        }
        if left.is_empty() {
            return;
        }
        let taken = match (&self.index, single) {
            (Some((index, _)), _) => format!("the files that {index} lists"),
            (None, single) => single.unwrap_or_default().to_owned(),
        };
        self.notes.push(format!(
            "{}: weights are taken from {taken}, as transformers does; left out: {}{differs}",
            dir.display(),
            enumerate(&left)
        ));
    }
}

/// `a, b and 3 more`.
pub(super) fn enumerate<S: AsRef<str>>(names: &[S]) -> String {
    let shown: Vec<_> = names.iter().take(MAX_NAMES).map(AsRef::as_ref).collect();
    match (names.len() - shown.len(), shown.as_slice()) {
        (0, [before @ .., a, b]) => {
            let before: String = before.iter().map(|name| format!("{name}, ")).collect();
            format!("{before}{a} and {b}")
        }
        (0, shown) => shown.concat(),
        (more, shown) => format!("{} and {more} more", shown.join(", ")),
    }
}
