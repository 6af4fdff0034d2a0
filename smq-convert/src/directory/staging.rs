//! The output directory: files are written out of sight, into a directory beside it, which then
//! takes its place as a whole.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use smq_format::Scratch;

use super::error::DirectoryError;
use super::exchange::{carry_over, check_tree, exchange, is_checkpoints, is_mount_root, recover};

/// What makes transformers add an adapter's weights to whatever model lies beside it.
const ADAPTER: &str = "adapter_config.json";

/// A temporary directory. Dropped without [`Staging::commit`], it removes itself and every
/// directory that it created.
pub(crate) struct Staging {
    /// The directory as it was given.
    out_dir: PathBuf,
    /// The directory itself, found by following links.
    resolved: PathBuf,
    place: Place,
    scratch: Scratch,
    // Declared, and so dropped, after `scratch`: a directory must be empty to be removed.
    created: CreatedDirs,
}

/// How the files come to their place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// The directory is renamed to its name, which is free or that of an empty directory.
    Free,
    /// The directory changes places with the one that is there.
    Taken,
    /// The files are renamed into the directory, which holds no checkpoint and cannot be renamed
    /// itself.
    Within,
}

impl Staging {
    /// Checks that the output directory may be written and replaced. `sources` may not lie in it.
    pub(crate) fn open(
        out_dir: &Path,
        force: bool,
        sources: &[Option<&Path>],
    ) -> Result<Self, DirectoryError> {
        recover(out_dir)?;
        let mut place = Place::Free;
        let mut resolved = out_dir.to_owned();
        let mut why_fixed = None;
        // A link that leads nowhere exists too, and is no directory.
        if out_dir.symlink_metadata().is_ok() {
            let names = check_existing(out_dir, force, sources)?;
            resolved = resolve(out_dir)?;
            why_fixed = fixed(&resolved);
            place = match (why_fixed, names.is_empty()) {
                (Some(_), _) => Place::Within,
                (None, true) => Place::Free,
                (None, false) => Place::Taken,
            };
            if place == Place::Taken {
                check_tree(&resolved)?;
            }
        }
        let parent = resolved.parent().unwrap_or(Path::new("")).to_owned();
        let created = CreatedDirs::create(&parent)?;
        let beside = |target: &Path| Scratch::beside(target);
        let scratch = match place {
            Place::Within => beside(&within(&resolved)),
            Place::Free | Place::Taken => match beside(&resolved) {
                // Where nothing may be put beside a directory, it may be written all the same.
                Err(error) if resolved.is_dir() && is_refusal(&error) => {
                    place = Place::Within;
                    why_fixed = Some("nothing can be written beside it");
                    beside(&within(&resolved))
                }
                made => made,
            },
        };
        let action = "create a temporary directory beside it";
        let scratch = scratch.map_err(DirectoryError::io(action, out_dir))?;
        if let (Place::Within, Some(why)) = (place, why_fixed)
            && let Some(found) = list(&resolved)?
                .into_iter()
                .find(|name| is_checkpoints(name))
        {
            return Err(DirectoryError::Fixed {
                path: out_dir.to_owned(),
                found,
                why,
            });
        }
        Ok(Self {
            out_dir: out_dir.to_owned(),
            resolved,
            place,
            scratch,
            created,
        })
    }

    /// Where to write the file that will be called `name`.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
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

    /// Puts the files in their place. A checkpoint that was there is gone with the side files that
    /// belonged to it; whatever else was there is in the new directory too.
    pub(crate) fn commit(
        self,
        shards: &[String],
        side_files: &[String],
    ) -> Result<(), DirectoryError> {
        let Self {
            out_dir,
            resolved,
            place,
            scratch,
            created,
        } = self;
        let action = "move into place";
        match place {
            Place::Free => {
                like(scratch.path(), &resolved);
                sync(scratch.path());
                // Refused by the system where something was put there meanwhile.
                scratch
                    .put(|staged| fs::rename(staged, &resolved))
                    .map_err(|e| {
                        match list(&resolved)
                            .ok()
                            .and_then(|names| names.into_iter().next())
                        {
                            Some(found) => DirectoryError::NotEmpty {
                                path: out_dir.clone(),
                                found,
                            },
                            None => DirectoryError::io(action, &out_dir)(e),
                        }
                    })?;
            }
            Place::Taken => {
                carry_over(&resolved, scratch.path())?;
                like(scratch.path(), &resolved);
                sync(scratch.path());
                // Once it has changed places, the old directory looks like a leftover, which no
                // other run may remove while there is something to carry over from it.
                let _held = hold(&resolved);
                scratch.put(|staged| {
                    let io = || DirectoryError::io(action, &out_dir);
                    exchange(staged, &resolved).map_err(io())?;
                    // What was put there since the first time, before the old directory goes.
                    carry_over(staged, &resolved).inspect_err(|_| {
                        let _ = exchange(staged, &resolved);
                    })
                })?;
            }
            Place::Within => {
                let shards = shards.iter().chain(side_files);
                put_within(scratch.path(), &resolved, shards)
                    .map_err(DirectoryError::io(action, &out_dir))?;
            }
        }
        sync(resolved.parent().unwrap_or(Path::new(".")));
        created.keep();
        Ok(())
    }
}

