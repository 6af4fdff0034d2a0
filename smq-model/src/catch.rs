//! Panics of libraries that are given what strangers wrote.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, PanicHookInfo, catch_unwind, set_hook, take_hook};
use std::sync::Once;

thread_local! {
    /// Whether a panic in this thread is caught, and need not be reported by itself.
    static IS_CAUGHT: Cell<bool> = const { Cell::new(false) };
}

/// Runs `work`; where it panics, what the panic says.
///
/// Nothing that `work` changes may be used after a panic.
pub(crate) fn caught<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let others = take_hook();
        set_hook(Box::new(move |info: &PanicHookInfo<'_>| {
            if !IS_CAUGHT.get() {
                others(info);
            }
        }));
    });
    let before = IS_CAUGHT.replace(true);
    let done = catch_unwind(AssertUnwindSafe(work));
    IS_CAUGHT.set(before);
    done.map_err(|panic| {
        let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
        let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
        text.unwrap_or_else(|| "it gives no reason".to_owned())
    })
}
