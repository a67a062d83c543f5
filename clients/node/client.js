// A client for both services with retries, consistency tokens, decoded errors and exact money. Copy this file.

import { readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';

import grpc from '@grpc/grpc-js';
import protoLoader from '@grpc/proto-loader';
import { GoogleError } from 'google-gax';

const TOKEN_KEY = 'x-consistency-token';
const BILLION = 1_000_000_000n;

const path = (relative) => fileURLToPath(new URL(relative, import.meta.url));
const serviceConfig = readFileSync(path('../service_config.json'), 'utf8');
// 64-bit integers are strings, because a JavaScript number would round them.
const definition = protoLoader.loadSync(['user/v1/user.proto', 'order/v1/order.proto'], {
  includeDirs: [path('../../proto')],
  longs: String,
  enums: String,
  defaults: true,
});
const { user, order } = grpc.loadPackageDefinition(definition);

export const connectUsers = (address, ...interceptors) => connect(user.v1.UserService, address, interceptors);
export const connectOrders = (address, ...interceptors) => connect(order.v1.OrderService, address, interceptors);

// Returns a client that retries as the service config says and whose unary methods return promises.
function connect(Service, address, interceptors) {
  const client = new Service(address, grpc.credentials.createInsecure(), {
    'grpc.service_config': serviceConfig,
    interceptors: [...interceptors, waitForReady],
  });
  for (const [name, method] of Object.entries(Service.service)) {
    const methodName = name[0].toLowerCase() + name.slice(1);
    if (!method.responseStream) client[methodName] = promisify(client[methodName]).bind(client);
  }
  return client;
}

// Sets `waitForReady` for each call, because grpc-js ignores it in a service config.
const waitForReady = (options, nextCall) =>
  new grpc.InterceptingCall(nextCall(options), {
    start(metadata, listener, next) {
      metadata.setOptions({ ...metadata.getOptions(), waitForReady: true });
      next(metadata, listener);
    },
  });

// Gives read-your-writes across services: sends the token of the last response with the next call. Create one per user
// session and pass its interceptor to that session's clients.
export class ConsistencyTokens {
  token = undefined;

  interceptor = (options, nextCall) =>
    new grpc.InterceptingCall(nextCall(options), {
      start: (metadata, _listener, next) => {
        if (this.token) metadata.set(TOKEN_KEY, this.token);
        next(metadata, {
          onReceiveMetadata: (received, next) => {
            this.token = received.get(TOKEN_KEY)[0] ?? this.token;
            next(received);
          },
        });
      },
    });
}

// Decodes the google.rpc.Status of an error. Branch on `reason`; show `message` to people. `fields` are all invalid
// fields of the request. `retryDelay` is in seconds, or undefined if a retry does not help.
export function rejection(error) {
  const { code, details: message, reason, domain, statusDetails = [] } = GoogleError.parseGRPCStatusDetails(error);
  const detail = (name) => statusDetails.find((each) => each.$type?.name === name);
  const delay = detail('RetryInfo')?.retryDelay;
  return {
    code: grpc.status[code],
    message,
    reason,
    domain,
    fields: (detail('BadRequest')?.fieldViolations ?? []).map((violation) => violation.field),
    preconditions: (detail('PreconditionFailure')?.violations ?? []).map((violation) => violation.type),
    retryDelay: delay && Number(delay.seconds ?? 0) + (delay.nanos ?? 0) / 1e9,
  };
}

// Returns "19.90" for 19 units, 900,000,000 nanos and the 2 decimal places of the currency. Exact: no float is involved.
export function toDecimal({ units, nanos }, digits) {
  const total = BigInt(units) * BILLION + BigInt(nanos);
  const [sign, size] = total < 0n ? ['-', -total] : ['', total];
  const fraction = String(size % BILLION).padStart(9, '0');
  if (/[1-9]/.test(fraction.slice(digits))) throw new RangeError(`more than ${digits} decimal places: .${fraction}`);
  return `${sign}${size / BILLION}${digits > 0 ? '.' : ''}${fraction.slice(0, digits)}`;
}

// The inverse of `toDecimal`.
export function toMoney(currencyCode, decimal) {
  const [, sign, whole, fraction = ''] = /^(-?)(\d+)(?:\.(\d{1,9}))?$/.exec(decimal) ?? [];
  if (whole === undefined) throw new RangeError(`not a decimal number with at most nine decimal places: ${decimal}`);
  return { currencyCode, units: String(BigInt(sign + whole)), nanos: Number(sign + fraction.padEnd(9, '0')) };
}
