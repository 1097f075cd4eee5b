//! What is built on locks: readers and writers, permits, several keys at once, a role.

pub(crate) mod leader;
pub(crate) mod multi;
pub(crate) mod read_write;
pub(crate) mod semaphore;
