use std::process::ExitCode;

use crate::config::ConfigError;

/// The options or the configuration can't be used: sysexits.h EX_USAGE.
pub const BAD_CONFIGURATION: u8 = 64;
/// sysexits.h EX_SOFTWARE.
const FAILED: u8 = 70;

/// The exit codes, for `--help`.
pub const EXIT_CODES: &str = "Exit codes:
  0   ended as it was asked to
  1   a check found something wrong (healthcheck)
  64  the options or the configuration can't be used; one line a mistake
  70  failed; the reason is on standard error";

/// Reads the command line and the environment.
///
/// Ends the process with 64 where they can't be used, and with 0 after `--help` or `--version`.
pub fn parse<C: clap::Parser>() -> C {
    C::try_parse().unwrap_or_else(|err| {
        let _ = err.print();
        std::process::exit(if err.use_stderr() {
            BAD_CONFIGURATION.into()
        } else {
            0
        })
    })
}

/// The exit code for a result; an error is told on standard error.
pub fn report(result: anyhow::Result<ExitCode>) -> ExitCode {
    let err = match result {
        Ok(code) => return code,
        Err(err) => err,
    };
    if let Some(mistakes) = err.downcast_ref::<ConfigError>() {
        tell(mistakes);
        return ExitCode::from(BAD_CONFIGURATION);
    }
    eprintln!("error: {err:#}");
    ExitCode::from(FAILED)
}

/// Ends the process with 64, and says why.
pub(crate) fn end_with(mistakes: &ConfigError) -> ! {
    tell(mistakes);
    std::process::exit(BAD_CONFIGURATION.into())
}

fn tell(mistakes: &ConfigError) {
    for line in mistakes.to_string().lines() {
        eprintln!("error: {line}");
    }
    eprintln!("See --help for every option and its variable.");
}

/// An error with its reasons, on one line.
pub fn chain(err: &dyn std::error::Error) -> String {
    let mut text = err.to_string();
    let mut source = err.source();
    while let Some(err) = source {
        text = format!("{text}: {err}");
        source = err.source();
    }
    text
}
