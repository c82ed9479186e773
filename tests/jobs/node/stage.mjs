// What the queue tests stand on: `kasma work` processes, Node's BullMQ in both majors, waiting on conditions, and the count of results.
import { spawn } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { readFileSync } from 'node:fs';
import assert from 'node:assert/strict';
import path from 'node:path';
import IORedis from 'ioredis';
import * as five from 'bullmq';
import * as six from 'bullmq6';

export { assert };
export const majors = { 5: five.default ?? five, 6: six.default ?? six };
export const root = path.resolve(process.env.SOURCE_ROOT ?? '.');
export const prefix = `it${randomBytes(4).toString('hex')}`;
export const redis = new IORedis(process.env.REDIS_URL, { maxRetriesPerRequest: null });
export const long = process.env.LONG === '1';
const opened = [];
const children = new Set();

export const sleep = ms => new Promise(done => setTimeout(done, ms));

// A machine may be that much slower than the one on which the limits were chosen; who waits for nothing waits no longer.
const PATIENCE = 4;

/** Waits until fn answers something true. */
export async function until(what, fn, seconds = 20) {
  seconds *= PATIENCE;
  const end = Date.now() + seconds * 1000;
  for (;;) {
    const value = await fn();
    if (value) return value;
    if (Date.now() > end) throw new Error(`in ${seconds} s it did not come true that ${typeof what === 'function' ? await what() : what}`);
    await sleep(15);
  }
}

function keep(thing) {
  opened.push(thing);
  return thing;
}

export const connection = () => ({ ...redis.options, maxRetriesPerRequest: null });
export const queueOf = (name, major = 5) => keep(new majors[major].Queue(name, { connection: connection(), prefix }));
export const eventsOf = (name, major = 5) => keep(new majors[major].QueueEvents(name, { connection: connection(), prefix, lastEventId: '0-0' }));
export const flowsOf = (major = 5) => keep(new majors[major].FlowProducer({ connection: connection(), prefix }));
export function workerOf(name, fn, major = 5, opts = {}) {
  const worker = keep(new majors[major].Worker(name, fn, { connection: connection(), prefix, ...opts }));
  worker.on('error', () => {});
  return worker;
}

export function start(command, args, more = {}) {
  const child = spawn(command, args, { stdio: ['ignore', 'pipe', 'pipe'], ...more, env: { ...process.env, QUEUE_PREFIX: prefix, ...more.env } });
  child.text = '';
  for (const stream of [child.stdout, child.stderr]) stream.on('data', chunk => { child.text = (child.text + chunk).slice(-20000); });
  children.add(child);
  child.ended = new Promise(done => child.on('exit', (code, signal) => { children.delete(child); done(signal ?? code); }));
  return child;
}

/** A `kasma work` that serves the queues with the handlers of these tests. */
export async function kasma(queues, { lock = 2000, stalled = 500, concurrency = 8, env = {} } = {}) {
  const child = start(process.env.BINARY, ['work', '--queues', queues.join(','), '--handlers', path.join(root, 'tests/jobs/handlers.lua'),
    '--lock-ms', String(lock), '--stalled-ms', String(stalled), '--worker-concurrency', String(concurrency)], { env });
  child.workers = () => readFileSync(`/proc/${child.pid}/task/${child.pid}/children`, 'utf8').split(' ').filter(Boolean).map(Number);
  await until(() => `kasma work runs: ${child.text}`, () => {
    if (child.exitCode !== null) throw new Error(`kasma work ended: ${child.text}`);
    return child.text.includes('ready in');
  }, 60);
  return child;
}

export async function stop(child, signal = 'SIGTERM') {
  if (!children.has(child)) return child.ended;
  child.kill(signal);
  return child.ended;
}

/** Asks our side to run one of its functions: ours('jobs', 'add', queue, name, data). Served by the queue `control`. */
let control, controlEvents;
export async function ours(module, fn, ...args) {
  control ??= queueOf('control');
  controlEvents ??= eventsOf('control');
  const job = await control.add('call', { module, fn, args, n: args.length }, { removeOnComplete: false });
  const answer = await job.waitUntilFinished(controlEvents, 20000 * PATIENCE);
  if (answer.error) throw Object.assign(new Error(answer.error.message), { code: answer.error.code });
  return answer.result;
}

export const hash = (queue, id) => redis.hgetall(`${prefix}:${queue}:${id}`);

/** Names of the events of a queue, of one job when it is given. */
export async function eventNames(queue, id) {
  const rows = await redis.xrange(`${prefix}:${queue}:events`, '-', '+');
  return rows.map(([, flat]) => Object.fromEntries(flat.flatMap((v, i) => i % 2 ? [] : [[v, flat[i + 1]]])))
    .filter(e => !id || e.jobId === id).map(e => e.event);
}

const tests = [];
export const test = (name, fn) => tests.push({ name, fn });

export async function run() {
  let passed = 0, failed = 0;
  const filter = process.env.FILTER;
  for (const { name, fn } of tests.filter(t => !filter || t.name.includes(filter))) {
    const began = Date.now();
    try {
      const fact = await fn();
      passed++;
      if (fact || process.env.VERBOSE) console.log(`ok      ${name} (${Date.now() - began} ms)${fact ? `: ${fact}` : ''}`);
    } catch (error) {
      failed++;
      console.log(`FAILED  ${name}: ${error.stack ?? error}`);
    }
  }
  return [passed, failed];
}

export async function finish() {
  await Promise.all([...children].map(child => { child.kill('SIGTERM'); return Promise.race([child.ended, sleep(8000)]); }));
  for (const child of children) child.kill('SIGKILL');
  await Promise.race([Promise.allSettled(opened.map(thing => thing.close())), sleep(3000)]);
  const keys = await redis.keys(`${prefix}:*`);
  for (let i = 0; i < keys.length; i += 1000) await redis.unlink(keys.slice(i, i + 1000));
  redis.disconnect();
}
