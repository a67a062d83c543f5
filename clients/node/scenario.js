// Runs a step for each guarantee of the API and prints a line for it: ok, failed or skipped; step; detail.

import assert from 'node:assert/strict';
import { randomUUID } from 'node:crypto';
import { existsSync, readFileSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';

import { ConsistencyTokens, connectOrders, connectUsers, rejection, toDecimal, toMoney } from './client.js';

const { USER_SERVICE_ADDR, ORDER_SERVICE_ADDR, USER_SERVICE_PID, ENDPOINTS_FILE } = process.env;
const TEN_EUROS = toMoney('EUR', '10.00');
const DELETE_TIMEOUT_MS = 10_000;
const WATCH_TIMEOUT_MS = 10_000;

const users = connectUsers(USER_SERVICE_ADDR);
const orders = connectOrders(ORDER_SERVICE_ADDR);

class Skipped extends Error {}

// A repeated call with the same requestId gets the first response, so retries are safe.
const userRequest = () => ({
  email: `ada-${randomUUID()}@example.com`,
  name: 'Ada Lovelace',
  requestId: randomUUID(),
});
const orderRequest = (userId, amount = TEN_EUROS, consistencyToken = '') => ({
  userId,
  amount,
  consistencyToken,
  requestId: randomUUID(),
});

const newUser = () => users.createUser(userRequest());
async function newOrder({ user, consistencyToken }, amount = TEN_EUROS) {
  const answer = await orders.createOrder(orderRequest(user.userId, amount, consistencyToken));
  return answer.order;
}

// Checks that a call is rejected, and returns why.
async function rejected(call, code, reason) {
  const answer = await call.catch((error) => ({ error }));
  assert(answer.error, `accepted, want ${reason}`);
  const why = rejection(answer.error);
  assert.deepEqual([why.code, why.reason], [code, reason], `got ${why.code} ${why.reason} (${why.message}), want ${code} ${reason}`);
  return why;
}

const steps = {
  async create() {
    const tokens = new ConsistencyTokens();
    const request = userRequest();
    const { user, consistencyToken } = await connectUsers(USER_SERVICE_ADDR, tokens.interceptor).createUser(request);
    assert(user.userId && user.etag && consistencyToken, JSON.stringify(user));
    assert.deepEqual([user.email, user.name, user.version], [request.email, request.name, '1']);
    assert.equal(tokens.token, consistencyToken, 'the metadata has another token');
    return user.userId;
  },

  async order() {
    const { user, consistencyToken } = await newUser();
    const { order } = await orders.createOrder(orderRequest(user.userId, TEN_EUROS, consistencyToken));
    assert.deepEqual([order.amount, order.state], [TEN_EUROS, 'ORDER_STATE_CREATED']);
    return order.orderId;
  },

  async metadata() {
    const tokens = new ConsistencyTokens();
    const sessionUsers = connectUsers(USER_SERVICE_ADDR, tokens.interceptor);
    const sessionOrders = connectOrders(ORDER_SERVICE_ADDR, tokens.interceptor);
    const { user, consistencyToken } = await sessionUsers.createUser(userRequest());
    assert.equal(tokens.token, consistencyToken, 'the interceptor received no token');
    const { order } = await sessionOrders.createOrder(orderRequest(user.userId));

    tokens.token = 'no token'; // A rejection proves that the service reads the token.
    const call = sessionOrders.createOrder(orderRequest(user.userId));
    const { fields } = await rejected(call, 'INVALID_ARGUMENT', 'VALIDATION_FAILED');
    assert.deepEqual(fields, ['x-consistency-token']);
    return `${order.orderId}, token passed by an interceptor`;
  },

  async page() {
    const user = await newUser();
    const { userId } = user.user;
    const placed = [];
    for (let i = 0; i < 5; i++) placed.push((await newOrder(user)).orderId);

    const listed = [];
    let [pageToken, lastToken, pages] = ['', '', 0];
    do {
      const answer = await orders.listOrders({ userId, pageSize: 2, pageToken });
      listed.push(...answer.orders.map((order) => order.orderId));
      [lastToken, pageToken, pages] = [pageToken, answer.nextPageToken, pages + 1];
    } while (pageToken);
    assert.deepEqual(listed, placed);

    const middle = Math.floor(lastToken.length / 2);
    const changed = lastToken.slice(0, middle) + (lastToken.at(middle) === 'A' ? 'B' : 'A') + lastToken.slice(middle + 1);
    const other = (await newUser()).user.userId;
    for (const request of [{ userId, pageToken: changed }, { userId: other, pageToken: lastToken }]) {
      await rejected(orders.listOrders({ ...request, pageSize: 2 }), 'INVALID_ARGUMENT', 'PAGE_TOKEN_INVALID');
    }
    return `${listed.length} orders on ${pages} pages`;
  },

  async etag() {
    const { user: created } = await newUser();
    const rename = (name) =>
      users.updateUser({
        user: { userId: created.userId, name, etag: created.etag },
        updateMask: { paths: ['name'] },
        requestId: randomUUID(),
      });
    const { user: updated } = await rename('Ada King');
    assert.deepEqual([updated.name, updated.email, updated.version], ['Ada King', created.email, '2']);
    await rejected(rename('Ada Byron'), 'ABORTED', 'ETAG_MISMATCH');
    return `${created.etag} became ${updated.etag}`;
  },

  async cancel() {
    const { orderId } = await newOrder(await newUser());
    const cancelOrder = () => orders.cancelOrder({ orderId, requestId: randomUUID() });
    const { order } = await cancelOrder();
    assert.deepEqual(
      [order.state, order.cancelReason, order.version],
      ['ORDER_STATE_CANCELLED', 'CANCEL_REASON_REQUESTED', '2'],
    );
    await rejected(cancelOrder(), 'FAILED_PRECONDITION', 'ORDER_CANCELLED');
    return orderId;
  },

  async error() {
    const call = users.createUser({ email: 'no e-mail', name: '', requestId: randomUUID() });
    const bad = await rejected(call, 'INVALID_ARGUMENT', 'VALIDATION_FAILED');
    assert.deepEqual([bad.domain, bad.fields.sort()], ['user-service', ['email', 'name']]);
    const order = orders.createOrder(orderRequest(randomUUID()));
    const unknown = await rejected(order, 'FAILED_PRECONDITION', 'USER_UNKNOWN');
    assert(unknown.retryDelay > 0 && unknown.preconditions.length > 0, JSON.stringify(unknown));
    return `${bad.fields.length} invalid fields; retry after ${unknown.retryDelay} s`;
  },

  async repeat() {
    const request = orderRequest((await newUser()).user.userId);
    const first = await orders.createOrder(request);
    assert.deepEqual(await orders.createOrder(request), first);
    const call = orders.createOrder({ ...request, amount: toMoney('EUR', '11.00') });
    await rejected(call, 'INVALID_ARGUMENT', 'REQUEST_ID_REUSED');
    return first.order.orderId;
  },

  async money() {
    const { valid, invalid } = JSON.parse(readFileSync(new URL('../money_vectors.json', import.meta.url)));
    const user = await newUser();
    for (const { currency_code: currencyCode, units, nanos, decimal } of valid) {
      const amount = { currencyCode, units, nanos };
      const digits = decimal.split('.')[1]?.length ?? 0;
      assert.equal(toDecimal(amount, digits), decimal);
      assert.deepEqual(toMoney(currencyCode, decimal), amount);
      assert.deepEqual((await newOrder(user, amount)).amount, amount);
    }
    for (const { currency_code: currencyCode, units, nanos, fields } of invalid) {
      const call = newOrder(user, { currencyCode, units, nanos });
      const bad = await rejected(call, 'INVALID_ARGUMENT', 'VALIDATION_FAILED');
      assert.deepEqual(bad.fields.sort(), fields.sort(), `${bad.fields} for ${currencyCode} ${units} ${nanos}`);
    }
    return `${valid.length} amounts are exact, ${invalid.length} are rejected`;
  },

  async watch() {
    const user = await newUser();
    const placed = [await newOrder(user), await newOrder(user)];

    const follow = async (count, resumeToken = '') => {
      const request = { userId: user.user.userId, resumeToken };
      const stream = orders.watchOrders(request, { deadline: Date.now() + WATCH_TIMEOUT_MS });
      stream.on('error', () => {}); // The cancellation is reported here as well.
      const messages = [];
      for await (const message of stream) if (messages.push(message) === count) break;
      stream.cancel();
      return messages;
    };
    const messages = await follow(2);
    const ids = (list) => list.map((order) => order.orderId).sort();
    assert.deepEqual(ids(messages.map((message) => message.order)), ids(placed));
    const third = await newOrder(user);
    const [resumed] = await follow(1, messages[1].resumeToken);
    assert.deepEqual(resumed.order, third);
    return 'two orders, then the third after resuming';
  },

  async delete() {
    const created = await newUser();
    const { userId, etag } = created.user;
    const { orderId } = await newOrder(created);
    const { user, consistencyToken } = await users.deleteUser({ userId, etag, requestId: randomUUID() });
    assert(user.deleteTime && user.email === '' && user.name === '', JSON.stringify(user));
    const call = orders.createOrder(orderRequest(userId, TEN_EUROS, consistencyToken));
    await rejected(call, 'FAILED_PRECONDITION', 'USER_DELETED');

    const deadline = Date.now() + DELETE_TIMEOUT_MS;
    let current;
    while ((current = (await orders.getOrder({ orderId })).order).state === 'ORDER_STATE_CREATED') {
      assert(Date.now() < deadline, `still open after ${DELETE_TIMEOUT_MS} ms`);
      await sleep(50);
    }
    assert.deepEqual(
      [current.state, current.cancelReason],
      ['ORDER_STATE_CANCELLED', 'CANCEL_REASON_USER_DELETED'],
    );
    return `${userId}, its open order was cancelled`;
  },

  async retry() {
    const pid = userServicePid();
    if (!pid) throw new Skipped('USER_SERVICE_PID is not set');
    await newUser(); // Opens the connection that the kill breaks.
    process.kill(pid, 'SIGKILL');
    const started = Date.now();
    await newUser();
    return `answered ${(Date.now() - started) / 1000} s after the server was killed`;
  },
};

// Prefers ENDPOINTS_FILE, which is updated after a restart of the service.
function userServicePid() {
  const endpoints = ENDPOINTS_FILE && existsSync(ENDPOINTS_FILE) ? readFileSync(ENDPOINTS_FILE, 'utf8') : '';
  return Number(/^USER_SERVICE_PID=(\d+)$/m.exec(endpoints)?.[1] ?? USER_SERVICE_PID);
}

async function run(step) {
  try {
    return ['ok', await steps[step]()];
  } catch (error) {
    if (error instanceof Skipped) return ['skipped', error.message];
    const { code, reason, message } = rejection(error);
    return ['failed', code ? `${code} ${reason}: ${message}` : error.message];
  }
}

for (const step of Object.keys(steps)) {
  const [result, detail] = await run(step);
  console.log([result, step, detail.replace(/\s+/g, ' ')].join('\t'));
  if (result === 'failed') process.exitCode = 1;
}
