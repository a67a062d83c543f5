"""Writes a customer and its event in one transaction."""

import os

import psycopg
from psycopg.types.json import Jsonb


def create_customer(conn: psycopg.Connection, name: str) -> str:
    # First the change: its row lock keeps the events of one customer in order.
    row = conn.execute("insert into customers (name) values (%s) returning id, version", (name,)).fetchone()
    customer_id, version = row
    # Then the event, with the whole state after the change.
    state = {"id": customer_id, "name": name}
    row = conn.execute(
        "select outbox_enqueue('customers.v1', %s, 'customer_created', %s, %s)",
        (str(customer_id), version, Jsonb(state)),
    ).fetchone()
    return str(row[0])


with psycopg.connect(os.environ["DATABASE_URL"]) as conn:
    with conn.transaction():
        event_id = create_customer(conn, "Ada")
    try:
        with conn.transaction():
            create_customer(conn, "Nobody")
            raise ValueError("failure after the event")
    except ValueError:
        pass  # Rolled back: there is no such customer, and no event.
    print(event_id)
