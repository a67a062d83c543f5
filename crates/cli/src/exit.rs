use std::{
    fmt,
    io::{self, Write as _},
    process::ExitCode,
};

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

/// Prints a line, or returns an error of `io` from the function around it where `println!` would panic.
/// [`report`](crate::report) knows which of them is no failure.
#[macro_export]
macro_rules! say {
    ($($text:tt)*) => {
        $crate::print_line(format_args!($($text)*))?
    };
}

/// What [`say!`](crate::say) does.
#[doc(hidden)]
pub fn print_line(text: fmt::Arguments<'_>) -> io::Result<()> {
    writeln!(io::stdout(), "{text}")
}

/// Prints a line on standard error. Where nobody listens there is nobody to tell, either.
pub fn complain(text: fmt::Arguments<'_>) {
    let _ = writeln!(io::stderr(), "{text}");
}

/// The exit code for a result; an error is told on standard error. A reader of standard output who
/// has seen enough, as `head` has, is none.
pub fn report(result: anyhow::Result<ExitCode>) -> ExitCode {
    let err = match result {
        Ok(code) => return code,
        Err(err) => err,
    };
    if let Some(mistakes) = err.downcast_ref::<ConfigError>() {
        tell(mistakes);
        return ExitCode::from(BAD_CONFIGURATION);
    }
    let is_enough = |err: &io::Error| err.kind() == io::ErrorKind::BrokenPipe;
    if err.downcast_ref().is_some_and(is_enough) {
        return ExitCode::SUCCESS;
    }
    complain(format_args!("error: {err:#}"));
    ExitCode::from(FAILED)
}

/// Ends the process with 64, and says why.
pub(crate) fn end_with(mistakes: &ConfigError) -> ! {
    tell(mistakes);
    std::process::exit(BAD_CONFIGURATION.into())
}

/// Ends the process as clap does, with 64 for a mistake and with 0 after `--help` or `--version`.
pub(crate) fn end_with_usage(err: &clap::Error) -> ! {
    let _ = err.print();
    std::process::exit(if err.use_stderr() {
        BAD_CONFIGURATION.into()
    } else {
        0
    })
}

fn tell(mistakes: &ConfigError) {
    for line in mistakes.to_string().lines() {
        complain(format_args!("error: {line}"));
    }
    complain(format_args!(
        "See --help for every option and its variable."
    ));
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
