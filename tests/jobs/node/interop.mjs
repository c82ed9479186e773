// Kasma and Node on the same queues. Each test says who adds, who works and what the other side then sees.
import express from 'express';
import { createBullBoard } from '@bull-board/api';
import { BullMQAdapter } from '@bull-board/api/bullMQAdapter.js';
import { ExpressAdapter } from '@bull-board/express';
import { assert, connection, eventNames, eventsOf, flowsOf, hash, kasma, majors, ours, prefix, queueOf, redis, run, finish, test, until,
  workerOf } from './stage.mjs';

const served = [];
let next = 0;
// Queues that our worker serves (their names are told to it at its start) and queues that it does not.
const mine = Array.from({ length: 44 }, (_, i) => `k${i}`);
const kasmaQueue = () => { assert(next < mine.length, 'more queues are wanted than are served'); served.push(next); return mine[next++]; };
let nodes = 0;
const nodeQueue = () => `n${nodes++}`;

const parsed = text => JSON.parse(text ?? 'null');
const state = (queue, id) => queue.getJob(id).then(job => job?.getState());
const reaches = (queue, id, wanted) => until(async () => `job ${id} is ${wanted}, not ${await state(queue, id)}`,
  async () => (await state(queue, id)) === wanted);

for (const major of [5, 6]) {
  const of = name => `BullMQ ${major}: ${name}`;

  test(of('Node adds, ours completes, Node hears of it'), async () => {
    const name = kasmaQueue();
    const queue = queueOf(name, major), events = eventsOf(name, major);
    await events.waitUntilReady();
    const job = await queue.add('echo', { text: 'Grüße / "x"', list: [], none: null, n: 1.5 });
    assert.deepEqual(await job.waitUntilFinished(events, 60000), { text: 'Grüße / "x"', list: [], none: null, n: 1.5 });
    assert.deepEqual(await eventNames(name), ['added', 'waiting', 'active', 'completed', 'drained']);
    const other = await queue.add('never seen', {});
    assert.equal(await other.waitUntilFinished(events, 60000), 'any never seen');
    const got = await queue.getJob(job.id);
    assert.equal(got.attemptsMade, 1);
    assert.equal(got.attemptsStarted, 1);
    assert.ok(got.finishedOn >= got.processedOn);
    assert.equal((await queue.getMetrics('completed')).meta.count, 2);
    assert.equal((await queue.getWorkers()).length, 1);
  });

  test(of('ours adds, Node completes'), async () => {
    const name = nodeQueue();
    const queue = queueOf(name, major);
    const id = await ours('jobs', 'add', name, 'x', { a: { b: [1, 2] } }, { attempts: 3, backoff: 5, keepLogs: 10 });
    const job = await queue.getJob(id);
    assert.deepEqual(job.opts, { attempts: 3, backoff: { type: 'fixed', delay: 5 }, keepLogs: 10 });
    workerOf(name, async j => ({ got: j.data.a.b.length, made: j.attemptsMade }), major);
    await reaches(queue, id, 'completed');
    assert.deepEqual((await queue.getJob(id)).returnvalue, { got: 2, made: 0 });
  });

  test(of('failures: retries with backoff, the last one, hopeless ones'), async () => {
    const name = kasmaQueue();
    const queue = queueOf(name, major);
    const failing = await queue.add('fail', {}, { attempts: 3, backoff: { type: 'exponential', delay: 20 } });
    const flaky = await queue.add('flaky', { fails: 2 }, { attempts: 3 });
    const hopeless = await queue.add('hopeless', {}, { attempts: 9 });
    await reaches(queue, failing.id, 'failed');
    const job = await queue.getJob(failing.id);
    assert.equal(job.failedReason, 'no 3');
    assert.deepEqual([job.attemptsMade, job.attemptsStarted, job.stacktrace.length], [3, 3, 3]);
    assert.deepEqual(await eventNames(name, failing.id),
      ['added', 'waiting', 'active', 'delayed', 'waiting', 'active', 'delayed', 'waiting', 'active', 'failed', 'retries-exhausted']);
    await reaches(queue, flaky.id, 'completed');
    assert.equal((await queue.getJob(flaky.id)).returnvalue, 2);
    await reaches(queue, hopeless.id, 'failed');
    assert.equal((await queue.getJob(hopeless.id)).attemptsMade, 1);
    assert.ok(!(await eventNames(name, hopeless.id)).includes('retries-exhausted'));
  });

  test(of('Node works on a failing job of ours, and ours goes on with it'), async () => {
    const name = kasmaQueue();
    const queue = queueOf(name, major);
    await queue.pause();
    const id = await ours('jobs', 'add', name, 'echo', { v: 1 }, { attempts: 2, delay: 1 });
    const second = nodeQueue();
    const other = queueOf(second, major);
    const failed = await ours('jobs', 'add', second, 'x', {}, { attempts: 1 });
    const worker = workerOf(second, async () => { throw new Error('no'); }, major);
    await reaches(other, failed, 'failed');
    await worker.close();
    assert.equal(await ours('jobs_queue', 'retry', second, failed), 0);
    assert.equal(await state(other, failed), 'waiting');
    await queue.resume();
    await reaches(queue, id, 'completed');
    // Retried from Node, completed by ours again.
    await (await queue.getJob(id)).retry('completed');
    await until('it is completed anew', async () => Number((await hash(name, id)).atm) === 2);
  });

  test(of('delays, priorities and lifo are served in one order'), async () => {
    const adds = [['a', {}], ['b', {}], ['p5', { priority: 5 }], ['p1', { priority: 1 }], ['l', { lifo: true }], ['d', { delay: 1 }]];
    const expected = ['l', 'a', 'b', 'd', 'p1', 'p5'];
    const byNode = kasmaQueue(), byOurs = nodeQueue();
    const queue = queueOf(byNode, major);
    await queue.pause();
    for (const [n, opts] of adds) await queue.add('order', { n }, opts);
    const due = Date.now() + 1;
    await until('it is due', () => Date.now() > due);
    const worker = await kasma([byNode], { concurrency: 1 });
    await queue.resume();
    const key = `${prefix}:order:${byNode}`;
    await until('all have run', async () => (await redis.llen(key)) === adds.length);
    // Two workers of ours take turns here: as sets, the plain ones before those with a priority.
    assert.deepEqual((await redis.lrange(key, 0, -1)).sort(), [...expected].sort());
    worker.kill('SIGTERM');
    await worker.ended;
    const served = [];
    const other = queueOf(byOurs, major);
    await ours('jobs_queue', 'pause', byOurs);
    for (const [n, opts] of adds) await ours('jobs', 'add', byOurs, 'order', { n }, opts);
    const node = workerOf(byOurs, async j => { served.push(j.data.n); }, major, { concurrency: 1 });
    await node.waitUntilReady();
    assert.equal(served.length, 0);
    await ours('jobs_queue', 'resume', byOurs);
    await until('all have run', () => served.length === adds.length);
    assert.deepEqual(served.filter(n => n !== 'd'), expected.filter(n => n !== 'd'));
    assert.equal((await other.getCompletedCount()), adds.length);
  });

  test(of('a job due later is promoted by either side'), async () => {
    const name = kasmaQueue();
    const queue = queueOf(name, major);
    const soon = await queue.add('echo', 1, { delay: 150 });
    await reaches(queue, soon.id, 'completed');
    const job = await queue.getJob(soon.id);
    assert.ok(job.processedOn - job.timestamp >= 150, 'not before its time');
    const far = await queue.add('echo', 2, { delay: 3600000 });
    await far.promote();
    await reaches(queue, far.id, 'completed');
    const other = nodeQueue();
    const late = await ours('jobs', 'add', other, 'x', {}, { delay: 100 });
    workerOf(other, async () => 1, major);
    await reaches(queueOf(other, major), late, 'completed');
  });

  test(of('progress, rows and children are seen from the other side'), async () => {
    const name = kasmaQueue();
    const queue = queueOf(name, major), events = eventsOf(name, major);
    const seen = [];
    events.on('progress', ({ data }) => seen.push(data));
    await events.waitUntilReady();
    const job = await queue.add('steps', {});
    await job.waitUntilFinished(events, 60000);
    await until('both are heard', () => seen.length === 2);
    assert.deepEqual(seen, [30, { step: 'two' }]);
    assert.deepEqual((await queue.getJob(job.id)).progress, { step: 'two' });
    assert.deepEqual((await queue.getJobLogs(job.id)).logs, ['first row', 'second row']);
  });

  test(of('flows: Node adds and ours works; ours adds and Node works'), async () => {
    const parents = kasmaQueue(), kids = kasmaQueue();
    const tree = await flowsOf(major).add({ name: 'children', queueName: parents, children: [
      { name: 'echo', queueName: kids, data: 3 }, { name: 'echo', queueName: kids, data: 4 }] });
    const queue = queueOf(parents, major);
    await reaches(queue, tree.job.id, 'completed');
    assert.equal((await queue.getJob(tree.job.id)).returnvalue, 7);
    assert.deepEqual(Object.values(await tree.job.getChildrenValues()).sort(), [3, 4]);

    const np = nodeQueue(), nk = nodeQueue();
    const made = await ours('jobs', 'add_flow', { name: 'p', queueName: np, children: [{ name: 'c', queueName: nk, data: 5 },
      { name: 'c', queueName: nk, data: 6, opts: { ignoreDependencyOnFailure: true } }] });
    workerOf(nk, async j => { if (j.data === 6) throw new Error('bad'); return j.data; }, major);
    workerOf(np, async j => Object.values(await j.getChildrenValues())[0], major);
    await reaches(queueOf(np, major), made.id, 'completed');
    const parent = await queueOf(np, major).getJob(made.id);
    assert.equal(parent.returnvalue, 5);
    assert.deepEqual(Object.values(await parent.getIgnoredChildrenFailures()), ['bad']);
  });

  test(of('flows that fail: each option does the same on both sides'), async () => {
    for (const option of ['failParentOnFailure', 'continueParentOnFailure', 'ignoreDependencyOnFailure', 'removeDependencyOnFailure']) {
      const shape = async (name, work) => {
        const child = (n, id) => ({ name: n, queueName: name, data: 1, opts: { jobId: id, [option]: true } });
        const flow = { name: 'children', queueName: name, opts: { jobId: 'P' }, children: [child('fail', 'C1'), child('echo', 'C2')] };
        await work(flow);
        const queue = queueOf(name, major);
        await until(async () => `P ends, it is ${await state(queue, 'P')}`, async () => ['failed', 'completed'].includes(await state(queue, 'P')));
        await reaches(queue, 'C2', 'completed');
        const p = await hash(name, 'P');
        const short = text => text && text.replaceAll(`${prefix}:${name}:`, '').replace(/ moveToFinished$|\. moveToFinished$/, '').replace(/\.$/, '');
        const names = async kind => Object.keys(await hash(name, `P:${kind}`)).map(short).sort();
        return { reason: short(p.failedReason) ?? null, done: p.finishedOn !== undefined, failed: await names('failed'),
          processed: await names('processed'), unsuccessful: (await redis.zrange(`${prefix}:${name}:P:unsuccessful`, 0, -1)).map(short) };
      };
      const a = kasmaQueue(), b = nodeQueue();
      const ourShape = await shape(a, flow => flowsOf(major).add(flow));
      const nodeShape = await shape(b, async flow => {
        await ours('jobs', 'add_flow', flow);
        workerOf(b, async j => { if (j.name === 'fail') throw new Error('no 1'); return 1; }, major, { concurrency: 8 });
      });
      // A parent released early meets its second child done or not: the worker that is quicker decides.
      if (option === 'continueParentOnFailure') {
        for (const s of [ourShape, nodeShape]) delete s.reason;
      }
      assert.deepEqual(ourShape, nodeShape, option);
    }
  });

  test(of('flows that fail: a parent that runs while its child fails and is removed, fails on both sides'), async () => {
    const shape = async name => {
      const queue = queueOf(name, major);
      await queue.add('doomed', {}, { jobId: 'P' });
      await until(async () => `P ends, it is ${await state(queue, 'P')}`, async () => ['failed', 'completed'].includes(await state(queue, 'P')));
      const short = text => text && text.replaceAll(`${prefix}:${name}:`, '').replace(/ moveToFinished$|\. moveToFinished$/, '').replace(/\.$/, '');
      return { state: await state(queue, 'P'), reason: short((await hash(name, 'P')).failedReason), child: await redis.exists(`${prefix}:${name}:C`),
        unsuccessful: (await redis.zrange(`${prefix}:${name}:P:unsuccessful`, 0, -1)).map(short) };
    };
    const b = nodeQueue();
    workerOf(b, async j => {
      if (j.name === 'fail') throw new Error('no 1');
      await queueOf(b, major).add('fail', {}, { jobId: 'C', parent: { id: j.id, queue: j.queueQualifiedName }, failParentOnFailure: true,
        removeOnFail: true });
      await until('the child is gone', async () => (await redis.exists(`${prefix}:${b}:C`)) === 0);
      return 1;
    }, major, { concurrency: 8 });
    const [ourShape, nodeShape] = [await shape(kasmaQueue()), await shape(b)];
    assert.deepEqual(ourShape, nodeShape);
    assert.equal(ourShape.state, 'failed');
  });

  test(of('schedulers: made on one side, run on the other, one pending job at a time'), async () => {
    const name = kasmaQueue();
    const queue = queueOf(name, major);
    await queue.upsertJobScheduler('s', { every: 60, limit: 4 }, { name: 'echo', data: { v: 1 } });
    await until('it ran four times', async () => (await queue.getCompletedCount()) === 4);
    assert.equal(await queue.getDelayedCount(), 0);
    const other = nodeQueue();
    await ours('jobs_schedule', 'upsert', other, 's', { pattern: '* * * * * *', limit: 2 }, { name: 'tick', data: { v: 2 } });
    const scheduler = await queueOf(other, major).getJobScheduler('s');
    assert.equal(scheduler.pattern, '* * * * * *');
    assert.deepEqual(scheduler.template.data, { v: 2 });
    const seen = [];
    workerOf(other, async j => { seen.push(j.data.v); }, major);
    await until('it ran twice', () => seen.length === 2);
    assert.equal(await queueOf(other, major).getDelayedCount(), 0);
    assert.deepEqual(seen, [2, 2]);
  });

  test(of('trap: the next run of a scheduler cannot be removed alone'), async () => {
    const name = nodeQueue();
    const queue = queueOf(name, major);
    const id = await ours('jobs_schedule', 'upsert', name, 's', { every: 60000, startDate: Date.now() + 60000 });
    await assert.rejects((await queue.getJob(id)).remove(), /scheduler/);
    await queue.upsertJobScheduler('t', { every: 60000, startDate: Date.now() + 60000 }, { name: 'x' });
    const pending = (await queue.getDelayed()).find(job => job.id.includes(':t:'));
    assert.equal(await ours('jobs_queue', 'remove', name, pending.id), -8);
    assert.equal(await ours('jobs_schedule', 'remove', name, 't'), true);
    assert.equal(await queue.removeJobScheduler('s'), true);
    assert.equal(await queue.getDelayedCount(), 0);
  });

  test(of('trap: deduplication holds across sides, also what is held in dn:'), async () => {
    const name = kasmaQueue();
    const queue = queueOf(name, major);
    const opts = { deduplication: { id: 'd', keepLastIfActive: true } };
    const first = await queue.add('slow', { ms: 4000 }, opts);
    await reaches(queue, first.id, 'active');
    assert.equal(await ours('jobs', 'add', name, 'echo', { v: 2 }, opts), first.id);
    assert.equal((await queue.add('echo', { v: 3 }, opts)).id, first.id);
    await reaches(queue, first.id, 'completed');
    await until('the held one has run', async () => (await queue.getCompletedCount()) === 2);
    const values = (await queue.getCompleted()).map(job => job.returnvalue?.v);
    assert.ok(values.includes(3) && !values.includes(2), JSON.stringify(values));
    // Node works, ours adds the duplicate.
    const other = nodeQueue();
    const nq = queueOf(other, major);
    const owner = await nq.add('x', { v: 1 }, opts);
    const seen = [];
    let open;
    const gate = new Promise(done => { open = done; });
    workerOf(other, async j => { seen.push(j.data.v); if (j.data.v === 1) await gate; }, major);
    await reaches(nq, owner.id, 'active');
    await ours('jobs', 'add', other, 'x', { v: 9 }, opts);
    open();
    await until('the held one has run', () => seen.length === 2);
    assert.deepEqual(seen, [1, 9]);
    const simple = { deduplication: { id: 'once', ttl: 60000 } };
    const a = await ours('jobs', 'add', other, 'x', {}, simple);
    assert.equal((await nq.add('x', {}, simple)).id, a);
    assert.equal(await nq.getDeduplicationJobId('once'), a);
  });

  test(of('trap: paused by one side and resumed by the other, nothing is lost'), async () => {
    const name = kasmaQueue();
    const queue = queueOf(name, major);
    await queue.pause();
    const ids = [(await queue.add('echo', 1)).id, await ours('jobs', 'add', name, 'echo', 2), (await queue.add('echo', 3)).id];
    // What the same worker does meanwhile shows that it has looked.
    const beside = queueOf(kasmaQueue(), major);
    await reaches(beside, (await beside.add('echo', 0)).id, 'completed');
    assert.equal(await queue.getCompletedCount(), 0);
    assert.equal(await ours('jobs_queue', 'resume', name), true);
    for (const id of ids) await reaches(queue, id, 'completed');
    assert.equal(await queue.isPaused(), false);
    await ours('jobs_queue', 'pause', name);
    assert.equal(await queue.isPaused(), true);
    const more = [(await queue.add('echo', 4)).id, await ours('jobs', 'add', name, 'echo', 5)];
    // In the layout of the sixth major a paused queue's jobs lie where they lay.
    if (process.env.BULLMQ_LAYOUT === '6' && major === 6) assert.equal(await redis.exists(`${prefix}:${name}:paused`), 0);
    await queue.resume();
    // What the sixth major leaves in a paused list of the fifth is ours to take up.
    for (const id of more) await reaches(queue, id, 'completed');
  });

  test(of('trap: a custom id added twice under two parents'), async () => {
    const name = nodeQueue();
    const flow = id => ({ name: 'p', queueName: name, opts: { jobId: id }, children: [{ name: 'c', queueName: name, opts: { jobId: 'C' } }] });
    await flowsOf(major).add(flow('P1'));
    await assert.rejects(ours('jobs', 'add_flow', flow('P2')), { code: 'other_parent' });
    assert.deepEqual(await hash(name, 'P2'), {});
    assert.equal((await hash(name, 'C')).parentKey, `${prefix}:${name}:P1`);
    const q2 = queueOf(name, major);
    assert.equal(await ours('jobs', 'add', name, 'c', {}, { jobId: 'C' }), 'C');
    assert.equal((await q2.add('c', {}, { jobId: 'C' })).id, 'C');
    assert.equal(await q2.getWaitingCount(), 1);
  });

  test(of('trap: a stalled check respects locks and gives back what has none'), async () => {
    const name = nodeQueue();
    const queue = queueOf(name, major);
    let release;
    const gate = new Promise(done => { release = done; });
    const held = await queue.add('x', {});
    workerOf(name, () => gate, major, { lockDuration: 30000, stalledInterval: 100 });
    await reaches(queue, held.id, 'active');
    const checks = [];
    await until('several checks have passed', async () => {
      const at = await redis.get(`${prefix}:${name}:stalled-check`);
      if (at && at !== checks.at(-1)) checks.push(at);
      return checks.length >= 5;
    });
    assert.equal((await hash(name, held.id)).stc, undefined);
    release(1);
    await reaches(queue, held.id, 'completed');
  });

  test(of('trap: a worker that renews keeps its job, however often the other side looks'), async () => {
    const name = nodeQueue();
    const queue = queueOf(name, major);
    const worker = await kasma([name], { lock: 1500, stalled: 60000 });
    const job = await queue.add('slow', { ms: 5000 });
    await reaches(queue, job.id, 'active');
    const node = workerOf(name, async () => 'stolen', major, { stalledInterval: 50 });
    await reaches(queue, job.id, 'completed');
    assert.equal((await queue.getJob(job.id)).returnvalue, 5000);
    assert.deepEqual([(await hash(name, job.id)).ats, (await hash(name, job.id)).stc], ['1', undefined]);
    await node.close();
    worker.kill('SIGTERM');
    assert.equal(await worker.ended, 0);
  });

  test(of('trap: a scheduler whose slots were missed goes on at the next one'), async () => {
    const name = nodeQueue();
    const queue = queueOf(name, major);
    const every = 200;
    await queue.upsertJobScheduler('s', { every }, { name: 'echo', data: 1 });
    const first = Number((await queue.getJobs(['waiting', 'delayed']))[0].id.split(':').at(-1));
    await until('several slots have passed', () => Date.now() > first + 4 * every);
    const worker = await kasma([name]);
    await until('it ran twice', async () => (await queue.getCompletedCount()) >= 2);
    const slots = (await queue.getJobs(['completed', 'delayed', 'active', 'waiting'])).map(job => Number(job.id.split(':').at(-1))).sort();
    assert.equal(slots[0], first);
    assert.ok(slots[1] > first + 4 * every, 'the missed ones are not made up for');
    for (const slot of slots) assert.equal((slot - first) % every, 0, `${slot} is aligned`);
    assert.ok((await queue.getDelayedCount()) <= 1);
    await ours('jobs_schedule', 'remove', name, 's');
    worker.kill('SIGTERM');
    await worker.ended;
  });

  test(of('rate limits: of the queue, of a worker and of a handler'), async () => {
    const name = kasmaQueue();
    const queue = queueOf(name, major);
    await queue.setGlobalRateLimit(3, 3600000);
    for (let i = 0; i < 5; i++) await queue.add('echo', i);
    await until('three ran', async () => (await queue.getCompletedCount()) === 3);
    assert.equal(await queue.getWaitingCount(), 2);
    assert.ok((await queue.getRateLimitTtl(3)) > 0);
    await queue.removeGlobalRateLimit?.();
    await redis.hdel(`${prefix}:${name}:meta`, 'max', 'duration');
    await redis.del(`${prefix}:${name}:limiter`);
    const other = kasmaQueue();
    const oq = queueOf(other, major);
    const stop = await oq.add('stop', { ms: 3600000 });
    await until('the queue is limited', async () => (await redis.get(`${prefix}:${other}:limiter`)) === '9007199254740991');
    await reaches(oq, stop.id, 'waiting');
    assert.equal((await hash(other, stop.id)).atm, undefined);
  });

  test(of('global concurrency is honoured by ours'), async () => {
    const name = kasmaQueue();
    const queue = queueOf(name, major);
    await queue.setGlobalConcurrency(2);
    for (let i = 0; i < 6; i++) await queue.add('slow', { ms: 60 });
    let most = 0;
    await until('all have run', async () => {
      most = Math.max(most, await queue.getActiveCount());
      return (await queue.getCompletedCount()) === 6;
    });
    assert.ok(most <= 2, `${most} at once`);
  });

  test(of('counts, lists, removal, drain and clean agree'), async () => {
    const name = nodeQueue();
    const queue = queueOf(name, major);
    const ids = await ours('jobs', 'add_bulk', name, [{ name: 'a' }, { name: 'b', opts: { priority: 3 } }, { name: 'c', opts: { delay: 60000 } }]);
    assert.deepEqual(await queue.getJobCounts('wait', 'prioritized', 'delayed'), { wait: 1, prioritized: 1, delayed: 1 });
    assert.deepEqual((await queue.getJobs(['wait', 'prioritized', 'delayed'])).map(job => job.name).sort(), ['a', 'b', 'c']);
    await (await queue.getJob(ids[0])).remove();
    await (await queue.getJob(ids[1])).changePriority({ priority: 0 });
    assert.equal((await ours('jobs_queue', 'counts', name)).waiting, 1);
    await queue.drain(true);
    assert.deepEqual(Object.values(await ours('jobs_queue', 'counts', name)).filter(Boolean), []);
  });
}

