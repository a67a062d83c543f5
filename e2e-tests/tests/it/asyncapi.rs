//! Validates real records against `docs/asyncapi.yaml`.

use std::{collections::BTreeSet, fs};

use anyhow::{Context as _, Result, ensure};
use demo::System;
use devstack::{Addresses, Record, Sql, read_topic};
use proto::{
    order::v1::CancelOrderRequest,
    user::v1::{UpdateUserRequest, User},
};
use serde_json::{Map, Value, json};

use crate::golden::Golden;

const PATH: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/asyncapi.yaml");

/// The document. Its schemas are open, because readers ignore unknown fields. The tests close them to detect
/// undocumented fields.
struct Document(Value);

impl Document {
    fn read() -> Result<Self> {
        let text = fs::read_to_string(PATH).context("failed to read docs/asyncapi.yaml")?;
        let mut document: Value = serde_saphyr::from_str(&text)?;
        let schemas = document["components"]["schemas"].as_object_mut();
        for schema in schemas.context("schemas")?.values_mut() {
            if schema["type"] == "object" && schema.get("additionalProperties").is_none() {
                schema["additionalProperties"] = false.into();
            }
        }
        Ok(Self(document))
    }

    /// Returns the value at a JSON pointer, and resolves references.
    fn at(&self, pointer: &str) -> Result<&Value> {
        let found = self.0.pointer(pointer);
        let found = found.with_context(|| format!("{pointer} is missing"))?;
        match found["$ref"].as_str() {
            Some(other) => self.at(other.trim_start_matches('#')),
            None => Ok(found),
        }
    }

    /// Returns the names of a channel's messages.
    fn messages(&self, channel: &str) -> Result<BTreeSet<String>> {
        let messages = self.at(&format!("/channels/{channel}/messages"))?;
        let messages = messages.as_object().context("messages")?;
        Ok(messages.keys().cloned().collect())
    }

    /// Validates a value against the schema at a JSON pointer.
    fn validate(&self, pointer: &str, value: &Value) -> Result<()> {
        self.at(pointer)?;
        let mut schema = self.0.clone();
        schema["$ref"] = format!("#{pointer}").into();
        let validator = jsonschema::draft7::options()
            .should_validate_formats(true)
            .build(&schema)?;
        let wrong: Vec<String> = validator
            .iter_errors(value)
            .map(|err| format!("{}: {err}", err.instance_path()))
            .collect();
        ensure!(wrong.is_empty(), "{pointer}: {wrong:?} in {value}");
        Ok(())
    }

    /// Validates a record of a channel, and returns the name of its message.
    fn validate_record(&self, channel: &str, record: &JsonRecord) -> Result<String> {
        let event_type = record.headers.get("ce_type").and_then(Value::as_str);
        let name = match (channel.ends_with("dead_letters"), event_type) {
            (true, _) => "dead_letter".to_owned(),
            (_, Some(of)) if record.payload.is_null() => format!("{of}_tombstone"),
            (_, of) => of.context("no ce_type")?.to_owned(),
        };
        ensure!(
            self.messages(channel)?.contains(&name),
            "{channel} has no {name}"
        );
        let message = format!("/components/messages/{name}");
        self.validate(
            &format!("{message}/headers"),
            &Value::Object(record.headers.clone()),
        )?;
        self.validate(&format!("{message}/payload"), &record.payload)?;
        if self.at(&message)?.get("bindings").is_some() {
            let key = self.at(&format!("{message}/bindings"))?["kafka"]["key"].clone();
            let key = key["$ref"].as_str().context("a schema of keys")?;
            self.validate(key.trim_start_matches('#'), &json!(record.key))?;
        }
        Ok(name)
    }
}

/// A record in the form that the schemas describe.
#[derive(Clone)]
struct JsonRecord {
    key: String,
    headers: Map<String, Value>,
    payload: Value,
}

impl JsonRecord {
    fn of(record: &Record) -> Self {
        let headers = record.headers.iter();
        let payload = record.payload.as_deref();
        Self {
            key: record.key.clone(),
            headers: headers.map(|(k, v)| (k.clone(), json!(v))).collect(),
            // The payload of a dead letter may not be JSON.
            payload: payload.map_or(Value::Null, |payload| {
                let text = || String::from_utf8_lossy(payload).into();
                serde_json::from_slice(payload).unwrap_or_else(|_| text())
            }),
        }
    }
}

/// Checks that a topic matches the document, apart from the prefix of its name.
async fn assert_topic(document: &Document, channel: &str, topic: &str) -> Result<()> {
    let address = document.at(&format!("/channels/{channel}/address"))?;
    assert!(
        topic.ends_with(address.as_str().context("an address")?),
        "{topic}"
    );
    let binding = document.at(&format!("/channels/{channel}/bindings"))?["kafka"].clone();
    let (partitions, configs) = Addresses::shared().describe_topic(topic).await?;
    assert_eq!(binding["partitions"], partitions, "{channel}");
    let configuration = binding["topicConfiguration"].as_object();
    for (name, value) in configuration.context("a configuration")? {
        // Kafka has only text values, and joins lists.
        let value = value.as_array().map_or(value, |policies| &policies[0]);
        let value = value
            .as_str()
            .map_or_else(|| value.to_string(), str::to_owned);
        assert_eq!(configs.get(name), Some(&value), "{name} of {channel}");
    }
    Ok(())
}

