//! The output directory: files are written out of sight and appear together, or not at all.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::error::SynthError;

const TEMP_PREFIX: &str = ".smq-partial-";
const INDEX: &str = "model.safetensors.index.json";

/// A temporary directory inside the output directory. Dropped without [`Staging::commit`], it removes itself and every
/// directory that it created.
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
    ) -> Result<Self, SynthError> {
        // A link that leads nowhere exists too, and is no directory.
        if out_dir.symlink_metadata().is_ok() {
            check_existing(out_dir, force, sources)?;
        }
        let created = CreatedDirs::create(out_dir)?;
        let temp = tempfile::Builder::new()
            .prefix(TEMP_PREFIX)
            .tempdir_in(out_dir)
            .map_err(SynthError::io("create a temporary directory in", out_dir))?;
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

    /// Moves all files to their names. An older checkpoint's files go first, so that no mixture of two can be read.
    pub(crate) fn commit(self, shards: &[String], side_files: &[String]) -> Result<(), SynthError> {
        for name in list(&self.out_dir)? {
            if is_checkpoint_file(&name) {
                let path = self.out_dir.join(&name);
                fs::remove_file(&path).map_err(SynthError::io("replace", &path))?;
            }
        }
        let mut moved = Vec::new();
        for name in shards.iter().chain(side_files) {
            let target = self.target(name);
            if let Err(error) = fs::rename(self.path(name), &target) {
                for path in &moved {
                    // The first error is the one to report.
                    let _ = fs::remove_file(path);
                }
                return Err(SynthError::io("move into place", &target)(error));
            }
            moved.push(target);
        }
        self.created.keep();
        Ok(())
    }
}

fn check_existing(
    out_dir: &Path,
    force: bool,
    sources: &[Option<&Path>],
) -> Result<(), SynthError> {
    if !out_dir.is_dir() {
        return Err(SynthError::NotADirectory {
            path: out_dir.to_owned(),
        });
    }
    let resolve =
        |path: &Path| fs::canonicalize(path).map_err(SynthError::io("resolve the path of", path));
    let resolved = resolve(out_dir)?;
    for source in sources.iter().flatten() {
        let input = resolve(source)?;
        if input == resolved || input.parent() == Some(&resolved) {
            return Err(SynthError::OutputIsInput {
                path: out_dir.to_owned(),
                input: source.to_path_buf(),
            });
        }
    }
    let names = list(out_dir)?;
    if let (false, Some(found)) = (force, names.first()) {
        return Err(SynthError::NotEmpty {
            path: out_dir.to_owned(),
            found: found.clone(),
        });
    }
    // What a killed run left behind.
    for name in names.iter().filter(|name| name.starts_with(TEMP_PREFIX)) {
        let path = out_dir.join(name);
        fs::remove_dir_all(&path).map_err(SynthError::io("remove", &path))?;
    }
    Ok(())
}

fn list(dir: &Path) -> Result<Vec<String>, SynthError> {
    let names = |entry: io::Result<fs::DirEntry>| {
        entry.map(|entry| entry.file_name().to_string_lossy().into_owned())
    };
    fs::read_dir(dir)
        .and_then(|entries| entries.map(names).collect())
        .map_err(SynthError::io("list", dir))
}

/// A weights file or index as Hugging Face names them.
fn is_checkpoint_file(name: &str) -> bool {
    let numbers = name
        .strip_prefix("model-")
        .and_then(|name| name.strip_suffix(".safetensors"))
        .and_then(|name| name.split_once("-of-"));
    let digits = |text: &str| text.len() >= 5 && text.bytes().all(|byte| byte.is_ascii_digit());
    name == "model.safetensors"
        || name == INDEX
        || numbers.is_some_and(|(number, count)| digits(number) && digits(count))
}

/// Directories that did not exist before, outermost first; removed on drop while they are empty.
struct CreatedDirs(Vec<PathBuf>);

impl CreatedDirs {
    fn create(dir: &Path) -> Result<Self, SynthError> {
        let missing: Vec<&Path> = dir
            .ancestors()
            .take_while(|path| !path.as_os_str().is_empty() && !path.exists())
            .collect();
        let mut created = Self(Vec::new());
        for path in missing.into_iter().rev() {
            fs::create_dir(path).map_err(SynthError::io("create directory", path))?;
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
