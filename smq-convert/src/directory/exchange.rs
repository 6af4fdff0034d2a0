//! One directory in place of another: either the old or the new is there at every instant.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use smq_format::PARTIAL_SUFFIX;
use smq_model::{SHARD_INDEX, TEMPLATE_DIR, is_model_file, is_side_file};

use super::error::DirectoryError;

/// How the name of an old directory ends between two renames, where the system cannot exchange two.
const ASIDE_SUFFIX: &str = ".smq-replaced";

/// Whether a name in a directory is that of a checkpoint's weights, of their index, or of a file
/// that decides what its model says.
pub(super) fn is_checkpoints(name: &str) -> bool {
    is_weights_file(name) || is_model_file(name)
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

/// Lets two directories change places.
pub(super) fn exchange(staged: &Path, target: &Path) -> io::Result<()> {
    #[cfg(target_os = "linux")]
    {
        use rustix::fs::{CWD, RenameFlags, renameat_with};
        use rustix::io::Errno;
        match renameat_with(CWD, staged, CWD, target, RenameFlags::EXCHANGE) {
            // The kernel or this file system does not know it.
            Err(Errno::NOSYS | Errno::INVAL | Errno::OPNOTSUPP) => {}
            done => return Ok(done?),
        }
    }
    exchange_by_renames(staged, target)
}

/// The same by three renames. Between the first and the second neither is in place; a run that is
/// killed there leaves the old directory to [`recover`].
fn exchange_by_renames(staged: &Path, target: &Path) -> io::Result<()> {
    let aside = aside(staged);
    fs::rename(target, &aside)?;
    if let Err(error) = fs::rename(staged, target) {
        let _ = fs::rename(&aside, target);
        return Err(error);
    }
    fs::rename(&aside, staged)
}

/// Where the old directory is moved to: `.NAME.RANDOM.smq-replaced`, beside the new one's
/// `.NAME.RANDOM.smq-partial`.
fn aside(staged: &Path) -> PathBuf {
    let name = staged.file_name().unwrap_or_default().to_string_lossy();
    let stem = name.strip_suffix(PARTIAL_SUFFIX).unwrap_or(&name);
    staged.with_file_name(format!("{stem}{ASIDE_SUFFIX}"))
}

/// Puts back, or removes where another one took its place, the directory that a run which was
/// killed between two renames set aside.
pub(super) fn recover(target: &Path) -> Result<(), DirectoryError> {
    let target = target.canonicalize().unwrap_or_else(|_| target.to_owned());
    let Some(name) = target.file_name() else {
        return Ok(());
    };
    let directory = match target.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let prefix = format!(".{}.", name.to_string_lossy());
    let Ok(entries) = fs::read_dir(directory) else {
        return Ok(());
    };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let random = name.strip_prefix(&prefix);
        let random = random.and_then(|rest| rest.strip_suffix(ASIDE_SUFFIX));
        let is_aside = random.is_some_and(|r| r.bytes().all(|b| b.is_ascii_alphanumeric()));
        if !is_aside || !entry.file_type().is_ok_and(|t| t.is_dir()) {
            continue;
        }
        let path = entry.path();
        match target.symlink_metadata() {
            Ok(_) => fs::remove_dir_all(&path).map_err(DirectoryError::io("remove", &path))?,
            Err(_) => fs::rename(&path, &target).map_err(DirectoryError::io(
                "put back, after a run that was killed,",
                &path,
            ))?,
        }
    }
    Ok(())
}

/// Gives `new` all that is in `old` and no checkpoint's: the same files by second names, so that
/// nothing is copied and nothing has left `old`. What `new` has by the same name counts.
pub(super) fn carry_over(old: &Path, new: &Path) -> Result<(), DirectoryError> {
    for entry in entries(old)? {
        let name = entry.file_name();
        let is_dir = is_dir(&entry.path());
        let text = name.to_string_lossy();
        match (&*text, is_dir) {
            (TEMPLATE_DIR, true) => {
                let keeps = |name: &OsStr| {
                    !is_side_file(&format!("{TEMPLATE_DIR}/{}", name.to_string_lossy()))
                };
                let from = entry.path();
                if entries(&from)?
                    .iter()
                    .any(|entry| keeps(&entry.file_name()))
                {
                    carry_directory(&from, &new.join(&name), &keeps)?;
                }
            }
            // A link in place of the directory leads to what is somebody else's.
            (TEMPLATE_DIR, false) => {}
            (text, false) if is_checkpoints(text) => {}
            (_, true) => carry_directory(&entry.path(), &new.join(&name), &|_| true)?,
            (_, false) => carry_file(&entry.path(), &new.join(&name))?,
        }
    }
    Ok(())
}

