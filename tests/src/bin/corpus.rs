//! Writes the corrupt-file corpus into a directory, one file a case: `corpus DIR`.

use std::error::Error;
use std::path::PathBuf;

use smq_tests::corrupt::{Sample, cases};

fn main() -> Result<(), Box<dyn Error>> {
    let dir: PathBuf = std::env::args_os()
        .nth(1)
        .ok_or("usage: corpus DIR")?
        .into();
    std::fs::create_dir_all(&dir)?;
    let scratch = tempfile::tempdir()?;
    let cases = cases(&Sample::write(scratch.path())?)?;
    for case in &cases {
        let path = dir.join(format!("{}.smq", case.name));
        std::fs::write(&path, &case.bytes).map_err(|e| format!("{}: {e}", path.display()))?;
    }
    println!("{} files in {}", cases.len(), dir.display());
    Ok(())
}
