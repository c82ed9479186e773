// A worker of ours takes no more memory after many jobs than after the first of them, and Redis neither: node memory.mjs COUNT
import { readFileSync } from 'node:fs';
import { assert, finish, kasma, prefix, queueOf, redis, run, test, until } from './stage.mjs';

const COUNT = Number(process.argv[2]);
const CHUNK = Math.min(20000, COUNT / 4);

test(`memory over ${COUNT} jobs`, async () => {
  const name = 'many';
  const queue = queueOf(name), control = queueOf('control');
  // A sanitizer keeps freed memory for a while: little of it here.
  const env = { ASAN_OPTIONS: `${process.env.ASAN_OPTIONS ?? ''}:quarantine_size_mb=1` };
  const filler = await kasma(['control'], { env });
  const worker = await kasma([name], { env, concurrency: 32 });
  const resident = () => worker.workers().reduce((sum, pid) =>
    sum + Number(readFileSync(`/proc/${pid}/status`, 'utf8').match(/VmRSS:\s+(\d+)/)[1]) / 1024, 0);
  const used = async () => Number((await redis.info('memory')).match(/used_memory:(\d+)/)[1]) / 1048576;
  const done = async () => Number(await redis.hget(`${prefix}:${name}:metrics:completed`, 'count') ?? 0);
  const marks = [];
  for (let added = 0; added < COUNT; added += CHUNK) {
    await control.add('fill', { queue: name, n: CHUNK });
    await until(async () => `${added + CHUNK} are done, ${await done()} so far`, async () => (await done()) >= added + CHUNK, 600);
    marks.push([resident(), await used()]);
  }
  assert.equal(await queue.getFailedCount(), 0);
  assert.ok((await queue.getCompletedCount()) <= 100);
  assert.equal(await redis.zcard(`${prefix}:${name}:delayed`), 0);
  // The first quarter warms up: caches, the allocator, the collector's pace.
  const warm = Math.max(...marks.slice(0, Math.ceil(marks.length / 4)).map(m => m[0]));
  const end = marks.at(-1)[0];
  assert.ok(end <= warm * 1.15 + 4, `worker: ${warm.toFixed(1)} MiB after a quarter, ${end.toFixed(1)} MiB at the end`);
  const redisWarm = Math.max(...marks.slice(0, Math.ceil(marks.length / 4)).map(m => m[1]));
  assert.ok(marks.at(-1)[1] <= redisWarm + 8, `Redis: ${redisWarm.toFixed(1)} MiB, then ${marks.at(-1)[1].toFixed(1)} MiB`);
  filler.kill('SIGTERM');
  worker.kill('SIGTERM');
  assert.deepEqual([await filler.ended, await worker.ended], [0, 0]);
  return `worker ${marks[0][0].toFixed(1)} MiB after ${CHUNK}, ${warm.toFixed(1)} at most in the first quarter, ${end.toFixed(1)} at the end; `
    + `Redis ${marks[0][1].toFixed(1)} and ${marks.at(-1)[1].toFixed(1)} MiB`;
});

let result = [0, 1];
try {
  result = await run();
} finally {
  await finish();
}
console.log(`${result[0]} passed, ${result[1]} failed`);
process.exit(result[1] ? 1 : 0);
