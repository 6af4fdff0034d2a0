//! The checkpoint and the text that the demo takes where it is given none: those of the repository,
//! which the program holds so that it needs no repository.

use std::fs;
use std::path::PathBuf;

use anyhow::Context;
use tempfile::TempDir;

macro_rules! fixtures {
    ($($path:literal),+ $(,)?) => {
        [$(($path, include_bytes!(concat!("../../../tests/fixtures/", $path)).as_slice())),+]
    };
}

/// The checkpoint's files, and the text.
const FILES: [(&str, &[u8]); 10] = fixtures![
    "phi3-tiny/config.json",
    "phi3-tiny/generation_config.json",
    "phi3-tiny/model-00001-of-00003.safetensors",
    "phi3-tiny/model-00002-of-00003.safetensors",
    "phi3-tiny/model-00003-of-00003.safetensors",
    "phi3-tiny/model.safetensors.index.json",
    "phi3-tiny/special_tokens_map.json",
    "phi3-tiny/tokenizer.json",
    "phi3-tiny/tokenizer_config.json",
    "sample.txt",
];

/// The bundled files, for as long as this lives.
#[derive(Debug)]
pub(crate) struct Bundled(TempDir);

impl Bundled {
    /// Writes them to a temporary directory.
    ///
    /// # Errors
    /// A directory or a file that cannot be written.
    pub(crate) fn unpack() -> anyhow::Result<Self> {
        let dir = tempfile::tempdir().context("cannot make a temporary directory")?;
        fs::create_dir(dir.path().join("phi3-tiny"))?;
        for (name, bytes) in FILES {
            let path = dir.path().join(name);
            fs::write(&path, bytes).with_context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(Self(dir))
    }

    pub(crate) fn checkpoint(&self) -> PathBuf {
        self.0.path().join("phi3-tiny")
    }

    pub(crate) fn text(&self) -> PathBuf {
        self.0.path().join("sample.txt")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_bundled_is_a_checkpoint() {
        let bundled = Bundled::unpack().unwrap();
        smq_convert::Checkpoint::open(&bundled.checkpoint()).unwrap();
        assert!(fs::metadata(bundled.text()).unwrap().len() > 10_000);
    }
}
