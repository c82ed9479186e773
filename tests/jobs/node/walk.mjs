// Steps 20 and 21 of the acceptance walk, with the product's own handlers: a mail server that goes away, schedules in a cluster.
import { execFileSync } from 'node:child_process';
import net from 'node:net';
import { assert, eventNames, finish, hash, queueOf, redis, root, run, start, stop, test, until, workerOf } from './stage.mjs';

/** A mail server of the few words that a sender needs. `stuck`: it keeps the mail and does not answer. */
function mailServer(port) {
  const mails = [], state = { stuck: false };
  const sockets = new Set();
  const server = net.createServer(socket => {
    let data, buffer = '';
    sockets.add(socket);
    socket.on('close', () => sockets.delete(socket));
    socket.on('error', () => {});
    const say = line => socket.write(`${line}\r\n`);
    say('220 test');
    socket.on('data', chunk => {
      buffer += chunk;
      for (let at; (at = buffer.indexOf('\r\n')) >= 0;) {
        const line = buffer.slice(0, at);
        buffer = buffer.slice(at + 2);
        if (data !== undefined) {
          if (line !== '.') { data += `${line}\n`; continue; }
          mails.push(data);
          data = undefined;
          if (!state.stuck) say('250 taken');
        } else if (/^DATA/i.test(line)) {
          data = '';
          say('354 go on');
        } else if (/^QUIT/i.test(line)) {
          say('221 bye');
          socket.end();
        } else say(`250 ${/^EHLO/i.test(line) ? 'test' : 'ok'}`);
      }
    });
  });
  return new Promise(done => server.listen(port, '127.0.0.1', () => done({ port: server.address().port, mails, state,
    close: () => new Promise(ended => { for (const socket of sockets) socket.destroy(); server.close(ended); }) })));
}

const reaches = (queue, id, wanted) => until(async () => `job ${id} is ${wanted}, not ${await (await queue.getJob(id))?.getState()}`,
  async () => (await (await queue.getJob(id))?.getState()) === wanted);

test('walk 20: a mail server that is down, then back; kill -9 in the middle of a mail', async () => {
  const queue = queueOf('mail-queue');
  await queue.waitUntilReady();
  // Where nobody listens yet.
  const mailPort = Number(execFileSync(`${root}/stack/free-port`, { encoding: 'utf8' }));
  const work = async () => {
    const child = start(process.env.BINARY, ['work', '--queues', 'mail-queue', '--lock-ms', '4000', '--stalled-ms', '300'],
      { env: { MAIL_HOST: '127.0.0.1', MAIL_PORT: String(mailPort), MAIL_STARTTLS: 'off', SHUTDOWN_GRACE: '5' } });
    await until(() => `kasma work runs: ${child.text}`, () => child.text.includes('ready in'));
    return child;
  };
  const worker = await work();
  // The form of the former backend.
  const otp = n => ['send-otp', { to: `walk${n}@example.test`, subject: 'Your code', html: '<b>123456</b>', otp: '123456', type: 'LOGIN' },
    { attempts: 3, backoff: { type: 'exponential', delay: 3000 } }];
  const { id } = await queue.add(...otp(1));
  for (const delay of [3000, 6000]) {
    await reaches(queue, id, 'delayed');
    assert.equal((await hash('mail-queue', id)).delay, String(delay));
    const job = await queue.getJob(id);
    assert.ok(job.failedReason.length > 0);
    await job.promote();
    await until('it was tried', async () => Number((await hash('mail-queue', id)).atm) > delay / 3000);
  }
  await reaches(queue, id, 'failed');
  const row = await hash('mail-queue', id);
  assert.deepEqual([row.atm, JSON.parse(row.stacktrace).length], ['3', 3]);
  // Where a worker was too busy to hear that it has the job, the job was given back: a start that was no attempt.
  assert.equal(Number(row.ats), 3 + Number(row.stc ?? 0));
  // The queue is the house's own: mails that wait in the outbox come too, and their events stand between.
  assert.deepEqual((await eventNames('mail-queue', id)).slice(-2), ['failed', 'retries-exhausted']);
  await until('the queue is drained', async () => {
    const names = await eventNames('mail-queue');
    return names.lastIndexOf('drained') > names.indexOf('retries-exhausted');
  });

  const server = await mailServer(mailPort);
  await (await queue.getJob(id)).retry();
  await reaches(queue, id, 'completed');
  const came = n => server.mails.filter(mail => mail.includes(`walk${n}@example.test`)).length;
  assert.equal(came(1), 1);

  // Killed while the mail server has the mail and has not answered.
  server.state.stuck = true;
  const third = await queue.add(...otp(3));
  await until('the mail server has it', () => came(3) === 1);
  const pids = await import('node:fs').then(fs => fs.readFileSync(`/proc/${worker.pid}/task/${worker.pid}/children`, 'utf8').trim().split(' '));
  for (const pid of pids) process.kill(Number(pid), 'SIGKILL');
  server.state.stuck = false;
  const began = Date.now();
  await reaches(queue, third.id, 'completed');
  const took = Date.now() - began;
  const again = await hash('mail-queue', third.id);
  // An attempt that a busy store refused is one more of both.
  assert.deepEqual([again.stc, Number(again.ats)], ['1', Number(again.atm) + 1]);
  await stop(worker);

  // A Node worker while ours is stopped.
  const second = await queue.add(...otp(2));
  const node = workerOf('mail-queue', async () => 'sent by Node');
  await reaches(queue, second.id, 'completed');
  assert.equal((await queue.getJob(second.id)).returnvalue, 'sent by Node');
  await node.close();
  await server.close();
  return `done again ${took} ms after kill -9, with a lock of 4000 ms`;
});

