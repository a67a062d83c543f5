//! Invalid settings: each is reported on its own line, at startup.

use std::process::Output;

use anyhow::Result;
use testkit::assert_config_errors;

/// Runs the program to its end with only these environment variables.
fn run(arguments: &[&str], variables: &[(&str, &str)]) -> Result<Output> {
    let program = env!("CARGO_BIN_EXE_order-service");
    testkit::run(program, arguments, variables)
}

#[test]
fn all_missing_settings_are_reported_at_once() -> Result<()> {
    let output = run(&["serve"], &[])?;
    assert_config_errors(&output, &["LISTEN_ADDR", "DATABASE_URL", "KAFKA_BROKERS"]);
    assert_config_errors(&run(&["migrate"], &[])?, &["DATABASE_URL"]);
    Ok(())
}

/// The required settings of `serve`.
const COMPLETE: [(&str, &str); 3] = [
    ("LISTEN_ADDR", "127.0.0.1:0"),
    ("DATABASE_URL", "postgres://user@localhost/orders"),
    ("KAFKA_BROKERS", "localhost:9092"),
];

#[test]
fn all_invalid_settings_are_reported_at_once() -> Result<()> {
    let wrong = [
        ("LISTEN_ADDR", "here"),
        ("DATABASE_URL", "mysql://user@localhost/orders"),
        ("DATABASE_POOL_SIZE", "many"),
        ("MAX_CALLS", "0"),
        ("TOKEN_WAIT_MS", "-1"),
        ("UNKNOWN_USER_WAIT_MS", "1 s"),
        ("MAX_WAITERS", "all"),
        ("VALIDATION", "sometimes"),
        ("MAX_WATCHES", "-1"),
        ("WATCH_SEND_TIMEOUT_MS", "0"),
        ("KAFKA_BROKERS", "localhost"),
        ("ORDERS_TOPIC", ""),
        ("USERS_TOPIC", ".."),
        ("CONSUMER_GROUP", " "),
        ("INSTANCE_ID", "a b"),
        ("SESSION_TIMEOUT_MS", "0"),
    ];
    assert_config_errors(&run(&["serve"], &wrong)?, &wrong.map(|(name, _)| name));
    Ok(())
}

#[test]
fn remote_validation_requires_the_address_of_user_service() -> Result<()> {
    for mode in ["local-then-remote", "remote"] {
        for addr in [
            None,
            Some(""),
            Some("user service:50051"),
            Some("user-service"),
        ] {
            let mut variables = COMPLETE.to_vec();
            variables.push(("VALIDATION", mode));
            variables.extend(addr.map(|addr| ("USER_SERVICE_ADDR", addr)));
            assert_config_errors(&run(&["serve"], &variables)?, &["USER_SERVICE_ADDR"]);
        }
    }
    for mode in ["", "Remote", "remote-then-local"] {
        let mut variables = COMPLETE.to_vec();
        variables.push(("VALIDATION", mode));
        assert_config_errors(&run(&["serve"], &variables)?, &["VALIDATION"]);
    }
    Ok(())
}
