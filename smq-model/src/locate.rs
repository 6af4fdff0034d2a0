//! What a path is that was given as a model: a directory, a .smq file, a repository's id, or
//! something to be told about.

use std::io::Read;
use std::path::{Path, PathBuf};

use smq_format::SmqFile;

use crate::error::{Error, Result};
use crate::hub;

/// Where a model is.
#[derive(Debug)]
pub(crate) struct Located {
    pub(crate) path: PathBuf,
    /// The repository of which this is the snapshot in the Hugging Face cache, and a note that says
    /// so.
    pub(crate) repository: Option<(String, String)>,
}

impl Located {
    /// What there is to say.
    pub(crate) fn note(&self) -> Option<String> {
        self.repository.as_ref().map(|(_, note)| note.clone())
    }

    /// Adds to an error of opening it what to do where the cache has a part of the repository.
    pub(crate) fn blame(&self, error: Error) -> Error {
        match &self.repository {
            Some((id, _)) => hub::complete(error, id),
            None => error,
        }
    }
}

/// Where the model is that `given` means: `given` itself, or the snapshot of that name in the
/// Hugging Face cache where nothing is there and `given` may be a repository's id.
///
/// # Errors
/// [`Error::Model`] where the cache has no such repository, or where nothing is there and a model
/// beside it has a name much like it, with what to do.
pub(crate) fn locate(given: &Path) -> Result<Located> {
    // A link that leads nowhere is there: what is wrong with it is said where it is opened.
    if given.symlink_metadata().is_err() {
        refuse_typo(given)?;
        if let Some(located) = hub::find(given)? {
            return Ok(located);
        }
    }
    Ok(Located {
        path: given.to_path_buf(),
        repository: None,
    })
}

/// Refuses a path where nothing is, if a model beside it is likely to be meant.
fn refuse_typo(given: &Path) -> Result<()> {
    match meant(given) {
        Some(other) => {
            let message = format!(
                "no such file or directory; did you mean {}?",
                other.display()
            );
            Err(Error::model(given, message))
        }
        None => Ok(()),
    }
}

/// The model beside `given` whose name is nearest to it: without its `.smq`, or with one letter in
/// five wrong, missing, too much, or in its neighbour's place.
fn meant(given: &Path) -> Option<PathBuf> {
    let name = given.file_name()?.to_str()?;
    let directory = given.parent()?;
    let directory = match directory.as_os_str().is_empty() {
        true => Path::new("."),
        false => directory,
    };
    let reach = (name.chars().count() / 5).max(1);
    let near = std::fs::read_dir(directory).ok()?.filter_map(|entry| {
        let entry = entry.ok()?;
        let other = entry.file_name().into_string().ok()?;
        let apart = match other.strip_suffix(".smq") == Some(name) {
            true => 0,
            false => strsim::damerau_levenshtein(&other, name),
        };
        let is_model = [".smq", ".safetensors"]
            .iter()
            .any(|end| other.ends_with(end))
            || entry.path().join("config.json").is_file();
        (apart <= reach && is_model).then_some((apart, other))
    });
    near.min().map(|(_, other)| given.with_file_name(other))
}

/// Opens a .smq file, or says what was given instead.
///
/// # Errors
/// [`Error::Model`] for a directory, a file of another kind, or a name that is only much like that
/// of a model; [`Error::Format`] for a damaged file.
pub fn open_smq(path: &Path) -> Result<SmqFile> {
    if path.symlink_metadata().is_err() {
        refuse_typo(path)?;
    }
    if path.is_dir() {
        let message =
            "is a directory; give a .smq file, which smq-convert makes of a checkpoint directory";
        return Err(Error::model(path, message));
    }
    match Kind::of(path) {
        Some(Kind::Smq) | None => {}
        Some(kind) => {
            let message = format!("{}; give a .smq file", kind.says(path));
            return Err(Error::model(path, message));
        }
    }
    Ok(SmqFile::open(path)?)
}

/// As [`open_smq`], where a checkpoint directory would have done too.
pub(crate) fn open_model(path: &Path) -> Result<SmqFile> {
    match Kind::of(path) {
        Some(Kind::Smq) | None => Ok(SmqFile::open(path)?),
        Some(kind) => {
            let remedy = kind.remedy(path, "or a .smq file");
            Err(Error::model(path, format!("{}; {remedy}", kind.says(path))))
        }
    }
}

