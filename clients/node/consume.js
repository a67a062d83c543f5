// Reads all user events from Kafka and keeps the current users. Copy this file.
//
// It reads the topic users.v1 from the beginning to its current end and prints a line for each event: type, key,
// version, name. A consumer that continues instead needs no `ends`.

import { randomUUID } from 'node:crypto';

import { Kafka as CloudEvents } from 'cloudevents';
import { Kafka, logLevel } from 'kafkajs';

const TOPIC = 'users.v1';

const users = new Map();
// The highest version per key. It outlives a tombstone: a repeated older record must not restore a deleted user.
const versions = new Map();

function apply({ key: keyBytes, value, headers: headerBytes }) {
  const key = keyBytes.toString();
  // Test for null before parsing. A null value is a tombstone: the state of its key is gone. It is a Kafka record and
  // not a CloudEvent, and the SDK throws an error on it.
  if (value === null) {
    users.delete(key);
    console.log(['tombstone', key].join('\t'));
    return;
  }
  const headers = Object.fromEntries(Object.entries(headerBytes).map(([name, bytes]) => [name, bytes.toString()]));
  const event = CloudEvents.toEvent({ headers, key, value });
  // Records are delivered at least once. Each holds the whole state, so the highest version is all that matters.
  const version = Number(event.aggregateversion);
  if (version <= (versions.get(key) ?? 0)) return;
  versions.set(key, version);
  users.set(key, event.data);
  console.log([event.type, key, version, event.data.name].join('\t'));
}

const kafka = new Kafka({ brokers: process.env.KAFKA_BROKERS.split(','), logLevel: logLevel.WARN });

const admin = kafka.admin();
await admin.connect();
const offsets = await admin.fetchTopicOffsets(TOPIC);
await admin.disconnect();
const ends = new Map(offsets.filter(({ low, high }) => low !== high).map((of) => [of.partition, BigInt(of.high)]));

// kafkajs needs a consumer group. A new one that commits nothing reads from the beginning and leaves nothing behind.
const consumer = kafka.consumer({ groupId: `consume-example-${randomUUID()}` });
if (ends.size > 0) {
  await consumer.connect();
  await consumer.subscribe({ topic: TOPIC, fromBeginning: true });
  await new Promise((resolve, reject) => {
    const eachMessage = async ({ partition, message }) => {
      apply(message);
      if (BigInt(message.offset) + 1n >= (ends.get(partition) ?? 0n)) ends.delete(partition);
      if (ends.size === 0) resolve();
    };
    consumer.on(consumer.events.CRASH, ({ payload }) => reject(payload.error));
    consumer.run({ autoCommit: false, eachMessage }).catch(reject);
  });
  await consumer.disconnect();
}
