//! What of the online half is left to do.

use super::Online;
use crate::study::plan::Selection;

/// Id of a number of clients of one server.
#[must_use]
pub(super) fn level_id(config: &str, clients: usize, repeat: usize) -> String {
    format!("{config}/online/c{clients}/r{repeat}")
}

/// Id of one server.
#[must_use]
pub(super) fn server_id(config: &str, repeat: usize) -> String {
    format!("{config}/online/r{repeat}")
}

/// Ids of all repeats of a number of clients, `C4/online/c8/r*`.
#[must_use]
pub(crate) fn level_ids(config: &str, clients: usize) -> String {
    format!("{config}/online/c{clients}/r*")
}

/// A server to start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Start {
    /// Number of the server, from 1.
    pub(super) repeat: usize,
    /// What is not measured yet: place among the levels, and clients.
    pub(super) levels: Vec<(usize, usize)>,
}

/// The servers of a config that are still to be asked.
#[must_use]
pub(super) fn servers(
    online: &Online,
    selection: &Selection,
    config: &str,
    done: impl Fn(&str) -> bool,
) -> Vec<Start> {
    let repeats = selection.repeats.unwrap_or(online.workload.repeats);
    let server = |repeat| {
        let levels = online.workload.concurrency.iter().copied().enumerate();
        let left = levels.filter(|(_, clients)| !done(&level_id(config, *clients, repeat)));
        let levels: Vec<_> = left.collect();
        (!levels.is_empty()).then_some(Start { repeat, levels })
    };
    (1..=repeats).filter_map(server).collect()
}

/// The configs that are asked for, in the file's order.
pub(super) fn configs<'a>(
    online: &'a Online,
    selection: &'a Selection,
) -> impl Iterator<Item = &'a String> {
    let wanted = |id: &&String| selection.only.is_empty() || selection.only.contains(id);
    online.configs.iter().filter(wanted)
}
