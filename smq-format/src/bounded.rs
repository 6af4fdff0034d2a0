//! Reads files that are read whole, up to a length that no such file has.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use crate::error::Error;

/// The bytes of a file, which may be a pipe.
///
/// # Errors
/// [`Error::TooLong`] where there are more than `limit`, as of a device that never ends;
/// [`Error::Io`].
pub fn read_bounded(path: &Path, limit: u64) -> Result<Vec<u8>, Error> {
    let file = File::open(path).map_err(Error::io(path, "open it"))?;
    read_at_most(file, path, limit)
}

/// As [`read_bounded`], of text.
///
/// # Errors
/// As [`read_bounded`]; [`Error::Io`] where it is not UTF-8.
pub fn read_text(path: &Path, limit: u64) -> Result<String, Error> {
    String::from_utf8(read_bounded(path, limit)?).map_err(|e| {
        let error = std::io::Error::new(std::io::ErrorKind::InvalidData, e.utf8_error());
        Error::io(path, "read it as UTF-8")(error)
    })
}

/// As [`read_bounded`], of what is open or is unpacked on the way.
///
/// # Errors
/// As [`read_bounded`].
pub fn read_at_most(reader: impl Read, path: &Path, limit: u64) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::new();
    let read = reader.take(limit.saturating_add(1)).read_to_end(&mut bytes);
    read.map_err(Error::io(path, "read it"))?;
    match bytes.len() as u64 > limit {
        true => Err(Error::TooLong {
            path: path.to_path_buf(),
            limit,
        }),
        false => Ok(bytes),
    }
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    #[test]
    fn what_never_ends_is_refused() {
        let error = read_text("/dev/zero".as_ref(), 5000).unwrap_err();
        assert_eq!(
            error.to_string(),
            "/dev/zero holds more than 5000 bytes, the limit of what is read whole; give a shorter \
             file"
        );
        assert_eq!(read_bounded("/dev/null".as_ref(), 0).unwrap(), b"");
    }
}
