//! Parsers for the values of settings.

use std::{fmt::Display, ops::RangeInclusive, str::FromStr, time::Duration};

/// Parses a number in `range`.
pub fn number<T>(
    range: RangeInclusive<T>,
) -> impl Fn(&str) -> Result<T, String> + Clone + Send + Sync + 'static
where
    T: FromStr + PartialOrd + Display + Clone + Send + Sync + 'static,
{
    move |text| {
        let number = text.trim().parse().ok();
        number
            .filter(|number| range.contains(number))
            .ok_or_else(|| {
                let (low, high) = (range.start(), range.end());
                format!("invalid value {text:?}: must be a number from {low} to {high}")
            })
    }
}

/// Parses a number of milliseconds in `range`.
pub fn milliseconds(
    range: RangeInclusive<u64>,
) -> impl Fn(&str) -> Result<Duration, String> + Clone + Send + Sync + 'static {
    let number = number(range);
    move |text| number(text).map(Duration::from_millis)
}

/// Parses a number of seconds in `range`.
pub fn seconds(
    range: RangeInclusive<u64>,
) -> impl Fn(&str) -> Result<Duration, String> + Clone + Send + Sync + 'static {
    let number = number(range);
    move |text| number(text).map(Duration::from_secs)
}

/// Parses a text that is not blank.
///
/// # Errors
/// If it is blank.
pub fn not_blank(text: &str) -> Result<String, &'static str> {
    if text.trim().is_empty() {
        return Err("must not be empty");
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_out_of_range_is_rejected_with_its_range() {
        assert_eq!(number(1..=100)("16"), Ok(16));
        assert_eq!(seconds(1..=100)(" 16 "), Ok(Duration::from_secs(16)));
        for bad in ["", "0", "101", "-1", "1 s", "many"] {
            let rejected = milliseconds(1..=100)(bad);
            assert!(rejected.is_err_and(|reason| reason.contains("from 1 to 100")));
        }
    }
}
