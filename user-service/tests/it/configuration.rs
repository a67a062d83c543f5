//! Settings that can't be used: each is told on a line of its own, before anything is tried.

use std::process::Output;

use anyhow::Result;
use testkit::assert_told;

/// Runs the program with no variables but these, to its end.
fn run(arguments: &[&str], variables: &[(&str, &str)]) -> Result<Output> {
    let program = env!("CARGO_BIN_EXE_user-service");
    testkit::run(program, arguments, variables)
}

#[test]
fn everything_that_is_missing_is_told_at_once() -> Result<()> {
    let output = run(&["serve"], &[])?;
    assert_told(&output, &["LISTEN_ADDR", "DATABASE_URL", "KAFKA_BROKERS"]);
    assert_told(&run(&["migrate"], &[])?, &["DATABASE_URL"]);
    Ok(())
}

#[test]
fn everything_that_is_wrong_is_told_at_once() -> Result<()> {
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
        ],
    )?;
    assert_told(
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
        ],
    );
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(!text.contains("secret"), "it tells the password: {text}");
    Ok(())
}

#[test]
fn the_address_of_the_database_is_given_once_by_a_file_or_a_variable() -> Result<()> {
    let good = ("DATABASE_URL", "postgres://user@localhost/users");
    let missing = ("DATABASE_URL_FILE", "/nowhere/at/all");
    assert_told(&run(&["migrate"], &[missing])?, &["DATABASE_URL_FILE"]);
    let twice = ["DATABASE_URL", "DATABASE_URL_FILE"];
    assert_told(&run(&["migrate"], &[good, missing])?, &twice);
    let empty = [("DATABASE_URL", "")];
    assert_told(&run(&["migrate"], &empty)?, &["DATABASE_URL"]);
    let empty = [good, ("DATABASE_URL_FILE", "")];
    assert_told(&run(&["migrate"], &empty)?, &twice);
    let by_flag = ["migrate", "--database-url-file=/nowhere/at/all"];
    assert_told(
        &run(&by_flag, &[good, ("LOG_LEVEL", "inof")])?,
        &["LOG_LEVEL", twice[0], twice[1]],
    );
    Ok(())
}

#[test]
fn a_mistake_of_the_command_line_hides_none_in_a_setting() -> Result<()> {
    let output = run(&["serve", "--max-calls=x", "--frob"], &[])?;
    assert_told(
        &output,
        &["MAX_CALLS", "unexpected argument '--frob' found"],
    );
    Ok(())
}
