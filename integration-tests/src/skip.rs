//! Tests that cannot run here say so, loudly, and pass.

use std::io::Write as _;

/// What a skipped test returns.
pub trait Skipped {
    /// The value of a test that did not fail.
    fn skipped() -> Self;
}

impl Skipped for () {
    fn skipped() -> Self {}
}

impl<T: Default, E> Skipped for Result<T, E> {
    fn skipped() -> Self {
        Ok(T::default())
    }
}

/// Writes a line to standard error past the test runner, which hides what a passing test prints.
pub(crate) fn announce(line: &str) {
    let _ = std::io::stderr().write_all(format!("{line}\n").as_bytes());
}

/// Says that the running test is skipped, and why.
pub fn announce_skip(reason: &str) {
    let thread = std::thread::current();
    announce(&format!(
        "SKIPPED: {} {reason}",
        thread.name().unwrap_or("a test")
    ));
}

/// The service, or the end of the test: skipped when the service is not available, failed on any other error.
///
/// ```no_run
/// # use outbox_testing::{or_skip, services};
/// #[tokio::test]
/// async fn an_order_is_announced() {
///     let postgres = or_skip!(services::postgres().await);
/// }
/// ```
#[macro_export]
macro_rules! or_skip {
    ($service:expr) => {
        match $service {
            Ok(service) => service,
            Err(error) if error.is_unavailable() => {
                $crate::announce_skip(&error.to_string());
                return $crate::Skipped::skipped();
            }
            Err(error) => panic!("{error}"),
        }
    };
}
