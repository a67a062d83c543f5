"""Reads all user events from Kafka and keeps the current users. Copy this file.

It reads the topic users.v1 from the beginning to its current end and prints a line for each event: type, key, version,
name. A consumer that continues instead ignores the end of a partition.
"""

import os

from cloudevents.core.bindings.kafka import KafkaMessage, from_binary_event
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, TopicPartition

TOPIC = "users.v1"
POLL_TIMEOUT_S = 10

users: dict[str, dict] = {}
# The highest version per key. It outlives a tombstone: a repeated older record must not restore a deleted user.
versions: dict[str, int] = {}


def apply(record) -> None:
    key = record.key().decode()
    # Test for null before parsing. A null value is a tombstone: the state of its key is gone. It is a Kafka record and
    # not a CloudEvent. Its headers are those of an event, so the SDK would return an event without data.
    if record.value() is None:
        users.pop(key, None)
        print("tombstone", key, sep="\t")
        return
    event = from_binary_event(KafkaMessage(headers=dict(record.headers()), key=key, value=record.value()))
    # Records are delivered at least once. Each holds the whole state, so the highest version is all that matters.
    version = int(event.get_extension("aggregateversion"))
    if version <= versions.get(key, 0):
        return
    versions[key] = version
    users[key] = event.get_data()
    print(event.get_type(), key, version, users[key]["name"], sep="\t")


def main() -> None:
    consumer = Consumer({
        "bootstrap.servers": os.environ["KAFKA_BROKERS"],
        "group.id": "consume-example",  # required, but unused: partitions are assigned and offsets are not committed
        "enable.auto.commit": False,
        "enable.partition.eof": True,
    })
    partitions = set(consumer.list_topics(TOPIC, POLL_TIMEOUT_S).topics[TOPIC].partitions)
    consumer.assign([TopicPartition(TOPIC, partition, OFFSET_BEGINNING) for partition in partitions])
    while partitions:
        record = consumer.poll(POLL_TIMEOUT_S)
        if record is None:
            raise TimeoutError(f"no record from {TOPIC} within {POLL_TIMEOUT_S} s")
        if record.error() is None:
            apply(record)
        elif record.error().code() == KafkaError._PARTITION_EOF:
            partitions.discard(record.partition())
        else:
            raise KafkaException(record.error())
    consumer.close()


if __name__ == "__main__":
    main()
