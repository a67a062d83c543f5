//! `docs/errors.md` is generated from the tables in the code.

use std::{fmt::Write as _, fs};

use anyhow::{Context as _, Result, ensure};
use service_kit::Reason;

const PATH: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/errors.md");

const HEAD: &str = "\
# Errors

<!-- Generated from the tables in the code. Regenerate: `UPDATE_DOCS=1 cargo test -p e2e-tests error_table`. -->

Every error is a `google.rpc.Status`: a code for retry policies, a message for developers, and details for programs, in the
trailer `grpc-status-details-bin`. Every error has the detail `google.rpc.ErrorInfo`, with a `reason` from the tables below
and the service as its `domain`. Branch on `reason`; messages change. Requests that the server rejects before it recognizes
a call, such as headers over 16 KiB, get an HTTP status (431) without details.

Where a retry can succeed, `google.rpc.RetryInfo` has the delay before it. For UNAVAILABLE and RESOURCE_EXHAUSTED the
trailer `grpc-retry-pushback-ms` has the same delay for clients with a retry policy. Retry mutations with the `request_id`
of the first attempt: they then take effect once, however often they are sent.
";

fn render() -> String {
    let mut text = HEAD.to_owned();
    section(&mut text, "Any call of either service", service_kit::TABLE);
    section(&mut text, "user-service", user_service::error::TABLE);
    section(&mut text, "order-service", order_service::error::TABLE);
    text
}

fn section(text: &mut String, title: &str, table: &[Reason]) {
    let _ = write!(
        text,
        "\n## {title}\n\n| reason | code | when | further details | what to do |\n|---|---|---|---|---|\n"
    );
    for Reason {
        code,
        name,
        when,
        details,
        hint,
    } in table
    {
        let code = format_code(*code);
        let _ = writeln!(text, "| `{name}` | {code} | {when} | {details} | {hint} |");
    }
}

/// Formats the canonical name of a code: `InvalidArgument` is INVALID_ARGUMENT.
fn format_code(code: tonic::Code) -> String {
    let mut name = String::new();
    for char in format!("{code:?}").chars() {
        if char.is_uppercase() && !name.is_empty() {
            name.push('_');
        }
        name.push(char.to_ascii_uppercase());
    }
    name
}

#[test]
fn the_documented_errors_match_the_code() -> Result<()> {
    let expected = render();
    if std::env::var_os("UPDATE_DOCS").is_some() {
        fs::write(PATH, &expected)?;
    }
    let actual = fs::read_to_string(PATH).context("failed to read docs/errors.md")?;
    let hint = "run UPDATE_DOCS=1 cargo test -p e2e-tests error_table";
    ensure!(actual == expected, "docs/errors.md is out of date: {hint}");
    Ok(())
}
