//! Parses the command line and the environment, and reports all mistakes at once.
//!
//! clap stops at the first mistake. This module replaces the argument that clap names by one that accepts
//! any value, and parses again until only mistakes of the command line itself remain.

use std::ffi::OsString;

use clap::{
    Arg, ArgMatches, Command, Parser,
    builder::{Resettable, ValueParser},
    error::{ContextKind, ContextValue, ErrorKind},
};

use crate::{config::Problems, exit};

/// An argument that also has an environment variable.
struct Setting {
    long: String,
    variable: String,
    /// The variables that exclude this one.
    alternatives: Vec<String>,
    /// The variable is set to an empty text, and the argument has no default that this could override.
    is_empty: bool,
}

/// A mistake in a setting.
struct Mistake {
    variable: String,
    reason: String,
}

/// Parses the command line and the environment.
///
/// Exits with 64 after printing one line per mistake, and with 0 after `--help` or `--version`.
///
/// An empty variable counts as unset if its setting has no default. If it is one of two alternatives, it is a
/// mistake, because the choice would be ambiguous.
pub fn parse<C: Parser>() -> C {
    let settings = settings(&C::command(), std::env::args_os().skip(1));
    let is_empty = |arg: &Arg| setting_of(&settings, arg).is_some_and(|setting| setting.is_empty);
    let mut command = map_args(C::command(), &|arg| {
        if is_empty(&arg) {
            arg.env(Resettable::Reset)
        } else {
            arg
        }
    });
    let mut mistakes: Vec<Mistake> = Vec::new();
    // Variables whose arguments were replaced and accept any value.
    let mut excused: Vec<String> = Vec::new();
    // Each iteration finds a setting to replace, or is the last.
    loop {
        let err = match command.clone().try_get_matches_from(std::env::args_os()) {
            Ok(mut matches) if mistakes.is_empty() => match C::from_arg_matches_mut(&mut matches) {
                Ok(options) => return options,
                Err(err) => exit::exit_with_usage(&err.format(&mut command)),
            },
            Ok(matches) => exit_with_mistakes(mistakes, &C::command(), &matches),
            Err(err) => err,
        };
        let (excused_before, mistakes_before) = (excused.len(), mistakes.len());
        for mistake in find_mistakes(&err, &settings) {
            if mistakes.iter().all(|m| m.variable != mistake.variable) {
                excused.push(mistake.variable.clone());
                mistakes.push(mistake);
            }
        }
        // clap names one of two conflicting arguments as invalid; it may have a mistake already.
        for setting in find_settings(&err, ContextKind::PriorArg, &settings).unwrap_or_default() {
            if !excused.contains(&setting.variable) {
                let (variable, reason) = (setting.variable.clone(), reason(&err, setting));
                excused.push(variable.clone());
                if let Some(reason) = reason.filter(|_| mistakes.len() == mistakes_before) {
                    mistakes.push(Mistake { variable, reason });
                }
            }
        }
        if excused.len() == excused_before {
            exit_with_usage(mistakes, &settings, &err);
        }
        command = map_args(command, &|arg| match setting_of(&settings, &arg) {
            Some(s) if excused.contains(&s.variable) => accept_any(&arg, s),
            _ => arg,
        });
    }
}

/// Prints all mistakes in the order in which the matched subcommand declares its settings, and exits.
fn exit_with_mistakes(mistakes: Vec<Mistake>, command: &Command, matches: &ArgMatches) -> ! {
    let mut declared = Vec::new();
    let (mut command, mut matches) = (Some(command), Some(matches));
    while let (Some(parent), Some(of_parent)) = (command, matches) {
        declared.extend(settings_of(parent).map(|setting| setting.variable));
        let (name, of_child) = of_parent.subcommand().unzip();
        (command, matches) = (name.and_then(|name| parent.find_subcommand(name)), of_child);
    }
    let mut mistakes = mistakes;
    mistakes.sort_by_key(|m| declared.iter().position(|variable| *variable == m.variable));
    let mut problems = Problems::default();
    for Mistake { variable, reason } in mistakes {
        problems.add(variable, reason);
    }
    exit::exit_with_mistakes(&problems.into_error())
}

/// Prints the mistakes of settings found so far, and one of the command line itself, and exits.
fn exit_with_usage(mut mistakes: Vec<Mistake>, settings: &[Setting], err: &clap::Error) -> ! {
    mistakes.sort_by_key(|m| settings.iter().position(|s| s.variable == m.variable));
    for Mistake { variable, reason } in mistakes {
        exit::print_error(format_args!("error: {variable}: {reason}"));
    }
    exit::exit_with_usage(err)
}

/// Returns a mistake for each setting that `err` names. Empty if `err` is about the command line itself.
fn find_mistakes(err: &clap::Error, settings: &[Setting]) -> Vec<Mistake> {
    if err.kind() == ErrorKind::InvalidUtf8 {
        let is_text =
            |s: &&Setting| std::env::var_os(&s.variable).is_none_or(|v| v.to_str().is_some());
        let broken = settings.iter().filter(|setting| !is_text(setting));
        let mistake = |setting: &Setting| Mistake {
            variable: setting.variable.clone(),
            reason: "not valid UTF-8".to_owned(),
        };
        return broken.map(mistake).collect();
    }
    let mistake = |setting: &Setting| {
        Some(Mistake {
            variable: setting.variable.clone(),
            reason: reason(err, setting)?,
        })
    };
    let found = find_settings(err, ContextKind::InvalidArg, settings).unwrap_or_default();
    let mistakes = found.into_iter().map(mistake);
    mistakes.collect::<Option<_>>().unwrap_or_default()
}

