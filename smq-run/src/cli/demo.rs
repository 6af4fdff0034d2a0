//! `smq-run demo`: the whole way of the bundled checkpoint, in every config.

use std::path::PathBuf;

use clap::Args;
use smq_convert::Target;

use super::Global;
use crate::demo::{self, Bundled, DemoOptions};

#[derive(Debug, Args)]
pub(super) struct DemoArgs {
    /// Checkpoint directory [default: a small, really trained Phi-3, which the program holds]
    #[arg(long, value_name = "DIR")]
    checkpoint: Option<PathBuf>,
    /// Text for perplexity [default: one that the program holds]
    #[arg(long, value_name = "FILE")]
    text: Option<PathBuf>,
    /// Where the .smq files and HTML reports go
    #[arg(long, value_name = "DIR", default_value = "target/demo")]
    out: PathBuf,
    /// What to quantize: mlp, all, or a regex over names
    #[arg(long, default_value = "mlp")]
    target: Target,
}

pub(super) fn run(args: &DemoArgs, global: &Global) -> anyhow::Result<()> {
    let bundled = Bundled::unpack()?;
    demo::run(&DemoOptions {
        checkpoint: args
            .checkpoint
            .clone()
            .unwrap_or_else(|| bundled.checkpoint()),
        text: args.text.clone().unwrap_or_else(|| bundled.text()),
        out: args.out.clone(),
        target: args.target.clone(),
        device: global.device(),
    })
}
