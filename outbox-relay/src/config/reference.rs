//! The README lists every setting that there is, and no other.

use std::collections::BTreeSet;

use serde::de::DeserializeOwned;

use super::{
    File, KafkaTable, SourceTable,
    mapping::ColumnsTable,
    security::{SaslTable, TlsTable},
};

/// The settings of a table, which is told of when one is misspelt.
fn settings<T: DeserializeOwned>(prefix: &str) -> Vec<String> {
    let Err(error) = toml::from_str::<T>("no_such_setting = 1") else {
        panic!("{prefix}no_such_setting is taken");
    };
    let error = error.message().to_owned();
    let (_, known) = error.split_once("expected one of ").expect(&error);
    let names = known.split('`').skip(1).step_by(2);
    names.map(|name| format!("{prefix}{name}")).collect()
}

#[test]
fn the_readme_lists_every_setting_and_no_other() {
    let mut known: BTreeSet<String> = [
        settings::<File>(""),
        settings::<KafkaTable>("kafka."),
        settings::<TlsTable>("kafka.tls."),
        settings::<SaslTable>("kafka.sasl."),
        settings::<SourceTable>("source."),
        settings::<ColumnsTable>("source.columns."),
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
