//! What a user is. These types can't hold a bad value: whoever has one need not check it again.

use chrono::{DateTime, Utc};
use email_address::EmailAddress;
use uuid::Uuid;

/// Longest address that mail servers take, in bytes (RFC 5321, 4.5.3.1.3).
const MAX_EMAIL_BYTES: usize = 254;
const MAX_NAME_CHARS: usize = 200;

/// An e-mail address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Email(String);

impl Email {
    /// Reads an address; blanks around it are dropped.
    ///
    /// # Errors
    /// With what is wrong, for the caller.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        let text = text.trim();
        if text.is_empty() {
            return Err("must be given");
        }
        if text.len() > MAX_EMAIL_BYTES {
            return Err("must be at most 254 bytes long");
        }
        if text.chars().any(char::is_control) {
            return Err("must not have control characters");
        }
        let options = email_address::Options::default()
            .without_display_text()
            .without_domain_literal()
            .with_required_tld();
        EmailAddress::parse_with_options(text, options)
            .map_err(|_| "must be an e-mail address, like ada@example.com")?;
        Ok(Self(text.to_owned()))
    }

    /// As it was written.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// What is compared, so that one address is not taken twice in different case.
    pub fn key(&self) -> String {
        Self::key_of(&self.0)
    }

    /// The same of an address that is known to be one, or to be erased.
    pub fn key_of(email: &str) -> String {
        // Through the upper case, in which ß is SS and a final sigma is one like others.
        email.to_uppercase().to_lowercase()
    }
}

/// A person's name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Name(String);

impl Name {
    /// Reads a name; blanks around it are dropped.
    ///
    /// # Errors
    /// With what is wrong, for the caller.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        let text = text.trim();
        if text.is_empty() {
            return Err("must be given");
        }
        if text.chars().count() > MAX_NAME_CHARS {
            return Err("must be at most 200 characters long");
        }
        if text.chars().any(|c| c.is_control() || turns_direction(c)) {
            return Err("must not have control characters");
        }
        if text.chars().all(is_invisible) {
            return Err("must have a character that can be seen");
        }
        Ok(Self(text.to_owned()))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Unicode's `Bidi_Control`: they can make the text around a name read otherwise than it is written.
fn turns_direction(c: char) -> bool {
    matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Unicode's `Default_Ignorable_Code_Point` and blanks, that of braille among them. Inside of a name
/// some of them have their place: they join letters, and choose between their forms.
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

/// A user to be made.
#[derive(Clone, Debug)]
pub struct NewUser {
    /// Where to write to.
    pub email: Email,
    /// What to write above it.
    pub name: Name,
}

/// What to change of a user.
#[derive(Clone, Debug)]
pub struct UserChange {
    /// Which user.
    pub user_id: Uuid,
    /// What the caller has seen of it last; empty if that does not matter.
    pub etag: String,
    /// The new address, if it changes.
    pub email: Option<Email>,
    /// The new name, if it changes.
    pub name: Option<Name>,
}

/// Which user to delete.
#[derive(Clone, Debug)]
pub struct UserDeletion {
    /// Which user.
    pub user_id: Uuid,
    /// What the caller has seen of it last; empty if that does not matter.
    pub etag: String,
    /// Whether it is as well if there is no such user, or no longer.
    pub allow_missing: bool,
}

/// A user. Once it is deleted, e-mail and name are empty.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct User {
    pub user_id: Uuid,
    pub email: String,
    pub name: String,
    pub version: i64,
    pub create_time: DateTime<Utc>,
    pub update_time: DateTime<Utc>,
    pub delete_time: Option<DateTime<Utc>>,
}

/// A user's orders in one currency, summed up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OrderSummary {
    /// The ISO 4217 code.
    pub currency: String,
    /// Every order.
    pub order_count: i64,
    /// Those that are cancelled.
    pub cancelled_count: i64,
    /// The amounts of the others, as a decimal number.
    pub total: String,
    /// The time of the newest order event that is counted.
    pub as_of_time: DateTime<Utc>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_taken_as_written_and_compared_without_case() {
        let email = Email::parse(" Ada.Lovelace+x@Example.COM ").unwrap();
        assert_eq!(email.as_str(), "Ada.Lovelace+x@Example.COM");
        assert_eq!(email.key(), "ada.lovelace+x@example.com");
        assert!(Email::parse("josé@exämple.com").is_ok());
        for (one, other) in [
            ("ΟΔΟΣ@d.com", "οδοσ@d.com"),
            ("straße@d.com", "STRASSE@d.com"),
        ] {
            let (one, other) = (Email::parse(one).unwrap(), Email::parse(other).unwrap());
            assert_eq!(one.key(), other.key());
        }
    }

    #[test]
    fn what_is_no_address_is_rejected() {
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
        // A Persian name with a character that keeps two letters apart.
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
