//! Compiled kernels on disk: `$SMQ_KERNEL_CACHE`, else `$XDG_CACHE_HOME/smq`, else `~/.cache/smq`.
//!
//! A file's name is the BLAKE3 of everything that its contents depend on; the file is the BLAKE3 of
//! the machine code, then the machine code. So an entry is never out of date, damage is found and
//! compiled over, and processes that write the same entry at once write the same bytes.
//!
//! The hash finds damage, not malice: whoever can write an entry can write its hash. What is loaded
//! runs on the GPU with this program's memory in reach. So the directory is made for its owner
//! alone, and a directory or an entry that belongs to somebody else, or that others may write to, is
//! not used; kernels are then compiled anew each time.

use std::ffi::OsString;
use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use crate::error::Result;

/// `SMQ_KERNEL_CACHE=off` compiles anew each time.
const VARIABLE: &str = "SMQ_KERNEL_CACHE";

/// Where entries are kept; none if nothing says where, or if it is switched off.
#[must_use]
pub fn directory() -> Option<PathBuf> {
    directory_from(|name| std::env::var_os(name).filter(|v| !v.is_empty()))
}

fn directory_from(variable: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    if let Some(choice) = variable(VARIABLE) {
        return (choice != "off").then(|| choice.into());
    }
    // A relative XDG path is to be ignored, says its specification.
    let xdg = variable("XDG_CACHE_HOME").map(PathBuf::from);
    let home = || variable("HOME").map(|h| Path::new(&h).join(".cache"));
    let base = xdg.filter(|p| p.is_absolute()).or_else(home)?;
    Some(base.join("smq"))
}

/// The entry made of `parts`, or what `make` makes, which is then kept. That it cannot be kept is
/// no error.
///
/// # Errors
/// As `make`.
pub(super) fn get_or_make(
    directory: Option<&Path>,
    parts: &[&str],
    make: impl FnOnce() -> Result<Vec<u8>>,
) -> Result<Vec<u8>> {
    let Some(directory) = directory else {
        return make();
    };
    if !make_private(directory) {
        return make();
    }
    let path = directory.join(format!("{}.cubin", key(parts)));
    if let Some(code) = read(&path) {
        return Ok(code);
    }
    let code = make()?;
    let _ = write(&path, &code);
    Ok(code)
}

/// Makes the directory where there is none, for this user alone; whether it is safe to use.
fn make_private(directory: &Path) -> bool {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    // What is there already is judged by whose it is.
    let _ = builder.create(directory);
    fs::metadata(directory).is_ok_and(|metadata| metadata.is_dir() && is_own(&metadata))
}

/// Whether a file is this user's or root's, and nobody else may write to it.
#[cfg(unix)]
fn is_own(metadata: &fs::Metadata) -> bool {
    use std::os::unix::fs::MetadataExt;
    const OTHERS_WRITE: u32 = 0o022;
    let owner = metadata.uid();
    let is_ours = owner == rustix::process::geteuid().as_raw() || owner == 0;
    is_ours && metadata.mode() & OTHERS_WRITE == 0
}

#[cfg(not(unix))]
fn is_own(_: &fs::Metadata) -> bool {
    true
}

fn key(parts: &[&str]) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new();
    for part in parts {
        // With its length, so that no two lists run together into the same bytes.
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part.as_bytes());
    }
    hasher.finalize()
}

fn read(path: &Path) -> Option<Vec<u8>> {
    let mut file = fs::File::open(path).ok()?;
    if !is_own(&file.metadata().ok()?) {
        return None;
    }
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).ok()?;
    let (hash, code) = bytes.split_at_checked(blake3::OUT_LEN)?;
    if blake3::hash(code).as_bytes() != hash {
        return None;
    }
    bytes.drain(..blake3::OUT_LEN);
    Some(bytes)
}

