//! The output directory: files are written out of sight and appear together, or not at all.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use smq_model::{SHARD_INDEX, TEMPLATE_DIR, is_model_file, is_side_file};
use tempfile::TempDir;

use super::error::DirectoryError;

const TEMP_PREFIX: &str = ".smq-partial-";
/// What makes transformers add an adapter's weights to whatever model lies beside it.
const ADAPTER: &str = "adapter_config.json";

/// A temporary directory inside the output directory. Dropped without [`Staging::commit`], it
/// removes itself and every directory that it created.
pub(crate) struct Staging {
    out_dir: PathBuf,
    temp: TempDir,
    // Declared, and so dropped, after `temp`: a directory must be empty to be removed.
    created: CreatedDirs,
}

impl Staging {
    /// Makes the output directory, or checks that it may be used. `sources` may not lie in it.
    pub(crate) fn open(
        out_dir: &Path,
        force: bool,
        sources: &[Option<&Path>],
    ) -> Result<Self, DirectoryError> {
        // A link that leads nowhere exists too, and is no directory.
        if out_dir.symlink_metadata().is_ok() {
            check_existing(out_dir, force, sources)?;
        }
        let created = CreatedDirs::create(out_dir)?;
        let temp = tempfile::Builder::new()
            .prefix(TEMP_PREFIX)
            .tempdir_in(out_dir)
            .map_err(DirectoryError::io(
                "create a temporary directory in",
                out_dir,
            ))?;
        Ok(Self {
            out_dir: out_dir.to_owned(),
            temp,
            created,
        })
    }

    /// Where to write the file that will be called `name`.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.temp.path().join(name)
    }

    /// The path of `name` after [`Staging::commit`], for messages.
    pub(crate) fn target(&self, name: &str) -> PathBuf {
        self.out_dir.join(name)
    }

    /// Writes and syncs a small file, called `name` or `DIR/NAME`, of a checkpoint with
    /// `needed_bytes` of weights.
    pub(crate) fn write(
        &self,
        name: &str,
        contents: &[u8],
        needed_bytes: u64,
    ) -> Result<(), DirectoryError> {
        let path = self.path(name);
        let in_a_directory = name.contains('/');
        let directory = path.parent().filter(|_| in_a_directory);
        directory
            .map_or(Ok(()), fs::create_dir_all)
            .and_then(|()| File::create_new(&path))
            .and_then(|mut file| file.write_all(contents).and_then(|()| file.sync_all()))
            .map_err(DirectoryError::write(&self.target(name), needed_bytes))
    }

    /// Moves all files to their names. An older checkpoint's files go first, so that no mixture of
    /// two can be read.
    pub(crate) fn commit(
        self,
        shards: &[String],
        side_files: &[String],
    ) -> Result<(), DirectoryError> {
        remove_checkpoint(&self.out_dir)?;
        let mut moved = Vec::new();
        for name in shards.iter().chain(side_files) {
            let target = self.target(name);
            if let Err(error) = self.put(name, &target) {
                for path in &moved {
                    // The first error is the one to report.
                    let _ = fs::remove_file(path);
                }
                return Err(DirectoryError::io("move into place", &target)(error));
            }
            moved.push(target);
        }
        self.created.keep();
        Ok(())
    }

    fn put(&self, name: &str, target: &Path) -> io::Result<()> {
        if let (true, Some(directory)) = (name.contains('/'), target.parent()) {
            fs::create_dir_all(directory)?;
        }
        fs::rename(self.path(name), target)
    }
}

