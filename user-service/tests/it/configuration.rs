//! Invalid settings: each is reported on its own line, at startup.

use std::process::Output;

use anyhow::Result;
use testkit::assert_config_errors;

/// Runs the program to its end with only these environment variables.
fn run(arguments: &[&str], variables: &[(&str, &str)]) -> Result<Output> {
    let program = env!("CARGO_BIN_EXE_user-service");
    testkit::run(program, arguments, variables)
}

#[test]
fn all_missing_settings_are_reported_at_once() -> Result<()> {
    let output = run(&["serve"], &[])?;
    assert_config_errors(&output, &["LISTEN_ADDR", "DATABASE_URL", "KAFKA_BROKERS"]);
    assert_config_errors(&run(&["migrate"], &[])?, &["DATABASE_URL"]);
    Ok(())
}

#[test]
fn all_invalid_settings_are_reported_at_once() -> Result<()> {
    let output = run(
        &["serve"],
        &[
            ("LOG_LEVEL", "inof"),
            ("LOG_FORMAT", "xml"),
            ("LISTEN_ADDR", "here"),
            ("MAX_CONNECTIONS", "0"),
            ("DATABASE_URL", "postgres://user:secret@host:port/name"),
            ("DATABASE_POOL_SIZE", "many"),
            ("KAFKA_BROKERS", "localhost"),
            ("USERS_TOPIC", ".."),
            ("ORDERS_TOPIC", ""),
            ("CONSUMER_GROUP", " "),
            ("INSTANCE_ID", "a b"),
            ("SESSION_TIMEOUT_MS", "6 s"),
        ],
    )?;
    assert_config_errors(
        &output,
        &[
            "LOG_LEVEL",
            "LOG_FORMAT",
            "LISTEN_ADDR",
            "MAX_CONNECTIONS",
            "DATABASE_URL",
            "DATABASE_POOL_SIZE",
            "KAFKA_BROKERS",
            "USERS_TOPIC",
            "ORDERS_TOPIC",
            "CONSUMER_GROUP",
            "INSTANCE_ID",
            "SESSION_TIMEOUT_MS",
        ],
    );
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(
        !text.contains("secret"),
        "the password is in the output: {text}"
    );
    Ok(())
}

#[test]
fn the_database_address_comes_from_either_a_file_or_a_variable() -> Result<()> {
    let good = ("DATABASE_URL", "postgres://user@localhost/users");
    let missing = ("DATABASE_URL_FILE", "/nowhere/at/all");
    assert_config_errors(&run(&["migrate"], &[missing])?, &["DATABASE_URL_FILE"]);
    let twice = ["DATABASE_URL", "DATABASE_URL_FILE"];
    assert_config_errors(&run(&["migrate"], &[good, missing])?, &twice);
    let empty = [("DATABASE_URL", "")];
    assert_config_errors(&run(&["migrate"], &empty)?, &["DATABASE_URL"]);
    let empty = [good, ("DATABASE_URL_FILE", "")];
    assert_config_errors(&run(&["migrate"], &empty)?, &twice);
    let by_flag = ["migrate", "--database-url-file=/nowhere/at/all"];
    assert_config_errors(
        &run(&by_flag, &[good, ("LOG_LEVEL", "inof")])?,
        &["LOG_LEVEL", twice[0], twice[1]],
    );
    Ok(())
}

#[test]
fn a_command_line_error_does_not_hide_invalid_settings() -> Result<()> {
    let output = run(&["serve", "--max-calls=x", "--frob"], &[])?;
    assert_config_errors(
        &output,
        &["MAX_CALLS", "unexpected argument '--frob' found"],
    );
    Ok(())
}
