// Walk 21: the house's schedules run once a cluster, however many nodes there are.
import { assert, finish, queueOf, redis, run, start, stop, test, until } from './stage.mjs';

test('walk 21: three nodes, a schedule of 1000 ms, ten seconds', async () => {
  const queue = queueOf('system-queue');
  const nodes = [];
  for (let i = 0; i < 3; i++) nodes.push(start(process.env.BINARY, ['work'], { env: { SCHEDULES: 'otp-cleanup=1000' } }));
  for (const node of nodes) {
    await until(() => `a node runs: ${node.text}`, () => {
      if (node.exitCode !== null) throw new Error(`a node ended: ${node.text}`);
      return node.text.includes('ready in');
    });
  }
  const runs = async () => (await queue.getCompleted(0, 99)).filter(job => job.name === 'otp-cleanup');
  const first = await until('it ran', async () => (await runs()).at(-1));
  await until('ten seconds have passed', () => Date.now() >= first.processedOn + 10000, 30);
  const seen = (await runs()).filter(job => job.processedOn <= first.processedOn + 10000);
  const slots = seen.map(job => Number(job.id.split(':').at(-1)));
  assert.equal(new Set(slots).size, slots.length, 'no slot ran twice');
  for (const job of seen) assert.equal(job.attemptsStarted, 1);
  assert.ok(seen.length >= 9 && seen.length <= 11, `${seen.length} runs`);
  assert.ok((await queue.getJobSchedulers()).length >= 8, 'the other schedules stand too');
  assert.equal(await queue.getFailedCount(), 0, JSON.stringify((await queue.getFailed()).map(job => [job.name, job.failedReason])));
  // Redis is emptied: the schedules come back by themselves, and with a start at once.
  const keys = await redis.keys(`${queue.opts.prefix}:system-queue:*`);
  await redis.del(keys);
  nodes.push(start(process.env.BINARY, ['work'], { env: { SCHEDULES: 'otp-cleanup=1000' } }));
  await until('it runs again', async () => (await runs()).length > 0);
  await Promise.all(nodes.map(node => stop(node)));
  return `${seen.length} runs`;
});

let result = [0, 1];
try {
  result = await run();
} finally {
  await finish();
}
console.log(`${result[0]} passed, ${result[1]} failed`);
process.exit(result[1] ? 1 : 0);
