//! Domain types. They are validated on construction and can't hold an invalid value.

use chrono::{DateTime, Utc};
use email_address::EmailAddress;
use uuid::Uuid;

/// The longest address that mail servers accept, in bytes (RFC 5321, 4.5.3.1.3).
const MAX_EMAIL_BYTES: usize = 254;
const MAX_NAME_CHARS: usize = 200;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Email(String);

impl Email {
    /// Parses an address; trims surrounding whitespace.
    ///
    /// # Errors
    /// The reason, for the caller.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        let text = text.trim();
        if text.is_empty() {
            return Err("is required");
        }
        if text.len() > MAX_EMAIL_BYTES {
            return Err("must be at most 254 bytes long");
        }
        if text.chars().any(char::is_control) {
            return Err("must not contain control characters");
        }
        let options = email_address::Options::default()
            .without_display_text()
            .without_domain_literal()
            .with_required_tld();
        EmailAddress::parse_with_options(text, options)
            .map_err(|_| "must be an e-mail address, like ada@example.com")?;
        Ok(Self(text.to_owned()))
    }

    /// Returns the address as entered.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the case-folded address, for comparison.
    pub fn comparison_key(&self) -> String {
        Self::fold_case(&self.0)
    }

    /// Folds the case of a valid or erased address.
    pub fn fold_case(email: &str) -> String {
        // Via uppercase, which maps ß to SS and unifies both lowercase sigmas.
        email.to_uppercase().to_lowercase()
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Name(String);

impl Name {
    /// Parses a name; trims surrounding whitespace.
    ///
    /// # Errors
    /// The reason, for the caller.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        let text = text.trim();
        if text.is_empty() {
            return Err("is required");
        }
        if text.chars().count() > MAX_NAME_CHARS {
            return Err("must be at most 200 characters long");
        }
        if text.chars().any(|c| c.is_control() || is_bidi_control(c)) {
            return Err("must not contain control characters");
        }
        if text.chars().all(is_invisible) {
            return Err("must contain a visible character");
        }
        Ok(Self(text.to_owned()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Returns true for Unicode's `Bidi_Control`, which can reorder the text around a name.
fn is_bidi_control(c: char) -> bool {
    matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Returns true for Unicode's `Default_Ignorable_Code_Point` and blanks, including the braille blank.
/// Some are valid inside a name: they join letters or select their forms.
fn is_invisible(c: char) -> bool {
    c.is_whitespace()
        || matches!(
            c,
            '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}'..='\u{1160}' | '\u{17b4}'..='\u{17b5}'
                | '\u{180b}'..='\u{180f}' | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}'
                | '\u{2060}'..='\u{206f}' | '\u{2800}' | '\u{3164}' | '\u{fe00}'..='\u{fe0f}'
                | '\u{feff}' | '\u{ffa0}' | '\u{fff0}'..='\u{fff8}' | '\u{1bca0}'..='\u{1bca3}'
                | '\u{1d173}'..='\u{1d17a}' | '\u{e0000}'..='\u{e0fff}'
        )
}

#[derive(Clone, Debug)]
pub struct NewUser {
    pub email: Email,
    pub name: Name,
}

/// A request to update a user.
#[derive(Clone, Debug)]
pub struct UserChange {
    pub user_id: Uuid,
    /// The etag that the caller expects; empty to match any version.
    pub etag: String,
    pub email: Option<Email>,
    pub name: Option<Name>,
}

/// A request to delete a user.
#[derive(Clone, Debug)]
pub struct UserDeletion {
    pub user_id: Uuid,
    /// The etag that the caller expects; empty to match any version.
    pub etag: String,
    /// Succeed if the user does not exist or is already deleted.
    pub allow_missing: bool,
}

/// A user. E-mail and name are empty after its deletion.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    pub user_id: Uuid,
    pub email: String,
    pub name: String,
    pub version: i64,
    pub create_time: DateTime<Utc>,
    pub update_time: DateTime<Utc>,
    pub delete_time: Option<DateTime<Utc>>,
}

/// The totals of a user's orders in one currency.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OrderSummary {
    /// The ISO 4217 code.
    pub currency: String,
    /// The number of orders, including cancelled ones.
    pub order_count: i64,
    /// The number of cancelled orders.
    pub cancelled_count: i64,
    /// The total amount of the orders that are not cancelled, as a decimal number.
    pub total: String,
    /// The time of the latest order event included.
    pub as_of_time: DateTime<Utc>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_keep_their_case_and_compare_case_insensitively() {
        let email = Email::parse(" Ada.Lovelace+x@Example.COM ").unwrap();
        assert_eq!(email.as_str(), "Ada.Lovelace+x@Example.COM");
        assert_eq!(email.comparison_key(), "ada.lovelace+x@example.com");
        assert!(Email::parse("josé@exämple.com").is_ok());
        for (one, other) in [
            ("ΟΔΟΣ@d.com", "οδοσ@d.com"),
            ("straße@d.com", "STRASSE@d.com"),
        ] {
            let (one, other) = (Email::parse(one).unwrap(), Email::parse(other).unwrap());
            assert_eq!(one.comparison_key(), other.comparison_key());
        }
    }

    #[test]
    fn an_invalid_address_is_rejected() {
        let long = format!("{}@example.com", "x".repeat(250));
        for bad in [
            "",
            " ",
            "x",
            "@example.com",
            "a@",
            "a@b",
            "a b@example.com",
            "a@b@example.com",
            "Ada <ada@example.com>",
            "a\0@example.com",
            "a@[127.0.0.1]",
            "a@example..com",
            &long,
        ] {
            assert!(Email::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn names_are_trimmed_and_bounded() {
        assert_eq!(Name::parse("  Ada  ").unwrap().as_str(), "Ada");
        assert!(Name::parse(&"é".repeat(200)).is_ok());
        // A Persian name with a zero-width non-joiner.
        assert!(Name::parse("علی\u{200c}رضا").is_ok());
        for bad in [
            "",
            "   ",
            "a\nb",
            "a\0b",
            &"x".repeat(201),
            "\u{200b}",
            "\u{200d}\u{feff} \u{3164}",
            "a\u{202e}b",
            "a\u{2066}b",
        ] {
            assert!(Name::parse(bad).is_err(), "{bad:?}");
        }
    }
}
