// A client of the generation service in Node.js. It creates a task, watches it until it ends, uploads a file, and reads the
// details of an error:
//
//     ADDRESS=127.0.0.1:50051 TOKEN=... node example.js [FILE]

import { createHash, randomUUID } from 'node:crypto';
import { createReadStream } from 'node:fs';
import { stat } from 'node:fs/promises';
import { basename, resolve } from 'node:path';
import { Readable, pipeline } from 'node:stream';
import { setTimeout as sleep } from 'node:timers/promises';

import grpc from '@grpc/grpc-js';
import protoLoader from '@grpc/proto-loader';
import { getProtoPath } from 'google-proto-files';

const { ADDRESS = '127.0.0.1:50051', TOKEN = '', HEARTBEAT_SECONDS = '20' } = process.env;
const DOMAIN = 'generation.v1';
const CALL_TIMEOUT_MS = 30_000; // CreateTask waits up to 10 s for the provider
const UPLOAD_TIMEOUT_MS = 300_000;
const SILENCE_MS = 3_000 * Number(HEARTBEAT_SECONDS); // three times the server's WATCH_HEARTBEAT_SECONDS
const CHUNK_BYTES = 1 << 20;
const FIRST_DELAY_MS = 100;
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
const client = new GenerationService(ADDRESS, grpc.credentials.createInsecure(), {
  'grpc.keepalive_time_ms': 30_000,
  'grpc.keepalive_timeout_ms': 10_000,
  'grpc.service_config': JSON.stringify(SERVICE_CONFIG),
});
const metadata = new grpc.Metadata();
if (TOKEN) metadata.set('authorization', `Bearer ${TOKEN}`);

/** Creates a task. The request_id makes the call safe to retry: the task is never paid for twice. */
async function create(imagen4) {
  const request = { promptId: 'example', requestId: randomUUID(), providerParams: { kie: { imagen4 } } };
  const options = { deadline: Date.now() + CALL_TIMEOUT_MS };
  return new Promise((done, failed) => {
    client.createTask(request, metadata, options, (error, response) =>
      error ? failed(error) : done(response.task),
    );
  });
}

/** Prints the snapshots of a task and returns the terminal one. Reconnects whenever the stream is lost. */
async function watch(taskId) {
  let revision = 0;
  let delay = FIRST_DELAY_MS;
  let lost = false;
  for (;;) {
    try {
      for await (const task of snapshots(taskId, revision)) {
        if (lost) console.log('reconnected');
        lost = false;
        if (task.revision > revision) {
          // Otherwise it is a heartbeat.
          console.log(`revision ${task.revision}: ${task.status} ${task.stage}`);
          ({ revision } = task);
          delay = FIRST_DELAY_MS;
        }
        if (['TASK_STATUS_SUCCESS', 'TASK_STATUS_FAILED'].includes(task.status)) return task;
      }
      throw new Error('the stream ended before the task did');
    } catch (error) {
      const problem = read(error);
      if (!canReconnect(problem)) throw error;
      lost = true;
      console.log(
        `the stream was lost (${problem.code}: ${problem.message}), reconnecting after revision ${revision}`,
      );
      await sleep(problem.retryAfterMs + delay * (0.5 + Math.random() / 2));
      delay = Math.min(2 * delay, MAX_DELAY_MS);
    }
  }
}

/** Yields the messages of one stream, until the stream ends or is silent for three heartbeats. */
async function* snapshots(taskId, afterRevision) {
  const call = client.watchTask({ taskId, afterRevision }, metadata);
  const silence = setTimeout(() => call.destroy(new Error(`no message for ${SILENCE_MS / 1000} s`)), SILENCE_MS);
  try {
    for await (const response of call) {
      silence.refresh();
      yield response.task;
    }
  } finally {
    clearTimeout(silence);
    call.cancel();
  }
}

/** Uploads a file. The server checks its size and SHA-256. */
async function upload(path) {
  const sha256 = createHash('sha256');
  for await (const chunk of createReadStream(path)) sha256.update(chunk);
  const first = { fileName: basename(path), sizeBytes: (await stat(path)).size, sha256: sha256.digest() };
  async function* messages() {
    yield { metadata: first };
    for await (const chunk of createReadStream(path, { highWaterMark: CHUNK_BYTES })) yield { chunk };
  }
  const options = { deadline: Date.now() + UPLOAD_TIMEOUT_MS };
  return new Promise((done, failed) => {
    const call = client.uploadFile(metadata, options, (error, response) =>
      error ? failed(error) : done(response.file),
    );
    pipeline(Readable.from(messages()), call, (error) => error && failed(error));
  });
}

/** Returns a failed call's code, message and the details from google.rpc.Status. */
function read(error) {
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
function canReconnect({ code, reason }) {
  if (['UNAUTHENTICATED', 'PERMISSION_DENIED', 'UNIMPLEMENTED'].includes(code)) return false;
  return code === 'UNAVAILABLE' || reason === '' || reason === 'RATE_LIMITED';
}

function describe(error) {
  const problem = read(error);
  const lines = [`${problem.code} ${problem.reason}: ${problem.message}`];
  for (const { field, description } of problem.violations) lines.push(`  ${field}: ${description}`);
  if (problem.retryAfterMs) lines.push(`  retry in ${problem.retryAfterMs / 1e3} s`);
  return lines.join('\n');
}

try {
  const created = await create({ prompt: 'a lighthouse at dawn' });
  console.log(`created ${created.id}`);
  const task = await watch(created.id);
  for (const { url } of task.artifacts) console.log(`result: ${url}`);
  if (task.failure) console.log(`the task failed: ${task.failure.message}`);

  const file = await upload(process.argv[2] ?? import.meta.filename);
  const sha256 = file.sha256.toString('hex');
  console.log(`uploaded ${file.sizeBytes} bytes with SHA-256 ${sha256}: ${file.downloadUrl}`);

  await create({ numImages: 9 }).catch((error) =>
    console.log(`a create with invalid parameters: ${describe(error)}`),
  );
} catch (error) {
  console.log(describe(error));
  process.exitCode = 1;
} finally {
  client.close();
}
