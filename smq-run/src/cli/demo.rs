//! `smq-run demo`.

use std::path::PathBuf;

use clap::Args;
use smq_convert::Target;

use super::Global;
use crate::demo::{self, DemoOptions};

#[derive(Debug, Args)]
pub(super) struct DemoArgs {
    /// Checkpoint directory [default: the bundled one, seen from the repository's root]
    #[arg(
        long,
        value_name = "DIR",
        default_value = "tests/fixtures/phi3-tiny",
        hide_default_value = true
    )]
    checkpoint: PathBuf,
    /// Text for perplexity
    #[arg(long, value_name = "FILE", default_value = "tests/fixtures/sample.txt")]
    text: PathBuf,
    /// Where the .smq files and HTML reports go
    #[arg(long, value_name = "DIR", default_value = "target/demo")]
    out: PathBuf,
    /// What to quantize: mlp, all, or a regex over names
    #[arg(long, default_value = "mlp")]
    target: Target,
}

pub(super) fn run(args: &DemoArgs, global: &Global) -> anyhow::Result<()> {
    demo::run(&DemoOptions {
        checkpoint: args.checkpoint.clone(),
        text: args.text.clone(),
        out: args.out.clone(),
        target: args.target.clone(),
        device: global.device(),
    })
}
