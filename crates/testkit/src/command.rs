use std::{
    process::{Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};

/// The limit on a program that [`run`] has started.
const TIMEOUT: Duration = Duration::from_secs(60);

/// Runs a program to completion, with only these environment variables. Its output must fit into the buffers of two pipes.
///
/// # Errors
/// If it fails to start, or does not end within a minute; it is killed then.
pub fn run(program: &str, arguments: &[&str], variables: &[(&str, &str)]) -> Result<Output> {
    let mut child = Command::new(program)
        .args(arguments)
        .env_clear()
        .envs(variables.iter().copied())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let started = Instant::now();
    while child.try_wait()?.is_none() {
        if started.elapsed() > TIMEOUT {
            child.kill()?;
            bail!(
                "{program} {arguments:?} did not end within {TIMEOUT:?}: {:?}",
                child.wait_with_output()?
            );
        }
        thread::sleep(Duration::from_millis(10));
    }
    Ok(child.wait_with_output()?)
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