/// Creates each kind of record with real calls.
async fn make_records(system: &System) -> Result<()> {
    let created = system.create_user("a@example.com", "A").await?;
    let user_id = created.user.context("a user")?.user_id;
    let mut order_ids = Vec::new();
    for _ in 0..2 {
        let order = system.create_order(&user_id, &created.consistency_token);
        order_ids.push(order.await?.order.context("an order")?.order_id);
    }
    let cancel = CancelOrderRequest {
        order_id: order_ids[0].clone(),
        ..CancelOrderRequest::default()
    };
    system.orders().cancel_order(cancel).await?;
    let user = User {
        user_id: user_id.clone(),
        name: "B".into(),
        ..User::default()
    };
    let update = UpdateUserRequest {
        user: Some(user),
        ..UpdateUserRequest::default()
    };
    let mut update = tonic::Request::new(update);
    let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    update.metadata_mut().insert("traceparent", trace.parse()?);
    system.users().update_user(update).await?;
    system.delete_user(&user_id).await?;
    // The deletion leads to the cancellation of the open order.
    let sql = Sql::connect(&system.stack.names().orders_database_url).await?;
    let cancelled = "select count(*) from orders where cancel_reason = 'user_deleted'";
    sql.wait_for(cancelled, 1).await?;
    system.wait_until_published().await?;
    Ok(())
}

/// Makes both services dead-letter a record.
async fn break_records(system: &System) -> Result<()> {
    let names = system.stack.names();
    for topic in [&names.users_topic, &names.orders_topic] {
        let (key, payload) = (Some(&b"a"[..]), Some(&b"{"[..]));
        let headers = [("other", "x")];
        let writing = Addresses::shared().write_record(topic, key, payload, &headers);
        writing.await?;
    }
    for url in [&names.users_database_url, &names.orders_database_url] {
        let copied = "select count(*) from dead_letters where in_topic";
        Sql::connect(url).await?.wait_for(copied, 1).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn real_records_match_the_document_completely() -> Result<()> {
    let document = Document::read()?;
    let system = System::start_on_shared_servers("asyncapi").await?;
    make_records(&system).await?;
    let names = system.stack.names();
    let (users, orders) = (&names.users_topic, &names.orders_topic);
    for (channel, topic) in [("users", users), ("orders", orders)] {
        let mut seen = BTreeSet::new();
        for record in read_topic(&names.brokers, topic).await? {
            let record = JsonRecord::of(&record);
            seen.insert(document.validate_record(channel, &record)?);
            assert_faults_are_found(&document, channel, &record);
        }
        assert_eq!(seen, document.messages(channel)?);
        assert_topic(&document, channel, topic).await?;
    }
    break_records(&system).await?;
    for (channel, service) in [
        ("users_dead_letters", "order-service"),
        ("orders_dead_letters", "user-service"),
    ] {
        let topic = names.dead_letter_topic(service);
        let records = read_topic(&names.brokers, &topic).await?;
        assert_eq!(records.len(), 1);
        document.validate_record(channel, &JsonRecord::of(&records[0]))?;
        assert_topic(&document, channel, &topic).await?;
    }
    system.stop().await;
    Ok(())
}

/// Checks that the validation detects missing, invalid and undocumented parts of a record.
fn assert_faults_are_found(document: &Document, channel: &str, record: &JsonRecord) {
    let assert_rejected_by_schema = |record: &JsonRecord, fault: &str| {
        let found = document.validate_record(channel, record).is_err();
        assert!(found, "{fault} in a record of {channel} is not detected");
    };
    let required = [
        "ce_specversion",
        "ce_id",
        "ce_source",
        "ce_type",
        "ce_time",
        "ce_aggregateversion",
    ];
    for name in required {
        let mut without = record.clone();
        without.headers.remove(name);
        assert_rejected_by_schema(&without, name);
    }
    let mut other = record.clone();
    other
        .headers
        .insert("ce_aggregateversion".into(), json!("one"));
    assert_rejected_by_schema(&other, "a version that is not a number");
    let mut additional = record.clone();
    additional
        .headers
        .insert("ce_additional".into(), json!("x"));
    assert_rejected_by_schema(&additional, "a additional header");
    let mut other = record.clone();
    other.key = "A key".into();
    assert_rejected_by_schema(&other, "a key that is not an id");
    let Some(fields) = record.payload.as_object() else {
        return;
    };
    for name in fields.keys() {
        let mut without = record.clone();
        let payload = without.payload.as_object_mut();
        payload.expect("an object").remove(name);
        assert_rejected_by_schema(&without, &format!("a missing {name}"));
        let mut other = record.clone();
        other.payload[name] = json!([7]);
        assert_rejected_by_schema(&other, &format!("a {name} that is a list"));
    }
    let mut additional = record.clone();
    additional.payload["additional"] = json!("x");
    assert_rejected_by_schema(&additional, "a additional field");
}

#[test]
fn the_examples_of_the_document_match_the_released_payloads() -> Result<()> {
    let document = Document::read()?;
    let mut documented = BTreeSet::new();
    let golden = Golden::all()?;
    let messages = document.at("/components/messages")?;
    for (name, message) in messages.as_object().context("messages")? {
        let examples = message["examples"].as_array().cloned();
        for example in examples.unwrap_or_default() {
            let file = example["name"].as_str().context("a name")?;
            let released = golden
                .get(file)
                .with_context(|| format!("no golden {file}"))?;
            assert_eq!(
                (&released.payload, &released.event_type),
                (&example["payload"], name)
            );
            let place = format!("/components/messages/{name}");
            document.validate(&format!("{place}/payload"), &example["payload"])?;
            if let Some(headers) = example.get("headers") {
                document.validate(&format!("{place}/headers"), headers)?;
            }
            documented.insert(file.to_owned());
        }
    }
    let released: BTreeSet<String> = golden.into_keys().collect();
    assert_eq!(documented, released, "each golden file is an example");
    Ok(())
}
