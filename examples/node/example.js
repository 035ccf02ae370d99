// A client of the generation service in Node.js. It creates a task, watches it until it ends, uploads a file, and reads the
// details of an error:
//
//     ADDRESS=127.0.0.1:50051 TOKEN=... node example.js [FILE]

import { createHash, randomUUID } from 'node:crypto';
import { createReadStream } from 'node:fs';
import { stat } from 'node:fs/promises';
import { basename } from 'node:path';
import { Readable, pipeline } from 'node:stream';

import { FIRST_DELAY_MS, canReconnect, client, describe, messages, metadata, pause, read } from './service.js';

const CALL_TIMEOUT_MS = 30_000; // CreateTask waits up to 10 s for the provider
const UPLOAD_TIMEOUT_MS = 300_000;
const CHUNK_BYTES = 1 << 20;

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
      for await (const { task } of messages(client.watchTask({ taskId, afterRevision: revision }, metadata))) {
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
      throw new Error('the stream ended too early');
    } catch (error) {
      const problem = read(error);
      if (!canReconnect(problem)) throw error;
      lost = true;
      console.log(
        `the stream was lost (${problem.code}: ${problem.message}), reconnecting after revision ${revision}`,
      );
      delay = await pause(problem, delay);
    }
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
