//! Where a program's results go: one file, standard output, or nowhere.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use crate::error::Error;
use crate::header::MAGIC;
use crate::map::not_a_file;
use crate::partial::Partial;
use crate::writer::{check_new, without_path};

const STDOUT: &str = "/dev/stdout";
const NULL: &str = "/dev/null";

/// A place for results that was found fit to be written to.
#[derive(Debug)]
pub struct Output {
    path: PathBuf,
    to: To,
}

#[derive(Debug)]
enum To {
    Stdout,
    Null(File),
    /// A regular file, found by following links; it is replaced when the results are written.
    File {
        target: PathBuf,
        partial: Partial,
    },
}

impl Output {
    /// Checks that `path` can be written, which is done before the work whose result it is for:
    /// `-` and /dev/stdout are standard output, /dev/null takes everything, and any other name must
    /// be that of a regular file or of none yet, in a directory that can be written. A link to a
    /// file is followed. None of `inputs`, by whatever name, and no .smq file is replaced.
    ///
    /// # Errors
    /// [`Error::OutputIsInput`], [`Error::NotAFile`], [`Error::Directory`], [`Error::Io`].
    pub fn create(path: &Path, inputs: &[PathBuf]) -> Result<Self, Error> {
        let made = |to| {
            Ok(Self {
                path: path.to_path_buf(),
                to,
            })
        };
        if is_stdout(path) {
            return made(To::Stdout);
        }
        let target = match fs::metadata(path) {
            Err(_) => {
                check_new(path)?;
                path.to_path_buf()
            }
            Ok(metadata) => {
                let target = path.canonicalize().map_err(Error::io(path, "resolve it"))?;
                if target == Path::new(NULL) && !metadata.is_file() {
                    let null = OpenOptions::new().write(true).open(path);
                    return made(To::Null(null.map_err(Error::io(path, "open it"))?));
                }
                let refuse = |kind| {
                    let path = path.to_path_buf();
                    Err(Error::NotAFile { path, kind })
                };
                if let Some(kind) = not_a_file(metadata.file_type()) {
                    return refuse(kind);
                }
                if let Some(input) = same_as(&target, &metadata, inputs) {
                    return Err(Error::OutputIsInput {
                        path: path.to_path_buf(),
                        input,
                    });
                }
                let mut start = [0; MAGIC.len()];
                let read = File::open(&target).and_then(|mut file| file.read_exact(&mut start));
                if read.is_ok() && start == MAGIC {
                    return refuse("a .smq file");
                }
                target
            }
        };
        let action = "create a temporary file beside it";
        let partial =
            Partial::beside(&target).map_err(|e| Error::io(path, action)(without_path(e)))?;
        made(To::File { target, partial })
    }

    /// Whether it is standard output, where nothing else may then be written.
    #[must_use]
    pub fn is_stdout(&self) -> bool {
        matches!(self.to, To::Stdout)
    }

    /// Writes the results: the file is replaced as a whole, or stays as it was.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn write(self, bytes: &[u8]) -> Result<(), Error> {
        let io = Error::io(&self.path, "write it");
        match self.to {
            To::Stdout => {
                let mut out = std::io::stdout().lock();
                out.write_all(bytes).and_then(|()| out.flush()).map_err(io)
            }
            To::Null(mut null) => null.write_all(bytes).map_err(io),
            To::File {
                target,
                mut partial,
            } => partial
                .file()
                .write_all(bytes)
                .and_then(|()| partial.persist(&target, true))
                .map_err(io),
        }
    }
}

/// Whether a path means standard output.
#[must_use]
pub fn is_stdout(path: &Path) -> bool {
    path == Path::new("-") || path == Path::new(STDOUT)
}

/// The one of `inputs` that an existing file is: by its path, or by another name of the same file.
#[must_use]
pub fn input_at(target: &Path, inputs: &[PathBuf]) -> Option<PathBuf> {
    let metadata = fs::metadata(target).ok()?;
    same_as(&target.canonicalize().ok()?, &metadata, inputs)
}

fn same_as(target: &Path, metadata: &fs::Metadata, inputs: &[PathBuf]) -> Option<PathBuf> {
    let is_same = |input: &&PathBuf| {
        let same_inode = fs::metadata(input).is_ok_and(|input| same_inode(&input, metadata));
        same_inode || input.canonicalize().is_ok_and(|input| input == target)
    };
    inputs.iter().find(is_same).cloned()
}

#[cfg(unix)]
fn same_inode(a: &fs::Metadata, b: &fs::Metadata) -> bool {
    use std::os::unix::fs::MetadataExt;
    (a.dev(), a.ino()) == (b.dev(), b.ino())
}

#[cfg(not(unix))]
fn same_inode(_: &fs::Metadata, _: &fs::Metadata) -> bool {
    false
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    #[test]
    fn only_regular_files_that_are_no_inputs_are_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::write(at("input"), "in").unwrap();
        fs::hard_link(at("input"), at("other-name")).unwrap();
        std::os::unix::fs::symlink(at("input"), at("link-to-input")).unwrap();
        std::os::unix::fs::symlink(at("nowhere"), at("dangling")).unwrap();
        fs::write(at("model.smq"), MAGIC).unwrap();
        let socket = std::os::unix::net::UnixListener::bind(at("socket")).unwrap();
        let refused = |name: &str| {
            let error = Output::create(&at(name), &[at("input")]).unwrap_err();
            error.to_string()
        };
        for name in ["input", "other-name", "link-to-input"] {
            assert!(refused(name).contains("is an input"), "{name}");
        }
        for (name, problem) in [
            ("dangling", "a symbolic link that leads nowhere"),
            ("model.smq", "a .smq file"),
            ("socket", "a socket"),
            (".", "a directory"),
            ("no-directory/x", "does not exist"),
            ("input/x", "is not a directory"),
        ] {
            assert!(refused(name).contains(problem), "{}", refused(name));
        }
        drop(socket);
        let names = fs::read_dir(dir.path()).unwrap().count();
        assert_eq!(names, 6, "nothing is left");
    }

    #[test]
    fn a_link_to_a_file_stays_and_the_file_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let (file, link) = (dir.path().join("file"), dir.path().join("link"));
        fs::write(&file, "old").unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        let output = Output::create(&link, &[]).unwrap();
        assert_eq!(fs::read(&file).unwrap(), b"old");
        output.write(b"new").unwrap();
        assert_eq!(fs::read(&file).unwrap(), b"new");
        assert!(link.is_symlink());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    }

    #[test]
    fn devices_are_written_through() {
        use std::os::unix::fs::FileTypeExt;
        let null = Output::create(Path::new(NULL), &[]).unwrap();
        null.write(b"x").unwrap();
        let now = fs::metadata(NULL).unwrap().file_type();
        assert!(now.is_char_device());
        for stdout in ["-", STDOUT] {
            assert!(Output::create(Path::new(stdout), &[]).unwrap().is_stdout());
        }
        let error = Output::create(Path::new("/dev/full"), &[]).unwrap_err();
        assert!(error.to_string().contains("a device"), "{error}");
    }
}