fn check_existing(
    out_dir: &Path,
    force: bool,
    sources: &[Option<&Path>],
) -> Result<(), DirectoryError> {
    if !out_dir.is_dir() {
        return Err(DirectoryError::NotADirectory {
            path: out_dir.to_owned(),
        });
    }
    let resolve = |path: &Path| {
        fs::canonicalize(path).map_err(DirectoryError::io("resolve the path of", path))
    };
    let resolved = resolve(out_dir)?;
    for source in sources.iter().flatten() {
        let input = resolve(source)?;
        if input == resolved || input.parent() == Some(&resolved) {
            return Err(DirectoryError::OutputIsInput {
                path: out_dir.to_owned(),
                input: source.to_path_buf(),
            });
        }
    }
    let names = list(out_dir)?;
    if let (false, Some(found)) = (force, names.first()) {
        return Err(DirectoryError::NotEmpty {
            path: out_dir.to_owned(),
            found: found.clone(),
        });
    }
    if names.iter().any(|name| name == ADAPTER) {
        return Err(DirectoryError::Adapter {
            path: out_dir.join(ADAPTER),
        });
    }
    // What a killed run left behind.
    for name in names.iter().filter(|name| name.starts_with(TEMP_PREFIX)) {
        let path = out_dir.join(name);
        fs::remove_dir_all(&path).map_err(DirectoryError::io("remove", &path))?;
    }
    Ok(())
}

fn list(dir: &Path) -> Result<Vec<String>, DirectoryError> {
    let names = |entry: io::Result<fs::DirEntry>| {
        entry.map(|entry| entry.file_name().to_string_lossy().into_owned())
    };
    fs::read_dir(dir)
        .and_then(|entries| entries.map(names).collect())
        .map_err(DirectoryError::io("list", dir))
}

/// Removes the weights that Hugging Face would load from `dir`, and every file that decides what a
/// model says.
fn remove_checkpoint(dir: &Path) -> Result<(), DirectoryError> {
    let remove =
        |path: PathBuf| fs::remove_file(&path).map_err(DirectoryError::io("replace", &path));
    // What a link leads to is somebody else's; without the link nobody reads it here.
    let is_directory = |path: &Path| path.symlink_metadata().is_ok_and(|m| m.is_dir());
    let templates = dir.join(TEMPLATE_DIR);
    if is_directory(&templates) {
        for name in list(&templates)? {
            if is_side_file(&format!("{TEMPLATE_DIR}/{name}")) {
                remove(templates.join(name))?;
            }
        }
        // Stays where it holds something else.
        let _ = fs::remove_dir(&templates);
    }
    for name in list(dir)? {
        let is_its = is_weights_file(&name) || is_model_file(&name) || name == TEMPLATE_DIR;
        if is_its && !is_directory(&dir.join(&name)) {
            remove(dir.join(name))?;
        }
    }
    Ok(())
}

/// A weights file or index as Hugging Face names them: what transformers may load in place of what
/// is written.
fn is_weights_file(name: &str) -> bool {
    let Some(stem) = name.strip_suffix(".safetensors") else {
        return name == SHARD_INDEX;
    };
    let digits = |text: &str| text.len() >= 5 && text.bytes().all(|byte| byte.is_ascii_digit());
    match stem.split('-').collect::<Vec<_>>()[..] {
        ["model"] => true,
        ["model", number, "of", count] => digits(number) && digits(count),
        // The files of a distributed checkpoint's ranks, which come before any others.
        ["shard", rank, "model", number, "of", count] => {
            [rank, number, count].map(digits) == [true; 3]
        }
        _ => false,
    }
}

/// Directories that did not exist before, outermost first; removed on drop while they are empty.
struct CreatedDirs(Vec<PathBuf>);

impl CreatedDirs {
    fn create(dir: &Path) -> Result<Self, DirectoryError> {
        let missing: Vec<&Path> = dir
            .ancestors()
            .take_while(|path| !path.as_os_str().is_empty() && !path.exists())
            .collect();
        let mut created = Self(Vec::new());
        for path in missing.into_iter().rev() {
            fs::create_dir(path).map_err(DirectoryError::io("create directory", path))?;
            created.0.push(path.to_owned());
        }
        Ok(created)
    }

    fn keep(mut self) {
        self.0.clear();
    }
}

impl Drop for CreatedDirs {
    fn drop(&mut self) {
        for path in self.0.iter().rev() {
            let _ = fs::remove_dir(path);
        }
    }
}
