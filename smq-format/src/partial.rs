//! Unfinished files and directories: whose they are, and what becomes of them.
//!
//! Each lies beside what it will replace, so that a rename puts it there, and is locked by the
//! process that writes it. The system drops the lock when the process ends, however it ends. So one
//! that can be locked was left by a run that was killed, and the next run for the same target
//! removes it; one that cannot is another run's, and is left alone.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::writer::without_path;
use tempfile::{NamedTempFile, TempDir};

/// How the names of unfinished files end; each begins with a dot and the target's name.
pub const PARTIAL_SUFFIX: &str = ".smq-partial";
/// Random characters between the two.
const RANDOM: usize = 6;
/// How often another name is tried where somebody takes one for a leftover before it is locked.
const ATTEMPTS: usize = 16;

/// What this process has not finished. Whoever renames one holds this meanwhile.
static UNFINISHED: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

fn unfinished() -> MutexGuard<'static, BTreeSet<PathBuf>> {
    UNFINISHED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Removes every unfinished file and directory of this process, which must end next: nothing can be
/// finished any more, so that what is put in place is never half removed.
pub(crate) fn abandon_unfinished() {
    let mut all = unfinished();
    for path in std::mem::take(&mut *all) {
        // Whatever cannot be removed is removed by the next run.
        let _ = match path.is_dir() {
            true => fs::remove_dir_all(&path),
            false => fs::remove_file(&path),
        };
    }
    std::mem::forget(all);
}

/// An entry of [`UNFINISHED`], for as long as it lives.
#[derive(Debug)]
struct Entry(PathBuf);

impl Entry {
    fn new(path: &Path) -> Self {
        // A handler may run when this process has gone elsewhere.
        let path = std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf());
        unfinished().insert(path.clone());
        Self(path)
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        unfinished().remove(&self.0);
    }
}

/// A file that will be renamed to its target, and removed where it is not.
#[derive(Debug)]
pub(crate) struct Partial {
    // Dropped in this order: a file that is listed no more is there no more.
    temp: NamedTempFile,
    _entry: Entry,
}

impl Partial {
    /// Begins a file beside `target`, whose leftovers are removed.
    pub(crate) fn beside(target: &Path) -> io::Result<Self> {
        remove_leftovers(target);
        let (prefix, directory) = (prefix(target), directory(target));
        let mut builder = tempfile::Builder::new();
        builder.prefix(&prefix).suffix(PARTIAL_SUFFIX);
        #[cfg(unix)]
        builder.permissions(mode(0o666));
        for _ in 0..ATTEMPTS {
            let temp = builder.tempfile_in(directory)?;
            let entry = Entry::new(temp.path());
            if claim(temp.as_file(), temp.path()) {
                let _entry = entry;
                return Ok(Self { temp, _entry });
            }
        }
        Err(taken_away())
    }

    pub(crate) fn path(&self) -> &Path {
        self.temp.path()
    }

    pub(crate) fn as_file(&self) -> &File {
        self.temp.as_file()
    }

    pub(crate) fn file(&mut self) -> &mut File {
        self.temp.as_file_mut()
    }

    /// Syncs the file and renames it to `target`; one that it replaces leaves it its permissions
    /// and, where this process may give files away, its owner.
    pub(crate) fn persist(self, target: &Path, overwrite: bool) -> io::Result<()> {
        if let Ok(old) = fs::metadata(target)
            && overwrite
        {
            self.temp.as_file().set_permissions(old.permissions())?;
            #[cfg(unix)]
            give_to(self.temp.as_file(), &old);
        }
        self.temp.as_file().sync_all()?;
        let Self {
            temp,
            _entry: entry,
        } = self;
        let mut all = unfinished();
        let persisted = match overwrite {
            true => temp.persist(target),
            false => temp.persist_noclobber(target),
        };
        all.remove(&entry.0);
        drop(all);
        persisted.map_err(|e| e.error)?;
        sync_directory(target);
        Ok(())
    }
}

/// A directory of unfinished or passing files, which is removed with all that is in it when this is
/// dropped, and by the next run for the same target where this process is killed.
#[derive(Debug)]
pub struct Scratch {
    temp: TempDir,
    _lock: Option<File>,
    _entry: Entry,
}