test('bull-board lists our jobs and retries them', async () => {
  const name = kasmaQueue();
  const queue = queueOf(name);
  const id = await ours('jobs', 'add', name, 'fail', { shown: 'on the board' }, { attempts: 1 });
  await reaches(queue, id, 'failed');
  const adapter = new ExpressAdapter();
  createBullBoard({ queues: [new BullMQAdapter(queue)], serverAdapter: adapter });
  const app = express();
  app.use('/', adapter.getRouter());
  const server = await new Promise(done => { const s = app.listen(0, '127.0.0.1', () => done(s)); });
  try {
    const base = `http://127.0.0.1:${server.address().port}`;
    const listed = await (await fetch(`${base}/api/queues?activeQueue=${name}&status=failed&page=1&jobsPerPage=10`)).json();
    const shown = listed.queues.find(one => one.name === name);
    assert.equal(shown.counts.failed, 1);
    assert.equal(shown.jobs[0].id, id);
    assert.deepEqual(shown.jobs[0].data, { shown: 'on the board' });
    assert.equal((await fetch(`${base}/api/queues/${name}/${id}/retry/failed`, { method: 'PUT' })).status, 204);
    await until('it has run again', async () => Number((await hash(name, id)).atm) === 2 && (await state(queue, id)) === 'failed');
  } finally {
    server.close();
    server.closeAllConnections();
  }
});

