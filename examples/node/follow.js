// Follows the changes of all tasks, and remembers in a file where it stopped:
//
//     ADDRESS=127.0.0.1:50051 TOKEN=... node follow.js FILE

import { open, readFile, rename } from 'node:fs/promises';

import { FIRST_DELAY_MS, canReconnect, client, describe, messages, metadata, pause, read } from './service.js';

/**
 * Prints the changes of all tasks. The file remembers the token of each message that was handled, so that the next run
 * continues there. Reconnects whenever the stream is lost.
 */
async function follow(path) {
  let token = await readToken(path);
  let delay = FIRST_DELAY_MS;
  let lost = false;
  for (;;) {
    try {
      for await (const message of messages(client.watchTasks({ resumeToken: token }, metadata))) {
        if (lost) console.log('reconnected');
        lost = false;
        if (message.task) delay = FIRST_DELAY_MS;
        show(message);
        token = message.resumeToken;
        await writeToken(path, token);
      }
      throw new Error('the stream ended too early');
    } catch (error) {
      if (error.syscall) throw error; // the file cannot be written
      const problem = read(error);
      if (problem.reason === 'RESUME_TOKEN_EXPIRED' && token) {
        console.log('the resume token has expired: starting over with all tasks');
        token = '';
        continue;
      }
      if (!canReconnect(problem)) throw error;
      lost = true;
      console.log(`the stream was lost (${problem.code}: ${problem.message}), reconnecting`);
      delay = await pause(problem, delay);
    }
  }
}

/** Handles a message. What it does may happen again if the program dies before the token is written. */
function show({ task, bookmark }) {
  if (task) console.log(`task ${task.id} revision ${task.revision}: ${task.status}`);
  if (bookmark?.initialDone) console.log('up to date');
}

/** Returns the token in the file, or '' if there is no file, to start with all tasks. */
async function readToken(path) {
  try {
    return await readFile(path, 'utf8');
  } catch (error) {
    if (error.code === 'ENOENT') return '';
    throw error;
  }
}

/** Replaces the file atomically: a reader finds the old token or the new one. */
async function writeToken(path, token) {
  const part = `${path}.${process.pid}`;
  const file = await open(part, 'w', 0o600);
  try {
    await file.writeFile(token);
    await file.sync();
  } finally {
    await file.close();
  }
  await rename(part, path);
}

try {
  await follow(process.argv[2] ?? 'feed.token');
} catch (error) {
  console.log(describe(error));
  process.exitCode = 1;
} finally {
  client.close();
}
