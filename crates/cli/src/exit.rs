use std::{
    fmt,
    io::{self, Write as _},
    process::ExitCode,
};

use crate::config::ConfigError;

/// The exit code for invalid options or configuration: sysexits.h EX_USAGE.
pub const BAD_CONFIGURATION: u8 = 64;
/// The exit code for a failure: sysexits.h EX_SOFTWARE.
const FAILED: u8 = 70;

/// The exit codes, for `--help`.
pub const EXIT_CODES: &str = "Exit codes:
  0   success
  1   not ready (healthcheck)
  64  invalid options or configuration; one line per mistake
  70  failed; the reason is on standard error";

/// Prints a line. On an I/O error it returns from the calling function, where `println!` would panic.
/// [`report`](crate::report) handles a closed pipe.
#[macro_export]
macro_rules! say {
    ($($text:tt)*) => {
        $crate::print_line(format_args!($($text)*))?
    };
}

/// The implementation of [`say!`](crate::say).
#[doc(hidden)]
pub fn print_line(text: fmt::Arguments<'_>) -> io::Result<()> {
    writeln!(io::stdout(), "{text}")
}

/// Prints a line to standard error. Ignores I/O errors, which could be reported nowhere.
pub fn print_error(text: fmt::Arguments<'_>) {
    let _ = writeln!(io::stderr(), "{text}");
}

/// Prints an error to standard error and returns the exit code. A closed standard output, as with `head`, is a
/// success.
pub fn report(result: anyhow::Result<ExitCode>) -> ExitCode {
    let err = match result {
        Ok(code) => return code,
        Err(err) => err,
    };
    if let Some(mistakes) = err.downcast_ref::<ConfigError>() {
        print_mistakes(mistakes);
        return ExitCode::from(BAD_CONFIGURATION);
    }
    let is_closed_pipe = |err: &io::Error| err.kind() == io::ErrorKind::BrokenPipe;
    if err.downcast_ref().is_some_and(is_closed_pipe) {
        return ExitCode::SUCCESS;
    }
    print_error(format_args!("error: {err:#}"));
    ExitCode::from(FAILED)
}

/// Prints the mistakes and exits with 64.
pub(crate) fn exit_with_mistakes(mistakes: &ConfigError) -> ! {
    print_mistakes(mistakes);
    std::process::exit(BAD_CONFIGURATION.into())
}

/// Prints clap's message and exits: with 64 for a mistake, with 0 after `--help` or `--version`.
pub(crate) fn exit_with_usage(err: &clap::Error) -> ! {
    let _ = err.print();
    std::process::exit(if err.use_stderr() {
        BAD_CONFIGURATION.into()
    } else {
        0
    })
}

fn print_mistakes(mistakes: &ConfigError) {
    for line in mistakes.to_string().lines() {
        print_error(format_args!("error: {line}"));
    }
    print_error(format_args!(
        "See --help for all options and their environment variables."
    ));
}

/// Formats an error and its sources on one line.
pub fn chain(err: &dyn std::error::Error) -> String {
    let mut text = err.to_string();
    let mut source = err.source();
    while let Some(err) = source {
        text = format!("{text}: {err}");
        source = err.source();
    }
    text
}