test('trap: pause by one major, resume by the other, with ours between', async () => {
  for (const [pauser, resumer] of [[5, 6], [6, 5]]) {
    const name = kasmaQueue();
    const one = queueOf(name, pauser);
    await one.waitUntilReady();
    await one.add('echo', 0);
    await until('it ran', async () => (await one.getCompletedCount()) === 1);
    await one.pause();
    await one.add('echo', 1);
    await ours('jobs', 'add', name, 'echo', 2);
    const other = queueOf(name, resumer);
    await other.waitUntilReady();
    await ours('jobs', 'add', name, 'echo', 3);
    await ours('jobs_queue', 'resume', name);
    await until(async () => `all four ran, ${JSON.stringify(await ours('jobs_queue', 'counts', name))}`, async () => (await other.getCompletedCount()) === 4);
  }
});

test('what Node wrote by hand or left half is survived', async () => {
  const name = kasmaQueue();
  const queue = queueOf(name);
  await queue.waitUntilReady();
  const key = `${prefix}:${name}`;
  await redis.lpush(`${key}:wait`, 'ghost');
  const good = await queue.add('echo', 1);
  await reaches(queue, good.id, 'completed');
  assert.equal(await redis.llen(`${key}:active`), 0);
  await redis.hset(`${key}:broken`, { name: 'echo', data: '{', opts: 'nonsense', timestamp: 'x', delay: '', priority: '' });
  await redis.lpush(`${key}:wait`, 'broken');
  await redis.zadd(`${key}:marker`, 0, '0');
  await until('it is failed', async () => (await queue.getFailedCount()) === 1);
  // Data edited while it waits is what is run.
  await queue.pause();
  const job = await queue.add('echo', { v: 1 });
  await job.updateData({ v: 2 });
  await queue.resume();
  await reaches(queue, job.id, 'completed');
  assert.deepEqual((await queue.getJob(job.id)).returnvalue, { v: 2 });
});

const worker = await kasma(['control', ...mine]);
let result = [0, 1];
try {
  result = await run();
} finally {
  if (result[1]) console.log(worker.text.slice(-3000));
  await finish();
}
console.log(`${result[0]} passed, ${result[1]} failed`);
process.exit(result[1] ? 1 : 0);
