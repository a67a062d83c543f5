//! Text of others, in a form that a terminal only shows.

use std::{borrow::Cow, fmt::Write as _};

/// The text, with an escape for each character that a terminal would obey: that begins a line, moves the
/// cursor, or turns what follows around.
pub fn visible(text: &str) -> Cow<'_, str> {
    if !text.chars().any(steers) {
        return text.into();
    }
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        if steers(c) {
            let _ = write!(shown, "{}", c.escape_default());
        } else {
            shown.push(c);
        }
    }
    shown.into()
}

fn steers(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{200e}' | '\u{200f}')
}

#[cfg(test)]
mod tests {
    use super::visible;

    #[test]
    fn a_terminal_is_not_steered() {
        for (text, shown) in [
            ("g\u{e4}ste.v1", "g\u{e4}ste.v1"),
            ("a\n\x1b[31mb\r", r"a\n\u{1b}[31mb\r"),
            ("a\u{202e}b", r"a\u{202e}b"),
        ] {
            assert_eq!(visible(text), shown);
        }
    }
}
