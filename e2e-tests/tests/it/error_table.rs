//! `docs/errors.md` is made from the tables in the code.

use std::{fmt::Write as _, fs};

use anyhow::{Context as _, Result, ensure};
use service_kit::Reason;

const PATH: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/errors.md");

const HEAD: &str = "\
# Errors

<!-- Made from the tables in the code: after a change of them, run `UPDATE_DOCS=1 cargo test -p e2e-tests error_table`. -->

Every error is a `google.rpc.Status`: a code for retry policies, a message for the person who reads the log, and details
for programs, in the trailer `grpc-status-details-bin`. One detail is always there: `google.rpc.ErrorInfo`, with a `reason`
from the tables below and the service as its `domain`. Branch on `reason`; messages change. (What is rejected before it is
known to be a call, as headers over 16 KiB, gets an HTTP status, 431, and no details.)

Where an error may pass by itself, `google.rpc.RetryInfo` says after how long the call is worth repeating. For UNAVAILABLE
and RESOURCE_EXHAUSTED the trailer `grpc-retry-pushback-ms` says the same to clients that retry by themselves. Repeat
mutations with the `request_id` of the first try: they are then done once, however often they are sent.
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
        advice,
    } in table
    {
        let code = code_name(*code);
        let _ = writeln!(
            text,
            "| `{name}` | {code} | {when} | {details} | {advice} |"
        );
    }
}

/// As it is written outside of Rust: `InvalidArgument` is INVALID_ARGUMENT.
fn code_name(code: tonic::Code) -> String {
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
fn the_page_of_errors_is_what_the_code_says() -> Result<()> {
    let wanted = render();
    if std::env::var_os("UPDATE_DOCS").is_some() {
        fs::write(PATH, &wanted)?;
    }
    let found = fs::read_to_string(PATH).context("docs/errors.md can't be read")?;
    let advice = "run UPDATE_DOCS=1 cargo test -p e2e-tests error_table";
    ensure!(
        found == wanted,
        "docs/errors.md is behind the code: {advice}"
    );
    Ok(())
}
