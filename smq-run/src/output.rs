//! Where results go, and what is wrong in a TOML file.

use std::path::{Path, PathBuf};

use serde::Serialize;
pub use smq_convert::cli::is_broken_pipe;
use smq_format::Output;

/// Checks that the file that an option names can be written, before the work whose result it is
/// for. None of `inputs` may be replaced.
pub(crate) fn create(path: Option<&PathBuf>, inputs: &[PathBuf]) -> anyhow::Result<Option<Output>> {
    let output = path.map(|path| Output::create(path, inputs));
    Ok(output.transpose()?)
}

/// Whether nothing but the results may go to standard output.
pub(crate) fn is_stdout(output: Option<&Output>) -> bool {
    output.is_some_and(Output::is_stdout)
}

/// Writes `value` where there is somewhere to write it.
pub(crate) fn put_json(output: Option<Output>, value: &impl Serialize) -> anyhow::Result<()> {
    match output {
        Some(output) => Ok(output.write(&json(value)?)?),
        None => Ok(()),
    }
}

/// As [`put_json`], one object a line.
pub(crate) fn put_jsonl(output: Option<Output>, values: &[impl Serialize]) -> anyhow::Result<()> {
    match output {
        Some(output) => Ok(output.write(&jsonl(values)?)?),
        None => Ok(()),
    }
}

/// Writes `value` to a file, whole or not at all, or to standard output for `-`.
pub(crate) fn write_json(path: &Path, value: &impl Serialize) -> anyhow::Result<()> {
    write_bytes(path, &json(value)?)
}

/// As [`write_json`], of bytes.
pub(crate) fn write_bytes(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    Ok(Output::create(path, &[])?.write(bytes)?)
}

/// As [`write_json`] writes it.
pub(crate) fn json(value: &impl Serialize) -> anyhow::Result<Vec<u8>> {
    let mut json = serde_json::to_vec_pretty(value)?;
    json.push(b'\n');
    Ok(json)
}

/// Values as JSON Lines, an object a line.
pub(crate) fn jsonl(values: &[impl Serialize]) -> anyhow::Result<Vec<u8>> {
    let mut lines = Vec::new();
    for value in values {
        serde_json::to_writer(&mut lines, value)?;
        lines.push(b'\n');
    }
    Ok(lines)
}

/// What is wrong in a TOML file, without the parser's drawing of the line.
#[must_use]
pub(crate) fn toml_message(text: &str, error: &toml::de::Error) -> String {
    let line = error
        .span()
        .map(|span| text[..span.start.min(text.len())].matches('\n').count() + 1);
    let message = error.message().replace('\n', ", ");
    match line {
        Some(line) => format!("line {line}: {message}"),
        None => message,
    }
}
