// A Node worker in a process of its own, so that it can be killed: node worker.mjs MAJOR QUEUE PREFIX CONCURRENCY LOCK_MS STALLED_MS
import IORedis from 'ioredis';

const [major, queue, prefix, concurrency, lock, stalled] = process.argv.slice(2);
const { Worker } = await import(major === "6" ? "bullmq6" : "bullmq");
const connection = new IORedis(process.env.REDIS_URL, { maxRetriesPerRequest: null });
const notes = new IORedis(process.env.REDIS_URL);
const worker = new Worker(queue, async job => {
  await notes.hincrby(`${prefix}:ran:${queue}`, `${job.id}:node`, 1);
  if (job.data.ms) await new Promise(done => setTimeout(done, job.data.ms));
  return job.data.ms;
}, { connection, prefix, concurrency: Number(concurrency), lockDuration: Number(lock), stalledInterval: Number(stalled) });
worker.on('error', () => {}); // a lost lock is what the test makes
process.stdout.write('ready\n');
process.on('SIGTERM', async () => { await worker.close(); process.exit(0); });
