//! Results on disk: one file a finished cell, so that an interrupted suite goes on where it
//! stopped.
//!
//! ```text
//!   OUT/parameters.json        what was measured on what; another suite's directory is refused
//!   OUT/cells/NAME.TASK.jsonl  every item
//!   OUT/cells/NAME.kl.json     the distance from C0
//!   OUT/cells/NAME.file.json   size and weight error
//!   OUT/cells/*.blake3         what each of these is of, checked whenever it is read
//! ```

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use smq_format::{map_file, read_bounded};

use crate::eval::kl::KlReport;
use crate::eval::task::{Item, Request, Task};
use crate::output::{json, jsonl, write_bytes, write_json};

/// Ends of the names of cells.
const KL: &str = "kl.json";
const FACTS: &str = "file.json";
/// How the names of variants end that a sensitivity decides.
const WEIGHED: &str = "-weighed";
/// Longest cell that is read.
const MAX_CELL_BYTES: u64 = 1 << 30;

/// What decides the results, beside the variant.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Parameters {
    /// Name and version of this program.
    pub producer: String,
    /// The checkpoint directory's name.
    pub model: String,
    /// BLAKE3 of every file that it is read from, by name: weights, config, tokenizer, templates,
    /// generation settings.
    pub model_blake3: BTreeMap<String, String>,
    /// What it ran on: `cpu` or `cuda`.
    pub device: String,
    /// The files of the tasks.
    pub tasks: BTreeMap<Task, DataFile>,
    /// Most new tokens of a free answer.
    pub max_new_tokens: usize,
    /// The text for the distance from C0; absent where it is not measured.
    pub text: Option<DataFile>,
    /// Tokens a window of it.
    pub window: usize,
    /// Leading tokens of it that count; absent: all.
    pub text_tokens: Option<usize>,
    /// What weighs the errors of variants of chosen storage.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sensitivity: Option<DataFile>,
    /// The registered plan; absent where there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plan: Option<DataFile>,
    /// What the plan's variants are calibrated on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub calibration_texts: Vec<DataFile>,
}

impl Parameters {
    /// Whether results of both can stand side by side: other tasks may be there, not the same ones
    /// on other data, and of a sensitivity the same.
    fn agree_with(&self, other: &Self) -> bool {
        let without_tasks = |p: &Self| Self {
            tasks: BTreeMap::new(),
            sensitivity: None,
            ..p.clone()
        };
        let pair = self.sensitivity.as_ref().zip(other.sensitivity.as_ref());
        if pair.is_some_and(|(this, there)| this.blake3 != there.blake3) {
            return false;
        }
        let same = |(task, file)| other.tasks.get(task).is_none_or(|there| there == file);
        without_tasks(self) == without_tasks(other) && self.tasks.iter().all(same)
    }
}

/// A file, as far as results depend on it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct DataFile {
    /// Name of the file, without its directory.
    pub name: String,
    /// BLAKE3 of the file, in hex.
    pub blake3: String,
    /// Items used of it; absent for a text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub items: Option<usize>,
}

impl DataFile {
    /// Of items that are made: known by everything that is put to a model.
    pub(super) fn made(name: &str, requests: &[Request]) -> Self {
        let mut hasher = blake3::Hasher::new();
        for request in requests {
            hasher.update(format!("{request:?}\n").as_bytes());
        }
        Self {
            name: name.to_owned(),
            blake3: hasher.finalize().to_hex().to_string(),
            items: Some(requests.len()),
        }
    }

    /// Reads and hashes a file.
    pub(super) fn of(path: &Path, items: Option<usize>) -> anyhow::Result<Self> {
        Ok(Self {
            name: file_name(path),
            blake3: hash(path)?,
            items,
        })
    }
}

/// Size and weight error of a file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct FileFacts {
    /// Bytes of the .smq file, or of all shards of the checkpoint.
    pub file_bytes: u64,
    /// Of the quantized tensors, and of those that chosen storage leaves as they are; absent for
    /// C0, as what follows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bits_per_weight: Option<f64>,
    /// Mean over groups of the relative MSE.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mean_rel_mse: Option<f64>,
}

/// The directory of the results, with a file for each finished cell.
#[derive(Debug)]
pub(crate) struct Store {
    cells: PathBuf,
    /// Of this run, with the tasks of earlier ones.
    parameters: Parameters,
}

impl Store {
    /// Opens a directory for results of these parameters, making it if it is not there.
    ///
    /// # Errors
    /// If it holds results of other parameters.
    pub(crate) fn open(out: &Path, parameters: &Parameters) -> anyhow::Result<Self> {
        let cells = out.join("cells");
        let path = out.join("parameters.json");
        let mut union = parameters.clone();
        if path.exists() {
            let there: Parameters = read_json(&path)?;
            ensure!(
                parameters.agree_with(&there),
                "{} holds results of another model, other data or another version (see \
                 parameters.json there); give another --out, or remove it",
                out.display()
            );
            union.tasks.extend(there.tasks);
            union.sensitivity = union.sensitivity.or(there.sensitivity);
        }
        std::fs::create_dir_all(&cells)
            .with_context(|| format!("cannot create {}", cells.display()))?;
        write_json(&path, &union)?;
        Ok(Self {
            cells,
            parameters: union,
        })
    }