fn carry_directory(
    from: &Path,
    to: &Path,
    keeps: &dyn Fn(&OsStr) -> bool,
) -> Result<(), DirectoryError> {
    let is_new = !is_dir(to);
    if is_new {
        fs::create_dir(to).map_err(DirectoryError::io("create directory", to))?;
    }
    for entry in entries(from)? {
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        match is_dir(&from) {
            _ if !keeps(&entry.file_name()) => {}
            true => carry_directory(&from, &to, &|_| true)?,
            false => carry_file(&from, &to)?,
        }
    }
    if is_new {
        // Last, since it may forbid writing.
        fs::metadata(from)
            .and_then(|old| fs::set_permissions(to, old.permissions()))
            .map_err(DirectoryError::io("carry over the permissions of", from))?;
    }
    Ok(())
}

fn carry_file(from: &Path, to: &Path) -> Result<(), DirectoryError> {
    if to.symlink_metadata().is_ok() {
        return Ok(());
    }
    let linked = match fs::hard_link(from, to) {
        // Somebody else's file, or a file system without links.
        Err(_) if from.symlink_metadata().is_ok_and(|m| m.is_file()) => {
            fs::copy(from, to).map(|_| ())
        }
        #[cfg(unix)]
        Err(_) if from.is_symlink() => {
            fs::read_link(from).and_then(|leads_to| std::os::unix::fs::symlink(leads_to, to))
        }
        linked => linked,
    };
    linked.map_err(DirectoryError::io("carry over to the new directory", from))
}

/// Checks what [`carry_over`] could not carry: a directory where another file system is mounted.
pub(super) fn check_tree(dir: &Path) -> Result<(), DirectoryError> {
    for entry in entries(dir)? {
        let path = entry.path();
        if !is_dir(&path) {
            continue;
        }
        if is_mount_root(&path) {
            return Err(DirectoryError::Mounted { path });
        }
        check_tree(&path)?;
    }
    Ok(())
}

/// Whether a file system is mounted there, as far as the system says.
pub(super) fn is_mount_root(path: &Path) -> bool {
    #[cfg(target_os = "linux")]
    {
        use rustix::fs::{AtFlags, CWD, StatxAttributes, StatxFlags, statx};
        statx(CWD, path, AtFlags::empty(), StatxFlags::empty())
            .is_ok_and(|found| found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT))
    }
    #[cfg(not(target_os = "linux"))]
    {
        let _ = path;
        false
    }
}

fn entries(dir: &Path) -> Result<Vec<fs::DirEntry>, DirectoryError> {
    fs::read_dir(dir)
        .and_then(Iterator::collect)
        .map_err(DirectoryError::io("list", dir))
}

/// A directory itself, not a link to one.
fn is_dir(path: &Path) -> bool {
    path.symlink_metadata().is_ok_and(|m| m.is_dir())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directory(parent: &Path, name: &str, file: &str) -> PathBuf {
        let path = parent.join(name);
        fs::create_dir(&path).unwrap();
        fs::write(path.join(file), "x").unwrap();
        path
    }

    #[test]
    fn renames_do_what_the_exchange_does() {
        for way in [exchange, exchange_by_renames] {
            let dir = tempfile::tempdir().unwrap();
            let staged = directory(dir.path(), ".out.abcdef.smq-partial", "new");
            let target = directory(dir.path(), "out", "old");
            way(&staged, &target).unwrap();
            assert!(target.join("new").exists() && staged.join("old").exists());
            assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
        }
    }

    #[test]
    fn a_run_killed_between_two_renames_is_recovered() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("out");
        // After the first rename.
        directory(dir.path(), ".out.abcdef.smq-replaced", "old");
        recover(&target).unwrap();
        assert!(target.join("old").exists());
        // After the second.
        directory(dir.path(), ".out.abcdef.smq-replaced", "older");
        directory(dir.path(), ".other.abcdef.smq-replaced", "others");
        recover(&target).unwrap();
        assert!(target.join("old").exists());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    }

    #[test]
    fn what_is_no_checkpoints_is_carried_over() {
        let dir = tempfile::tempdir().unwrap();
        let old = directory(dir.path(), "old", "notes.txt");
        let new = directory(dir.path(), "new", "config.json");
        for name in ["config.json", "model.safetensors", "vocab.json"] {
            fs::write(old.join(name), "old").unwrap();
        }
        let deep = directory(&old, "docs", "a");
        directory(&deep, "empty-but-one", "b");
        let templates = directory(&old, TEMPLATE_DIR, "mine.txt");
        fs::write(templates.join("old.jinja"), "old").unwrap();
        carry_over(&old, &new).unwrap();
        carry_over(&old, &new).unwrap();
        let names = |dir: &Path| {
            let mut names: Vec<_> = entries(dir)
                .unwrap()
                .iter()
                .map(|entry| entry.file_name().into_string().unwrap())
                .collect();
            names.sort();
            names
        };
        assert_eq!(
            names(&new),
            [TEMPLATE_DIR, "config.json", "docs", "notes.txt"]
        );
        assert_eq!(names(&new.join(TEMPLATE_DIR)), ["mine.txt"]);
        assert!(new.join("docs/empty-but-one/b").exists());
        assert_eq!(fs::read(new.join("config.json")).unwrap(), b"x");
        assert_eq!(names(&old).len(), 6, "nothing left it");
    }
}
