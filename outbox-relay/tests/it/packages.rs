//! The relay accepts the configurations in the Debian package and in deploy/kubernetes.yaml.

use std::{fs, path::Path};

use anyhow::{Context as _, Result};
use devstack::{Authority, WorkDir};
use outbox_relay::config::Config;
use serde_json::Value;

fn deploy(name: &str) -> Result<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../deploy")
        .join(name);
    fs::read_to_string(&path).with_context(|| path.display().to_string())
}

/// Loads a configuration whose secrets are files in `directory`.
fn load(text: &str, directory: &str) -> Result<Config> {
    let work_dir = WorkDir::new()?;
    let url = "postgres://relay:secret@localhost/customers";
    work_dir.write("customers-url", url)?;
    work_dir.write("kafka-password", "secret")?;
    let ca = work_dir.write("ca.crt", &Authority::new("the authority")?.pem)?;
    let here = ca.parent().context("no directory")?.to_string_lossy();
    let text = text.replace(directory, &here);
    Ok(Config::load(&work_dir.write("outbox-relay.toml", &text)?)?)
}

#[test]
fn the_configuration_in_the_debian_package_is_valid() -> Result<()> {
    let text = deploy("debian/outbox-relay.toml")?;
    let config = load(&text, "/etc/outbox-relay")?;
    assert!(config.kafka.security.tls.is_none());
    assert!(config.kafka.security.sasl.is_none());
    Ok(())
}

#[test]
fn the_configuration_in_the_debian_package_is_valid_with_every_comment_enabled() -> Result<()> {
    let text = deploy("debian/outbox-relay.toml")?;
    let lines = text.lines().map(|line| match line.strip_prefix('#') {
        Some(setting) if !setting.starts_with(' ') => setting,
        _ => line,
    });
    let text = lines.collect::<Vec<_>>().join("\n");
    let config = load(&text, "/etc/outbox-relay")?;
    assert!(config.kafka.security.tls.is_some());
    assert!(config.kafka.security.sasl.is_some());
    Ok(())
}

#[test]
fn the_configuration_in_kubernetes_is_valid_and_mounted_where_the_relay_reads_it() -> Result<()> {
    let objects: Vec<Value> = serde_saphyr::from_multiple(&deploy("kubernetes.yaml")?)?;
    let of_kind = |kind: &str| {
        let found = objects.iter().find(|object| object["kind"] == kind);
        found.with_context(|| format!("no {kind}"))
    };
    let config_map = of_kind("ConfigMap")?;
    let text = config_map["data"]["outbox-relay.toml"].as_str();
    let pod = &of_kind("Deployment")?["spec"]["template"]["spec"];
    let container = &pod["containers"][0];

    let mounted = |volume: &str| {
        let mounts = container["volumeMounts"].as_array();
        let mut mounts = mounts.into_iter().flatten();
        let mount = mounts.find(|mount| mount["name"] == volume);
        mount.and_then(|mount| mount["mountPath"].as_str())
    };
    let secrets = mounted("secrets").context("no secrets are mounted")?;
    let config = load(text.context("no text")?, secrets)?;
    assert!(config.admin_addr.ip().is_unspecified());
    assert_eq!(
        container["ports"][0]["containerPort"],
        config.admin_addr.port()
    );
    // The path in the Dockerfile.
    assert_eq!(mounted("config"), Some("/etc/outbox-relay"));
    Ok(())
}
