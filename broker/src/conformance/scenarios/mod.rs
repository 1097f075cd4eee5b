//! The scenarios, by subject. Each name says what must hold.

pub mod content;
pub mod faults;
pub mod groups;
pub mod order;
pub mod sending;
pub mod settling;
