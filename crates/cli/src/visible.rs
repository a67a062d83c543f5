//! Escapes untrusted text for a terminal.

use std::{borrow::Cow, fmt::Write as _};

/// Escapes each character that a terminal would interpret: line breaks, control sequences, and changes of the
/// writing direction.
pub fn visible(text: &str) -> Cow<'_, str> {
    if !text.chars().any(is_control) {
        return text.into();
    }
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        if is_control(c) {
            let _ = write!(escaped, "{}", c.escape_default());
        } else {
            escaped.push(c);
        }
    }
    escaped.into()
}

fn is_control(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{200e}' | '\u{200f}')
}

#[cfg(test)]
mod tests {
    use super::visible;

    #[test]
    fn control_characters_are_escaped() {
        for (text, escaped) in [
            ("g\u{e4}ste.v1", "g\u{e4}ste.v1"),
            ("a\n\x1b[31mb\r", r"a\n\u{1b}[31mb\r"),
            ("a\u{202e}b", r"a\u{202e}b"),
        ] {
            assert_eq!(visible(text), escaped);
        }
    }
}
