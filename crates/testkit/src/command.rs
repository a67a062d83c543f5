use std::process::{Command, Output};

use anyhow::Result;

/// Runs a program to completion, with only these environment variables.
///
/// # Errors
/// If it fails to start.
pub fn run(program: &str, arguments: &[&str], variables: &[(&str, &str)]) -> Result<Output> {
    Ok(Command::new(program)
        .args(arguments)
        .env_clear()
        .envs(variables.iter().copied())
        .output()?)
}

/// Asserts that the program exited with code 64 and reported errors for exactly these settings.
///
/// # Panics
/// If it did not.
#[track_caller]
pub fn assert_config_errors(output: &Output, names: &[&str]) {
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(64), "{text}");
    let lines = text.lines().filter_map(|line| line.strip_prefix("error: "));
    let reported: Vec<_> = lines.filter_map(|line| line.split(':').next()).collect();
    assert_eq!(reported, names, "{text}");
}
