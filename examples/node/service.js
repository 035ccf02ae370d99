// The connection to the service, and what all streams and errors have in common.

import { resolve } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';

import grpc from '@grpc/grpc-js';
import protoLoader from '@grpc/proto-loader';
import { getProtoPath } from 'google-proto-files';

const { ADDRESS = '127.0.0.1:50051', TOKEN = '', HEARTBEAT_SECONDS = '20' } = process.env;
const DOMAIN = 'generation.v1';
const SILENCE_MS = 3_000 * Number(HEARTBEAT_SECONDS); // three times the server's WATCH_HEARTBEAT_SECONDS
export const FIRST_DELAY_MS = 100;
const MAX_DELAY_MS = 5_000;

const definitions = protoLoader.loadSync(
  ['generation/v1/generation.proto', 'google/rpc/status.proto', 'google/rpc/error_details.proto'],
  {
    includeDirs: [resolve(import.meta.dirname, '../../protos'), getProtoPath('..')],
    enums: String,
    longs: Number, // revisions and sizes are far below 2^53
    defaults: true,
    oneofs: true,
  },
);
const { GenerationService } = grpc.loadPackageDefinition(definitions).generation.v1;

// gRPC retries calls that end as UNAVAILABLE. That is safe for every method: CreateTask has a request_id.
const SERVICE_CONFIG = {
  methodConfig: [
    {
      name: [{ service: 'generation.v1.GenerationService' }],
      retryPolicy: {
        maxAttempts: 5,
        initialBackoff: '0.2s',
        maxBackoff: '5s',
        backoffMultiplier: 2,
        retryableStatusCodes: ['UNAVAILABLE'],
      },
    },
  ],
};

// For TLS: grpc.credentials.createSsl() instead of createInsecure().
export const client = new GenerationService(ADDRESS, grpc.credentials.createInsecure(), {
  'grpc.keepalive_time_ms': 30_000,
  'grpc.keepalive_timeout_ms': 10_000,
  'grpc.service_config': JSON.stringify(SERVICE_CONFIG),
});
export const metadata = new grpc.Metadata();
if (TOKEN) metadata.set('authorization', `Bearer ${TOKEN}`);

/** Yields the messages of one stream, until the stream ends or is silent for three heartbeats. */
export async function* messages(call) {
  const fail = () => call.destroy(new Error(`no message for ${SILENCE_MS / 1000} s`));
  let silence = setTimeout(fail, SILENCE_MS);
  try {
    for await (const message of call) {
      clearTimeout(silence); // handling a message may take its time
      yield message;
      silence = setTimeout(fail, SILENCE_MS);
    }
  } finally {
    clearTimeout(silence);
    call.cancel();
  }
}

/** Waits before the next attempt, as long as the service asks for and a delay with jitter; returns the next delay. */
export async function pause({ retryAfterMs }, delay) {
  await sleep(retryAfterMs + delay * (0.5 + Math.random() / 2));
  return Math.min(2 * delay, MAX_DELAY_MS);
}

/** Returns a failed call's code, message and the details from google.rpc.Status. */
export function read(error) {
  const problem = {
    code: grpc.status[error.code] ?? 'UNKNOWN',
    message: error.details || error.message,
    reason: '', // of ErrorReason; empty if the error does not come from the service
    violations: [],
    retryAfterMs: 0, // 0 if the service does not say when to retry
  };
  for (const bytes of error.metadata?.get('grpc-status-details-bin') ?? []) {
    for (const { type_url: url, value } of decode('google.rpc.Status', bytes).details) {
      const type = url.split('/').pop();
      if (type === 'google.rpc.ErrorInfo') {
        const info = decode(type, value);
        if (info.domain === DOMAIN) problem.reason = info.reason;
      } else if (type === 'google.rpc.BadRequest') {
        problem.violations = decode(type, value).fieldViolations;
      } else if (type === 'google.rpc.RetryInfo') {
        const { seconds, nanos } = decode(type, value).retryDelay;
        problem.retryAfterMs = seconds * 1e3 + nanos / 1e6;
      }
    }
  }
  return problem;
}

function decode(type, bytes) {
  return definitions[type].deserialize(bytes);
}

/** Returns whether a new stream may succeed where this one failed. Without a reason the stream was lost. */
export function canReconnect({ code, reason }) {
  if (['UNAUTHENTICATED', 'PERMISSION_DENIED', 'UNIMPLEMENTED'].includes(code)) return false;
  return code === 'UNAVAILABLE' || reason === '' || reason === 'RATE_LIMITED';
}

export function describe(error) {
  const problem = read(error);
  const lines = [`${problem.code} ${problem.reason}: ${problem.message}`];
  for (const { field, description } of problem.violations) lines.push(`  ${field}: ${description}`);
  if (problem.retryAfterMs) lines.push(`  retry in ${problem.retryAfterMs / 1e3} s`);
  return lines.join('\n');
}
