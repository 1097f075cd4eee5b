//! Progress on a terminal; silence elsewhere.

use std::io::IsTerminal as _;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

/// How often the bar is redrawn. Chosen: smooth to the eye, invisible in the profile.
const REFRESH: Duration = Duration::from_millis(100);

/// A bar over `expected` steps, or a spinner where nobody knows; hidden unless standard error is a terminal.
pub(crate) fn bar(label: &'static str, expected: Option<u64>) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let (bar, template) = match expected {
        Some(length) => (
            ProgressBar::new(length),
            "{prefix:>8} [{wide_bar}] {human_pos}/{human_len} {per_sec} eta {eta}  {msg}",
        ),
        None => (
            ProgressBar::new_spinner(),
            "{prefix:>8} {spinner} {human_pos} {per_sec}  {msg}",
        ),
    };
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    bar.set_style(style);
    bar.set_prefix(label);
    bar.enable_steady_tick(REFRESH);
    bar
}