fn write(path: &Path, code: &[u8]) -> std::io::Result<()> {
    let directory = path.parent().unwrap_or(Path::new("."));
    let mut file = tempfile::NamedTempFile::new_in(directory)?;
    file.write_all(blake3::hash(code).as_bytes())?;
    file.write_all(code)?;
    file.persist(path)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;

    fn no_compile() -> Result<Vec<u8>> {
        Err(Error::Cuda("compiled although cached".into()))
    }

    fn only_entry(directory: &Path) -> PathBuf {
        let entries: Vec<_> = fs::read_dir(directory).unwrap().collect();
        assert_eq!(entries.len(), 1);
        entries[0].as_ref().unwrap().path()
    }

    #[test]
    fn an_entry_is_made_once() {
        let dir = tempfile::tempdir().unwrap();
        let at = Some(dir.path().join("deep"));
        let made = get_or_make(at.as_deref(), &["a", "b"], || Ok(vec![1, 2, 3])).unwrap();
        assert_eq!(made, [1, 2, 3]);
        let cached = get_or_make(at.as_deref(), &["a", "b"], no_compile).unwrap();
        assert_eq!(cached, [1, 2, 3]);
        // Other parts, another entry, however they are cut.
        assert!(get_or_make(at.as_deref(), &["ab", ""], no_compile).is_err());
        assert!(get_or_make(at.as_deref(), &["a", "c"], no_compile).is_err());
    }

    #[test]
    fn every_damage_is_compiled_over() {
        let dir = tempfile::tempdir().unwrap();
        let at = Some(dir.path());
        get_or_make(at, &["x"], || Ok(vec![7; 100])).unwrap();
        let path = only_entry(dir.path());
        let good = fs::read(&path).unwrap();
        assert_eq!(good.len(), 132);
        let mut flipped = good.clone();
        flipped[50] ^= 1;
        let longer = [&good[..], &[0]].concat();
        for bad in [
            &good[..0],
            &good[..31],
            &good[..32],
            &good[..131],
            &flipped,
            &longer,
        ] {
            fs::write(&path, bad).unwrap();
            assert!(get_or_make(at, &["x"], no_compile).is_err());
            let code = get_or_make(at, &["x"], || Ok(vec![7; 100])).unwrap();
            assert_eq!(code, [7; 100]);
            assert_eq!(fs::read(&path).unwrap(), good);
        }
    }

    #[cfg(unix)]
    #[test]
    fn what_others_may_write_is_not_used() {
        use std::os::unix::fs::PermissionsExt;
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        let set = |path: &Path, mode| {
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        };
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().join("cache");
        let made = |code: u8| get_or_make(Some(&at), &["x"], || Ok(vec![code])).unwrap();
        assert_eq!((made(1), mode(&at)), (vec![1], 0o700));
        let entry = only_entry(&at);
        assert_eq!(mode(&entry) & 0o077, 0);
        assert_eq!(made(2), [1]);
        // An entry, then a directory, in which somebody else may have put it.
        set(&entry, 0o666);
        assert_eq!(made(3), [3]);
        assert_eq!(made(4), [3], "it was written anew");
        for shared in [0o777, 0o1777, 0o770] {
            set(&at, shared);
            assert_eq!(made(5), [5]);
            assert!(get_or_make(Some(&at), &["x"], no_compile).is_err());
        }
        set(&at, 0o755);
        assert_eq!(made(6), [3]);
    }

    #[test]
    fn nowhere_to_write_is_no_error() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        for at in [None, Some(file.as_path())] {
            assert_eq!(get_or_make(at, &["x"], || Ok(vec![1])).unwrap(), [1]);
        }
    }

    #[test]
    fn a_failure_is_not_kept() {
        let dir = tempfile::tempdir().unwrap();
        assert!(get_or_make(Some(dir.path()), &["x"], no_compile).is_err());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn the_directory_follows_the_environment() {
        let with = |set: &[(&str, &str)]| {
            directory_from(|name| set.iter().find(|(n, _)| *n == name).map(|(_, v)| v.into()))
        };
        let (own, xdg, home) = (
            (VARIABLE, "/own"),
            ("XDG_CACHE_HOME", "/xdg"),
            ("HOME", "/home/me"),
        );
        assert_eq!(with(&[own, xdg, home]), Some("/own".into()));
        assert_eq!(with(&[(VARIABLE, "off"), xdg, home]), None);
        assert_eq!(with(&[xdg, home]), Some("/xdg/smq".into()));
        assert_eq!(
            with(&[("XDG_CACHE_HOME", "relative"), home]),
            Some("/home/me/.cache/smq".into())
        );
        assert_eq!(with(&[home]), Some("/home/me/.cache/smq".into()));
        assert_eq!(with(&[]), None);
    }
}
