//! Why a server is not there.

use std::fmt;
use std::sync::Arc;

/// What went wrong below an [`Error`].
pub type Cause = Arc<dyn std::error::Error + Send + Sync>;

/// A server could not be had, or not be controlled.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No way to get the server is open on this machine. A test skips itself: [`or_skip!`](crate::or_skip).
    #[error("needs {service}: {reason}")]
    Unavailable {
        /// The service by its name in `OUTBOX_TEST_REQUIRE`.
        service: &'static str,
        /// What was tried and why it failed.
        reason: String,
    },
    /// As [`Error::Unavailable`], but `OUTBOX_TEST_REQUIRE` names the service.
    #[error("{service} is required by OUTBOX_TEST_REQUIRE and not available: {reason}")]
    Required {
        /// The service.
        service: &'static str,
        /// What was tried and why it failed.
        reason: String,
    },
    /// The server is not one that tests may write to.
    #[error("refusing {service}: {reason}")]
    Refused {
        /// The service.
        service: &'static str,
        /// What makes it the wrong server.
        reason: String,
    },
    /// A step failed.
    #[error("{service}: {operation}: {cause}")]
    Failed {
        /// The service.
        service: &'static str,
        /// The step.
        operation: String,
        /// Why.
        #[source]
        cause: Cause,
    },
}

impl Error {
    /// Whether a test should skip itself rather than fail.
    pub fn is_unavailable(&self) -> bool {
        matches!(self, Self::Unavailable { .. })
    }

    pub(crate) fn refused(service: &'static str, reason: impl Into<String>) -> Self {
        Self::Refused {
            service,
            reason: reason.into(),
        }
    }

    /// For `map_err`: names the step that failed.
    pub(crate) fn failed<E>(service: &'static str, operation: impl fmt::Display) -> impl FnOnce(E) -> Self
    where
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let operation = operation.to_string();
        move |cause| Self::Failed {
            service,
            operation,
            cause: Arc::from(cause.into()),
        }
    }
}
