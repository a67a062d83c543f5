use std::ops::Range;

use anyhow::{Context as _, Result};

/// Returns `host:port` of a URL such as `postgres://user:password@host:port/database`.
pub(crate) fn address_of(url: &str) -> Result<&str> {
    Ok(&url[address_range(url)?])
}

/// Replaces `host:port` of a URL.
pub(crate) fn with_address(url: &str, address: &str) -> Result<String> {
    let mut replaced = url.to_owned();
    replaced.replace_range(address_range(url)?, address);
    Ok(replaced)
}

fn address_range(url: &str) -> Result<Range<usize>> {
    let scheme_end = url.find("://").context("a URL has a scheme")? + 3;
    let end = url[scheme_end..]
        .find(['/', '?'])
        .map_or(url.len(), |length| scheme_end + length);
    let start = url[..end].rfind('@').map_or(scheme_end, |at| at + 1);
    Ok(start..end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_host_and_port_are_replaced() -> Result<()> {
        for (before, after) in [
            ("", "/users"),
            ("user:p@ss@", "/users?sslmode=disable"),
            ("user@", "?application_name=a/b@c"),
        ] {
            let url = |address: &str| format!("postgres://{before}{address}{after}");
            assert_eq!(address_of(&url("db:5432"))?, "db:5432");
            assert_eq!(with_address(&url("db:5432"), "[::1]:1")?, url("[::1]:1"));
        }
        assert!(address_of("db:5432").is_err());
        Ok(())
    }
}