/// Renames files into a directory, config.json last, without which nobody takes it for a
/// checkpoint; removes them again where one cannot be.
fn put_within<'a>(
    staged: &Path,
    target: &Path,
    names: impl Iterator<Item = &'a String>,
) -> io::Result<()> {
    let mut names: Vec<_> = names.collect();
    names.sort_by_key(|name| *name == "config.json");
    let mut moved = Vec::new();
    for name in names {
        let to = target.join(name);
        let directory = to.parent().filter(|_| name.contains('/'));
        let put = directory.map_or(Ok(()), fs::create_dir_all).and_then(|()| {
            match to.symlink_metadata() {
                Ok(_) => Err(io::ErrorKind::AlreadyExists.into()),
                Err(_) => fs::rename(staged.join(name), &to),
            }
        });
        if let Err(error) = put {
            for path in &moved {
                // The first error is the one to report.
                let _ = fs::remove_file(path);
            }
            return Err(error);
        }
        moved.push(to);
    }
    sync(target);
    Ok(())
}

/// Locks the directory that is at `path` and waits for whoever has locked it; `None` where
/// directories cannot be locked.
fn hold(path: &Path) -> Option<File> {
    loop {
        let directory = File::open(path).ok()?;
        directory.lock().ok()?;
        // While it waited another run may have put its own there.
        if same_file(&directory, path)? {
            return Some(directory);
        }
    }
}

/// Whether an open file is the one at `path`.
fn same_file(file: &File, path: &Path) -> Option<bool> {
    let (open, there) = (file.metadata().ok()?, fs::metadata(path).ok()?);
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        Some((open.dev(), open.ino()) == (there.dev(), there.ino()))
    }
    #[cfg(not(unix))]
    {
        let _ = (open, there);
        Some(true)
    }
}

/// Why a directory cannot be renamed, where it cannot.
fn fixed(resolved: &Path) -> Option<&'static str> {
    let is_current = std::env::current_dir()
        .and_then(fs::canonicalize)
        .is_ok_and(|current| current.starts_with(resolved));
    match is_current {
        true => Some("it is the current directory or holds it"),
        false if is_mount_root(resolved) => Some("a file system is mounted there"),
        false => None,
    }
}

/// Names the temporary directory within an output directory.
fn within(resolved: &Path) -> PathBuf {
    resolved.join("checkpoint")
}

fn is_refusal(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem
    )
}

/// Gives a directory the permissions of the one that it replaces, and its owner where that can be.
fn like(staged: &Path, old: &Path) {
    let Ok(old) = fs::metadata(old) else { return };
    #[cfg(unix)]
    {
        use std::os::unix::fs::{MetadataExt, chown};
        let is_others =
            fs::metadata(staged).is_ok_and(|new| (new.uid(), new.gid()) != (old.uid(), old.gid()));
        if is_others {
            let _ = chown(staged, Some(old.uid()), Some(old.gid()));
        }
    }
    let _ = fs::set_permissions(staged, old.permissions());
}

/// Makes what was renamed in a directory durable, where that can be done.
fn sync(directory: &Path) {
    let directory = match directory.as_os_str().is_empty() {
        true => Path::new("."),
        false => directory,
    };
    let _ = File::open(directory).and_then(|directory| directory.sync_all());
}

fn resolve(path: &Path) -> Result<PathBuf, DirectoryError> {
    fs::canonicalize(path).map_err(DirectoryError::io("resolve the path of", path))
}

/// The names in an output directory that is there and may be used.
fn check_existing(
    out_dir: &Path,
    force: bool,
    sources: &[Option<&Path>],
) -> Result<Vec<String>, DirectoryError> {
    if !out_dir.is_dir() {
        return Err(DirectoryError::NotADirectory {
            path: out_dir.to_owned(),
        });
    }
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
    // What a killed run left within it, where it cannot be replaced as a whole.
    smq_format::remove_leftovers(&within(&resolved));
    let names = list(out_dir)?;
    if let (false, Some(found)) = (force, names.first()) {
        return Err(DirectoryError::NotEmpty {
            path: out_dir.to_owned(),
            found: found.clone(),
        });
    }
    for name in &names {
        let path = out_dir.join(name);
        if name == ADAPTER {
            return Err(DirectoryError::Adapter { path });
        }
        if is_checkpoints(name) && path.symlink_metadata().is_ok_and(|m| m.is_dir()) {
            return Err(DirectoryError::InTheWay { path });
        }
    }
    Ok(names)
}

fn list(dir: &Path) -> Result<Vec<String>, DirectoryError> {
    let names = |entry: io::Result<fs::DirEntry>| {
        entry.map(|entry| entry.file_name().to_string_lossy().into_owned())
    };
    fs::read_dir(dir)
        .and_then(|entries| entries.map(names).collect())
        .map_err(DirectoryError::io("list", dir))
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
