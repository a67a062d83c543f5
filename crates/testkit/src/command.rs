use std::process::{Command, Output};

use anyhow::Result;

/// Runs a program with no variables but these, to its end.
///
/// # Errors
/// If it does not start.
pub fn run(program: &str, arguments: &[&str], variables: &[(&str, &str)]) -> Result<Output> {
    Ok(Command::new(program)
        .args(arguments)
        .env_clear()
        .envs(variables.iter().copied())
        .output()?)
}

/// Checks that the program ended with the code for it, and told of these settings and of no others.
///
/// # Panics
/// If it did not.
#[track_caller]
pub fn assert_told(output: &Output, names: &[&str]) {
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(64), "{text}");
    let lines = text.lines().filter_map(|line| line.strip_prefix("error: "));
    let told: Vec<_> = lines.filter_map(|line| line.split(':').next()).collect();
    assert_eq!(told, names, "{text}");
}
