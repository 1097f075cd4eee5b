//! What a backend must do, one promise a function.

pub mod holding;
pub mod line;
pub mod minting;
pub mod releasing;
pub mod renewing;
pub mod sharing;
