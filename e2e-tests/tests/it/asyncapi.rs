//! Real records, held against `docs/asyncapi.yaml`.

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

/// The document. Readers ignore what they do not know, and so its schemas are open; here they are closed, so
/// that nothing is written of which it does not tell.
struct Document(Value);

impl Document {
    fn read() -> Result<Self> {
        let text = fs::read_to_string(PATH).context("docs/asyncapi.yaml can't be read")?;
        let mut document: Value = serde_saphyr::from_str(&text)?;
        let schemas = document["components"]["schemas"].as_object_mut();
        for schema in schemas.context("schemas")?.values_mut() {
            if schema["type"] == "object" && schema.get("additionalProperties").is_none() {
                schema["additionalProperties"] = false.into();
            }
        }
        Ok(Self(document))
    }

    /// What is said in a place, wherever it refers to.
    fn at(&self, pointer: &str) -> Result<&Value> {
        let found = self.0.pointer(pointer);
        let found = found.with_context(|| format!("{pointer} is not there"))?;
        match found["$ref"].as_str() {
            Some(other) => self.at(other.trim_start_matches('#')),
            None => Ok(found),
        }
    }

    /// The names of the messages of a channel.
    fn messages(&self, channel: &str) -> Result<BTreeSet<String>> {
        let messages = self.at(&format!("/channels/{channel}/messages"))?;
        let messages = messages.as_object().context("messages")?;
        Ok(messages.keys().cloned().collect())
    }

    /// Checks a value against the schema in a place.
    fn check(&self, pointer: &str, value: &Value) -> Result<()> {
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

    /// Checks a record of a channel, and returns which of its messages it is.
    fn check_record(&self, channel: &str, record: &Checked) -> Result<String> {
        let event_type = record.headers.get("ce_type").and_then(Value::as_str);
        let name = match (channel.ends_with("dead_letters"), event_type) {
            (true, _) => "dead_letter".to_owned(),
            (_, Some(of)) if record.payload.is_null() => format!("{of}_tombstone"),
            (_, of) => of.context("it has no ce_type")?.to_owned(),
        };
        ensure!(
            self.messages(channel)?.contains(&name),
            "{channel} has no {name}"
        );
        let message = format!("/components/messages/{name}");
        self.check(
            &format!("{message}/headers"),
            &Value::Object(record.headers.clone()),
        )?;
        self.check(&format!("{message}/payload"), &record.payload)?;
        if self.at(&message)?.get("bindings").is_some() {
            let key = self.at(&format!("{message}/bindings"))?["kafka"]["key"].clone();
            let key = key["$ref"].as_str().context("a schema of keys")?;
            self.check(key.trim_start_matches('#'), &json!(record.key))?;
        }
        Ok(name)
    }
}

/// A record, as schemas see it.
#[derive(Clone)]
struct Checked {
    key: String,
    headers: Map<String, Value>,
    payload: Value,
}

impl Checked {
    fn of(record: &Record) -> Self {
        let headers = record.headers.iter();
        let payload = record.payload.as_deref();
        Self {
            key: record.key.clone(),
            headers: headers.map(|(k, v)| (k.clone(), json!(v))).collect(),
            // A dead letter's need not be JSON.
            payload: payload.map_or(Value::Null, |payload| {
                let text = || String::from_utf8_lossy(payload).into();
                serde_json::from_slice(payload).unwrap_or_else(|_| text())
            }),
        }
    }
}

/// The topic is the one that the document tells of, but for what is put before its name.
async fn assert_topic(document: &Document, channel: &str, topic: &str) -> Result<()> {
    let address = document.at(&format!("/channels/{channel}/address"))?;
    assert!(
        topic.ends_with(address.as_str().context("an address")?),
        "{topic}"
    );
    let binding = document.at(&format!("/channels/{channel}/bindings"))?["kafka"].clone();
    let (partitions, configs) = Addresses::shared().describe_topic(topic).await?;
    assert_eq!(binding["partitions"], partitions, "{channel}");
    let told = binding["topicConfiguration"].as_object();
    for (name, value) in told.context("a configuration")? {
        // Kafka knows text only, and joins what are several.
        let value = value.as_array().map_or(value, |policies| &policies[0]);
        let value = value
            .as_str()
            .map_or_else(|| value.to_string(), str::to_owned);
        assert_eq!(configs.get(name), Some(&value), "{name} of {channel}");
    }
    Ok(())
}

/// Has each kind of record written, by real calls.
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
    // The deletion comes back as the end of the order that was left open.
    let sql = Sql::connect(&system.stack.names().orders_database_url).await?;
    let cancelled = "select count(*) from orders where cancel_reason = 'user_deleted'";
    sql.wait_for(cancelled, 1).await?;
    system.wait_until_published().await?;
    Ok(())
}

/// Has both services set a record aside.
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
async fn real_records_are_what_the_document_says_and_it_says_no_more() -> Result<()> {
    let document = Document::read()?;
    let system = System::start_on_shared_servers("asyncapi").await?;
    make_records(&system).await?;
    let names = system.stack.names();
    let (users, orders) = (&names.users_topic, &names.orders_topic);
    for (channel, topic) in [("users", users), ("orders", orders)] {
        let mut seen = BTreeSet::new();
        for record in read_topic(&names.brokers, topic).await? {
            let record = Checked::of(&record);
            seen.insert(document.check_record(channel, &record)?);
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
        document.check_record(channel, &Checked::of(&records[0]))?;
        assert_topic(&document, channel, &topic).await?;
    }
    system.stop().await;
    Ok(())
}

/// The test is worth something: what is missing, or something else, or not told of, is found in every
/// part of a record.
fn assert_faults_are_found(document: &Document, channel: &str, record: &Checked) {
    let is_found = |record: &Checked, fault: &str| {
        let found = document.check_record(channel, record).is_err();
        assert!(found, "{fault} of a record of {channel} is not found");
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
        is_found(&without, name);
    }
    let mut other = record.clone();
    other
        .headers
        .insert("ce_aggregateversion".into(), json!("one"));
    is_found(&other, "a version that is no number");
    let mut further = record.clone();
    further.headers.insert("ce_further".into(), json!("x"));
    is_found(&further, "a further header");
    let mut other = record.clone();
    other.key = "A key".into();
    is_found(&other, "a key that is no id");
    let Some(fields) = record.payload.as_object() else {
        return;
    };
    for name in fields.keys() {
        let mut without = record.clone();
        let payload = without.payload.as_object_mut();
        payload.expect("an object").remove(name);
        is_found(&without, &format!("a missing {name}"));
        let mut other = record.clone();
        other.payload[name] = json!([7]);
        is_found(&other, &format!("a {name} that is a list"));
    }
    let mut further = record.clone();
    further.payload["further"] = json!("x");
    is_found(&further, "a further field");
}

#[test]
fn the_examples_of_the_document_are_the_payloads_that_were_released() -> Result<()> {
    let document = Document::read()?;
    let mut shown = BTreeSet::new();
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
            document.check(&format!("{place}/payload"), &example["payload"])?;
            if let Some(headers) = example.get("headers") {
                document.check(&format!("{place}/headers"), headers)?;
            }
            shown.insert(file.to_owned());
        }
    }
    let released: BTreeSet<String> = golden.into_keys().collect();
    assert_eq!(shown, released, "each golden file is an example");
    Ok(())
}