test('walk 21: the house\'s schedules run once a cluster: three nodes, a schedule of 2000 ms, ten slots', async () => {
  const queue = queueOf('system-queue');
  // The worker of another test has set the schedules too, with their own periods.
  const forget = async () => redis.del(await redis.keys(`${queue.opts.prefix}:system-queue:*`));
  await queue.waitUntilReady();
  await forget();
  const nodes = [];
  for (let i = 0; i < 3; i++) nodes.push(start(process.env.BINARY, ['work'], { env: { SCHEDULES: 'otp-cleanup=2000' } }));
  for (const node of nodes) {
    await until(() => `a node runs: ${node.text}`, () => {
      if (node.exitCode !== null) throw new Error(`a node ended: ${node.text}`);
      return node.text.includes('ready in');
    });
  }
  const runs = async () => (await queue.getCompleted(0, 99)).filter(job => job.name === 'otp-cleanup');
  // Counted by the times that the runs were for: when a busy machine comes to them, and which it comes too late for, is another
  // matter; and so is a run that had to be tried again since a store was busy.
  const slot = job => Number(job.id.split(':').at(-1));
  await until('ten slots have run', async () => (await runs()).length >= 10, 60);
  const seen = await runs();
  const slots = seen.map(slot).sort((a, b) => a - b);
  assert.equal(new Set(slots).size, slots.length, 'no slot ran twice');
  for (const one of slots) assert.equal((one - slots[0]) % 2000, 0, `${one} is aligned`);
  for (const job of seen) assert.equal(job.attemptsStarted, job.attemptsMade + job.stalledCounter, 'no run was taken by two');
  assert.ok((await queue.getJobSchedulers()).length >= 8, 'the other schedules stand too');
  assert.equal(await queue.getFailedCount(), 0, JSON.stringify((await queue.getFailed()).map(job => [job.name, job.failedReason])));
  // Redis is emptied: the schedules come back by themselves, and with a start at once.
  await forget();
  nodes.push(start(process.env.BINARY, ['work'], { env: { SCHEDULES: 'otp-cleanup=2000' } }));
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
