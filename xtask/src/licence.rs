//! Whether a licence expression is satisfied by a list of allowed licences.

use anyhow::{Result, bail};

/// Whether `expression` (SPDX; the old `MIT/Apache-2.0` too) can be met with `allowed` licences alone.
pub(crate) fn is_allowed(expression: &str, allowed: &[String]) -> Result<bool> {
    let spaced = expression
        .replace('(', " ( ")
        .replace(')', " ) ")
        .replace('/', " OR ");
    let mut words = spaced.split_whitespace().peekable();
    let verdict = any(&mut words, allowed, expression)?;
    if let Some(word) = words.next() {
        bail!("licence `{expression}`: unexpected `{word}`");
    }
    Ok(verdict)
}

type Words<'a, 'w> = std::iter::Peekable<std::str::SplitWhitespace<'w>>;

/// One or more alternatives joined by OR.
fn any(words: &mut Words<'_, '_>, allowed: &[String], expression: &str) -> Result<bool> {
    let mut verdict = all(words, allowed, expression)?;
    while words.next_if_eq(&"OR").is_some() {
        verdict |= all(words, allowed, expression)?;
    }
    Ok(verdict)
}

/// One or more terms joined by AND, which binds tighter than OR.
fn all(words: &mut Words<'_, '_>, allowed: &[String], expression: &str) -> Result<bool> {
    let mut verdict = term(words, allowed, expression)?;
    while words.next_if_eq(&"AND").is_some() {
        verdict &= term(words, allowed, expression)?;
    }
    Ok(verdict)
}

/// A licence, with its exception if it has one, or an expression in brackets.
fn term(words: &mut Words<'_, '_>, allowed: &[String], expression: &str) -> Result<bool> {
    match words.next() {
        Some("(") => {
            let verdict = any(words, allowed, expression)?;
            if words.next() != Some(")") {
                bail!("licence `{expression}`: a bracket is not closed");
            }
            Ok(verdict)
        }
        Some(name) if !matches!(name, ")" | "OR" | "AND" | "WITH") => {
            let name = match words.next_if_eq(&"WITH") {
                Some(_) => format!("{name} WITH {}", words.next().unwrap_or_default()),
                None => name.to_owned(),
            };
            Ok(allowed.contains(&name))
        }
        _ => bail!("licence `{expression}`: a name is missing"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed(expression: &str) -> bool {
        let list = ["MIT", "Apache-2.0", "Apache-2.0 WITH LLVM-exception"].map(String::from);
        is_allowed(expression, &list).unwrap()
    }

    #[test]
    fn one_alternative_is_enough() {
        assert!(allowed("MIT OR GPL-3.0"));
        assert!(allowed("GPL-3.0/MIT"));
        assert!(allowed("GPL-3.0 OR Apache-2.0 WITH LLVM-exception"));
        assert!(!allowed("GPL-3.0 OR LGPL-2.1"));
    }

    #[test]
    fn every_part_of_an_and_counts() {
        assert!(allowed("MIT AND Apache-2.0"));
        assert!(!allowed("MIT AND GPL-3.0"));
        assert!(allowed("(MIT OR GPL-3.0) AND Apache-2.0"));
        assert!(allowed("GPL-3.0 AND MIT OR MIT"));
        assert!(!allowed("(MIT OR Apache-2.0) AND GPL-3.0"));
    }

    #[test]
    fn a_broken_expression_is_an_error() {
        for broken in ["", "(MIT", "MIT OR", "MIT MIT", "AND MIT"] {
            assert!(is_allowed(broken, &[]).is_err(), "{broken:?}");
        }
    }
}
