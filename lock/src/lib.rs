//! Distributed locks with renewal, a loss signal that fires locally, and a fencing token that the database
//! checks.

mod backend;
mod error;
mod key;
mod token;
mod token_source;

pub use backend::{Acquire, Backend, Capabilities, Hold, Release, Remint, Renew, Request, Shape, Wake};
pub use error::{Cause, Error, ErrorKind};
pub use key::Key;
pub use token::{FencingToken, Owner, RequestId};
pub use token_source::TokenSource;
