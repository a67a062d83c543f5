// Writes a customer and its event in one transaction.
import pg from 'pg';

async function createCustomer(client, name) {
  // First the change: its row lock keeps the events of one customer in order.
  const insert = 'insert into customers (name) values ($1) returning id, version';
  const { id, version } = (await client.query(insert, [name])).rows[0];
  // Then the event, with the whole state after the change. (pg gives a bigint as a string.)
  const enqueue = "select outbox_enqueue('customers.v1', $1, 'customer_created', $2, $3) as event_id";
  const state = { id: Number(id), name };
  return (await client.query(enqueue, [id, version, state])).rows[0].event_id;
}

async function transaction(client, work) {
  await client.query('begin');
  try {
    const result = await work();
    await client.query('commit');
    return result;
  } catch (error) {
    await client.query('rollback');
    throw error;
  }
}

const client = new pg.Client({ connectionString: process.env.DATABASE_URL });
await client.connect();
const eventId = await transaction(client, () => createCustomer(client, 'Ada'));
const later = new Error('failure after the event');
await transaction(client, async () => {
  await createCustomer(client, 'Nobody');
  throw later;
}).catch((error) => {
  if (error !== later) throw error; // Rolled back: there is no such customer, and no event.
});
console.log(eventId);
await client.end();
