//! Rules of this repository that a program can check.
//!
//! Every check takes a tree of files and returns what breaks the rule, so that each is also tried on a
//! made-up tree that breaks it. The last test of each module runs the check on the real tree.

#[cfg(test)]
mod documents;
#[cfg(test)]
mod length;
#[cfg(test)]
mod lints;
#[cfg(test)]
mod mirror;
#[cfg(test)]
mod source;
#[cfg(test)]
mod tree;
#[cfg(test)]
mod words;