/// Returns the settings of the arguments that `err` names, or `None` if one of them has no variable.
fn find_settings<'a>(
    err: &clap::Error,
    kind: ContextKind,
    settings: &'a [Setting],
) -> Option<Vec<&'a Setting>> {
    let arguments = match err.get(kind)? {
        ContextValue::String(argument) => std::slice::from_ref(argument),
        ContextValue::Strings(arguments) => arguments,
        _ => return None,
    };
    let find = |argument: &String| {
        // The argument has the form `--listen-addr <LISTEN_ADDR>`.
        let long = argument.strip_prefix("--")?.split(' ').next()?;
        settings.iter().find(|setting| setting.long == long)
    };
    arguments.iter().map(find).collect()
}

/// Returns the reason of a mistake. Contains the value only if its parser does: it may be a secret.
fn reason(err: &clap::Error, setting: &Setting) -> Option<String> {
    let variable = &setting.variable;
    match err.kind() {
        ErrorKind::ValueValidation => Some(std::error::Error::source(err)?.to_string()),
        ErrorKind::InvalidValue => match err.get(ContextKind::ValidValue) {
            Some(ContextValue::Strings(valid)) if !valid.is_empty() => {
                Some(format!("must be one of {}", valid.join(", ")))
            }
            _ => Some("must not be empty".to_owned()),
        },
        ErrorKind::MissingRequiredArgument => {
            let or = |other| format!(" or {other}");
            let others: String = setting.alternatives.iter().map(or).collect();
            Some(format!("missing; set {variable}{others}"))
        }
        ErrorKind::ArgumentConflict => {
            let others = setting.alternatives.join(" and ");
            Some(format!("set by both {variable} and {others}; remove one"))
        }
        _ => None,
    }
}

/// Returns the settings of a command and of the subcommand that these arguments name. Other subcommands may
/// have an option of the same name.
fn settings(command: &Command, mut arguments: impl Iterator<Item = OsString>) -> Vec<Setting> {
    let mut found: Vec<Setting> = settings_of(command).collect();
    let subcommand = arguments.find_map(|argument| command.find_subcommand(argument.to_str()?));
    if let Some(subcommand) = subcommand {
        found.extend(settings(subcommand, arguments));
    }
    found
}

fn settings_of(command: &Command) -> impl Iterator<Item = Setting> {
    command.get_arguments().filter_map(|arg| {
        let excludes = |one, other| command.get_arg_conflicts_with(one).contains(&other);
        let alternatives = command.get_arguments();
        let alternatives = alternatives.filter(|it| excludes(arg, it) || excludes(it, arg));
        let alternatives: Vec<String> = alternatives.filter_map(variable).collect();
        let value = std::env::var_os(arg.get_env()?);
        Some(Setting {
            long: arg.get_long()?.to_owned(),
            variable: variable(arg)?,
            is_empty: value.is_some_and(|value| value.is_empty())
                && arg.get_default_values().is_empty()
                && alternatives.is_empty(),
            alternatives,
        })
    })
}

fn variable(arg: &Arg) -> Option<String> {
    Some(arg.get_env()?.to_str()?.to_owned())
}

fn setting_of<'a>(settings: &'a [Setting], arg: &Arg) -> Option<&'a Setting> {
    let long = arg.get_long()?;
    settings.iter().find(|setting| setting.long == long)
}

fn map_args(command: Command, change: &dyn Fn(Arg) -> Arg) -> Command {
    let command = command.mut_args(change);
    command.mut_subcommands(|subcommand| map_args(subcommand, change))
}

/// Returns the argument of a setting with a parser that accepts any value.
fn accept_any(arg: &Arg, setting: &Setting) -> Arg {
    Arg::new(arg.get_id().clone())
        .long(setting.long.clone())
        .env(setting.variable.clone())
        .value_name(setting.variable.clone())
        .action(arg.get_action().clone())
        .global(arg.is_global_set())
        .value_parser(ValueParser::os_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_option_of_another_subcommand_is_not_a_setting() {
        let rows = Arg::new("rows").long("rows");
        let command = Command::new("test")
            .arg(Arg::new("log").long("log").env("LOG"))
            .subcommand(Command::new("read").arg(rows.clone()))
            .subcommand(Command::new("produce").arg(rows.env("ROWS")));
        let of = |subcommand: &str| {
            let arguments = ["--log", "debug", subcommand, "--rows", "x"];
            let settings = settings(&command, arguments.into_iter().map(OsString::from));
            let variables = settings.into_iter().map(|setting| setting.variable);
            variables.collect::<Vec<_>>()
        };
        assert_eq!(of("read"), ["LOG"]);
        assert_eq!(of("produce"), ["LOG", "ROWS"]);
    }
}
