//! Takes Rust text apart as far as the checks need it.

/// The words of a name: `AckWindow`, `ack_window` and `ACK_WINDOW` are `ack`, `window`.
pub(crate) fn words(name: &str) -> Vec<String> {
    let mut words: Vec<String> = Vec::new();
    let mut previous_is_lower = false;
    for c in name.chars() {
        if !c.is_alphanumeric() {
            previous_is_lower = false;
            words.push(String::new());
            continue;
        }
        if words.is_empty() || (c.is_uppercase() && previous_is_lower) {
            words.push(String::new());
        }
        if let Some(word) = words.last_mut() {
            word.extend(c.to_lowercase());
        }
        previous_is_lower = c.is_lowercase() || c.is_numeric();
    }
    words.retain(|word| !word.is_empty());
    words
}

/// The names that `text` declares with one of `keywords` (`struct`, `fn`, …), with their lines.
pub(crate) fn declared<'a>(text: &'a str, keywords: &[&str]) -> Vec<(usize, &'a str)> {
    let mut found = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let mut tokens = line.split_whitespace();
        while let Some(token) = tokens.next() {
            if keywords.contains(&token) {
                let name = tokens.next().unwrap_or_default();
                let end = name
                    .find(|c: char| !(c.is_alphanumeric() || c == '_'))
                    .unwrap_or(name.len());
                if end > 0 {
                    found.push((number + 1, &name[..end]));
                }
                break;
            }
            if !matches!(token, "async" | "const" | "unsafe" | "extern" | "default")
                && !token.starts_with("pub")
            {
                break;
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fall_into_words() {
        assert_eq!(words("AckWindow"), ["ack", "window"]);
        assert_eq!(words("ack_window"), ["ack", "window"]);
        assert_eq!(words("ACK_WINDOW"), ["ack", "window"]);
        assert_eq!(words("db-utils.rs"), ["db", "utils", "rs"]);
    }

    #[test]
    fn declarations_are_read_and_text_is_not() {
        let text =
            "pub(crate) struct A<T>;\n  pub async fn b() {}\nenum C {\n// struct D\nlet x = \"struct E\";\n";
        assert_eq!(
            declared(text, &["struct", "enum", "fn"]),
            [(1, "A"), (2, "b"), (3, "C")]
        );
    }
}