impl Scratch {
    /// Makes a directory beside `target`, whose leftovers are removed.
    ///
    /// # Errors
    /// A directory that cannot be written.
    pub fn beside(target: &Path) -> io::Result<Self> {
        remove_leftovers(target);
        let mut builder = tempfile::Builder::new();
        let prefix = prefix(target);
        builder.prefix(&prefix).suffix(PARTIAL_SUFFIX);
        #[cfg(unix)]
        builder.permissions(mode(0o777));
        for _ in 0..ATTEMPTS {
            let temp = builder.tempdir_in(directory(target));
            let temp = temp.map_err(without_path)?;
            let entry = Entry::new(temp.path());
            let lock = match File::open(temp.path()) {
                Ok(lock) if claim(&lock, temp.path()) => Some(lock),
                // Somebody has locked it to remove it, or has removed it already.
                Ok(_) => continue,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                // Where a directory cannot be opened it cannot be locked, nor taken for a leftover.
                Err(_) => None,
            };
            return Ok(Self {
                temp,
                _lock: lock,
                _entry: entry,
            });
        }
        Err(taken_away())
    }

    /// Where the directory is, under its temporary name.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.temp.path()
    }

    /// Calls `rename`, which puts the directory in place, while nobody else can remove it. Whatever
    /// then lies at [`Scratch::path`] is removed.
    ///
    /// # Errors
    /// What `rename` fails with.
    pub fn put<E>(self, rename: impl FnOnce(&Path) -> Result<(), E>) -> Result<(), E> {
        let all = unfinished();
        let done = rename(self.temp.path());
        drop(all);
        done
    }
}

/// Unfinished files and directories that killed runs left beside `target`.
#[must_use]
pub fn leftovers(target: &Path) -> Vec<PathBuf> {
    let found = candidates(target).into_iter();
    found.filter(|path| dead(path).is_some()).collect()
}

/// Removes them. What cannot be removed stays, and is tried again by the next run.
pub fn remove_leftovers(target: &Path) {
    for path in candidates(target) {
        // Held until it is gone, so that of two runs only one removes it.
        let Some(_lock) = dead(&path) else { continue };
        let _ = match path.symlink_metadata().is_ok_and(|m| m.is_dir()) {
            true => fs::remove_dir_all(&path),
            false => fs::remove_file(&path),
        };
    }
}

/// What has the name of an unfinished file or directory for `target`, in order.
fn candidates(target: &Path) -> Vec<PathBuf> {
    let prefix = prefix(target);
    let is_one = |name: &OsStr| {
        let name = name.as_encoded_bytes();
        let rest = name.strip_prefix(prefix.as_encoded_bytes());
        let random = rest.and_then(|rest| rest.strip_suffix(PARTIAL_SUFFIX.as_bytes()));
        random.is_some_and(|r| r.len() == RANDOM && r.iter().all(u8::is_ascii_alphanumeric))
    };
    let Ok(entries) = fs::read_dir(directory(target)) else {
        return Vec::new();
    };
    let mut found: Vec<_> = entries
        .filter_map(|entry| entry.ok())
        .filter(|entry| is_one(&entry.file_name()))
        // No link, FIFO or device is ours, and some of them cannot be opened without waiting.
        .filter(|entry| entry.file_type().is_ok_and(|t| t.is_file() || t.is_dir()))
        .map(|entry| entry.path())
        .collect();
    found.sort();
    found
}

/// The lock of an unfinished file whose process is gone.
fn dead(path: &Path) -> Option<File> {
    let file = File::open(path).ok()?;
    claim(&file, path).then_some(file)
}

/// Locks a file, if nobody has and it still is the one at `path`.
fn claim(file: &File, path: &Path) -> bool {
    file.try_lock().is_ok() && is_at(file, path)
}

#[cfg(unix)]
fn is_at(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let key = |m: fs::Metadata| (m.dev(), m.ino());
    match (file.metadata(), path.symlink_metadata()) {
        (Ok(file), Ok(there)) => key(file) == key(there),
        _ => false,
    }
}

