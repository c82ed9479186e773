// Queue speed, Node's side, with BullMQ 5: node queue.mjs add|bulk|work QUEUE COUNT CONCURRENCY. Prints jobs a second.
import IORedis from 'ioredis';
import * as bull from 'bullmq';

const { Queue, Worker } = bull.default ?? bull;
const [mode, name, countText, concurrencyText] = process.argv.slice(2);
const count = Number(countText), concurrency = Number(concurrencyText);
const connection = new IORedis(process.env.REDIS_URL, { maxRetriesPerRequest: null });
const data = { to: 'somebody@example.test', template: 'order-confirmation', vars: { number: '1042', total: '19.90' } };
const opts = { attempts: 3, backoff: { type: 'exponential', delay: 3000 }, removeOnComplete: { count: 1000 } };

let began;
if (mode === 'work') {
  let done = 0;
  await new Promise(finished => {
    const worker = new Worker(name, async job => job.data.to, { connection, concurrency, autorun: false });
    worker.on('completed', () => { if (++done === count) finished(); });
    began = process.hrtime.bigint();
    worker.run();
  });
} else {
  const queue = new Queue(name, { connection });
  await queue.waitUntilReady();
  began = process.hrtime.bigint();
  if (mode === 'add') {
    let next = 0;
    await Promise.all(Array.from({ length: concurrency }, async () => { while (next++ < count) await queue.add('send-mail', data, opts); }));
  } else {
    const list = Array.from({ length: 100 }, () => ({ name: 'send-mail', data, opts }));
    for (let i = 0; i < count / 100; i++) await queue.addBulk(list);
  }
}
console.log((count / (Number(process.hrtime.bigint() - began) / 1e9)).toFixed(0));
process.exit(0);
