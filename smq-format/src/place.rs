//! Room in a file that is being written, and bytes put into it at any place.

use std::fs::File;
use std::io;

/// Asks the file system for the first `bytes` of an empty file, which then read as zeros.
///
/// # Errors
/// No room, or more than this process may write. A file system that cannot be asked is no error.
pub(crate) fn preallocate(file: &File, bytes: u64) -> io::Result<()> {
    #[cfg(target_os = "linux")]
    {
        use rustix::fs::{FallocateFlags, fallocate};
        use rustix::io::Errno;
        match fallocate(file, FallocateFlags::empty(), 0, bytes) {
            Err(error @ (Errno::NOSPC | Errno::FBIG | Errno::DQUOT)) => Err(error.into()),
            // Without room of its own the file grows as it is written.
            Ok(()) | Err(_) => Ok(()),
        }
    }
    #[cfg(not(target_os = "linux"))]
    {
        let _ = (file, bytes);
        Ok(())
    }
}

/// Writes all of `bytes` at `offset`, whatever other threads write elsewhere meanwhile.
///
/// # Errors
/// As [`io::Write::write_all`].
pub(crate) fn write_at(file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::FileExt;
        file.write_all_at(bytes, offset)
    }
    #[cfg(not(unix))]
    {
        use std::io::{Seek, SeekFrom, Write};
        use std::sync::{Mutex, PoisonError};
        static POSITION: Mutex<()> = Mutex::new(());
        let _position = POSITION.lock().unwrap_or_else(PoisonError::into_inner);
        let mut file = file;
        file.seek(SeekFrom::Start(offset))?;
        file.write_all(bytes)
    }
}