#[cfg(not(unix))]
fn is_at(_: &File, path: &Path) -> bool {
    path.exists()
}

fn taken_away() -> io::Error {
    io::Error::other("other runs remove every unfinished file, or files cannot be locked here")
}

/// As any new file or directory: the umask decides, not tempfile's private default.
#[cfg(unix)]
fn mode(mode: u32) -> fs::Permissions {
    std::os::unix::fs::PermissionsExt::from_mode(mode)
}

#[cfg(unix)]
fn give_to(file: &File, old: &fs::Metadata) {
    use std::os::unix::fs::{MetadataExt, fchown};
    let is_others = file
        .metadata()
        .is_ok_and(|new| (new.uid(), new.gid()) != (old.uid(), old.gid()));
    if is_others {
        // Only root may; for anyone else a replaced file is theirs, as it is for other programs.
        let _ = fchown(file, Some(old.uid()), Some(old.gid()));
    }
}

/// How the names of unfinished files for `target` begin.
fn prefix(target: &Path) -> OsString {
    let mut prefix = OsString::from(".");
    prefix.push(target.file_name().unwrap_or_default());
    prefix.push(".");
    prefix
}

/// The directory that a file is or will be in.
pub(crate) fn directory(target: &Path) -> &Path {
    match target.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Makes a rename durable, where directories can be synced. Where not, the file is in place all the
/// same, and whoever reads it finds it whole.
fn sync_directory(target: &Path) {
    let _ = File::open(directory(target)).and_then(|directory| directory.sync_all());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lives_is_left_alone_and_what_is_dead_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("a.smq");
        let live = Partial::beside(&target).unwrap();
        let live_dir = Scratch::beside(&target).unwrap();
        let dead = dir.path().join(".a.smq.abcdef.smq-partial");
        let dead_dir = dir.path().join(".a.smq.ABCDEF.smq-partial");
        let others = [".a.smq.abcdefg.smq-partial", ".b.smq.abcdef.smq-partial"];
        fs::write(&dead, "x").unwrap();
        fs::create_dir(&dead_dir).unwrap();
        fs::write(dead_dir.join("y"), "x").unwrap();
        for name in others {
            fs::write(dir.path().join(name), "x").unwrap();
        }
        assert_eq!(leftovers(&target), [dead_dir.clone(), dead.clone()]);
        remove_leftovers(&target);
        assert!(!dead.exists() && !dead_dir.exists());
        assert!(live.path().exists() && live_dir.path().exists());
        assert!(others.iter().all(|name| dir.path().join(name).exists()));
        drop((live, live_dir));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    }

    /// Whoever begins a directory removes what it takes for a leftover of the same target, which
    /// can be a directory that another run has made and not locked yet. The other run must notice.
    #[test]
    fn a_directory_is_never_taken_from_a_run_that_has_it() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("out");
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..500 {
                        // With four runs at once a name may be lost sixteen times.
                        let Ok(scratch) = Scratch::beside(&target) else {
                            continue;
                        };
                        fs::write(scratch.path().join("a"), "x").unwrap();
                    }
                });
            }
        });
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[cfg(unix)]
    #[test]
    fn a_replaced_file_leaves_its_permissions() {
        use std::io::Write;
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let (target, plain) = (dir.path().join("a"), dir.path().join("b"));
        fs::write(&target, "old").unwrap();
        fs::write(&plain, "").unwrap();
        fs::set_permissions(&target, mode(0o604)).unwrap();
        let put = |target: &Path| {
            let mut new = Partial::beside(target).unwrap();
            new.file().write_all(b"new").unwrap();
            new.persist(target, true).unwrap();
            fs::metadata(target).unwrap().permissions().mode() & 0o777
        };
        assert_eq!(put(&target), 0o604);
        assert_eq!(fs::read(&target).unwrap(), b"new");
        // A new one has the mode of any new file.
        let plain = fs::metadata(&plain).unwrap().permissions().mode() & 0o777;
        assert_eq!(put(&dir.path().join("c")), plain);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 3);
    }
}
