//! `--json`, which is written alike in every command of the three programs.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::Args;
use clap::error::{ContextKind, ContextValue, ErrorKind};

/// The option, for the arguments of a command to hold.
#[derive(Debug, Args)]
pub struct JsonArgs {
    /// Print the result as JSON in place of the text; with =FILE write it there beside the text
    // A value must follow the sign: what stands behind a space may be a model or a file to read.
    #[arg(long, value_name = "FILE", num_args = 0..=1, require_equals = true,
          default_missing_value = "-")]
    json: Option<PathBuf>,
}

impl JsonArgs {
    /// Where the JSON goes, `-` being standard output; `None` where none is asked for.
    #[must_use]
    pub fn target(&self) -> Option<&PathBuf> {
        self.json.as_ref()
    }

    /// Whether JSON takes the place of the text.
    pub(crate) fn replaces_text(&self) -> bool {
        self.json.as_deref().is_some_and(smq_format::is_stdout)
    }
}

/// Adds to what clap says of a command line that `--json FILE` is written `--json=FILE`, where that
/// may be what was meant.
#[must_use]
pub fn explain_json(mut error: clap::Error) -> clap::Error {
    let given: Vec<OsString> = std::env::args_os().collect();
    // Where a program has commands, a word too many may be taken for one of them.
    let may_be_file = error.kind() == ErrorKind::UnknownArgument
        || error.get(ContextKind::InvalidSubcommand).is_some();
    if let Some(tip) = tip(&given).filter(|_| may_be_file) {
        let tip = ContextValue::StyledStrs(vec![tip.into()]);
        error.insert(ContextKind::Suggested, tip);
    }
    error
}

fn tip(given: &[OsString]) -> Option<String> {
    let pair = given.windows(2).find(|pair| pair[0] == "--json")?;
    let file = Path::new(&pair[1]).display().to_string();
    (!file.starts_with('-'))
        .then(|| format!("a file for JSON is given as --json={file}; without one it is printed"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tip_names_the_file_behind_the_option() {
        let of = |line: &str| {
            let given: Vec<OsString> = line.split(' ').map(OsString::from).collect();
            tip(&given)
        };
        let said = of("smq-run bench m --json out.json").unwrap();
        assert!(said.contains("--json=out.json"), "{said}");
        assert_eq!(of("smq-run bench m --json --threads 1"), None);
        assert_eq!(of("smq-run bench m --jso out.json"), None);
    }
}
