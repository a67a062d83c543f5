//! Finds a text in logs in any notation in which programs print bytes.

use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, URL_SAFE},
};

/// The notations of a text.
pub(crate) struct Notations(Vec<String>);

impl Notations {
    pub(crate) fn of(text: &str) -> Self {
        let join = |separator: &str, byte: &dyn Fn(u8) -> String| {
            let bytes: Vec<String> = text.bytes().map(byte).collect();
            bytes.join(separator)
        };
        let mut notations = vec![text.to_owned()];
        for separator in [", ", ",", " "] {
            notations.push(join(separator, &|byte| byte.to_string()));
            notations.push(join(separator, &|byte| format!("0x{byte:02x}")));
            notations.push(join(separator, &|byte| format!("0x{byte:02X}")));
        }
        for separator in ["", " ", ":", ", "] {
            notations.push(join(separator, &|byte| format!("{byte:02x}")));
            notations.push(join(separator, &|byte| format!("{byte:02X}")));
        }
        notations.push(join("", &|byte| format!("%{byte:02x}")));
        notations.push(join("", &|byte| format!("%{byte:02X}")));
        notations.push(join("", &|byte| format!("\\x{byte:02x}")));
        notations.push(join("", &|byte| format!("\\u{byte:04x}")));
        notations.push(join("", &|byte| format!("\\u{byte:04X}")));
        notations.push(join("", &|byte| format!("\\u{{{byte:x}}}")));
        notations.push(join("", &|byte| format!("\\{byte:03o}")));
        for offset in 0..3 {
            notations.push(base64_at(&STANDARD, text, offset));
            notations.push(base64_at(&URL_SAFE, text, offset));
        }
        Self(notations)
    }

    pub(crate) fn are_in(&self, log: &str) -> bool {
        self.0.iter().any(|notation| log.contains(notation))
    }
}

/// Encodes the text as it appears in longer content after `offset` other bytes, without the characters at both ends,
/// which also depend on its neighbours.
fn base64_at(engine: &impl base64::Engine, text: &str, offset: usize) -> String {
    let encoded = engine.encode([&vec![0; offset], text.as_bytes()].concat());
    let own_bits = offset * 8..(offset + text.len()) * 8;
    encoded[own_bits.start.div_ceil(6)..own_bits.end / 6].to_owned()
}

#[test]
fn every_notation_is_found() {
    let notations = Notations::of("a1f");
    for log in [
        "name=a1f!",
        "[0, 97, 49, 102, 7]",
        "[97,49,102]",
        "97 49 102",
        "[0x61, 0x31, 0x66]",
        "x=613166",
        "61 31 66",
        "%61%31%66",
        r"\x61\x31\x66",
        r"\u0061\u0031\u0066",
        r"\u{61}\u{31}\u{66}",
        r"\141\061\146",
    ] {
        assert!(notations.are_in(log), "{log}");
    }
    let notations = Notations::of("0123456789abcdef");
    for before in ["", "x", "xy", "xyz"] {
        let log = STANDARD.encode(format!("{before}0123456789abcdef and more"));
        assert!(notations.are_in(&log), "{log}");
    }
    assert!(!notations.are_in("0123456789abcde"));
}