    /// What a cell's seal is of: everything that decides it, and its bytes. So a cell that was
    /// changed, that was measured with other data, or that is another variant's is found.
    fn seal(&self, variant: &str, what: &str, bytes: &[u8]) -> anyhow::Result<String> {
        let is_of_task = |task: &Task| what == items_of(*task);
        let is_of_text = what == KL;
        let all = &self.parameters;
        let tasks = all.tasks.iter().filter(|(task, _)| is_of_task(task));
        let decides = Parameters {
            tasks: tasks.map(|(task, file)| (*task, file.clone())).collect(),
            text: all.text.clone().filter(|_| is_of_text),
            window: if is_of_text { all.window } else { 0 },
            text_tokens: all.text_tokens.filter(|_| is_of_text),
            sensitivity: all
                .sensitivity
                .clone()
                .filter(|_| variant.ends_with(WEIGHED)),
            ..all.clone()
        };
        let mut hasher = blake3::Hasher::new();
        for part in [
            &serde_json::to_vec(&decides)?,
            variant.as_bytes(),
            what.as_bytes(),
            bytes,
        ] {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part);
        }
        Ok(format!("{}\n", hasher.finalize().to_hex()))
    }

    /// A cell's bytes, where it is there.
    ///
    /// # Errors
    /// If they are not what its seal says.
    fn read(&self, variant: &str, what: &str) -> anyhow::Result<Option<Vec<u8>>> {
        let path = self.path(variant, what);
        if !path.exists() {
            return Ok(None);
        }
        let bytes = read_bounded(&path, MAX_CELL_BYTES)?;
        let sealed = read_bounded(&seal_of(&path), MAX_CELL_BYTES).unwrap_or_default();
        ensure!(
            self.seal(variant, what, &bytes)?.as_bytes() == sealed,
            "{} is damaged, of another variant, or was measured with something else; remove it to \
             measure it again",
            path.display()
        );
        Ok(Some(bytes))
    }

    /// Writes a cell. Its seal comes first: a cell without one would be refused.
    fn write(&self, variant: &str, what: &str, bytes: &[u8]) -> anyhow::Result<()> {
        let path = self.path(variant, what);
        write_bytes(&seal_of(&path), self.seal(variant, what, bytes)?.as_bytes())?;
        write_bytes(&path, bytes)
    }

    fn read_json<T: DeserializeOwned>(
        &self,
        variant: &str,
        what: &str,
    ) -> anyhow::Result<Option<T>> {
        let Some(bytes) = self.read(variant, what)? else {
            return Ok(None);
        };
        let value = serde_json::from_slice(&bytes);
        Ok(Some(
            value.with_context(|| damaged(&self.path(variant, what)))?,
        ))
    }

    fn path(&self, variant: &str, what: &str) -> PathBuf {
        self.cells.join(format!("{variant}.{what}"))
    }

    /// The items of a finished cell.
    pub(crate) fn items(&self, variant: &str, task: Task) -> anyhow::Result<Option<Vec<Item>>> {
        let what = items_of(task);
        let Some(bytes) = self.read(variant, &what)? else {
            return Ok(None);
        };
        let item = |line: &[u8]| serde_json::from_slice(line);
        let lines = bytes.split(|b| *b == b'\n').filter(|line| !line.is_empty());
        let items = lines.map(item).collect::<Result<_, _>>();
        Ok(Some(
            items.with_context(|| damaged(&self.path(variant, &what)))?,
        ))
    }

    /// Records a finished cell.
    pub(crate) fn put_items(
        &self,
        variant: &str,
        task: Task,
        items: &[Item],
    ) -> anyhow::Result<()> {
        self.write(variant, &items_of(task), &jsonl(items)?)
    }

    /// The distance from C0, if it is there.
    pub(crate) fn kl(&self, variant: &str) -> anyhow::Result<Option<KlReport>> {
        self.read_json(variant, KL)
    }

    /// Records the distance from C0.
    pub(crate) fn put_kl(&self, variant: &str, report: &KlReport) -> anyhow::Result<()> {
        self.write(variant, KL, &json(report)?)
    }

    /// Size and weight error, if they are there.
    pub(crate) fn facts(&self, variant: &str) -> anyhow::Result<Option<FileFacts>> {
        self.read_json(variant, FACTS)
    }

    /// Records size and weight error.
    pub(crate) fn put_facts(&self, variant: &str, facts: &FileFacts) -> anyhow::Result<()> {
        self.write(variant, FACTS, &json(facts)?)
    }
}

/// The end of a cell's name that has a task's items.
fn items_of(task: Task) -> String {
    format!("{}.jsonl", task.name())
}

/// Where a cell's seal is.
fn seal_of(cell: &Path) -> PathBuf {
    let mut name = cell.as_os_str().to_owned();
    name.push(".blake3");
    PathBuf::from(name)
}

fn read_json<T: DeserializeOwned>(path: &Path) -> anyhow::Result<T> {
    serde_json::from_slice(&map_file(path)?).with_context(|| damaged(path))
}

fn damaged(path: &Path) -> String {
    format!(
        "{} is damaged or of another version; remove it to measure it again",
        path.display()
    )
}

/// BLAKE3 of a file, in hexadecimal.
pub(super) fn hash(path: &Path) -> anyhow::Result<String> {
    let bytes = smq_format::hash(&map_file(path)?);
    Ok(blake3::Hash::from_bytes(bytes).to_hex().to_string())
}

/// A path without its directory.
pub(crate) fn file_name(path: &Path) -> String {
    let name = path.file_name().unwrap_or(path.as_os_str());
    name.to_string_lossy().into_owned()
}
