use std::fmt;

use iso_currency::Currency;

/// The largest amount, in minor units: low enough that sums of amounts stay exact in clients' integers.
const MAX_MINOR: i64 = 1_000_000_000_000_000;
const NANOS_DIGITS: u32 = 9;

/// A positive amount of money, exact to the currency's minor unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Amount {
    minor: i64,
    currency: Currency,
    /// Decimal places: 2 for EUR, 0 for JPY, 3 for KWD.
    digits: u32,
}

/// The invalid fields of an amount, each with its reason.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InvalidAmount {
    pub currency_code: Option<&'static str>,
    pub units: Option<&'static str>,
    pub nanos: Option<String>,
}

impl Amount {
    /// Parses an amount in the format of `google.type.Money`: whole units and nanos (10^-9).
    ///
    /// # Errors
    /// All invalid fields.
    pub fn from_units(currency_code: &str, units: i64, nanos: i32) -> Result<Self, InvalidAmount> {
        let mut invalid = InvalidAmount::default();
        let currency = find_currency(currency_code);
        if currency.is_none() {
            invalid.currency_code = Some("must be an active ISO 4217 currency code, like EUR");
        }
        if nanos.unsigned_abs() > 999_999_999 {
            invalid.nanos = Some("must be from -999999999 to 999999999".to_owned());
        } else if units.signum() * i64::from(nanos.signum()) < 0 {
            invalid.nanos = Some("must have the same sign as units".to_owned());
        } else if let Some((_, digits)) = currency
            && nanos % 10_i32.pow(NANOS_DIGITS - digits) != 0
        {
            invalid.nanos = Some(format!(
                "must have at most {digits} decimal places for {currency_code}"
            ));
        }
        let minor = currency.and_then(|(_, digits)| to_minor(units, nanos, digits));
        if units < 0 || nanos < 0 || (units, nanos) == (0, 0) {
            invalid.units = Some("must be positive together with nanos");
        } else if currency.is_some() && minor.is_none() {
            invalid.units = Some("must be at most 10^15 minor units of the currency");
        }
        match (currency, minor) {
            (Some((currency, digits)), Some(minor)) if invalid == InvalidAmount::default() => {
                Ok(Self {
                    minor,
                    currency,
                    digits,
                })
            }
            _ => Err(invalid),
        }
    }

    /// Creates the amount of a stored row, or `None` if the row is invalid.
    pub fn from_minor(currency_code: &str, minor: i64) -> Option<Self> {
        let (currency, digits) = find_currency(currency_code)?;
        (1..=MAX_MINOR).contains(&minor).then_some(Self {
            minor,
            currency,
            digits,
        })
    }

    /// Returns the amount in minor units: 1990 for 19.90 EUR.
    pub fn minor(&self) -> i64 {
        self.minor
    }

    pub fn currency_code(&self) -> &'static str {
        self.currency.code()
    }

    /// Returns units and nanos in the format of `google.type.Money`.
    pub fn to_units(self) -> (i64, i32) {
        let scale = 10_i64.pow(self.digits);
        let nanos = self.minor % scale * 10_i64.pow(NANOS_DIGITS - self.digits);
        (self.minor / scale, i32::try_from(nanos).unwrap_or_default())
    }
}

/// Formats a decimal number with the currency's decimal places: 19.90.
impl fmt::Display for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scale = 10_i64.pow(self.digits);
        write!(f, "{}", self.minor / scale)?;
        if self.digits > 0 {
            write!(
                f,
                ".{:0width$}",
                self.minor % scale,
                width = self.digits as usize
            )?;
        }
        Ok(())
    }
}

/// Returns an active currency and its decimal places. Rejects special codes, such as gold and test codes.
fn find_currency(code: &str) -> Option<(Currency, u32)> {
    let currency = Currency::from_code(code)?;
    if currency.is_special() || currency.is_superseded().is_some() {
        return None;
    }
    let digits = u32::from(currency.exponent()?);
    (digits <= NANOS_DIGITS).then_some((currency, digits))
}

fn to_minor(units: i64, nanos: i32, digits: u32) -> Option<i64> {
    let minor = units.checked_mul(10_i64.pow(digits))?;
    let rest = i64::from(nanos / 10_i32.pow(NANOS_DIGITS - digits));
    minor.checked_add(rest).filter(|minor| *minor <= MAX_MINOR)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn amounts_are_exact_to_the_last_digit() {
        for (code, units, nanos, minor, text) in [
            ("EUR", 19, 900_000_000, 1990, "19.90"),
            ("EUR", 0, 10_000_000, 1, "0.01"),
            ("JPY", 500, 0, 500, "500"),
            ("KWD", 1, 5_000_000, 1005, "1.005"),
            (
                "EUR",
                9_999_999_999_999,
                990_000_000,
                999_999_999_999_999,
                "9999999999999.99",
            ),
        ] {
            let amount = Amount::from_units(code, units, nanos).unwrap();
            assert_eq!((amount.minor(), amount.to_string().as_str()), (minor, text));
            assert_eq!(amount.to_units(), (units, nanos));
            assert_eq!(Amount::from_minor(code, minor), Some(amount));
        }
    }

    #[test]
    fn every_invalid_field_is_reported() {
        let invalid = Amount::from_units("Euro", -1, 1).unwrap_err();
        assert!(
            invalid.currency_code.is_some() && invalid.units.is_some() && invalid.nanos.is_some()
        );
    }

    #[test]
    fn an_amount_that_is_not_positive_and_exact_is_rejected() {
        for (code, units, nanos) in [
            ("EUR", 0, 0),
            ("EUR", -1, 0),
            ("EUR", 0, -10_000_000),
            ("EUR", 1, 1),
            ("EUR", 1, 999_999_999),
            ("EUR", 1, 1_000_000_000),
            ("EUR", 1, i32::MIN),
            ("JPY", 1, 500_000_000),
            ("EUR", i64::MAX, 0),
            ("EUR", i64::MIN, i32::MIN),
            ("eur", 1, 0),
            ("XAU", 1, 0),
            ("XXX", 1, 0),
            ("XTS", 1, 0),
            ("", 1, 0),
        ] {
            assert!(
                Amount::from_units(code, units, nanos).is_err(),
                "{code} {units} {nanos}"
            );
        }
    }

    proptest! {
        #[test]
        fn any_input_is_parsed_exactly_or_rejected(units: i64, nanos: i32, code in "EUR|JPY|KWD|CLF") {
            if let Ok(amount) = Amount::from_units(&code, units, nanos) {
                prop_assert_eq!(amount.to_units(), (units, nanos));
                prop_assert!(amount.minor() > 0);
            }
        }
    }
}
