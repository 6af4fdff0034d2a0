//! The Hugging Face cache: `models--ORG--NAME/snapshots/COMMIT` for a repository's id `ORG/NAME`.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::locate::Located;

/// Ends of file names, which no repository's id has that is meant.
const FILE_ENDS: [&str; 6] = [".smq", ".safetensors", ".json", ".gguf", ".bin", ".pt"];

/// The snapshot of the repository `given`, which is no path; `None` where that cannot be an id.
///
/// # Errors
/// [`Error::Model`] where it is not in the cache, or is the address of a page, with what to do.
pub(crate) fn find(given: &Path) -> Result<Option<Located>> {
    let absent = "no such file or directory";
    if let Some(id) = of_address(given) {
        let message = format!("is a web address, no path; {}", download(&id));
        return Err(Error::model(given, message));
    }
    let Some(id) = repository(given) else {
        return Ok(None);
    };
    let remedy = download(id);
    let Some(cache) = cache(|name| std::env::var_os(name)) else {
        let message = format!("{absent}; if it is a repository's id, {remedy}");
        return Err(Error::model(given, message));
    };
    let folder = cache.join(format!("models--{}", id.replace('/', "--")));
    if !folder.is_dir() {
        let message = format!(
            "{absent}, and no repository of this name is in the Hugging Face cache {}; if it is a \
             repository's id, {remedy}",
            cache.display()
        );
        return Err(Error::model(given, message));
    }
    let snapshot = snapshot(&folder).map_err(|problem| {
        let folder = folder.display();
        Error::model(
            given,
            format!("{absent}; the Hugging Face cache {folder} {problem}; {remedy}"),
        )
    })?;
    let note = format!(
        "{id} is no path; its snapshot in the Hugging Face cache is taken, {}",
        snapshot.display()
    );
    Ok(Some(Located {
        path: snapshot,
        repository: Some((id.to_owned(), note)),
    }))
}

/// What to do to have a repository.
fn download(id: &str) -> String {
    let name = id.rsplit('/').next().unwrap_or(id);
    format!("download it with: hf download {id} --local-dir {name}")
}

/// Adds what to do to an error that a snapshot in the cache is incomplete.
pub(crate) fn complete(error: Error, id: &str) -> Error {
    let part = |what: &str| {
        let remedy = download(id);
        format!("{what}; the Hugging Face cache has a part of {id} only, {remedy}")
    };
    match error {
        Error::NoWeights { dir, problem } => Error::NoWeights {
            dir,
            problem: part(&problem),
        },
        Error::MissingShard { dir, shard, .. } => {
            Error::model(dir, part(&format!("shard {shard} is missing")))
        }
        other => other,
    }
}

/// The id in the address of a page of Hugging Face.
fn of_address(given: &Path) -> Option<String> {
    let address = given.to_str()?;
    let rest = address
        .strip_prefix("https://")
        .or_else(|| address.strip_prefix("http://"))?;
    let rest = rest
        .strip_prefix("huggingface.co/")
        .or_else(|| rest.strip_prefix("hf.co/"))?;
    let mut parts = rest.split(['/', '?', '#']).filter(|part| !part.is_empty());
    Some(format!("{}/{}", parts.next()?, parts.next()?))
}

/// The snapshot that `refs/main` names.
fn snapshot(folder: &Path) -> std::result::Result<PathBuf, String> {
    let snapshots = folder.join("snapshots");
    if let Ok(commit) = std::fs::read_to_string(folder.join("refs").join("main")) {
        let commit = commit.trim();
        let is_plain = !commit.is_empty() && commit.bytes().all(|b| b.is_ascii_alphanumeric());
        let named = snapshots.join(commit);
        return match is_plain && named.is_dir() {
            true => Ok(named),
            false => Err("has no snapshot of the commit that its refs/main names".to_owned()),
        };
    }
    // As transformers: a snapshot of another branch or commit is not what the id alone means.
    let entries = std::fs::read_dir(&snapshots).into_iter().flatten();
    let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
    match paths.filter(|path| path.is_dir()).min() {
        Some(one) => Err(format!(
            "has no refs/main that says which snapshot is meant; give its path where you know, {} \
             for example",
            one.display()
        )),
        None => Err("has no snapshot".to_owned()),
    }
}

/// `given` as a repository's id: `NAME` or `ORG/NAME` of letters, digits, `-`, `_` and `.`.
fn repository(given: &Path) -> Option<&str> {
    let id = given.to_str()?;
    let is_part = |part: &str| {
        let known = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        part.starts_with(|c: char| c.is_ascii_alphanumeric()) && part.chars().all(known)
    };
    let parts: Vec<&str> = id.split('/').collect();
    let is_id = matches!(parts[..], [_] | [_, _]) && parts.iter().all(|part| is_part(part));
    let is_file = FILE_ENDS.iter().any(|end| id.ends_with(end));
    (is_id && !is_file && id.len() <= 96).then_some(id)
}

/// Where the cache is, by the variables that huggingface_hub reads, in its order.
fn cache(variable: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let set = |name: &str| {
        variable(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    let home = || {
        let home = set("HF_HOME").or_else(|| Some(set("XDG_CACHE_HOME")?.join("huggingface")));
        home.or_else(|| Some(set("HOME")?.join(".cache").join("huggingface")))
    };
    set("HF_HUB_CACHE")
        .or_else(|| set("HUGGINGFACE_HUB_CACHE"))
        .or_else(|| Some(home()?.join("hub")))
        .map(|path| expand(path, set("HOME")))
}

/// A leading `~` stands for the home directory, as in huggingface_hub.
fn expand(path: PathBuf, home: Option<PathBuf>) -> PathBuf {
    match (path.strip_prefix("~"), home) {
        (Ok(rest), Some(home)) => home.join(rest),
        _ => path,
    }
}
