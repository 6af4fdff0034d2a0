//! A server of the run's own.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, bail};

use crate::load::{Client, wait_until_up};
use crate::serve::Version;
use crate::study::runner::{MatrixOptions, why};

/// How long a server that listens may take to be up.
const UP_TIMEOUT: Duration = Duration::from_secs(60);

/// `smq-run serve` as a process, which ends with this one in any case: it watches its standard
/// input.
pub(super) struct Server {
    child: Child,
    stdin: Option<ChildStdin>,
    stderr: File,
    /// The command that starts the server, as it is to be repeated.
    pub(super) command: Vec<String>,
    pub(super) url: String,
    /// What it says of itself.
    pub(super) version: Version,
}

impl Server {
    /// Starts a server on a free port and waits until it takes requests.
    ///
    /// # Errors
    /// If it cannot be started, or ends: in its own words.
    pub(super) fn start(options: &MatrixOptions, model: &Path, name: &str) -> anyhow::Result<Self> {
        let mut args = vec!["--device".to_owned(), options.device.name().to_owned()];
        if let Some(threads) = options.threads {
            args.extend(["--threads".to_owned(), threads.to_string()]);
        }
        let model = model.display().to_string();
        args.extend(["serve".to_owned(), model]);
        args.extend(["--name", name, "--port", "0"].map(str::to_owned));
        let mut stderr = tempfile::tempfile()?;
        let mut child = Command::new(&options.program)
            .args(&args)
            .arg("--until-stdin-ends")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(stderr.try_clone()?)
            .spawn()
            .with_context(|| format!("{}: cannot start it", options.program.display()))?;
        let stdin = child.stdin.take();
        let stdout = child
            .stdout
            .take()
            .context("the server has no standard output")?;
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line)?;
        let Some((_, url)) = line.trim_end().split_once(" is served at ") else {
            // It ends by itself, or says what it should not.
            drop(stdin);
            let status = child.wait()?;
            bail!("{}", why(&mut stderr, status)?);
        };
        let mut command = vec!["smq-run".to_owned()];
        command.extend(args);
        let mut server = Self {
            child,
            stdin,
            stderr,
            command,
            url: url.to_owned(),
            version: Version::default(),
        };
        server.version = wait_until_up(&server.client()?, UP_TIMEOUT)?;
        Ok(server)
    }

    pub(super) fn client(&self) -> anyhow::Result<Client> {
        let address = self.url.parse().map_err(anyhow::Error::msg)?;
        Client::new(address, None, None)
    }

    /// Lets the server answer what it has and end.
    ///
    /// # Errors
    /// If it ends with a failure: in its own words.
    pub(super) fn end(mut self) -> anyhow::Result<()> {
        drop(self.stdin.take());
        let status = self.child.wait()?;
        if !status.success() {
            bail!("{}", why(&mut self.stderr, status)?);
        }
        Ok(())
    }
}

impl Drop for Server {
    /// What was not [ended](Self::end), after an error, has nothing to say any more.
    fn drop(&mut self) {
        if self.stdin.is_some() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}
