//! Compares the settings in docs/relay/configuration.md with those of the parser.

use std::collections::BTreeSet;

use serde::de::DeserializeOwned;

use super::{File, KafkaTable, SourceTable, mapping::ColumnsTable, sasl::SaslTable, tls::TlsTable};

/// Returns the settings of a table. The error for an unknown setting lists them.
fn list_settings<T: DeserializeOwned>(prefix: &str) -> Vec<String> {
    let Err(error) = toml::from_str::<T>("no_such_setting = 1") else {
        panic!("{prefix}no_such_setting was accepted");
    };
    let error = error.message().to_owned();
    let (_, known) = error.split_once("expected one of ").expect(&error);
    let names = known.split('`').skip(1).step_by(2);
    names.map(|name| format!("{prefix}{name}")).collect()
}

#[test]
fn the_configuration_page_lists_every_setting_and_no_other() {
    let mut known: BTreeSet<String> = [
        list_settings::<File>(""),
        list_settings::<KafkaTable>("kafka."),
        list_settings::<TlsTable>("kafka.tls."),
        list_settings::<SaslTable>("kafka.sasl."),
        list_settings::<SourceTable>("source."),
        list_settings::<ColumnsTable>("source.columns."),
    ]
    .concat()
    .into_iter()
    .collect();
    for table in [
        "kafka",
        "kafka.tls",
        "kafka.sasl",
        "source",
        "source.columns",
    ] {
        assert!(known.remove(table), "{table}");
    }
    let page = include_str!("../../../docs/relay/configuration.md");
    let (_, reference) = page.split_once("# Configuration\n").unwrap();
    let rows = reference
        .lines()
        .skip_while(|line| !line.starts_with("|---"));
    let rows = rows.skip(1).take_while(|line| line.starts_with('|'));
    let listed: BTreeSet<String> = rows
        .filter_map(|row| row.split('|').nth(1))
        .flat_map(|cell| cell.split('`').skip(1).step_by(2).map(str::to_owned))
        .collect();
    assert_eq!(listed, known);
}