/// Refuses a file that was given as a checkpoint and is not safetensors.
pub(crate) fn refuse_other_files(path: &Path) -> Result<()> {
    match Kind::of(path) {
        Some(Kind::Safetensors) => Ok(()),
        // Opening it says what is wrong.
        None if !path.is_file() || std::fs::File::open(path).is_err() => Ok(()),
        None => {
            let message = "is not a checkpoint; give a Hugging Face checkpoint directory, or one \
                .safetensors file";
            Err(Error::model(path, message))
        }
        Some(kind) => {
            let remedy = kind.remedy(path, "or one .safetensors file");
            Err(Error::model(path, format!("{}; {remedy}", kind.says(path))))
        }
    }
}

/// How safetensors are made of the GGUF file `name` in `dir`, as it was tried with transformers
/// 5.24; what was lost when it was quantized stays lost.
pub(crate) fn dequantize_gguf(dir: &str, name: &str) -> String {
    format!(
        "dequantize it first, with transformers, accelerate and gguf from the Python package \
         index: python -c \"from transformers import AutoModelForCausalLM as M, AutoTokenizer as \
         T, GgufConfig as G; a, k = ['{dir}'], {{'gguf_file': '{name}'}}; M.from_pretrained(*a, \
         **k, quantization_config=G(dequantize=True)).save_pretrained('dequantized'); \
         T.from_pretrained(*a, **k).save_pretrained('dequantized')\", and give the directory \
         dequantized"
    )
}

/// A kind of file that is told apart by its first bytes, or by its name where these say nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Smq,
    Safetensors,
    Json,
    Gguf,
    Pytorch,
    Keras,
}

impl Kind {
    /// `None` for what is no regular file, cannot be read, or is none of them: opening it says what
    /// is wrong.
    fn of(path: &Path) -> Option<Self> {
        if !path.is_file() {
            return None;
        }
        let mut start = [0; 16];
        let length = std::fs::File::open(path).ok()?.read(&mut start).ok()?;
        let start = &start[..length];
        let end = path.extension().unwrap_or_default();
        let is_json = matches!(start.trim_ascii_start().first(), Some(b'{' | b'['));
        Some(match start {
            _ if start.starts_with(&smq_format::header::MAGIC) => Kind::Smq,
            _ if start.starts_with(b"GGUF") => Kind::Gguf,
            _ if start.starts_with(b"\x89HDF") => Kind::Keras,
            // A header of JSON behind its length, which is under 100 MB.
            [.., 0, 0, 0, b'{', _, _, _, _, _, _, _] if start.len() == 16 => Kind::Safetensors,
            _ if end == "safetensors" => Kind::Safetensors,
            _ if end == "smq" => Kind::Smq,
            // A zip archive, or a pickle of protocol 2 and later.
            _ if start.starts_with(b"PK\x03\x04") || start.starts_with(b"\x80\x02") => {
                Kind::Pytorch
            }
            _ if ["bin", "pt", "pth", "ckpt"]
                .iter()
                .any(|known| end == *known) =>
            {
                Kind::Pytorch
            }
            _ if is_json || end == "json" => Kind::Json,
            _ => return None,
        })
    }

    /// What the path is in place of a checkpoint, as the end of a sentence.
    fn says(self, path: &Path) -> &'static str {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        match self {
            Kind::Smq => "is a .smq file already",
            Kind::Safetensors => "is a bare safetensors file",
            Kind::Json if name.ends_with(".index.json") => "is the shard index of a checkpoint",
            Kind::Json if name == "config.json" => "is the configuration of a checkpoint",
            Kind::Json => "is a JSON file",
            Kind::Gguf => "is a GGUF file, which is not read",
            Kind::Pytorch => {
                "is a PyTorch file, which is not read because unpickling runs code; save the \
                 model as safetensors with transformers' save_pretrained"
            }
            Kind::Keras => "is an HDF5 file, which is not read",
        }
    }

    /// `give ...`: the directory and `other` where the file may be one of a checkpoint's.
    fn remedy(self, path: &Path, other: &str) -> String {
        let dir = match path.parent() {
            Some(dir) if !dir.as_os_str().is_empty() => dir.display().to_string(),
            _ => ".".to_owned(),
        };
        match self {
            Kind::Smq => "give the checkpoint directory that it was made from".to_owned(),
            Kind::Safetensors | Kind::Json => {
                format!(
                    "give the directory that holds it and the rest of the checkpoint, {dir}, \
                     {other}"
                )
            }
            Kind::Gguf => {
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                format!(
                    "give the directory of the Hugging Face checkpoint that it was made from, \
                     {other}; without that one, {}",
                    dequantize_gguf(&dir, &name)
                )
            }
            Kind::Pytorch | Kind::Keras => {
                format!(
                    "give the directory of the Hugging Face checkpoint with config.json and \
                     safetensors, {other}"
                )
            }
        }
    }
}
