//! The files beside the weights that decide what a model says.

use std::path::Path;

use smq_format::map_file;

use crate::error::{Error, Result};
use crate::json::parse_object;

/// Side files that come before the further chat templates in a .smq, in this order.
const FIRST: [&str; 5] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    CHAT_TEMPLATE,
];
/// Side files that come after them.
const LAST: [&str; 2] = ["special_tokens_map.json", "added_tokens.json"];
/// The chat template that transformers 5 writes, and prefers over the one in tokenizer_config.json.
const CHAT_TEMPLATE: &str = "chat_template.jinja";
/// The directory of further chat templates, one file each.
pub const TEMPLATE_DIR: &str = "additional_chat_templates";
/// How the name of a chat template's file ends.
const TEMPLATE_END: &str = ".jinja";
/// What tokenizers are made of before, or beside, tokenizer.json; transformers reads none of them
/// where that is there.
const TOKENIZER_SOURCES: [&str; 10] = [
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "tokenizer.model",
    "tokenizer.model.v3",
    "spiece.model",
    "sentencepiece.bpe.model",
    "spm.model",
    "tiktoken.model",
    "tekken.json",
];
/// A chat template for processors of images and sound, which no tokenizer reads.
const PROCESSOR_TEMPLATE: &str = "chat_template.json";
/// Largest tokenizer.json; that of a 256k vocabulary is about 33 MB.
const MAX_TOKENIZER_BYTES: u64 = 256 << 20;
/// Largest other side file; the largest known are of a few hundred kilobytes.
const MAX_SIDE_BYTES: u64 = 32 << 20;

/// Whether `name` is that of a file which travels inside the .smq where the checkpoint has it.
///
/// That is a plain file name, or `additional_chat_templates/NAME.jinja` with a plain `NAME.jinja`
/// that does not begin with a dot. Nothing else is written into a directory, whatever a .smq
/// embeds.
#[must_use]
pub fn is_side_file(name: &str) -> bool {
    match name.split_once('/') {
        None => FIRST.contains(&name) || LAST.contains(&name),
        Some((directory, file)) => directory == TEMPLATE_DIR && is_template(file),
    }
}

fn is_template(file: &str) -> bool {
    file.ends_with(TEMPLATE_END) && !file.starts_with('.') && !file.contains(['/', '\\', ':'])
}

/// Whether `name` is a side file of a checkpoint, one that a tokenizer can be made of, or a
/// processor's template: what would be another model's beside new weights.
#[must_use]
pub fn is_model_file(name: &str) -> bool {
    is_side_file(name) || TOKENIZER_SOURCES.contains(&name) || name == PROCESSOR_TEMPLATE
}

/// Reads the side files that `dir` has, in the order in which a .smq has them.
///
/// # Errors
/// A file that cannot be read, is no regular file, or is over 256 MiB (tokenizer.json) or 32 MiB.
pub fn side_files(dir: &Path) -> Result<Vec<(String, Vec<u8>)>> {
    let first = FIRST.map(str::to_owned).into_iter();
    let last = LAST.map(str::to_owned).into_iter();
    let names = first.chain(templates(dir)?).chain(last);
    let files = names.map(|name| Ok(read(&dir.join(&name))?.map(|contents| (name, contents))));
    files.filter_map(Result::transpose).collect()
}

/// The names of the further chat templates, ascending.
fn templates(dir: &Path) -> Result<Vec<String>> {
    let dir = dir.join(TEMPLATE_DIR);
    // As transformers: what is no directory is none of its business.
    if !dir.is_dir() {
        return Ok(Vec::new());
    }
    let names = list(&dir)?.into_iter().filter(|name| is_template(name));
    Ok(names.map(|name| format!("{TEMPLATE_DIR}/{name}")).collect())
}

/// The names in a directory, ascending.
pub(super) fn list(dir: &Path) -> Result<Vec<String>> {
    let name =
        |entry: std::io::Result<std::fs::DirEntry>| Ok(entry?.file_name().to_string_lossy().into());
    let entries = std::fs::read_dir(dir).and_then(|entries| entries.map(name).collect());
    let mut names: Vec<String> = entries.map_err(Error::io(dir, "list it"))?;
    names.sort();
    Ok(names)
}

/// Refuses a side file that is longer than any: what it holds takes several times its length once
/// it is parsed.
pub(crate) fn check_length(name: &str, bytes: u64) -> std::result::Result<(), String> {
    let limit = match name {
        "tokenizer.json" => MAX_TOKENIZER_BYTES,
        _ => MAX_SIDE_BYTES,
    };
    match bytes > limit {
        true => Err(format!(
            "{bytes} bytes, over the limit of {limit} of {name}"
        )),
        false => Ok(()),
    }
}

fn read(path: &Path) -> Result<Option<Vec<u8>>> {
    // map_file refuses what reading would wait for or never end with: a FIFO, a device.
    match map_file(path) {
        Ok(map) => {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            check_length(&name, map.len() as u64).map_err(|message| Error::model(path, message))?;
            Ok(Some(map.to_vec()))
        }
        Err(smq_format::Error::Io { source, .. })
            if source.kind() == std::io::ErrorKind::NotFound && !path.is_symlink() =>
        {
            Ok(None)
        }
        Err(e) => Err(e.into()),
    }
}

/// What else there is to say about a directory's side files: what is not read, and which of two
/// counts.
pub(super) fn notes(dir: &Path, files: &[(String, Vec<u8>)]) -> Vec<String> {
    let file = |name: &str| files.iter().find(|f| f.0 == name).map(|f| f.1.as_slice());
    let mut notes = Vec::new();
    if file("tokenizer.json").is_none() && tokenizer_sources(dir).next().is_some() {
        notes.push(format!("{}: {}", dir.display(), no_tokenizer(dir)));
    }
    let inline = file("tokenizer_config.json")
        .and_then(|bytes| parse_object("", bytes).ok()?.remove("chat_template"))
        .filter(|template| !template.is_null());
    let in_file = file(CHAT_TEMPLATE).map(String::from_utf8_lossy);
    if let (Some(inline), Some(in_file)) = (inline, in_file)
        && inline.as_str() != Some(in_file.as_ref())
    {
        notes.push(format!(
            "{}: tokenizer_config.json has another chat template; {CHAT_TEMPLATE} is the one that \
             counts, as in transformers",
            dir.display()
        ));
    }
    notes
}

/// Why text cannot be encoded without tokenizer.json, and how one is made.
pub(crate) fn no_tokenizer(dir: &Path) -> String {
    let sources: Vec<_> = tokenizer_sources(dir).collect();
    let from = match sources.as_slice() {
        [] => "download it again, or save".to_owned(),
        names => format!("{} alone cannot be read; make", names.join(", ")),
    };
    let dir = dir.display();
    format!(
        "holds no tokenizer.json, without which no text can be encoded; {from} one with: python \
         -c \"from transformers import AutoTokenizer as T; \
         T.from_pretrained('{dir}').save_pretrained('{dir}')\""
    )
}

fn tokenizer_sources(dir: &Path) -> impl Iterator<Item = &'static str> {
    TOKENIZER_SOURCES
        .into_iter()
        .filter(|name| dir.join(name).exists())
}
